"""`luthier demo` around the run: what it writes, what it replaces, what it reports. The run itself is a tiny model's."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import luthier
from luthier.cli import demo
from luthier.core.errors import OutputError
from luthier.demo.score import Score
from luthier.demo.task import HELD_OUT_ROWS, examples

REPOSITORY = Path(__file__).parents[2]


def test_configuration_is_read_and_written_so_that_it_runs_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = demo.write_demo(Path("runs/demo"))
    assert path == Path("runs/demo-data/demo.yaml")
    config = luthier.load_config(path)
    assert config.model.name == "smollm2-135m"
    assert config.output == "runs/demo"
    (source,) = config.data.train
    assert Path(source.path) == tmp_path / "runs/demo-data/train.jsonl"
    assert len(Path(source.path).read_text().splitlines()) == 800
    assert not Path("runs/demo").exists()


def test_configuration_is_part_of_the_wheel() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert demo.CONFIG.name in settings["package-data"]["luthier.demo"]
    assert demo.CONFIG.is_file()


def test_data_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "demo-data").write_text("a file in the way")
    with pytest.raises(OutputError) as caught:
        demo.write_demo(tmp_path / "demo")
    assert caught.value.where == str(tmp_path / "demo-data")


def test_shown_answers_are_the_first_of_five_intents() -> None:
    rows = examples("held_out", HELD_OUT_ROWS)
    shown = demo.shown_rows(rows)
    assert len(shown) == len({rows[row].intent for row in shown}) == 5
    assert shown[0] == 0
    assert shown == sorted(shown)
    skipped = [row for row in range(shown[-1]) if row not in shown]
    assert all(any(rows[row].intent == rows[earlier].intent for earlier in shown if earlier < row) for row in skipped)


@pytest.fixture
def small_demo(tiny_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo with a tiny model, two steps, and scores that come from no model; returns its output folder."""
    config = yaml.safe_load(demo.CONFIG.read_text())
    config["model"] = str(tiny_folder("llama"))
    config["data"]["max_length"] = 512
    config["train"] |= {"max_steps": 2, "batch_tokens": 512}
    small = tmp_path / "small.yaml"
    small.write_text(yaml.safe_dump(config))
    monkeypatch.setattr(demo, "CONFIG", small)
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    adapters: list[Path | None] = []

    def score_model(plan: Any, held_out: Any, adapter: Path | None = None) -> Score:
        adapters.append(adapter)
        right = 0 if adapter is None else 90
        answers = tuple(row.command if index < right else "Sure!" for index, row in enumerate(held_out))
        return Score(answers, tuple(index < right for index in range(len(held_out))))

    monkeypatch.setattr(demo, "score_model", score_model)
    return tmp_path / "runs" / "demo"


def test_report_is_one_json_document(small_demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.run(output=small_demo, as_json=True) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["exact_match"] == {"before": 0.0, "after": 0.9, "rows": 100}
    assert [entry["before"] for entry in report["answers"]] == ["Sure!"] * 5
    assert all(entry["after"] == entry["wanted"] for entry in report["answers"] if entry["exact"])
    assert Path(report["loss_plot"]).is_file()
    assert report["tokens_per_second"] > 0
    assert report["peak_memory"] > 0
    assert report["plan"]["model"]["kind"] == "folder"
    assert report["results"]["output"] == str(small_demo)


def test_report_for_people_and_a_second_run_in_the_same_place(small_demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo.run(output=small_demo, as_json=False)
    first = (small_demo / "adapter_model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    assert demo.run(output=small_demo, as_json=False) == 0
    assert (small_demo / "adapter_model.safetensors").stat().st_mtime_ns > first
    shown = capsys.readouterr()
    assert "0% -> 90% of 100 requests" in shown.out
    for label in ("before", "after", "speed", "memory", "training_loss.png", "luthier train"):
        assert label in shown.out
    assert "step 2/2" in shown.err


def test_folder_of_something_else_is_left_alone(small_demo: Path) -> None:
    small_demo.mkdir(parents=True)
    (small_demo / "thesis.txt").write_text("four years of work")
    with pytest.raises(OutputError, match="no earlier run of the demo"):
        demo.run(output=small_demo, as_json=False)
    assert [path.name for path in small_demo.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_real_demo_reaches_what_it_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At most 5% exact before, at least 80% after; skipped where the model was never fetched."""
    from luthier.registry.aliases import ALIASES, is_converted

    if not is_converted(ALIASES["smollm2-135m"]):
        pytest.skip("smollm2-135m is not in the cache: `luthier demo` fetches it")
    assert demo.run(output=tmp_path / "demo", as_json=True) == 0
    match = json.loads(capsys.readouterr().out)["exact_match"]
    assert match["before"] <= 0.05
    assert match["after"] >= 0.80
