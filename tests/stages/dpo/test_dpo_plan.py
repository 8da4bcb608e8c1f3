"""What a plan with `dpo` says: the way to the reference, and why something is refused."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.core.errors import ConfigError, LuthierError, PlanRefused
from luthier.core.testing.models import tiny_model
from luthier.core.testing.surroundings import installed, installed_catalog, this_machine
from luthier.plugins.dpo import DpoConfig


def plan(bench: Any, **sections: Any) -> Any:
    return installed().plan(bench.config(**sections), installed_catalog(), this_machine())


def reasons(bench: Any, **sections: Any) -> str:
    with pytest.raises(PlanRefused) as caught:
        plan(bench, **sections)
    return "\n".join(f"{problem.reason} | {problem.fix}" for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("adapter", "expected"),
    [
        ({"use": "lora"}, "disabled"),
        ({"use": "lora", "modules_to_save": ["embed", "head"]}, "disabled"),
        ({"use": "lora", "init": "pissa"}, "copied"),
        ({"use": "lora", "init": "olora"}, "copied"),
        ({"use": "dora"}, "disabled"),
        ({"use": "oft", "block_size": 8}, "disabled"),
        ({"use": "peft", "tuner": "ia3"}, "disabled"),
        ({"use": "peft", "tuner": "unilora"}, "copied"),
        ({"use": "peft", "tuner": "prompt_tuning", "options": {"num_virtual_tokens": 4}}, "precomputed"),
        ({"use": "freeze", "layers": 1}, "precomputed"),
        ({"use": "full"}, "precomputed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_the_reference_by_adapter(bench: Any, adapter: dict[str, Any], expected: str) -> None:
    assert plan(bench, adapter=adapter).step("stage").reference == expected


def test_biases_that_train_can_neither_be_switched_off_nor_copied(bench: Any) -> None:
    gpt2 = str(tiny_model("gpt2").folder)
    step = plan(bench, model=gpt2, adapter={"use": "lora", "bias": "all"}).step("stage")
    assert step.reference == "precomputed"


def test_disabling_is_no_reference_where_the_start_is_taken_out_of_the_weights(bench: Any) -> None:
    said = reasons(bench, adapter={"use": "lora", "init": "pissa"}, stage={"use": "dpo", "reference": "disabled"})
    assert "the same model with the adapter off" in said
    assert "the model without it is not the one that training starts from" in said
    assert "leave the stage's `reference` to `auto`" in said


def test_rows_of_another_kind_are_refused(bench: Any) -> None:
    said = reasons(bench, rows=[{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 3)
    assert "preference" in said
    assert "conversation" in said


@pytest.mark.parametrize("key", ["packing", "streaming"])
def test_packing_and_streaming_are_refused(bench: Any, key: str) -> None:
    said = reasons(bench, data={key: True}, train={"max_steps": 3, "batch_tokens": 256})
    assert f"stage.{ {'packing': 'packs', 'streaming': 'streams'}[key] }" in said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"loss": {}}, "loss names none"),
        ({"loss": {"sigmoid": 1.0, "sft": 0.0}}, "take sft out"),
        ({"loss": {"sigmoid": 1.0, "sft": -1.0}}, "above 0"),
        ({"label_smoothing": 0.1}, "label_smoothing belongs to loss robust"),
        ({"loss": "exo_pair"}, "label_smoothing above 0"),
        ({"loss": "nca_pair", "divergence": "forward_kl"}, "not defined for loss nca_pair"),
        ({"divergence_alpha": 0.7}, "belongs to divergence: alpha_divergence"),
        ({"discopop_tau": 0.1}, "belongs to loss: discopop"),
    ],
)
def test_options_without_effect_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DpoConfig(**options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"loss": "sigmoyd"}, "loss"),
        ({"beta": 0}, "beta"),
        ({"ld_alpha": 1.5}, "ld_alpha"),
        ({"refrence": "model"}, "reference"),
    ],
)
def test_options_out_of_bounds_are_refused(bench: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises((PlanRefused, ConfigError), match=says):
        plan(bench, stage={"use": "dpo", **options})


def test_several_losses_are_written_as_a_mapping(bench: Any) -> None:
    step = plan(bench, stage={"use": "dpo", "loss": {"sigmoid": 1, "sft": 0.2}}).step("stage")
    assert dict(step.config["loss"]) == {"sigmoid": 1.0, "sft": 0.2}


def test_a_row_without_a_better_answer_is_named(bench: Any) -> None:
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b", "rejected": None}]
    with pytest.raises(LuthierError) as caught:
        bench.run(rows=rows * 2)
    assert "rejected" in str(caught.value)
    assert "2" in str(caught.value.where)
