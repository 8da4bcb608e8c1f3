"""Whole runs of `rm`: it learns, resumes, says what it did, and what it leaves is loaded and merged like any run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import luthier
from luthier.core.errors import Interrupted, PlanRefused
from luthier.core.plan import Plan
from luthier.core.testing.models import tiny_model
from luthier.core.testing.surroundings import installed_catalog
from luthier.core.trained import run_tokenizer, trained_model
from tests.stages.running import carry_out, different_weights, stopping
from tests.stages.score.conftest import pairs


def test_it_learns_what_is_preferred(rm_config: Any) -> None:
    """Which of two answers is the better one stands in the prompt. Of pairs that it never saw, all of one length."""
    config = rm_config(
        tiny_model("llama").folder,
        pairs(96),
        data={"eval": 24},
        adapter={"use": "lora", "rank": 16},
        train={"max_steps": 30, "batch_tokens": 1024},
    )
    ran = carry_out(config)
    first, last = ran.told("evaluate")[0], ran.told("evaluate")[-1]
    assert first["accuracy"] < 0.75
    assert ran.results["eval_accuracy"] == last["accuracy"] > 0.9
    assert ran.results["eval_accuracy_longer"] == 0.5
    assert ran.results["eval_margin"] > 1
    assert 20 < ran.results["eval_rows"] <= 24  # rows that are the same are left out


@pytest.mark.parametrize("adapter", [{"use": "lora", "rank": 4, "dropout": 0.1}, "full"])
def test_a_stopped_run_goes_on_bit_for_bit(adapter: Any, rm_config: Any, tmp_path: Path) -> None:
    def config(output: str) -> dict[str, Any]:
        train = {"max_steps": 6, "accumulation": 2, "batch_tokens": 256}
        made: dict[str, Any] = rm_config(tiny_model("llama").folder, adapter=adapter, train=train)
        return made | {"output": str(tmp_path / output)}

    straight = carry_out(config("straight"))
    with pytest.raises(Interrupted):
        carry_out(config("stopped"), **stopping(3))
    resumed = carry_out(config("stopped"), resume=True)
    assert not different_weights(straight.folder, resumed.folder)
    assert resumed.results["eval_loss"] == straight.results["eval_loss"]
    assert resumed.losses == straight.losses[-len(resumed.losses) :]


def some_text(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(str(folder))(
        ["<|user|>say oak<eos>", "<|user|>say"], padding=True, return_tensors="pt"
    )


@pytest.mark.parametrize(
    ("kind", "sections"),
    [
        ("llama", {}),
        ("gemma2", {"adapter": {"use": "lora", "rank": 4, "modules_to_save": ["embed"]}}),
        ("gpt2", {"adapter": "full"}),
        ("llama", {"adapter": {"use": "freeze", "layers": 1}}),
        ("llama", {"patches": ["nf4"]}),
        (
            "llama",
            {
                "adapter": {"use": "lora", "rank": 4, "new_tokens": True},
                "patches": [{"use": "new_tokens", "tokens": ["say"]}],
            },
        ),
    ],
)
def test_what_it_leaves_is_loaded_merged_and_described(
    kind: str, sections: dict[str, Any], rm_config: Any, tmp_path: Path
) -> None:
    ran = carry_out(rm_config(tiny_model(kind).folder, **sections))
    plan = Plan.from_json((ran.folder / "plan.json").read_text())
    assert plan.task == "score"
    assert "model.score_head" in plan.traits
    assert plan.profile.architecture.endswith("ForSequenceClassification")
    catalog = installed_catalog()
    model: Any = trained_model(plan, ran.folder, catalog, run_tokenizer(plan, ran.folder, catalog))
    batch = some_text(ran.folder)
    with torch.no_grad():
        expected = model(**batch).logits[:, 0]
    base = {"base": "dequantized"} if "nf4" in str(sections) else {}
    report = luthier.merge(ran.folder, tmp_path / "merged", dtype="float32", **base)  # type: ignore[arg-type]
    assert report.relative < 1e-4
    merged = AutoModelForSequenceClassification.from_pretrained(str(tmp_path / "merged"), dtype=torch.float32).eval()
    with torch.no_grad():
        found = merged(**batch).logits[:, 0]
    assert merged.config.num_labels == 1
    assert merged.config.pad_token_id == plan_pad(ran.folder)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert "AutoModelForSequenceClassification" in (tmp_path / "merged" / "README.md").read_text()


def plan_pad(folder: Path) -> int:
    return int(AutoTokenizer.from_pretrained(str(folder)).pad_token_id)


def usage(folder: Path) -> str:
    """The code of the model card, for this folder."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    return text.split("```python\n")[1].split("```")[0].replace("path/to/this/folder", str(folder))


