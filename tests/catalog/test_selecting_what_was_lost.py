"""A lost name that a configuration or the command line selects is answered with the error of the plugin that lost it."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest

from luthier.cli import main
from luthier.core.errors import ExitCode, PluginError
from luthier.core.hookspecs import ENTRY_POINT_GROUP
from luthier.registry.catalog import discover

LOSING = """
@hookimpl
def luthier_commands():
    yield command("wave")

@hookimpl
def luthier_data_formats():
    yield data_format("runes")

@hookimpl
def luthier_architectures():
    yield family("mylab", "mistral")

@hookimpl
def luthier_adapters():
    yield adapter("slim")
    raise OSError("the licence server is down")
"""


@pytest.fixture
def losing(install, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin beside the built-in ones, for everything that discovers by itself."""
    real = importlib.metadata.entry_points
    installed = [*real(group=ENTRY_POINT_GROUP), *install("luthier-bad", "0.3", bad=LOSING)]

    def entry_points(**wanted: str) -> Any:
        return installed if wanted == {"group": ENTRY_POINT_GROUP} else real(**wanted)

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)


def test_a_verb(losing, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wave"]) == ExitCode.ENVIRONMENT
    out, err = capsys.readouterr()
    assert out == ""
    assert "luthier-bad 0.3" in err
    assert "the licence server is down" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("selection", "code"),
    [({"adapter": "slim"}, ExitCode.ENVIRONMENT), ({"data": {"train": [{"path": "rows.jsonl", "format": "runes"}]}}, None)],
)
def test_a_configuration(
    losing,
    tiny_folder: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    selection,
    code,
) -> None:
    import luthier

    monkeypatch.chdir(tmp_path)
    row = {"instruction": "Say a.", "output": "a"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    config = {"model": str(tiny_folder("llama")), "data": {"train": ["rows.jsonl"]}, "output": "out"} | selection
    if code is None:
        with pytest.raises(PluginError, match="the licence server is down"):
            luthier.plan(config)
    else:
        (tmp_path / "config.yaml").write_text(json.dumps(config), encoding="utf-8")
        assert main(["plan", "config.yaml"]) == code
        assert "the licence server is down" in capsys.readouterr().err


def test_a_model_type(losing, tiny_folder: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its family may say what detection gets wrong; a model of another type does not need it."""
    assert main(["profile", str(tiny_folder("llama"))]) == ExitCode.DONE
    folder = str(tiny_folder("mistral"))
    capsys.readouterr()
    assert main(["profile", folder]) == ExitCode.ENVIRONMENT
    err = capsys.readouterr().err
    assert "the licence server is down" in err
    assert "LUTHIER_DISABLE_PLUGINS=bad" in err
    monkeypatch.setenv("LUTHIER_DISABLE_PLUGINS", "bad")
    assert main(["profile", folder]) == ExitCode.DONE


def test_everything_else_works(losing, capsys: pytest.CaptureFixture[str]) -> None:
    catalog = discover(strict=False, disabled=())
    assert catalog.slot("adapter").keys() >= {"lora", "full"}
    assert main(["methods", "--json"]) == ExitCode.DONE
    (broken,) = json.loads(capsys.readouterr().out)["broken"]
    assert broken["names"] == ["adapter: slim", "architecture: mistral", "command: wave", "format: runes"]
    assert main(["explain", "lora"]) == ExitCode.DONE
