"""What the tests of `lora` and `dora` share: training rows, trained-looking weights, and plain PEFT as the judge."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.context import BuildContext
from luthier.core.contracts import Adapter
from luthier.core.environment import Environment
from luthier.core.plan import Precision
from luthier.core.saving import load_trained, save_trained
from luthier.plugins import dora, lora

FP32 = Precision(name="fp32", weights="float32", compute="float32", why="")
HERE = Environment(python="3.11", platform="test", cpu="test", cores=2, memory=1 << 30)


class Kit:
    """Small verbs; `ids` are two rows of tokens."""

    here = HERE

    def __init__(self, load: Callable[[str], tuple[Any, Any]], ids: torch.Tensor, tokenizer: Any) -> None:
        self.load, self.ids = load, ids
        self.context = BuildContext(precision=FP32, tokenizer=tokenizer, original_tokenizer=tokenizer, batches=self.batches)

    def batches(self, count: int) -> Iterator[dict[str, torch.Tensor]]:
        """Four rows each; the last row padded, its first half not trained."""
        numbers = torch.Generator().manual_seed(5)
        for _ in range(count):
            ids = torch.randint(0, 250, (4, 24), generator=numbers)
            mask = torch.ones_like(ids)
            mask[-1, 16:] = 0
            labels = torch.where(mask.bool(), ids, -100)
            labels[-1, :8] = -100
            yield {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def adapter(self, name: str) -> Adapter[Any]:
        (adapter,) = {"lora": lora, "dora": dora}[name].luthier_adapters()
        return adapter

    def attach(self, kind: str, name: str = "lora", **options: Any) -> tuple[Any, Any, Any]:
        """(adapted model in evaluation mode, profile, options); the options must be supported."""
        model, profile = self.load(kind)
        adapter = self.adapter(name)
        config = adapter.config(**options)
        support = adapter.supports(profile, self.here, config)
        assert support, support.reason
        torch.manual_seed(11)
        return adapter.attach(model, profile, config, context=self.context).eval(), profile, config  # type: ignore[call-arg]

    def refusal(self, kind: str, name: str = "lora", **options: Any) -> str:
        """Reason and fix of the `no`."""
        _, profile = self.load(kind)
        support = self.adapter(name).supports(profile, self.here, self.adapter(name).config(**options))
        assert not support
        return f"{support.reason}; {support.fix}"

    def train(self, model: Any, steps: int = 3, lr: float = 0.02) -> Any:
        """A few steps of SGD on real gradients, so that every trained tensor moves the way training moves it."""
        for parameter in self.trained(model).values():
            parameter.grad = None
        optimizer = torch.optim.Adam(self.trained(model).values(), lr=lr)
        model.train()
        for batch in self.batches(steps):
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return model.eval()

    def trained(self, model: Any) -> dict[str, torch.nn.Parameter]:
        return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

    def logits(self, model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(input_ids=self.ids, use_cache=False).logits

    def base_logits(self, kind: str) -> torch.Tensor:
        return self.logits(self.load(kind)[0])

    def save(self, model: Any, folder: Path, name: str = "lora") -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        save_trained(model, folder, self.adapter(name))
        return folder

    def reload(self, model: Any, folder: Path, name: str = "lora") -> Any:
        return load_trained(model, folder, self.adapter(name), trainable=True)

    def plain_peft(self, kind: str, folder: Path) -> Any:
        """The original base model with what is in the folder, by PEFT alone."""
        from peft import PeftModel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return PeftModel.from_pretrained(self.load(kind)[0], str(folder)).eval()


@pytest.fixture
def kit(load: Callable[[str], tuple[Any, Any]], ids: torch.Tensor, tiny_tokenizer: Any) -> Kit:
    return Kit(load, ids, tiny_tokenizer)
