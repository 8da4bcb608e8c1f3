"""A reward model is trained from a run that answers; no run goes on from a reward model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.errors import PlanRefused

PAIRS = [
    {
        "prompt": [{"role": "user", "content": f"Say the word number {index}."}],
        "chosen": [{"role": "assistant", "content": f"word{index}"}],
        "rejected": [{"role": "assistant", "content": f"I do not know {index}."}],
    }
    for index in range(6)
]


def sections(folder: Path) -> dict[str, Any]:
    data = folder / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in PAIRS), encoding="utf-8")
    return {"stage": "rm", "data": {"train": [str(data)], "max_length": 200}}


def test_a_reward_model_begins_with_the_former_policy(chain: Any, ids: Any) -> None:
    """One score head for one seed: merged and stacked score alike, the base otherwise; and all can be saved and merged."""
    import luthier

    sft = chain.sft()
    began = {}
    for how in ("merge", "stack", "none"):
        model = {"name": str(sft), "adapters": how} if how != "none" else None
        began[how] = chain.watch(chain.plan(f"rm-{how}", model, **sections(chain.folder)), ids).began
    torch.testing.assert_close(began["merge"], began["stack"], atol=1e-5, rtol=0)
    assert not torch.allclose(began["merge"], began["none"], atol=1e-3)
    assert luthier.merge(chain.folder / "rm-stack").relative < 1e-4
    assert luthier.merge(chain.folder / "rm-merge").relative < 1e-4


@pytest.mark.parametrize("adapter", ["full", {"use": "lora", "rank": 4}], ids=str)
def test_a_reward_model_is_no_model_to_go_on_from(chain: Any, adapter: Any) -> None:
    rm = chain.train("rm", adapter=adapter, **sections(chain.folder))
    with pytest.raises(PlanRefused, match=rf"{rm} is a reward model \(stage: rm\).*no run can start from it"):
        chain.plan("second", str(rm))
    with pytest.raises(PlanRefused, match="no run can start from it"):
        chain.plan("second", str(rm), **sections(chain.folder))
