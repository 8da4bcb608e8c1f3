"""The check before the first step of a packed run: silent errors of a model or kernel become loud ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from luthier.core.errors import LuthierError
from luthier.core.language_modeling import COMPARED, batches, check_packing, packing_error
from luthier.plugins.pt import PtConfig
from luthier.plugins.pt.stage import train as train_pt
from luthier.plugins.sft import SftConfig
from luthier.plugins.sft.stage import train as train_sft


def break_positions(model: Any) -> None:
    """As a model that takes positions and does not use them: nothing raises, the documents run into each other."""
    forward = model.forward
    model.forward = lambda *args, position_ids=None, **more: forward(*args, **more)


def break_mask(model: Any) -> None:
    """As a kernel that looks at the whole row: positions start anew, and what came before is seen."""
    forward = model.forward

    def masked(input_ids: Any = None, position_ids: Any = None, attention_mask: Any = None, **more: Any) -> Any:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return forward(input_ids=input_ids, position_ids=position_ids, attention_mask=mask, **more)

    model.forward = masked


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
def test_a_sound_model_passes_and_the_user_hears_of_it(make_run: Callable[..., Any], kind: str) -> None:
    made = make_run(kind)
    state = torch.random.get_rng_state()
    made.runtime.model.train()
    check_packing(made.runtime, batches(made.runtime))
    (said,) = made.said
    assert said.startswith("packing: documents are kept apart (logits of two of them, packed and apart, differ by ")
    assert made.runtime.model.training
    assert torch.equal(torch.random.get_rng_state(), state), "the check draws no random number"
    assert all(parameter.grad is None for parameter in made.runtime.model.parameters())


@pytest.mark.parametrize("breaking", [break_positions, break_mask])
@pytest.mark.parametrize(("train", "options"), [(train_sft, SftConfig()), (train_pt, PtConfig())])
def test_a_model_that_mixes_documents_stops_the_run(
    make_run: Callable[..., Any], breaking: Any, train: Any, options: Any
) -> None:
    made = make_run("llama")
    before = {name: value.clone() for name, value in made.runtime.model.state_dict().items()}
    breaking(made.runtime.model)
    with pytest.raises(LuthierError, match="packed documents see each other: the logits of two documents differ") as caught:
        train(made.runtime, options)
    assert caught.value.where == "data.packing"
    assert "leave out data.packing" in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in made.runtime.model.state_dict().items())


@pytest.mark.parametrize("breaking", [break_positions, break_mask])
def test_it_is_seen_in_bfloat16_too(make_run: Callable[..., Any], breaking: Any) -> None:
    """Where rounding leaves a wider limit: 2^-8 of each number, and a few layers of it."""
    made = make_run("llama")
    precision = dataclasses.replace(made.runtime.plan.precision, weights="bfloat16", compute="bfloat16")
    made.runtime.plan = dataclasses.replace(made.runtime.plan, precision=precision)
    made.runtime.model.to(torch.bfloat16)
    check_packing(made.runtime, batches(made.runtime))
    breaking(made.runtime.model)
    with pytest.raises(LuthierError, match="packed documents see each other"):
        check_packing(made.runtime, batches(made.runtime))


def test_one_wrong_token_is_no_wrong_document(make_run: Callable[..., Any], documents: Any) -> None:
    """A router that rounding sends to another expert: the median does not mind; a shift of every token it does."""
    made = make_run("mixtral")
    rows = list(documents((20, 30)))
    forward = made.runtime.model.forward

    def shifted(at: Any) -> Callable[..., Any]:
        def call(**inputs: Any) -> Any:
            outputs = forward(**inputs)
            if "position_ids" in inputs:
                outputs.logits[:, at] += 1.0
            return outputs

        return call

    made.runtime.model.forward = shifted(slice(25, 26))
    assert packing_error(made.runtime, rows) < 1e-5
    made.runtime.model.forward = shifted(slice(20, None))
    assert packing_error(made.runtime, rows) > 0.05


def test_it_costs_two_short_forward_passes(make_run: Callable[..., Any], documents: Any) -> None:
    made = make_run("llama", rows=documents((300, 200, 90)), train={"batch_tokens": 512})
    shapes: list[tuple[int, ...]] = []
    forward = made.runtime.model.forward

    def counted(**inputs: Any) -> Any:
        shapes.append(tuple(inputs["input_ids"].shape))
        return forward(**inputs)

    made.runtime.model.forward = counted
    check_packing(made.runtime, batches(made.runtime))
    assert shapes == [(1, 2 * COMPARED), (2, COMPARED)]


def test_nothing_to_check(make_run: Callable[..., Any], documents: Any) -> None:
    alone = make_run("llama", rows=documents((60, 61, 62)))
    check_packing(alone.runtime, batches(alone.runtime))
    assert alone.said == ["packing: every row fills a batch of its own, so no two documents meet in one"]
    padded = make_run("llama", packing=False)
    check_packing(padded.runtime, batches(padded.runtime))
    assert padded.said == []


def test_the_batches_of_other_methods_stay_padded(make_run: Callable[..., Any]) -> None:
    """What a calibration or a patch asks for has rows of their own and a mask, packed run or not."""
    made = make_run("llama")
    found = list(made.runtime.first_batches(3))
    assert len(found) == 3
    for batch in found:
        assert set(batch) == {"input_ids", "attention_mask", "labels"}
        assert np.prod(batch["input_ids"].shape) <= 64
