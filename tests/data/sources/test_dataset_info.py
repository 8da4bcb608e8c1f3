"""LLaMA-Factory's dataset_info.json: what each field of an entry becomes, and what is refused, with file, entry and key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.core.config.schema import Choice, DataConfig, SourceConfig
from luthier.core.data.sources import open_rows, resolve_sources
from luthier.core.errors import DataError
from luthier.core.frozen import FrozenDict

Resolve = Callable[..., SourceConfig]
TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}


@pytest.fixture
def resolve(tmp_path: Path) -> Resolve:
    """`resolve({"file_name": ...}, **keys)`: the source that `{dataset: mine, **keys}` becomes; rows.json is there."""
    (tmp_path / "rows.json").write_text('[{"a": 1}]')

    def of(entry: Any, **keys: Any) -> SourceConfig:
        info = tmp_path / "dataset_info.json"
        info.write_text(json.dumps({"mine": entry, "other": {"file_name": "rows.json"}}))
        source = SourceConfig(dataset="mine", **keys)
        return resolve_sources(DataConfig(train=(source,), dataset_info=str(tmp_path))).train[0]

    return of


def fault(resolve: Resolve, entry: Any, **keys: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        resolve(entry, **keys)
    assert "dataset_info.json" in caught.value.where
    assert caught.value.fix
    return caught.value


def columns(**names: str) -> dict[str, str]:
    return names


@pytest.mark.parametrize(
    ("entry", "use", "options", "expected"),
    [
        ({}, "alpaca", {}, {}),
        ({"formatting": "alpaca", "ranking": False}, "alpaca", {}, {}),
        (
            {"columns": {"prompt": "question", "query": "context", "response": "answer", "system": "s", "history": "h"}},
            "alpaca",
            {},
            columns(instruction="question", input="context", output="answer", system="s", history="h"),
        ),
        ({"columns": {"prompt": "instruction", "response": "output"}}, "alpaca", {}, {}),
        ({"columns": {"prompt": "body"}}, "text", {}, columns(text="body")),
        ({"columns": {"prompt": "text"}}, "text", {}, {}),
        ({"columns": {"prompt": "text", "response": None}}, "text", {}, {}),
        ({"formatting": "sharegpt"}, "sharegpt", {}, {}),
        (
            {"formatting": "sharegpt", "columns": {"messages": "chat", "tools": "functions", "system": "s"}, "tags": TAGS},
            "sharegpt",
            TAGS,
            columns(conversations="chat", tools="functions", system="s"),
        ),
        ({"formatting": "openai", "columns": {"messages": "m"}, "tags": TAGS}, "sharegpt", TAGS, columns(conversations="m")),
        ({"ranking": True}, "ranking", {}, {}),
        (
            {"ranking": True, "columns": {"prompt": "question", "chosen": "good", "rejected": "bad", "system": "system"}},
            "ranking",
            {},
            columns(instruction="question", chosen="good", rejected="bad"),
        ),
        (
            {
                "ranking": True,
                "formatting": "sharegpt",
                "columns": {"messages": "m", "chosen": "c", "rejected": "r"},
                "tags": TAGS,
            },
            "ranking",
            TAGS,
            columns(conversations="m", chosen="c", rejected="r"),
        ),
        (
            {"columns": {"prompt": "prompt", "response": "completion", "kto_tag": "label"}},
            "unpaired",
            {},
            columns(instruction="prompt", output="completion"),
        ),
        (
            {"formatting": "sharegpt", "columns": {"messages": "completion", "kto_tag": "good"}, "tags": TAGS},
            "unpaired",
            TAGS,
            columns(messages="completion", label="good"),
        ),
    ],
)
def test_formats(
    resolve: Resolve, entry: dict[str, Any], use: str, options: dict[str, str], expected: dict[str, str]
) -> None:
    source = resolve({"file_name": "rows.json", **entry})
    assert source.format == Choice(use=use, options=FrozenDict(options))
    assert dict(source.columns) == expected


def test_every_tag_is_an_option(resolve: Resolve) -> None:
    tags = {
        f"{name}_tag": f"<{name}>" for name in ("role", "content", "user", "assistant", "observation", "function", "system")
    }
    assert dict(resolve({"file_name": "rows.json", "formatting": "sharegpt", "tags": tags}).format.options) == tags


def test_places(resolve: Resolve, tmp_path: Path) -> None:
    assert resolve({"file_name": "rows.json"}).path == str(tmp_path / "rows.json")
    (tmp_path / "folder").mkdir()
    assert resolve({"file_name": "folder"}).path == str(tmp_path / "folder")
    assert resolve({"cloud_file_name": "s3://bucket/rows.jsonl"}).path == "s3://bucket/rows.jsonl"
    source = resolve({"hf_hub_url": "owner/name", "ms_hub_url": "other/name", "subset": "en", "split": "validation"})
    assert (source.hub, source.subset, source.split, source.path) == ("owner/name", "en", "validation", None)
    assert resolve({"hf_hub_url": "owner/name"}).split == "train"
    assert resolve({"hf_hub_url": "owner/name", "folder": "python"}).path == "hf://datasets/owner/name/python"
    assert resolve({"file_name": "rows.json", "num_samples": 7}).sample == 7
    assert resolve({"file_name": "rows.json"}).sample is None


def test_the_configuration_wins(resolve: Resolve) -> None:
    entry = {"hf_hub_url": "owner/name", "subset": "en", "num_samples": 10, "columns": {"prompt": "q", "response": "a"}}
    source = resolve(entry, sample=0.5, rows=3, weight=2.0, kind="text", split="test", subset="de", revision="v1")
    assert (source.sample, source.rows, source.weight, source.kind) == (0.5, 3, 2.0, "text")
    assert (source.hub, source.subset, source.split, source.revision) == ("owner/name", "de", "test", "v1")
    assert source.dataset is None
    assert dict(resolve(entry, columns=FrozenDict({"instruction": "x"})).columns) == {"instruction": "x"}
    named = resolve(entry, format=Choice(use="question_answer"))
    assert (named.format.use, dict(named.columns)) == ("question_answer", {})


@pytest.mark.parametrize(
    ("entry", "key", "words"),
    [
        ([], "", "is a list, not an object"),
        ({}, "", "does not say where its rows are"),
        ({"file_name": 3}, "file_name", "must be a string, not a number"),
        ({"file_name": "rows.json", "num_samples": "3"}, "num_samples", "must be a number"),
        ({"file_name": "rows.json", "num_samples": True}, "num_samples", "must be a number, not a boolean"),
        ({"file_name": "rows.json", "num_samples": 0}, "num_samples", "at least 1"),
        ({"file_name": "rows.json", "ranking": "yes"}, "ranking", "true or false"),
        ({"file_name": "rows.json", "columns": ["a"]}, "columns", "must be an object, not a list"),
        ({"file_name": "rows.json", "columns": {"prompt": 1}}, "columns.prompt", "must be a string"),
        ({"file_name": "rows.json", "formating": "alpaca"}, "formating", "is unknown"),
        ({"file_name": "rows.json", "formatting": "alpacca"}, "formatting", "is none of alpaca, sharegpt, openai"),
        ({"file_name": "rows.json", "columns": {"promt": "a"}}, "columns.promt", "is unknown"),
        ({"file_name": "rows.json", "formatting": "sharegpt", "tags": {"rol_tag": "a"}}, "tags.rol_tag", "is unknown"),
        ({"file_name": "rows.json", "tags": {"role_tag": "role"}}, "tags", "name the roles"),
        ({"file_name": "rows.json", "columns": {"messages": "a"}}, "columns.messages", "is no column of alpaca rows"),
        ({"file_name": "rows.json", "columns": {"prompt": "a", "query": "b"}}, "columns.response", "is missing"),
        ({"file_name": "rows.json", "columns": {"prompt": "a", "chosen": "b"}}, "ranking", "is not set"),
        ({"file_name": "rows.json", "ranking": True, "columns": {"kto_tag": "l"}}, "columns.kto_tag", "cannot stand beside"),
        (
            {"file_name": "rows.json", "formatting": "sharegpt", "columns": {"messages": "m", "images": "pictures"}},
            "columns.images",
            "the column 'pictures' holds images, and this is for models of text alone",
        ),
        ({"file_name": "rows.json", "columns": {"prompt": "p", "videos": "v"}}, "columns.videos", "models of text alone"),
        ({"file_name": "rows.json", "columns": {"prompt": "p", "audios": "v"}}, "columns.audios", "models of text alone"),
        ({"ms_hub_url": "owner/name"}, "ms_hub_url", "only on ModelScope"),
        ({"om_hub_url": "owner/name"}, "om_hub_url", "only on OpenMind"),
        ({"script_url": "load.py"}, "script_url", "is a program, and is not run"),
        ({"cloud_file_name": "bucket/rows.json"}, "cloud_file_name", "is no URL"),
        ({"cloud_file_name": "file:///home/me/rows.json"}, "cloud_file_name", "is no file of a cloud store or web server"),
        ({"cloud_file_name": "LOCAL:///home/me/rows.json"}, "cloud_file_name", "is no file of a cloud store or web server"),
        (
            {"cloud_file_name": "zip://a.json::/home/me/a.zip"},
            "cloud_file_name",
            "is no file of a cloud store or web server",
        ),
        ({"cloud_file_name": "hf://a.json::file:///a.zip"}, "cloud_file_name", "is no file of a cloud store or web server"),
        ({"file_name": "rows.json", "subset": "en"}, "subset", "belongs to a hub data set"),
        ({"file_name": "rows.json", "split": "test"}, "split", "belongs to a hub data set"),
        ({"file_name": "rows.json", "folder": "x"}, "folder", "belongs to a hub data set"),
        ({"hf_hub_url": "a/b", "folder": "x", "split": "test"}, "split", "cannot stand beside `folder`"),
        ({"hf_hub_url": "a/b", "folder": "../c"}, "folder", "leads out of the data set"),
        ({"file_name": "row.json"}, "file_name", "there is no 'row.json'"),
        ({"file_name": "/etc/passwd"}, "file_name", "is an absolute path"),
        ({"file_name": "C:\\rows.json"}, "file_name", "is an absolute path"),
        ({"file_name": "../rows.json"}, "file_name", "leads out of the folder"),
        ({"file_name": "a/../../rows.json"}, "file_name", "leads out of the folder"),
        ({"file_name": "a\\..\\rows.json"}, "file_name", "leads out of the folder"),
    ],
)
def test_what_is_refused_names_file_entry_and_key(
    resolve: Resolve, tmp_path: Path, entry: Any, key: str, words: str
) -> None:
    error = fault(resolve, entry)
    assert error.where == f"{tmp_path / 'dataset_info.json'}, mine{', ' + key if key else ''}"
    assert words in error.message


def test_advice_is_near(resolve: Resolve) -> None:
    assert fault(resolve, {"file_name": "row.json"}).fix == "did you mean 'rows.json'?"
    assert fault(resolve, {"file_name": "rows.json", "num_sample": 1}).fix == "did you mean 'num_samples'?"


def test_a_link_out_of_the_folder_is_refused(resolve: Resolve, tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside.json"
    outside.write_text("[{}]")
    (tmp_path / "link.json").symlink_to(outside)
    assert "is a link that leads out of the folder" in fault(resolve, {"file_name": "link.json"}).message
    (tmp_path / "several" / "deep").mkdir(parents=True)
    (tmp_path / "several" / "deep" / "link.json").symlink_to(outside)
    error = fault(resolve, {"file_name": "several"})
    assert "'several/deep/link.json' is a link that leads out of the folder" in error.message
    (tmp_path / "inside.json").symlink_to(tmp_path / "rows.json")
    assert [row.value for row in open_rows(resolve({"file_name": "inside.json"})).rows()] == [{"a": 1}]


def test_allowed_folders_hold_for_the_file_and_its_entries(resolve: Resolve, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("LUTHIER_DATA_FOLDERS", str(tmp_path / "elsewhere"))
    with pytest.raises(DataError, match="is outside the folders"):
        resolve({"file_name": "rows.json"})
    monkeypatch.setenv("LUTHIER_DATA_FOLDERS", str(tmp_path))
    assert resolve({"file_name": "rows.json"}).path


def test_a_missing_entry_names_the_nearest(resolve: Resolve, tmp_path: Path) -> None:
    resolve({"file_name": "rows.json"})
    for name, fix in (("others", "did you mean other?"), ("zzz", "it has mine, other")):
        data = DataConfig(train=(SourceConfig(dataset=name),), dataset_info=str(tmp_path / "dataset_info.json"))
        with pytest.raises(DataError, match=f"there is no entry '{name}'") as caught:
            resolve_sources(data)
        assert (caught.value.where, caught.value.fix) == (str(tmp_path / "dataset_info.json"), fix)


@pytest.mark.parametrize(
    ("content", "where", "words"),
    [
        ('{"a": 1,\n}', ":2", "bad JSON"),
        ("[]", "", "is a list"),
        (b"\xff", "", "bad JSON"),
        (None, "", "there is no such file"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, content: Any, where: str, words: str) -> None:
    path = tmp_path / "dataset_info.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=words) as caught:
        resolve_sources(DataConfig(train=(SourceConfig(dataset="a"),), dataset_info=str(tmp_path) if content else str(path)))
    assert caught.value.where == f"{path}{where}"


def test_no_file_named() -> None:
    with pytest.raises(DataError, match="the entry 'a' is to be looked up, and no file is named") as caught:
        resolve_sources(DataConfig(train=(SourceConfig(path="x"),), eval=(SourceConfig(dataset="a"),)))
    assert caught.value.where == "data.dataset_info"
    with pytest.raises(DataError, match="was not looked up"):
        open_rows(SourceConfig(dataset="a"))


def test_sources_without_entries_stay_as_they_are(resolve: Resolve, tmp_path: Path) -> None:
    data = DataConfig(train=(SourceConfig(path="x.jsonl"),), dataset_info=str(tmp_path / "not there"))
    assert resolve_sources(data) is data
    resolve({"file_name": "rows.json"})
    data = DataConfig(
        train=(SourceConfig(path="x.jsonl"),), eval=(SourceConfig(dataset="mine"),), dataset_info="dataset_info.json"
    )
    resolved = resolve_sources(data, tmp_path)
    assert resolved.train == data.train
    assert isinstance(resolved.eval, tuple)
    assert resolved.eval[0].path == str(tmp_path / "rows.json")
