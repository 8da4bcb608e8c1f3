"""`dpo` with adapters that are unlike LoRA on projections: on the head, tokens before every row, other tuners of PEFT."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from luthier.core.references import ReferencePolicy
from luthier.core.testing.models import tiny_model
from luthier.plugins._trl.scoring import TokenScorer
from luthier.plugins.peft.tuners import TUNERS
from tests.stages.running import shake

# What a tuner needs on a model of 64 features.
OPTIONS: dict[str, dict[str, Any]] = {
    "c3a": {"block_size": 16},
    "road": {"group_size": 16},
    "shira": {"r": 2},
    "vblora": {"vector_length": 16, "num_vectors": 32},
    "waveft": {"n_frequency": 64},
}
COPIED = [name for name, tuner in TUNERS.items() if tuner.kind != "prompt"]


@pytest.mark.parametrize("tuner", COPIED)
def test_every_tuner_that_adapts_weights_can_be_copied(bench: Any, logits: Any, tuner: str) -> None:
    adapter = {"use": "peft", "tuner": tuner, "options": OPTIONS.get(tuner, {})}
    runtime = bench.attached(adapter=adapter, stage={"use": "dpo", "reference": "copied"})
    model: Any = runtime.model.eval()
    shake(model)
    expected = logits(model)
    trains = [name for name, one in model.named_parameters() if one.requires_grad]
    reference = ReferencePolicy(model, "copied")
    shake(model, seed=9)
    moved = logits(model)
    assert not torch.allclose(moved, expected, atol=1e-3)
    with reference() as frozen:
        torch.testing.assert_close(logits(frozen), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(model), moved)
    assert [name for name, one in model.named_parameters() if one.requires_grad] == trains


@pytest.mark.parametrize("tuner", ["vblora", "oft"])
def test_a_run_with_a_copy_is_saved_and_goes_on(bench: Any, tuner: str) -> None:
    """The copy is in no file: what is saved is loaded by a run without one."""
    own = {"use": "oft", "block_size": 8}
    adapter = own if tuner == "oft" else {"use": "peft", "tuner": tuner, "options": OPTIONS[tuner]}
    sections: dict[str, Any] = {"adapter": adapter, "stage": {"use": "dpo", "reference": "copied"}}
    whole = bench.run(output="whole", train={"max_steps": 4, "save_every": 2}, **sections)
    assert (whole.folder / "checkpoint-2").is_dir()
    assert whole.losses[-1] < whole.losses[0]


def test_an_adapter_on_the_head_trains(bench: Any) -> None:
    """TRL reads the head's weight and would leave the adapter out."""
    ran = bench.run(adapter={"use": "lora", "rank": 4, "target": ["head"]}, train={"max_steps": 5})
    assert ran.losses[-1] < ran.losses[0]


@pytest.mark.parametrize("reference", ["precomputed", "model"])
def test_tokens_before_every_row(bench: Any, reference: str) -> None:
    adapter = {"use": "peft", "tuner": "prompt_tuning", "options": {"num_virtual_tokens": 4}}
    ran = bench.run(adapter=adapter, stage={"use": "dpo", "reference": reference}, train={"max_steps": 5})
    assert ran.losses[0] == pytest.approx(0.6931472, rel=1e-5)
    assert ran.losses[-1] < ran.losses[0]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "mixtral"])
@pytest.mark.parametrize("first", [1, 6, 12])
def test_scores_are_log_probabilities(kind: str, first: int) -> None:
    """Against all logits in float64: whatever of them the model was asked for."""
    model = tiny_model(kind).load()
    ids = torch.randint(0, 250, (3, 14), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :first] = -100
    labels[1, -1] = -100
    with torch.no_grad():
        found = TokenScorer(model)(input_ids=ids, labels=labels, use_cache=False).log_probs
        logs = torch.log_softmax(model(input_ids=ids, use_cache=False).logits.double()[:, :-1], dim=-1)
    expected = logs.gather(-1, ids[:, 1:, None])[..., 0] * (labels[:, 1:] != -100)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_experts_are_balanced_only_where_the_model_says_so(bench: Any) -> None:
    """As in every stage: the loss of the routers is part of it where `output_router_logits` is on."""
    losses = {}
    for routed in (False, True):
        folder = tiny_model(
            "mixtral", {"output_router_logits": True, "router_aux_loss_coef": 0.5} if routed else None
        ).folder
        ran = bench.run(model=str(folder), output=f"run-{routed}", train={"max_steps": 1, "batch_tokens": 4096})
        losses[routed] = ran.losses[0]
    assert losses[False] == pytest.approx(0.6931472, rel=1e-5)
    # transformers' loss is at least the number of experts a token is sent to, here 2, and that where all are used alike.
    assert losses[True] > losses[False] + 0.5 * 1.9
