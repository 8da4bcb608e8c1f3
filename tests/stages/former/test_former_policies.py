"""A stage begins exactly where the former one ended, its reference is that policy, and what it leaves fits its base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Loaded = Callable[..., Any]
CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 0}


def adapters(how: str, folder: Path) -> dict[str, str]:
    return {"name": str(folder), "adapters": how}


@pytest.mark.parametrize("how", ["merge", "stack"])
def test_a_stage_begins_where_the_former_ended(chain: Any, loaded: Loaded, ids: Any, how: str) -> None:
    sft = chain.sft()
    former = loaded(chain.base, sft, ids)
    plan = chain.plan("second", adapters(how, sft))
    assert plan.model.former.how == how
    watched = chain.watch(plan, ids)
    torch.testing.assert_close(watched.began, former, **CLOSE)
    torch.testing.assert_close(watched.reference, former, **CLOSE)
    assert float((watched.ended - former).abs().max()) > 0.01
    base = chain.base if how == "stack" else Path(plan.model.path)
    torch.testing.assert_close(loaded(base, chain.folder / "second", ids), watched.ended, **CLOSE)


@pytest.mark.parametrize("hows", [("merge", "merge"), ("stack", "stack"), ("merge", "stack"), ("stack", "merge")])
def test_a_chain_of_three(chain: Any, loaded: Loaded, ids: Any, hows: tuple[str, str], own_cache: Path) -> None:
    """Each takes up the one before it, also where the cache was emptied in between."""
    import shutil

    first = chain.train("first")
    second_plan = chain.plan("second", adapters(hows[0], first))
    second = chain.watch(second_plan, ids)
    shutil.rmtree(own_cache / "merged", ignore_errors=True)
    plan = chain.plan("third", adapters(hows[1], chain.folder / "second"))
    third = chain.watch(plan, ids)
    torch.testing.assert_close(third.began, second.ended, **CLOSE)
    torch.testing.assert_close(third.reference, second.ended, **CLOSE)
    assert plan.model.origin.name == str(chain.base)
    if hows == ("stack", "stack"):
        torch.testing.assert_close(loaded(chain.base, chain.folder / "third", ids), third.ended, **CLOSE)


@pytest.mark.parametrize("how", ["merge", "stack"])
def test_what_a_chain_left_can_be_merged(chain: Any, loaded: Loaded, ids: Any, how: str) -> None:
    import luthier

    sft = chain.sft()
    second = chain.watch(chain.plan("second", adapters(how, sft)), ids)
    report = luthier.merge(chain.folder / "second")
    assert report.difference < 1e-5
    torch.testing.assert_close(loaded(chain.base, chain.folder / "second-merged", ids), second.ended, **CLOSE)


@pytest.mark.parametrize(
    "adapter", [{"use": "dora", "rank": 4}, {"use": "oft"}, {"use": "lora", "rank": 4, "init": "pissa"}], ids=str
)
def test_other_adapters_are_merged(chain: Any, loaded: Loaded, ids: Any, adapter: dict[str, Any]) -> None:
    former = chain.train("former", adapter=adapter)
    plan = chain.plan("second", str(former))
    assert plan.model.former.how == "merge"
    watched = chain.watch(plan, ids)
    torch.testing.assert_close(watched.began, loaded(chain.base, former, ids), **CLOSE)


@pytest.mark.parametrize("adapter", ["full", {"use": "freeze", "layers": 1}, {"use": "llama_pro", "blocks": 1}], ids=str)
def test_a_whole_model_is_taken_as_it_is(chain: Any, loaded: Loaded, ids: Any, adapter: Any) -> None:
    former = chain.train("former", adapter=adapter)
    plan = chain.plan("second", str(former))
    assert (plan.model.former.how, plan.model.path) == ("whole", str(former))
    watched = chain.watch(plan, ids)
    torch.testing.assert_close(watched.began, loaded(chain.base, former, ids), **CLOSE)
    torch.testing.assert_close(loaded(former, chain.folder / "second", ids), watched.ended, **CLOSE)


def test_a_stage_that_trains_every_weight_starts_from_a_merged_run(chain: Any, loaded: Loaded, ids: Any) -> None:
    sft = chain.sft()
    watched = chain.watch(chain.plan("second", str(sft), adapter="full"), ids)
    torch.testing.assert_close(watched.began, loaded(chain.base, sft, ids), **CLOSE)
    torch.testing.assert_close(watched.reference, watched.began, **CLOSE)
    torch.testing.assert_close(loaded(chain.base, chain.folder / "second", ids), watched.ended, **CLOSE)


def test_a_run_on_quantised_weights_stays_on_them(chain: Any, ids: Any) -> None:
    quantised = {"patches": ["nf4"]}
    first = chain.watch(chain.plan("sft", **quantised), ids)
    plan = chain.plan("second", str(chain.folder / "sft"), **quantised)
    assert plan.model.former.how == "stack"
    second = chain.watch(plan, ids)
    torch.testing.assert_close(second.began, first.ended, **CLOSE)
    torch.testing.assert_close(second.reference, first.ended, **CLOSE)


def test_a_run_on_quantised_weights_is_merged_where_asked_for(chain: Any, ids: Any) -> None:
    """Into the weights as their four bits say, read back as plain ones: the same model."""
    first = chain.watch(chain.plan("sft", patches=["nf4"]), ids)
    plan = chain.plan("second", adapters("merge", chain.folder / "sft"))
    assert "weights.quantized" not in plan.traits
    second = chain.watch(plan, ids)
    torch.testing.assert_close(second.began, first.ended, atol=1e-4, rtol=0)


def test_a_checkpoint_is_a_model_too(chain: Any, loaded: Loaded, ids: Any) -> None:
    sft = chain.sft()
    for how in ("merge", "stack"):
        checkpoint = sft / "checkpoint-2"
        watched = chain.watch(chain.plan(f"second-{how}", adapters(how, checkpoint)), ids)
        torch.testing.assert_close(watched.began, loaded(chain.base, checkpoint, ids), **CLOSE)
    assert not torch.allclose(loaded(chain.base, sft, ids), watched.began, atol=1e-3)
    whole = chain.train("whole", adapter="full", train={"max_steps": 3, "save_every": 2, "batch_tokens": 512})
    watched = chain.watch(chain.plan("third", str(whole / "checkpoint-2")), ids)
    torch.testing.assert_close(watched.began, loaded(chain.base, whole / "checkpoint-2", ids), **CLOSE)
