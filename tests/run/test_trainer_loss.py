"""The loss does not depend on how the rows of a step are split into micro-batches; evaluation counts every token once."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import CausalLMOutput

from luthier.core.contracts import OptimizerMethod
from luthier.core.data import collate
from luthier.core.errors import DataError
from luthier.core.options import NoOptions
from luthier.core.progress import supervised_tokens

LENGTHS = (3, 40, 7, 19, 52, 4, 11, 30)


class Groups:
    """A schedule with the batches written out."""

    def __init__(self, batches: list[list[int]], accumulation: int) -> None:
        self.batches, self.accumulation = batches, accumulation

    def __iter__(self) -> Any:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def steps(self) -> int:
        return -(-len(self.batches) // self.accumulation)

    def epoch_of(self, step: int) -> float:
        return step / self.steps


class Toy(torch.nn.Module):
    """A causal model that stays in float64 throughout: each position sees the mean of the embeddings up to it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(64, 16, dtype=torch.float64)
        self.head = torch.nn.Linear(16, 64, dtype=torch.float64)

    def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None, **kwargs: Any) -> CausalLMOutput:
        hidden = self.embedding(input_ids)
        positions = torch.arange(1, hidden.shape[1] + 1, dtype=torch.float64)
        logits = self.head(torch.tanh(hidden.cumsum(1) / positions[:, None]))
        loss = None if labels is None else ForCausalLMLoss(logits, labels, 64, **kwargs)
        return CausalLMOutput(loss=loss, logits=logits)


class OldToy(Toy):
    """The same, of the old kind: its forward takes no loss arguments, and its loss is the mean of its batch."""

    def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> CausalLMOutput:
        return super().forward(input_ids, attention_mask, labels)


def keep_gradients(store: dict[str, torch.Tensor]) -> OptimizerMethod[NoOptions]:
    """An optimizer that only writes down the gradient it is given."""

    class Keep(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for index, parameter in enumerate(self.param_groups[0]["params"]):
                store[str(index)] = parameter.grad.clone()

    return OptimizerMethod(
        name="keep",
        summary="",
        build=lambda model, config: (Keep([p for p in model.parameters() if p.requires_grad], lr=0.0), ()),
    )


def token_losses(model: Any, rows: Any, indices: range) -> tuple[torch.Tensor, int]:
    """Sum of the token losses row by row, without padding, and how many tokens there are: the reference."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for index in indices:
        ids, labels = (torch.from_numpy(rows[index][key])[None] for key in ("input_ids", "labels"))
        logits = model(input_ids=ids).logits[0, :-1].double()
        total = total + cross_entropy(logits, labels[0, 1:], ignore_index=-100, reduction="sum")
        count += int((labels[0, 1:] != -100).sum())
    return total, count


@pytest.fixture
def float64_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' loss casts logits to float32: in these tests it keeps them in float64."""
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)


@pytest.mark.usefixtures("float64_loss")
@pytest.mark.parametrize("kind", [Toy, OldToy], ids=["loss-kwargs", "mean-loss"])
@pytest.mark.parametrize("batches", [[[1], [0, 2, 5], [3, 4], [6, 7]], [[0, 1, 2, 3, 4, 5, 6, 7]]], ids=["four", "one"])
def test_gradient_is_that_of_all_tokens_together(make_run: Any, rows: Any, kind: Any, batches: Any) -> None:
    data, model = rows(LENGTHS), kind()
    total, count = token_losses(model, data, range(len(LENGTHS)))
    (total / count).backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()

    store: dict[str, torch.Tensor] = {}
    run = make_run(model, rows=data, optimizer=keep_gradients(store), accumulation=len(batches), max_steps=1)
    run.trainer(schedule=Groups(batches, len(batches))).fit()
    for index, gradient in enumerate(expected):
        torch.testing.assert_close(store[str(index)], gradient, rtol=1e-10, atol=1e-14)
    assert run.told("step")[0]["loss"] == pytest.approx(float(total.detach() / count), rel=1e-6)


@pytest.mark.parametrize("lora", [None, 0.0], ids=["full", "lora"])
def test_gradient_of_a_transformers_model(make_run: Any, llama: Any, rows: Any, lora: Any) -> None:
    """In float32: transformers' layers compute norms and softmax in it whatever the weights are."""
    data, model = rows(LENGTHS), llama(lora=lora)
    total, count = token_losses(model, data, range(len(LENGTHS)))
    (total / count).backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    expected = [parameter.grad.clone() for parameter in trained]
    model.zero_grad()
    store: dict[str, torch.Tensor] = {}
    run = make_run(model, rows=data, optimizer=keep_gradients(store), accumulation=4, max_steps=1)
    run.trainer(schedule=Groups([[1], [0, 2, 5], [3, 4], [6, 7]], 4)).fit()
    assert len(store) == len(expected)
    for index, gradient in enumerate(expected):
        torch.testing.assert_close(store[str(index)], gradient, rtol=1e-3, atol=1e-6)


def test_last_step_with_fewer_batches_is_weighted_by_its_own_tokens(make_run: Any, llama: Any, rows: Any) -> None:
    data, model = rows(LENGTHS), llama()
    run = make_run(model, rows=data, optimizer=keep_gradients({}), accumulation=2, max_steps=2)
    run.trainer(schedule=Groups([[0, 1, 2], [3, 4], [5]], 2)).fit()
    for step, indices in enumerate((range(5), range(5, 6))):
        total, count = token_losses(model, data, indices)
        assert run.told("step")[step]["loss"] == pytest.approx(float(total.detach() / count), rel=1e-5)


def test_held_out_loss_is_the_mean_over_tokens(make_run: Any, llama: Any, rows: Any) -> None:
    held_out = (50, 4, 9, 33, 6)
    model = llama()
    run = make_run(model, held_out=held_out, max_steps=1, options={"lr": 1e-30})
    metrics = run.trainer().fit()
    total, count = token_losses(model.eval(), rows(held_out), range(5))
    assert metrics["eval_loss"] == pytest.approx(float(total.detach() / count), rel=1e-5)
    assert metrics["eval_tokens"] == count
    assert run.told("evaluate") == [{"step": 1, "loss": metrics["eval_loss"], "tokens": count}]


def test_position_zero_is_no_target(rows: Any) -> None:
    batch = partial(collate, pad_token_id=0)([rows((2,))[0], rows((7,))[0]])
    batch["labels"][:, 0] = 5
    shifted = batch["labels"].flatten().tolist()
    by_hand = sum(label != -100 for label in shifted) - 2
    assert int(supervised_tokens(batch["labels"])) == by_hand


def test_a_step_without_a_supervised_token_is_refused(make_run: Any, llama: Any, rows: Any) -> None:
    data = rows((4, 4))
    data.__class__ = type(
        "Silent", (rows,), {"__getitem__": lambda self, i: {"input_ids": self._ids[i], "labels": self._ids[i] * 0 - 100}}
    )
    with pytest.raises(DataError, match="no token of optimizer step 1 is supervised"):
        make_run(llama(), rows=data, max_steps=1).trainer().fit()
