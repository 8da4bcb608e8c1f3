"""`luthier merge`: plain weights that transformers loads alone, equal to the unmerged model, or nothing at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import luthier
from luthier.cli import main
from luthier.core.errors import ConfigError, LuthierError, ModelError, OutputError

Finish = Callable[..., Path]


def logits(folder: Path, ids: Any, adapter: Path | None = None) -> torch.Tensor:
    """By transformers and PEFT alone."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


@pytest.mark.parametrize(
    ("model_type", "adapter"),
    [
        ("llama", {"use": "lora", "rank": 4}),
        ("gpt2", {"use": "lora", "rank": 4}),
        ("gemma2", {"use": "lora", "rank": 4, "modules_to_save": ["embed"]}),  # tied: the trap of facts.md
        ("mixtral", {"use": "lora", "rank": 4}),
        ("llama", {"use": "dora", "rank": 4}),
        ("llama", {"use": "oft"}),
    ],
)
def test_merged_is_base_and_adapter(
    model_type: str, adapter: dict[str, Any], finish: Finish, text_ids: Any, tmp_path: Path
) -> None:
    run = finish(model_type, adapter=adapter)
    report = luthier.merge(run, tmp_path / "merged")
    base = Path(json.loads((run / "plan.json").read_text())["model"]["path"])
    expected = logits(base, text_ids, adapter=run)
    got = logits(tmp_path / "merged", text_ids)
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (got - logits(base, text_ids)).abs().max() > 1e-2, "the run has changed the model"
    assert report.base == "original"
    assert report.from_quantized is None
    assert report.relative < report.tolerance


def test_what_is_written_needs_neither_peft_nor_luthier(finish: Finish, tmp_path: Path) -> None:
    run = finish("llama", adapter={"use": "lora", "rank": 2})
    luthier.merge(run, tmp_path / "merged")
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "merge.json", "README.md"} <= names
    assert not any("adapter" in name for name in names)
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["use_cache"] is True
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template
    report = json.loads((tmp_path / "merged" / "merge.json").read_text())
    assert report["run"] == str(run)
    assert report["plan_hash"] == json.loads((run / "plan.json").read_text())["hash"]


def test_the_difference_is_the_one_between_the_models(finish: Finish, tmp_path: Path) -> None:
    """In bfloat16 the report's number is what one measures by hand on the same text."""
    from luthier.core.merging import SAMPLE

    run = finish("llama", adapter={"use": "lora", "rank": 4})
    report = luthier.merge(run, tmp_path / "merged", dtype="bfloat16")
    ids = AutoTokenizer.from_pretrained(run)(SAMPLE, return_tensors="pt")["input_ids"][:, : report.tokens]
    base = Path(json.loads((run / "plan.json").read_text())["model"]["path"])
    expected = logits(base, ids, adapter=run)
    difference = float((logits(tmp_path / "merged", ids) - expected).abs().max())
    assert report.difference == pytest.approx(difference, rel=1e-3)
    assert report.folding < report.difference / 5
    assert report.relative == pytest.approx(difference / float(expected.abs().max()), rel=1e-3)
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert stored.dtype == torch.bfloat16


def test_over_the_tolerance_nothing_is_written(finish: Finish, tmp_path: Path) -> None:
    run = finish("llama", adapter={"use": "lora", "rank": 4})
    with pytest.raises(LuthierError, match="nothing was written"):
        luthier.merge(run, tmp_path / "merged", dtype="bfloat16", tolerance=1e-7)
    assert not (tmp_path / "merged").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".merged")]


def test_a_wrong_fold_is_caught(finish: Finish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter whose merge loses the update: the logits say so."""
    import dataclasses

    from luthier.core.catalog import Offer
    from luthier.core.merging import merge_run
    from luthier.registry.catalog import discover

    run = finish("llama", adapter={"use": "lora", "rank": 4})
    catalog = discover()
    offer = catalog.slot("adapter")["lora"]
    forgets = dataclasses.replace(offer.value, merge=lambda model: model.unload())
    methods = {slot: dict(catalog.slot(slot)) for slot in catalog.methods}
    methods["adapter"]["lora"] = Offer(value=forgets, provider=offer.provider)
    with pytest.raises(LuthierError, match="differ"):
        merge_run(run, tmp_path / "merged", dataclasses.replace(catalog, methods=methods))
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("adapter", ["full", {"use": "freeze", "layers": 1}, {"use": "llama_pro", "blocks": 1}])
def test_a_whole_model_is_written_as_it_was_trained(adapter: Any, finish: Finish, text_ids: Any, tmp_path: Path) -> None:
    run = finish("llama", adapter=adapter, optimizer={"use": "adamw", "lr": 1e-3})
    report = luthier.merge(run, tmp_path / "merged")
    assert torch.equal(logits(tmp_path / "merged", text_ids), logits(run, text_ids))
    assert report.difference == 0.0


def test_a_checkpoint_can_be_merged(finish: Finish, text_ids: Any, tmp_path: Path) -> None:
    train = {"max_steps": 4, "batch_tokens": 512, "save_every": 2}
    run = finish("llama", adapter={"use": "lora", "rank": 4}, train=train)
    luthier.merge(run / "checkpoint-2", tmp_path / "early")
    base = Path(json.loads((run / "plan.json").read_text())["model"]["path"])
    expected = logits(base, text_ids, adapter=run / "checkpoint-2")
    assert (logits(tmp_path / "early", text_ids) - expected).abs().max() < 1e-4 * expected.abs().max()


def test_what_cannot_be_merged_is_said(finish: Finish, tmp_path: Path) -> None:
    run = finish("llama", adapter={"use": "lora", "rank": 2})
    with pytest.raises(ModelError, match=r"no plan\.json"):
        luthier.merge(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="nothing to dequantise"):
        luthier.merge(run, tmp_path / "merged", base="dequantized")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        luthier.merge(run, tmp_path / "taken")
    assert (tmp_path / "taken" / "mine.txt").read_text() == "mine"


def test_choices_that_do_not_exist_are_refused(finish: Finish, tmp_path: Path) -> None:
    run = finish("llama", adapter={"use": "lora", "rank": 2})
    wrong: Any = "dequantised"
    with pytest.raises(ConfigError, match="original, dequantized"):
        luthier.merge(run, tmp_path / "merged", base=wrong)
    wrong = "fp32"
    with pytest.raises(ConfigError, match="float32, bfloat16, float16"):
        luthier.merge(run, tmp_path / "merged", dtype=wrong)
    assert not (tmp_path / "merged").exists()


def test_the_default_folder_is_beside_the_run(finish: Finish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = {"max_steps": 4, "batch_tokens": 512, "save_every": 2}
    run = finish("llama", adapter={"use": "lora", "rank": 2}, train=train)
    monkeypatch.chdir(run)
    assert Path(luthier.merge(".").into) == tmp_path / "run-merged"
    assert Path(luthier.merge("checkpoint-2").into) == tmp_path / "run-checkpoint-2-merged"


def test_the_verb(finish: Finish, capsys: pytest.CaptureFixture[str]) -> None:
    run = finish("llama", adapter={"use": "lora", "rank": 2})
    capsys.readouterr()
    assert main(["merge", str(run), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["into"] == f"{run}-merged"
    assert (Path(report["into"]) / "model.safetensors").is_file()
    assert main(["merge", str(run)]) == 2
    assert "not empty" in capsys.readouterr().err
