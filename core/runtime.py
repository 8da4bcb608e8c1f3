"""The one mutable object of a run: what the plan becomes while it is carried out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.calling import call
from luthier.core.context import BuildContext
from luthier.core.contracts import Adapter, AnyMethod, OptimizerMethod, Undo
from luthier.core.extensions import RunEvent
from luthier.core.frozen import freeze

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from luthier.core.catalog import Catalog
    from luthier.core.config import RunConfig
    from luthier.core.data import PreparedData
    from luthier.core.data.stream import StreamSchedule
    from luthier.core.meter import MemoryMeter
    from luthier.core.output import OutputFolder
    from luthier.core.plan import Plan, Step


@dataclass
class Runtime:
    """Given to a stage's `run(runtime, config)`.

    `stop` is set when the user asked for the run to end (Ctrl-C): the stage saves a checkpoint at the next step and
    raises `Interrupted`. `resume_from` is the checkpoint folder to continue, or None. `trained_parameters` are those that
    the optimizer holds, known once it is built: one that goes block by block freezes the others meanwhile. `stream` has the
    rows to train on where they are streamed; then `data.train` is empty. `ended_early` is why a stage ended before the last
    step on purpose.
    """

    plan: Plan
    config: RunConfig
    catalog: Catalog
    output: OutputFolder
    emit_to: Callable[[RunEvent], None]
    meter: MemoryMeter
    resume_from: Path | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    model: nn.Module | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    original_tokenizer: PreTrainedTokenizerBase | None = None
    data: PreparedData | None = None
    stream: StreamSchedule | None = None
    trained_parameters: int | None = None
    ended_early: str | None = None
    undo: list[Undo] = field(default_factory=list)

    def emit(self, kind: Any, message: str = "", **values: Any) -> None:
        """Tell every observer; values must be JSON-shaped."""
        self.emit_to(RunEvent(kind=kind, message=message, values=freeze(values)))

    def notice(self, text: str) -> None:
        """Tell the user something worth knowing."""
        self.emit("notice", text)

    def build_context(self) -> BuildContext:
        """What an `attach` or `apply` may ask for."""
        return BuildContext(
            precision=self.plan.precision,
            tokenizer=self.tokenizer,
            original_tokenizer=self.original_tokenizer,
            batches=self.first_batches,
            notice=self.notice,
        )

    def first_batches(self, count: int) -> Iterator[dict[str, Tensor]]:
        """Up to `count` padded training batches, on the run's device.

        In the order in which training will see them; under `data.packing` in that of a run that pads, so that whoever asks
        always gets rows of their own with a mask. Of a stream, those of its first window.
        """
        from luthier.core.data import BatchSchedule, collate

        assert self.data is not None
        assert self.tokenizer is not None
        train = self.config.train
        examples = self.data.train if self.stream is None else self.stream.first.examples
        schedule = BatchSchedule(examples.lengths, batch_tokens=train.batch_tokens, seed=train.seed, max_steps=count)
        for rows in schedule:
            batch = collate([examples[row] for row in rows], pad_token_id=self.tokenizer.pad_token_id)
            yield {name: values.to(self.plan.device) for name, values in batch.items()}

    def method(self, step: Step) -> tuple[AnyMethod, Any]:
        """A step's method and its configuration object."""
        from luthier.core.trained import method_of

        return method_of(step, self.catalog)

    def save_model(self, folder: Path) -> None:
        """Write what was trained into `folder`: by the adapter's own `save`, or as PEFT and transformers lay it out."""
        from luthier.core.saving import save_base_config, save_trained

        method, _ = self.method(self.plan.step("adapter"))
        assert isinstance(method, Adapter)
        assert self.model is not None
        save_trained(self.model, folder, method)
        if {"base.changed", "adapter.detachable"} <= set(self.plan.traits):
            save_base_config(self.model, folder)

    def build_optimizer(self) -> tuple[Any, Any, tuple[Callable[[int], None], ...]]:
        """(optimizer, its options, callables to run after each optimizer step), over the parameters that train now."""
        method, options = self.method(self.plan.step("optimizer"))
        assert isinstance(method, OptimizerMethod)
        context = self.build_context()
        optimizer, after_step = call(method.build, self.model, options, profile=self.plan.profile, context=context)
        self.trained_parameters = sum(one.numel() for group in optimizer.param_groups for one in group["params"])
        return optimizer, options, tuple(after_step)
