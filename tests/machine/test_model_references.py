"""From what a configuration says to where the model lies, and the message for what is no model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.core.errors import ExitCode, ModelError
from luthier.registry.models import cache_folder, resolve_model


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and a cache folder in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    return tmp_path


def model_at(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def error_of(name: str, **options: object) -> ModelError:
    with pytest.raises(ModelError) as caught:
        resolve_model(name, **options)  # type: ignore[arg-type]
    assert caught.value.exit_code == ExitCode.REFUSED
    assert caught.value.fix
    return caught.value


def test_cache_folder_is_the_variables_or_the_systems(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == here / "cache"
    monkeypatch.delenv("LUTHIER_CACHE")
    assert cache_folder().name == "luthier"
    monkeypatch.setenv("LUTHIER_CACHE", "~/models")
    assert cache_folder() == Path.home() / "models"


def test_folder(here: Path) -> None:
    model_at(here / "models" / "mine")
    for name in ("models/mine", "./models/mine", str(here / "models" / "mine")):
        reference = resolve_model(name)
        assert (reference.name, reference.kind, reference.path) == (name, "folder", str(here / "models" / "mine"))


def test_hub_id_is_not_looked_up() -> None:
    reference = resolve_model("org/some-Model.v2", revision="main", trust_remote_code=True)
    assert (reference.kind, reference.path, reference.revision) == ("hub", "org/some-Model.v2", "main")
    assert reference.trust_remote_code


def test_existing_folder_wins_over_a_hub_id_of_the_same_name(here: Path) -> None:
    model_at(here / "org" / "name")
    assert resolve_model("org/name").kind == "folder"


def test_gguf_file(here: Path) -> None:
    (here / "m.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    reference = resolve_model("m.gguf")
    assert (reference.kind, reference.path, reference.gguf_file) == ("gguf", str(here), "m.gguf")


def test_alias_is_placed_in_the_cache_without_fetching(here: Path) -> None:
    reference = resolve_model("smollm2-135m", fetch=False)
    assert (reference.kind, reference.path) == ("alias", str(here / "cache" / "models" / "smollm2-135m"))
    assert not (here / "cache").exists()


@pytest.mark.parametrize("name", ["./missing", "/nowhere/at/all", "~/nowhere", "../missing", "a/b/c"])
def test_what_is_written_like_a_path_is_never_a_hub_id(name: str) -> None:
    error = error_of(name)
    assert error.where == name
    assert "no such model folder" in error.message


def test_nearest_folder_is_suggested(here: Path) -> None:
    model_at(here / "models" / "mistral")
    assert error_of("./models/mistrel").fix == "did you mean models/mistral?"


def test_nearest_alias_is_suggested() -> None:
    assert error_of("smollm-135m").fix == "did you mean smollm2-135m?"


def test_word_that_is_nothing_lists_the_aliases() -> None:
    error = error_of("gpt")
    assert "smollm2-135m" in error.fix
    assert "neither a folder" in error.message


def test_missing_gguf_suggests_the_one_that_is_there(here: Path) -> None:
    (here / "model-q8.gguf").write_bytes(b"GGUF")
    error = error_of("model-q4.gguf")
    assert "no such model file" in error.message
    assert "model-q8.gguf" in error.fix


def test_file_that_only_ends_in_gguf(here: Path) -> None:
    (here / "m.gguf").write_text("<!doctype html>")
    assert "is none" in error_of("m.gguf").message


def test_file_that_is_no_model(here: Path) -> None:
    (here / "model.safetensors").write_bytes(b"")
    assert "folder" in error_of("model.safetensors").fix


def test_folder_without_config(here: Path) -> None:
    (here / "empty").mkdir()
    error = error_of("empty")
    assert "config.json" in error.message
    assert error.where == "empty"


def test_folder_of_an_adapter(here: Path) -> None:
    (here / "adapter").mkdir()
    (here / "adapter" / "adapter_config.json").write_text("{}")
    assert "adapter" in error_of("adapter").message


def test_folder_of_gguf_files_names_one(here: Path) -> None:
    (here / "quantised").mkdir()
    (here / "quantised" / "q4.gguf").write_bytes(b"GGUF")
    assert "quantised/q4.gguf" in error_of("quantised").fix


def test_folder_above_a_model_names_it(here: Path) -> None:
    model_at(here / "runs" / "one")
    assert error_of("runs").fix == "did you mean runs/one?"


@pytest.mark.parametrize("content", ["{", "[]", "{}", json.dumps({"model_type": ""}), "\xff"])
def test_config_that_cannot_be_read(here: Path, content: str) -> None:
    folder = model_at(here / "broken")
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    assert error_of("broken").where == str(Path("broken") / "config.json")


@pytest.mark.parametrize("name", ["smollm2-135m", "mine", "m.gguf"])
def test_revision_is_for_the_hub_only(here: Path, name: str) -> None:
    model_at(here / "mine")
    (here / "m.gguf").write_bytes(b"GGUF")
    assert "revision" in error_of(name, revision="v1").message
