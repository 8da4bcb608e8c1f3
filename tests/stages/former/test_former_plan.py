"""What the plan says of a former run, what decides its hash, and that a resumed run starts from the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier.core.errors import ConfigError, LuthierError, ModelError
from luthier.core.plan import Plan
from tests.stages.running import different_weights, stopping


def test_the_plan_names_run_base_way_and_reason(chain: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from luthier.cli.plan import show_plan
    from luthier.cli.text import output_console

    sft = chain.sft()
    plan = chain.plan("second", str(sft))
    assert Plan.from_json(plan.to_json()) == plan
    former = plan.to_plain()["model"]["former"]
    assert (former["folder"], former["how"], former["stage"], former["adapter"]) == (str(sft), "merge", "sft", "lora")
    assert former["base"]["path"] == str(chain.base)
    assert "can be folded" in former["why"]
    show_plan(plan, output_console())
    shown = capsys.readouterr().out
    line = next(line for line in shown.splitlines() if line.startswith("model"))
    assert "merge" in line
    assert "auto:" in line


def test_nothing_is_merged_before_training(chain: Any, own_cache: Path, ids: Any) -> None:
    """The plan knows the path; the folder is made once, and said."""
    sft = chain.sft()
    plan = chain.plan("second", str(sft))
    assert not (own_cache / "merged").exists()
    assert Path(plan.model.path).parent == own_cache / "merged"
    told = chain.watch(plan, ids).told
    assert [text for text in told if text.startswith("merged: the logits differ by at most")]
    before = (Path(plan.model.path) / "model.safetensors").stat().st_mtime_ns
    again = chain.plan("third", str(sft), adapter="full")
    assert again.model.path == plan.model.path
    assert not [text for text in chain.watch(again, ids).told if text.startswith("merged")]
    assert (Path(plan.model.path) / "model.safetensors").stat().st_mtime_ns == before
    assert [entry.name for entry in (own_cache / "merged").iterdir()] == [Path(plan.model.path).name]


def test_the_profile_is_that_of_the_merged_model(chain: Any) -> None:
    from luthier.registry.detect import detect

    sft = chain.train("sft", patches=["nf4"])
    plan = chain.plan("second", {"name": str(sft), "adapters": "merge"})
    chain.train("second", {"name": str(sft), "adapters": "merge"})
    assert detect(plan.model.path) == plan.profile


def test_new_tokens_and_stretched_positions_stay(chain: Any, ids: Any) -> None:
    """A patch that changes the model is part of what is merged: its profile, its tokenizer, its positions."""
    from luthier.registry.detect import detect

    patches = [{"use": "new_tokens", "tokens": ["<|one|>", "word1"]}, {"use": "rope_scaling", "factor": 2.0}]
    sft = chain.train("sft", patches=patches, adapter={"use": "lora", "rank": 4, "new_tokens": True})
    plan = chain.plan("second", str(sft))
    before = detect(chain.base)
    assert (before.vocab_size, before.context_length, before.rope) == (263, 512, "default")
    assert (plan.profile.vocab_size, plan.profile.context_length, plan.profile.rope) == (263 + 2, 1024, "yarn")
    watched = chain.watch(plan, ids)
    assert detect(plan.model.path) == plan.profile
    assert watched.began.shape[-1] == 263 + 2
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(chain.folder / "second")
    assert len(tokenizer("<|one|>", add_special_tokens=False)["input_ids"]) == 1
    with pytest.raises(LuthierError, match=r"(?s)the tokenizer of that run has been changed already.*merge"):
        chain.plan("third", {"name": str(sft), "adapters": "stack"}, patches=patches)
    with pytest.raises(LuthierError, match=r"patches: rope_scaling changed, and this run does not name it"):
        chain.plan("third", {"name": str(sft), "adapters": "stack"})


def test_a_relative_name_is_seen_from_here(chain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the config.yaml that a run leaves stands alone, with the way that was taken."""
    import luthier

    sft = chain.sft()
    monkeypatch.chdir(chain.folder)
    plan = chain.plan("second", "sft")
    assert plan.hash == chain.plan("second", str(sft)).hash
    assert plan.hash == chain.plan("second", {"name": "sft", "adapters": "merge"}).hash
    assert plan.hash != chain.plan("second", {"name": "sft", "adapters": "stack"}).hash
    luthier.train(plan)
    written = yaml.safe_load((chain.folder / "second" / "config.yaml").read_text(encoding="utf-8"))
    assert (written["model"]["name"], written["model"]["adapters"]) == (str(sft), "merge")
    monkeypatch.chdir("/")
    assert luthier.plan(luthier.load_config(chain.folder / "second" / "config.yaml")).hash == plan.hash


