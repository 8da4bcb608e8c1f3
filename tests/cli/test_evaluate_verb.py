"""`luthier evaluate` as a user runs it: runs, checkpoints and models, alone and against each other, and what it refuses."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import luthier as package
from luthier.core.evaluation import words as words_module
from luthier.core.evaluation.measure import METRICS

Run = Callable[..., tuple[int, str, str]]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(tiny_folder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps, with a checkpoint after the second."""
    folder = tmp_path_factory.mktemp("evaluated")
    rows = write(folder / "rows.jsonl", [{"instruction": f"say {n}", "output": f"{n}!"} for n in range(12)])
    config = {
        "model": str(tiny_folder("llama")),
        "data": {"train": [str(rows)], "max_length": 64},
        "stage": "sft",
        "adapter": {"use": "lora", "rank": 4},
        "optimizer": {"use": "adamw", "lr": 0.01},
        "precision": "fp32",
        "train": {"batch_tokens": 128, "max_steps": 3, "save_every": 2},
        "output": str(folder / "run"),
    }
    package.train(config)
    return folder / "run"


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    rows = [{"instruction": f"say {n}", "input": "", "output": f"{n}!"} for n in range(20, 25)]
    return write(tmp_path / "held-out.jsonl", rows)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [
        {"prompt": "say a", "chosen": "a!", "rejected": "no, never"},
        {"prompt": "say b", "chosen": "bb bb", "rejected": "b"},
        {"prompt": "say c", "chosen": "c?", "rejected": "c."},
    ]
    return write(tmp_path / "pairs.jsonl", rows)


