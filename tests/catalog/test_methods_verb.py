"""`luthier methods`: what it lists, what is missing here, and broken plugins beside working ones."""

from __future__ import annotations

import json

import pytest

from luthier.cli import methods
from luthier.core.errors import ConfigError
from luthier.registry.catalog import discover

PLUGIN = """
@dataclass(frozen=True, kw_only=True)
class Options:
    rank: int = option(4, "Rank.", ge=1)

@hookimpl
def luthier_adapters():
    yield adapter("ready", config=Options, packages=("pip",), provides=frozenset({"base.frozen"}))
    yield adapter("lacking", packages=("no-such-package-of-ours>=2.5",), requires=(any_of("model.moe", "device.cuda"),),
                  conflicts=frozenset({"weights.quantized"}), summary="Has [brackets] in it.")

@hookimpl
def luthier_presets():
    yield Preset(name="both", slot="adapter", summary="A test.", config={"adapter": "ready", "patches": ["p"]})

@hookimpl
def luthier_data_formats():
    yield data_format("columns-x")

@hookimpl
def luthier_commands():
    yield command("hello")

@hookimpl
def luthier_architectures():
    yield family("mylab", "mylab-lm")
"""


@pytest.fixture
def catalog(install):
    install("luthier-bad", "0.3", bad="@hookimpl\ndef luthier_adaptors():\n    yield adapter('lost')")
    install("luthier-off", off="raise RuntimeError")
    return discover(install("luthier-mine", "1.2", mine=PLUGIN), disabled=("off",), strict=False)


def test_json_is_one_document_with_everything(catalog, capsys: pytest.CaptureFixture[str]) -> None:
    assert methods.run(as_json=True, catalog=catalog) == 0
    report = json.loads(capsys.readouterr().out)

    lacking, ready = report["methods"]
    provider = {"plugin": "mine", "distribution": "luthier-mine", "version": "1.2", "target": "mine"}
    assert (ready["slot"], ready["name"], ready["provider"]) == ("adapter", "ready", provider)
    assert (ready["available"], ready["missing"], ready["install"]) == (True, [], None)
    assert ready["options"] == ["rank"]
    assert ready["provides"] == ["base.frozen"]
    assert (lacking["available"], lacking["missing"]) == (False, ["no-such-package-of-ours>=2.5"])
    assert lacking["install"] == 'pip install "no-such-package-of-ours>=2.5"'
    assert lacking["requires"] == [["device.cuda", "model.moe"]]
    assert report["presets"][0]["config"] == {"adapter": "ready", "patches": ["p"]}
    assert [item["name"] for item in report["formats"]] == ["columns-x"]
    assert [item["name"] for item in report["commands"]] == ["hello"]
    assert report["architectures"][0]["model_types"] == ["mylab-lm"]
    assert report["disabled"] == ["off"]
    (broken,) = report["broken"]
    assert broken["provider"]["distribution"] == "luthier-bad"
    assert broken["names"] == ["adapter: lost"]
    assert "did you mean luthier_adapters" in broken["error"]


def test_table_shows_what_is_missing_and_what_is_broken(catalog, capsys: pytest.CaptureFixture[str]) -> None:
    assert methods.run(as_json=False, catalog=catalog) == 0
    out = " ".join(capsys.readouterr().out.split())
    for words in (
        "ready",
        "luthier-mine 1.2",
        "no: pip install",
        "[brackets]",
        "base.frozen",
        "columns-x",
        "hello",
        "mylab-lm",
    ):
        assert words in out
    for words in ("broken plugins", "luthier-bad 0.3", "luthier_adaptors", "switched off by LUTHIER_DISABLE_PLUGINS: off"):
        assert words in out


def test_one_slot_only(catalog, capsys: pytest.CaptureFixture[str]) -> None:
    methods.run(as_json=True, slot="optimizer", catalog=catalog)
    report = json.loads(capsys.readouterr().out)
    assert report["methods"] == []
    assert report["presets"] == []
    assert "formats" not in report, "left out, not said to be empty"
    assert len(report["broken"]) == 1


def test_unknown_slot_is_refused_with_a_suggestion(catalog) -> None:
    with pytest.raises(ConfigError, match="did you mean 'adapter'"):
        methods.run(as_json=False, slot="adaptor", catalog=catalog)
