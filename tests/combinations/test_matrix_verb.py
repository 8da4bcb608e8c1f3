"""`luthier methods --matrix MODEL`: the table as a person and as a program read it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.cli import main

from .conftest import matrix_of


def test_the_json_has_every_cell(tiny_models: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--matrix", str(tiny_models["llama"]), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    axes = [report[axis] for axis in ("adapters", "quantisations", "optimizers")]
    assert len(report["cells"]) == len(axes[0]) * len(axes[1]) * len(axes[2])
    assert report["model_type"] == "llama"
    for cell in report["cells"]:
        assert cell["outcome"] in ("yes", "experimental", "no", "missing")
        assert (cell["outcome"] in ("no", "missing")) == bool(cell["problems"])
        assert all(problem["reason"] for problem in cell["problems"])
    plain = next(cell for cell in report["cells"] if (cell["adapter"], cell["optimizer"]) == ("lora", "adamw"))
    assert (plain["quantisation"], plain["outcome"]) == ("none", "yes")


def test_the_table_has_a_row_and_a_reason_for_everything(
    tiny_models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["methods", "--matrix", str(tiny_models["mixtral"])]) == 0
    text = capsys.readouterr().out
    matrix = matrix_of(tiny_models["mixtral"])
    possible = sum(cell.possible for cell in matrix.cells)
    assert f"{possible} of {len(matrix.cells)} combinations can be run" in text.replace("\n", " ")
    for name in matrix.quantisations:
        assert f"quantisation: {name}" in text
    lines = text.splitlines()
    for optimizer in matrix.optimizers:
        rows = [line for line in lines if line.split()[:1] == [optimizer]]
        assert len(rows) == len(matrix.quantisations), optimizer


@pytest.mark.parametrize("words", [["--slot", "adapter"], []])
def test_options_that_do_not_go_together_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    extra = ["--matrix", "somewhere"] if words else ["--trust-remote-code"]
    assert main(["methods", *words, *extra]) == 2
    assert "--matrix" in capsys.readouterr().err


def test_a_model_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["methods", "--matrix", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
