"""core/references.py on real adapters: every way computes the model as training found it, and changes nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from luthier.core.references import ReferencePolicy
from tests.stages.running import shake

WAYS = ("disabled", "copied", "precomputed", "model")
# Sections of the configuration, and the ways that there are for the adapter.
CASES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "lora": ({"adapter": {"use": "lora", "rank": 4}}, WAYS),
    "pissa": ({"adapter": {"use": "lora", "rank": 4, "init": "pissa"}}, WAYS[1:]),
    "dora": ({"adapter": {"use": "dora", "rank": 4}}, WAYS),
    "oft": ({"adapter": {"use": "oft", "block_size": 8}}, WAYS),
    "modules": ({"adapter": {"use": "lora", "rank": 4, "modules_to_save": ["embed", "head", "norm"]}}, WAYS),
    "tokens": ({"adapter": {"use": "lora", "rank": 4, "trainable_tokens": [5, 6]}}, WAYS),
    "head": ({"adapter": {"use": "lora", "rank": 4, "target": ["attn", "head"]}}, WAYS),
    "nf4": ({"adapter": {"use": "lora", "rank": 4}, "patches": ["nf4"]}, WAYS),
    "nf4-dora": ({"adapter": {"use": "dora", "rank": 4}, "patches": ["nf4"]}, WAYS),
    "checkpointing": ({"adapter": {"use": "lora", "rank": 4}, "patches": ["checkpointing"]}, WAYS),
    "lora_fa": ({"adapter": {"use": "lora", "rank": 4}, "optimizer": "lora_fa"}, WAYS),
    "full": ({"adapter": "full"}, WAYS[2:]),
    "freeze": ({"adapter": {"use": "freeze", "layers": 1}}, WAYS[2:]),
}


def trains(model: Any) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def trained_state(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


def restore(model: Any, state: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, value in state.items():
            model.get_parameter(name).copy_(value)


def check(runtime: Any, how: Any, logits: Any) -> None:
    """The reference is what the model computed when it was made; the model and what trains are as before."""
    model: Any = runtime.model
    expected, before = logits(model.eval()), trains(model)
    reference = ReferencePolicy(model, how)
    assert trains(model) == before
    assert torch.equal(logits(model), expected), "making the reference changed the model"
    if how != "precomputed":
        shake(model)
        assert not torch.allclose(logits(model), expected, atol=1e-3), "nothing trained, so nothing was tested"
    now = logits(model)
    model.train()
    with reference() as frozen:
        found = logits(frozen)
    assert model.training
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(model.eval()), now), "the model is not what it was before the block"
    assert trains(model) == before


@pytest.mark.parametrize("case", CASES)
def test_every_way_is_the_model_as_it_was(bench: Any, logits: Any, case: str) -> None:
    sections, ways = CASES[case]
    runtime = bench.attached(stage={"use": "dpo", "reference": "model"}, **sections)
    start = trained_state(runtime.model)
    for how in ways:
        check(runtime, how, logits)
        restore(runtime.model, start)
    if "copied" in ways:
        # A copy is of what was there then: after some training, too.
        shake(runtime.model, seed=8)
        runtime.model.delete_adapter("reference")
        check(runtime, "copied", logits)


@pytest.mark.parametrize("how", ["disabled", "copied"])
def test_an_a_that_lora_fa_froze_stays_frozen(bench: Any, how: Any) -> None:
    runtime = bench.attached(optimizer="lora_fa")
    reference = ReferencePolicy(runtime.model, how)
    runtime.build_optimizer()
    trained = trains(runtime.model)
    assert trained
    assert not [name for name in trained if "lora_A" in name or "reference" in name]
    with reference():
        assert trains(runtime.model) == trained
    assert trains(runtime.model) == trained


def test_stacked_adapters_stay_on_in_the_reference(bench: Any, logits: Any) -> None:
    """Base plus the adapters below: neither the base alone, nor what trains on top."""
    first = bench.run(output="first", train={"max_steps": 3})
    stacked = {"use": "lora", "rank": 4, "stack_on": [str(first.folder)]}
    for how in ("disabled", "copied", "model"):
        runtime = bench.attached(output="second", adapter=stacked)
        plain = logits(bench.attached(output="third").model.eval())
        assert not torch.allclose(logits(runtime.model.eval()), plain, atol=1e-3), "the adapter below does nothing"
        check(runtime, how, logits)


def test_dropout_is_off_in_the_reference(bench: Any, logits: Any) -> None:
    runtime = bench.attached(adapter={"use": "lora", "rank": 4, "init": "pissa", "dropout": 0.5})
    model: Any = runtime.model
    expected = logits(model.eval())
    for how in ("copied", "model"):
        reference = ReferencePolicy(model, how)
        model.train()
        assert not torch.allclose(logits(model), expected, atol=1e-3), "dropout does nothing in training either"
        with reference() as frozen:
            assert torch.equal(logits(frozen), expected)
        assert model.training


def test_nothing_to_switch_off_is_said(bench: Any) -> None:
    from luthier.core.errors import LuthierError

    with pytest.raises(LuthierError, match="nothing of this model can be switched off") as caught:
        ReferencePolicy(bench.attached(adapter="full").model, "disabled")
    assert "reference: model" in str(caught.value.fix)