@pytest.mark.parametrize("adapter", [{"use": "lora", "rank": 4}, "full"])
def test_the_model_card_says_how_to_use_it(adapter: Any, rm_config: Any) -> None:
    ran = carry_out(rm_config(tiny_model("llama").folder, adapter=adapter))
    text = (ran.folder / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: text-classification" in text
    assert "held-out accuracy of choosing the longer answer" in text
    names: dict[str, Any] = {}
    exec(usage(ran.folder), names)  # noqa: S102
    assert names["score"].shape == (1,)
    if adapter != "full":
        auto = AutoPeftModelForSequenceClassification.from_pretrained(str(ran.folder), num_labels=1, dtype=torch.float32)
        inputs = names["inputs"]
        with torch.no_grad():
            torch.testing.assert_close(auto.eval()(**inputs).logits, names["model"].eval()(**inputs).logits)


def test_it_says_what_the_head_and_the_margins_are(rm_config: Any) -> None:
    rows = [row | ({"margin": 0.5} if number < 6 else {}) for number, row in enumerate(pairs(24))]
    ran = carry_out(rm_config(tiny_model("llama").folder, rows, data={"eval": 0}))
    assert "6 of 24 pairs have a margin; the others are learned without one" in ran.said("notice")
    assert any("the score head is new" in text for text in ran.said("notice"))
    step = ran.told("step")[0]
    assert {"loss", "accuracy", "margin", "reward"} <= set(step)
    assert "eval_accuracy" not in ran.results
    without = carry_out(
        rm_config(
            tiny_model("llama").folder,
            rows,
            data={"eval": 0},
            stage={"use": "rm", "margins": False},
            output=str(ran.folder) + "-2",
        )
    )
    assert "6 of 24 pairs have a margin, which `margins: false` leaves out" in without.said("notice")


# ---- refused


def refused(config: dict[str, Any]) -> str:
    with pytest.raises(PlanRefused) as caught:
        luthier.plan(config)
    return "\n".join(map(str, caught.value.problems))


def test_rows_of_another_kind(rm_config: Any) -> None:
    rows = [{"prompt": "say oak", "completion": "oak"}]
    assert "stage: rm learns from preference rows" in refused(rm_config(tiny_model("llama").folder, rows))


def test_packing_and_streams(rm_config: Any) -> None:
    folder = tiny_model("llama").folder
    assert "needs stage.packs" in refused(rm_config(folder, data={"packing": True}))
    assert "needs stage.streams" in refused(rm_config(folder, data={"streaming": True, "eval": 0}, train={"max_steps": 3}))


def test_learned_tokens_name_the_adapters_that_fit(rm_config: Any) -> None:
    tokens = {"use": "peft", "tuner": "prompt_tuning", "options": {"num_virtual_tokens": 3}}
    text = refused(rm_config(tiny_model("llama").folder, adapter=tokens))
    assert "adapter: peft cannot be combined with model.score_head" in text
    assert "take adapter: lora" in text


def test_options_out_of_range(rm_config: Any) -> None:
    text = refused(rm_config(tiny_model("llama").folder, stage={"use": "rm", "centering": -1}))
    assert "centering" in text


def test_auto_takes_no_reward_model(rm_config: Any) -> None:
    """... and the plan of another stage says that it does not fit, not that it was never looked at."""
    config = rm_config(tiny_model("llama").folder) | {"stage": "auto"}
    plan = luthier.plan(config)
    assert plan.task == "causal"
    assert plan.step("stage").method != "rm"


def test_a_causal_plan_says_nothing_of_it(rm_config: Any) -> None:
    rows = [{"prompt": "say oak", "completion": "oak"}]
    config = rm_config(tiny_model("llama").folder, rows, data={"eval": 0}) | {"stage": "sft"}
    plan = luthier.plan(config)
    assert plan.task == "causal"
    assert "model.score_head" not in plan.traits
    assert json.loads(plan.to_json())["task"] == "causal"
    older = {key: value for key, value in json.loads(plan.to_json()).items() if key != "task"}
    assert Plan.from_plain(older) == plan  # a plan of a run before there was a task