def test_a_stacked_configuration_stands_alone(chain: Any) -> None:
    import luthier

    sft = chain.sft()
    second = chain.train("second", {"name": str(sft), "adapters": "stack"})
    again = luthier.plan(luthier.load_config(second / "config.yaml"))
    assert again.step("adapter").config["stack_on"] == (str(sft),)
    assert again.hash == Plan.from_json((second / "plan.json").read_text(encoding="utf-8")).hash


@pytest.mark.parametrize("how", ["merge", "stack", "whole"])
def test_a_run_that_was_trained_anew_is_another_model(chain: Any, how: str) -> None:
    import luthier

    adapter: Any = "full" if how == "whole" else {"use": "lora", "rank": 4}
    model: Any = str(chain.folder / "sft") if how == "whole" else {"name": str(chain.folder / "sft"), "adapters": how}
    chain.train("sft", adapter=adapter)
    train = {"max_steps": 3, "batch_tokens": 512, "save_every": 1}
    plan = chain.plan("second", model, train=train)
    luthier.train(plan)
    shutil.rmtree(chain.folder / "sft")
    chain.train("sft", adapter=adapter, train={"max_steps": 3, "batch_tokens": 512, "seed": 1})
    anew = chain.plan("second", model, train=train)
    assert anew.hash != plan.hash
    with pytest.raises(ConfigError, match="what the former run trained"):
        luthier.train(anew, resume=True)
    if how != "merge":  # the merged model of the plan is still in the cache
        with pytest.raises(ModelError, match="not as it was planned any more"):
            luthier.train(plan, overwrite=True)
    else:
        shutil.rmtree(plan.model.path)
        with pytest.raises(ModelError, match="not as it was planned any more"):
            luthier.train(plan, overwrite=True)


@pytest.mark.parametrize("how", ["merge", "stack"])
def test_a_run_is_resumed_on_what_it_began_with(chain: Any, ids: Any, how: str) -> None:
    """Stopped after a step and continued, it ends with the weights of a run that was never stopped."""
    import luthier
    from luthier.core.errors import Interrupted

    sft = chain.sft()
    model = {"name": str(sft), "adapters": how}
    whole = chain.train("whole", model)
    plan = chain.plan("stopped", model)
    with pytest.raises(Interrupted):
        luthier.train(plan, **stopping(1))
    luthier.train(chain.plan("stopped", model), resume=True)
    assert not different_weights(whole, chain.folder / "stopped")


def test_the_model_card_names_the_chain(chain: Any) -> None:
    sft = chain.sft()
    stacked = (chain.train("stacked", {"name": str(sft), "adapters": "stack"}) / "README.md").read_text(encoding="utf-8")
    assert f"`{chain.base}` -> `sft` with `lora` (kept below) -> `sft`" in stacked
    assert f'from_pretrained("{chain.base}")' in stacked
    merged = (chain.train("merged", str(sft)) / "README.md").read_text(encoding="utf-8")
    assert f"`{chain.base}` -> `sft` with `lora` (merged) -> `sft`" in merged
    assert "luthier merge" in merged
    results = json.loads((chain.folder / "merged" / "all_results.json").read_text(encoding="utf-8"))
    assert results["model"] == str(sft)