def document(luthier: Run, *words: object) -> tuple[dict[str, Any], str]:
    code, out, err = luthier("evaluate", *words, "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found, err


def test_a_run_on_conversations_alone(luthier: Run, trained: Path, held_out: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    words = ("--data", held_out, "--max-new-tokens", 4, "--output", answers)
    found, _ = document(luthier, trained, *words)
    assert found["kind"] == "conversation"
    assert found["stage"] == "sft"
    assert (found["rows"], found["left_out"], found["against"], found["difference"]) == (5, {}, None, None)
    names = {"loss", "perplexity", "tokens", "exact_match", "rouge1", "rouge2", "rougeL", "bleu", "unfinished"}
    assert set(found["metrics"]) == names
    assert found["metrics"]["perplexity"] == pytest.approx(math.exp(found["metrics"]["loss"]))
    # Five answers of "2", a digit, "!" and <eos>: bytes of a byte-level tokenizer.
    assert found["metrics"]["tokens"] == 5 * 4
    assert found["answers"] == {"rows": 5, "left_out": {}, "max_new_tokens": 4}
    assert (found["precision"], found["device"], found["predictions"]) == ("fp32", "cpu", str(answers))
    rows = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    assert [row["from"] for row in rows] == [f"{held_out}:{line}" for line in range(1, 6)]
    assert rows[0]["prompt"] == "<|user|>say 20<eos>\n<|assistant|>"
    assert [row["reference"] for row in rows] == ["20!", "21!", "22!", "23!", "24!"]
    assert sum(row["loss"] * row["tokens"] for row in rows) / 20 == pytest.approx(found["metrics"]["loss"])
    assert sum(row["exact_match"] for row in rows) / 5 == found["metrics"]["exact_match"]
    assert [row["exact_match"] for row in rows] == [float(row["prediction"] == row["reference"]) for row in rows]


def test_the_table_has_the_run_the_base_and_the_difference(luthier: Run, trained: Path, held_out: Path) -> None:
    metrics = ("--metrics", "loss,perplexity")
    found, _ = document(luthier, trained, "--data", held_out, *metrics, "--against", "base")
    model = json.loads((trained / "plan.json").read_text())["model"]["name"]
    assert found["against"]["run"] == model
    assert list(found["metrics"]) == ["loss", "perplexity", "tokens"]
    gap = found["metrics"]["loss"] - found["against"]["metrics"]["loss"]
    assert found["difference"]["loss"] == pytest.approx(gap)
    assert gap < 0, "three steps at 0.01 have taught something"
    code, out, _ = luthier("evaluate", trained, "--data", held_out, *metrics, "--against", "base")
    assert code == 0
    line = next(line for line in out.splitlines() if line.startswith("loss"))
    assert line.split()[1:4] == [
        f"{found['metrics']['loss']:.4f}",
        f"{found['against']['metrics']['loss']:.4f}",
        f"{gap:+.4f}",
    ]
    assert "rows      5 of" in out
    assert "in fp32 on the cpu" in out


def test_a_name_in_brackets_is_shown_as_it_is(luthier: Run, trained: Path, held_out: Path, tmp_path: Path) -> None:
    """The table's library takes what stands in brackets for markup, and leaves it out."""
    run = shutil.copytree(trained, tmp_path / "[bold]")
    code, out, err = luthier("evaluate", run, "--data", held_out, "--metrics", "loss", "--against", run)
    assert code == 0, err
    assert "".join(out.split()).count("[bold]") == 2


def test_the_base_is_the_model_itself(luthier: Run, trained: Path, held_out: Path) -> None:
    model = json.loads((trained / "plan.json").read_text())["model"]["name"]
    words = ("--data", held_out, "--metrics", "loss")
    against, _ = document(luthier, trained, *words, "--against", "base")
    alone, _ = document(luthier, model, *words)
    assert alone["stage"] == ""
    assert alone["metrics"] == against["against"]["metrics"]


def test_a_checkpoint_and_another_run(luthier: Run, trained: Path, held_out: Path, tmp_path: Path) -> None:
    words = ("--data", held_out, "--metrics", "loss,exact_match", "--max-new-tokens", 2)
    answers = tmp_path / "answers.jsonl"
    found, _ = document(luthier, trained / "checkpoint-2", *words, "--against", trained, "--output", answers)
    row = json.loads(answers.read_text().splitlines()[0])
    assert row["prompt"] == "<|user|>say 20<eos>\n<|assistant|>"
    # What both were given stands there once; what each made of it, twice.
    assert set(row["against"]) == {"loss", "tokens", "prediction", "finished", "exact_match"}
    assert found["run"] == str(trained / "checkpoint-2")
    assert found["against"]["run"] == str(trained)
    assert found["difference"]["loss"] != 0
    same, _ = document(luthier, trained, *words, "--against", trained)
    assert same["difference"] == {"loss": 0.0, "exact_match": 0.0, "unfinished": 0.0}


def test_the_first_rows_of_several_files(luthier: Run, trained: Path, held_out: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "more.jsonl", [{"instruction": "say x", "output": "x"}])
    words = ("--data", other, "--data", held_out, "--metrics", "exact_match", "--max-new-tokens", 2)
    answers = tmp_path / "answers.jsonl"
    found, _ = document(luthier, trained, *words, "--max-rows", 3, "--output", answers)
    assert found["rows"] == 3
    places = [json.loads(line)["from"] for line in answers.read_text().splitlines()]
    assert places == [f"{other}:1", f"{held_out}:1", f"{held_out}:2"]


def test_rows_that_do_not_fit_are_counted(luthier: Run, trained: Path, tmp_path: Path) -> None:
    rows = [{"instruction": "say", "output": "x" * length} for length in (3, 200)]
    path = write(tmp_path / "rows.jsonl", rows)
    found, _ = document(luthier, trained, "--data", path, "--metrics", "loss")
    assert found["rows"] == 1
    assert sum(found["left_out"].values()) == 1
    code, out, _ = luthier("evaluate", trained, "--data", path, "--metrics", "loss")
    assert code == 0
    assert "left out" in out


def test_a_row_that_one_model_drops_is_counted_once(luthier: Run, trained: Path, tmp_path: Path) -> None:
    """`trained` reads rows of up to 64 tokens; another run, with the same weights, of up to 512."""
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    plan = json.loads((other / "plan.json").read_text())
    plan["config"]["data"]["max_length"] = 512
    (other / "plan.json").write_text(json.dumps(plan))
    path = write(tmp_path / "rows.jsonl", [{"instruction": "say", "output": "x" * length} for length in (3, 200, 4)])
    for run, against in ((trained, other), (other, trained)):
        found, _ = document(luthier, run, "--data", path, "--metrics", "loss", "--against", against)
        assert (found["rows"], sum(found["left_out"].values())) == (2, 1), found["left_out"]


def test_a_run_that_split_its_texts_is_measured_on_conversations(
    luthier: Run, trained: Path, held_out: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    plan = json.loads((other / "plan.json").read_text())
    plan["config"]["data"]["too_long"] = "split"
    (other / "plan.json").write_text(json.dumps(plan))
    found, err = document(luthier, other, "--data", held_out, "--metrics", "loss", "--against", trained)
    assert found["difference"] == {"loss": 0.0}
    assert "only texts are split" in err


def test_text_and_what_cannot_be_measured_on_it(luthier: Run, trained: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "texts.jsonl", [{"text": "one two"}, {"text": "three"}])
    found, _ = document(luthier, trained, "--data", path)
    assert found["kind"] == "text"
    assert set(found["metrics"]) == {*METRICS["text"], "tokens"}
    code, out, _ = luthier("evaluate", trained, "--data", path, "--metrics", "bleu", "--json")
    assert code == 2
    assert json.loads(out)["error"] == "bleu cannot be measured on text data"
    assert "loss, perplexity" in json.loads(out)["fix"]


def test_preferences_by_log_probability(luthier: Run, trained: Path, pairs: Path, tmp_path: Path) -> None:
    """Against log-probabilities in float64, of what stands between the prompt and the end of the turn."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    answers = tmp_path / "answers.jsonl"
    found, _ = document(luthier, trained, "--data", pairs, "--output", answers)
    tokenizer = AutoTokenizer.from_pretrained(trained)
    path = json.loads((trained / "plan.json").read_text())["model"]["path"]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(path), str(trained)).double().eval()
    margins = []
    for line in pairs.read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer(f"<|user|>{row['prompt']}<eos>\n<|assistant|>", add_special_tokens=False).input_ids
        values = []
        for answer in (row["chosen"], row["rejected"]):
            ids = tokenizer(f"{answer}<eos>", add_special_tokens=False).input_ids
            with torch.no_grad():
                chances = model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            values.append(float(chances[range(len(ids)), ids].sum()))
        margins.append(values[0] - values[1])
    assert found["kind"] == "preference"
    assert found["metrics"]["margin"] == pytest.approx(sum(margins) / 3, rel=1e-4)
    assert found["metrics"]["accuracy"] == sum(margin > 0 for margin in margins) / 3
    # Longer: the second row's chosen answer, not the first's, and half of the third, where both have two letters.
    assert found["metrics"]["longer"] == (0 + 1 + 0.5) / 3
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [row["margin"] for row in rows] == pytest.approx(margins, rel=1e-4)
    assert (rows[0]["prompt"], rows[0]["chosen"]) == ("<|user|>say a<eos>\n<|assistant|>", "a!<eos>")


def test_rows_labelled_good_or_bad_are_conversations_of_the_good_ones(luthier: Run, trained: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"say {n}", "completion": f"{n}!", "label": n % 2 == 0} for n in range(4)]
    path = write(tmp_path / "rows.jsonl", rows)
    answers = tmp_path / "answers.jsonl"
    found, err = document(luthier, trained, "--data", path, "--metrics", "loss", "--output", answers)
    assert (found["kind"], found["rows"], found["left_out"]) == ("conversation", 2, {"the label is false": 2})
    assert [json.loads(line)["from"] for line in answers.read_text().splitlines()] == [f"{path}:1", f"{path}:3"]
    assert "the good ones" in err


def test_training_reports_the_best_step_and_why_it_ended(
    luthier: Run, write_config: Any, held_out: Path, tmp_path: Path
) -> None:
    stage = {"use": "sft", "keep_best": "loss", "early_stopping": 1, "min_delta": 50.0}
    config = write_config(stage=stage, train={"batch_tokens": 128, "max_steps": 6, "eval_every": 1})
    code, out, err = luthier("train", config, f"data.eval=[{held_out}]")
    assert code == 0, err
    assert "held-out loss" in err
    # No loss falls by 50: the second evaluation ends the run, and is the better one.
    assert "ended     early: 1 evaluation in a row did not better loss by more than 50" in out
    assert "best      the evaluation at step 2" in out
    assert json.loads((tmp_path / "run" / "all_results.json").read_text())["steps"] == 2


REFUSED: dict[str, tuple[list[str], int, str]] = {
    "no such run": (["{tmp}/gone", "--data", "{held_out}"], 2, "there is no such model"),
    "no such file": (["{run}", "--data", "{tmp}/gone.jsonl"], 4, "gone.jsonl"),
    "an unknown metric": (["{run}", "--data", "{held_out}", "--metrics", "blue"], 2, "blue is no metric"),
    "an unknown format": (["{run}", "--data", "{held_out}", "--format", "alpacka"], 4, "did you mean 'alpaca'?"),
    "rows of two kinds": (["{run}", "--data", "{held_out}", "--data", "{pairs}"], 4, "rows of different kinds"),
    "a folder to write": (["{run}", "--data", "{held_out}", "--output", "{tmp}"], 2, "is a folder"),
    "no folder to write in": (["{run}", "--data", "{held_out}", "--output", "{tmp}/no/x.jsonl"], 2, "there is no folder"),
    "over the rows": (["{run}", "--data", "{held_out}", "--output", "{held_out}"], 2, "holds the rows"),
    "the base of a model": (["{model}", "--data", "{held_out}", "--against", "base"], 2, "is no run, so it has no base"),
    "no data": (["{run}"], 2, "--data"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(luthier: Run, trained: Path, held_out: Path, pairs: Path, tmp_path: Path, case: str) -> None:
    words, code, said = REFUSED[case]
    model = json.loads((trained / "plan.json").read_text())["model"]["path"]
    places = {"tmp": tmp_path, "run": trained, "held_out": held_out, "pairs": pairs, "model": model}
    found, out, err = luthier("evaluate", *(word.format(**places) for word in words), "--json")
    assert found == code, err
    assert said in json.dumps(json.loads(out), ensure_ascii=False)


def test_without_the_packages_the_rest_is_measured_and_it_is_said(
    luthier: Run, trained: Path, held_out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words_module, "find_spec", lambda name: None)
    found, err = document(luthier, trained, "--data", held_out, "--max-new-tokens", 2)
    assert set(found["metrics"]) == {"loss", "perplexity", "tokens", "exact_match", "unfinished"}
    assert "rouge is left out" in err
    assert "luthier[metrics]" in err
    code, _, err = luthier("evaluate", trained, "--data", held_out, "--metrics", "rouge")
    assert code == 3
    assert "luthier[metrics]" in err


def test_the_front_door_gives_the_same(luthier: Run, trained: Path, held_out: Path) -> None:
    found, _ = document(luthier, trained, "--data", held_out, "--metrics", "loss")
    notices: list[str] = []
    made = package.evaluate(trained, [held_out], metrics=["loss"], notice=notices.append)
    assert made.metrics == found["metrics"]
    assert any("evaluating" in text for text in notices)
