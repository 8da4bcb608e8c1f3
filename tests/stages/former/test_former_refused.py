"""What cannot be a model: each with what is wrong, where, and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import ConfigError, LuthierError, ModelError, PlanRefused


@pytest.fixture
def sft(chain: Any) -> Path:
    return Path(chain.sft())


def refusal(chain: Any, model: Any, **sections: Any) -> str:
    with pytest.raises(LuthierError) as caught:
        chain.plan("second", model, **sections)
    return str(caught.value)


def test_a_run_that_did_not_end(chain: Any, sft: Path) -> None:
    (sft / "all_results.json").unlink()
    text = refusal(chain, str(sft))
    assert "is not finished" in text
    assert "--resume" in text
    assert str(sft / "checkpoint-3") in text
    (sft / "checkpoint-3" / "trainer_state.json").unlink()
    assert "the checkpoint is not complete" in refusal(chain, str(sft / "checkpoint-3"))


def test_missing_weights_and_a_missing_tokenizer(chain: Any, sft: Path) -> None:
    (sft / "adapter_model.safetensors").rename(sft / "moved")
    assert "weights are missing: there is no adapter_model.safetensors" in refusal(chain, str(sft))
    (sft / "moved").rename(sft / "adapter_model.safetensors")
    (sft / "tokenizer_config.json").unlink()
    assert "the run's tokenizer is missing" in refusal(chain, str(sft))


def test_a_plan_of_another_version(chain: Any, sft: Path) -> None:
    plan = json.loads((sft / "plan.json").read_text(encoding="utf-8"))
    (sft / "plan.json").write_text(json.dumps(plan | {"version": 99}), encoding="utf-8")
    assert "a plan of version 99; this Luthier reads version 1" in refusal(chain, str(sft))


def test_a_base_that_is_gone(chain: Any, tiny_folder: Callable[..., Path]) -> None:
    """Only a merged model that is in the cache already needs none."""
    chain.base = tiny_folder()
    sft = chain.train("sft")
    aside = chain.base.rename(chain.base.with_name("elsewhere"))
    for how in ("merge", "stack"):
        text = refusal(chain, {"name": str(sft), "adapters": how})
        assert f"the model that the run was trained on, {chain.base}, is not there any more" in text
        assert "put it back" in text
    aside.rename(chain.base)
    chain.train("second", str(sft))
    shutil.rmtree(chain.base)
    chain.train("third", str(sft), adapter="full")
    assert "is not there any more" in refusal(chain, {"name": str(sft), "adapters": "stack"})


def test_a_choice_without_effect(chain: Any, sft: Path) -> None:
    text = refusal(chain, {"name": str(chain.base), "adapters": "merge"})
    assert "is no run with an adapter: there is nothing to merge" in text
    whole = chain.train("whole", adapter="full")
    for how in ("merge", "stack"):
        text = refusal(chain, {"name": str(whole), "adapters": how})
        assert f"left a whole model (full): there is no adapter to {how}" in text
    assert "a run has no revisions" in refusal(chain, {"name": str(sft), "revision": "main"})


@pytest.mark.parametrize("adapter", ["full", {"use": "dora", "rank": 4}, {"use": "freeze", "layers": 1}], ids=str)
def test_an_adapter_that_cannot_stand_on_another(chain: Any, sft: Path, adapter: Any) -> None:
    text = refusal(chain, {"name": str(sft), "adapters": "stack"}, adapter=adapter)
    assert "model.adapters: stack needs adapter.stacks" in text
    assert "take adapter: lora" in text
    assert "set model.adapters: merge" in text


def test_an_adapter_that_nothing_stands_on(chain: Any) -> None:
    dora = chain.train("former", adapter={"use": "dora", "rank": 4})
    text = refusal(chain, {"name": str(dora), "adapters": "stack"})
    assert "is a DoRA adapter" in text
    assert "adapters: merge" in text


def test_an_adapter_that_cannot_be_folded(chain: Any) -> None:
    """It could only be stacked, and then the adapter on top says whether it stands on such a one."""
    prompt = {"use": "peft", "tuner": "prompt_tuning", "options": {"num_virtual_tokens": 4}}
    former = chain.train("former", adapter=prompt)
    merged = refusal(chain, {"name": str(former), "adapters": "merge"})
    assert f"what peft trained in the run {former} cannot be folded into the weights" in merged
    assert "is an adapter of kind PROMPT_TUNING, not a LoRA" in refusal(chain, str(former))


def test_a_quantised_base_is_named_again(chain: Any) -> None:
    sft = chain.train("former", patches=["nf4"])
    text = refusal(chain, str(sft))
    assert "sits on a base that patches: nf4 changed, and this run does not name it" in text
    assert "set model.adapters: merge" in text
    other = refusal(chain, str(sft), patches=[{"use": "nf4", "double_quant": False}])
    assert "this run gives it other options" in other


def test_an_auto_adapter_takes_one_that_stacks(chain: Any, sft: Path) -> None:
    plan = chain.plan("second", {"name": str(sft), "adapters": "stack"}, adapter="auto")
    assert plan.step("adapter").method == "lora"
    assert plan.step("adapter").config["stack_on"] == (str(sft),)


def test_a_folder_that_is_no_run(chain: Any, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "plan.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ModelError, match="the plan of the run cannot be read"):
        chain.plan("second", str(tmp_path / "broken"))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match="holds an adapter"):
        chain.plan("second", str(tmp_path / "adapter"))


def test_a_value_that_is_none(chain: Any, sft: Path) -> None:
    with pytest.raises(PlanRefused, match=r"model\.adapters"):
        chain.plan("second", {"name": str(sft), "adapters": "melt"})


def test_code_that_comes_with_a_model_is_asked_for_again(chain: Any, sft: Path) -> None:
    plan = json.loads((sft / "plan.json").read_text(encoding="utf-8"))
    plan["model"]["trust_remote_code"] = True
    (sft / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    with pytest.raises(ConfigError, match="comes with Python code of its own"):
        chain.plan("second", str(sft))
