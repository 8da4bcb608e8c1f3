"""The benchmark of PPO's memory: what it configures, and that its committed result keeps what the project promises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.benchmarks import ppo_memory


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ppo_memory.RESULT.read_text(encoding="utf-8"))
    return found


def test_four_roles_take_at_most_a_quarter_more_than_supervised_fine_tuning(result: dict[str, Any]) -> None:
    rows = result["rows"]
    assert list(rows) == list(ppo_memory.ROWS)
    for name in ("peak", "tensors"):
        for row in ("ppo", "ppo-value", "ppo-reward"):
            assert rows[row][name] <= 1.25 * rows["sft"][name], row
            assert result["ratios"][row][name] == pytest.approx(rows[row][name] / rows["sft"][name], abs=1e-3)
        assert rows["four"][name] > rows["ppo-reward"][name]


def test_no_row_of_ppo_has_fewer_tokens_at_once_than_supervised_fine_tuning(result: dict[str, Any], tmp_path: Path) -> None:
    import luthier

    for row in ppo_memory.ROWS:
        config = ppo_memory.configuration(row, tmp_path)
        assert config["train"]["batch_tokens"] == result["batch_tokens"] == ppo_memory.BATCH_TOKENS
        if row != "sft":  # whose second step is what the first left over
            assert 0.9 * ppo_memory.BATCH_TOKENS <= result["rows"][row]["tokens"] <= ppo_memory.BATCH_TOKENS
        luthier.load_config(config)


def test_four_models_are_four(tmp_path: Path) -> None:
    from luthier.core.testing.models import tiny_model
    from luthier.plugins.ppo import roles, stage

    model: Any = tiny_model("llama").load().requires_grad_(True)
    with ppo_memory.separate_models(True):
        made = vars(stage)["Roles"](model, reference="model", value_adapter=True, hidden_size=64)
        with made.values() as values, made.reference() as reference:
            models = [model, values, reference]
            assert len({next(one.parameters()).data_ptr() for one in models}) == 3
        with made.with_head():
            names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
            assert any(name.startswith("value_head.model.") for name in names)
        assert not any("value_head" in name for name, _ in model.named_parameters())
    assert vars(stage)["Roles"] is roles.Roles
