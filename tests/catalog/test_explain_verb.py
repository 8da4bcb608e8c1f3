"""`luthier explain`: every kind of topic, with facts that come from the dataclasses and an example that is read back."""

from __future__ import annotations

import json

import pytest
import yaml

from luthier.cli.explain import explain, run, topics
from luthier.core.catalog import Catalog
from luthier.core.config import RunConfig, parse_config
from luthier.core.config.reference import walk
from luthier.core.config.validate import parse_options
from luthier.core.contracts import SLOTS
from luthier.core.errors import ConfigError
from luthier.registry.catalog import discover

PLUGIN = """
from typing import Literal

@dataclass(frozen=True, kw_only=True)
class Options:
    rank: int = option(4, "Thin side.", ge=1, lt=64, unit="rows")
    mode: Literal["fast", "slow"] = option("fast", "Which way.")
    path: str = option(doc="Where to.")

@hookimpl
def luthier_adapters():
    yield adapter("slim", config=Options, provides=frozenset({"base.frozen", "mine.own"}), priority=3,
                  requires=(any_of("model.moe", "model.attention"),), conflicts=frozenset({"model.conv1d"}),
                  claims=frozenset({"lora.forward"}))

@hookimpl
def luthier_optimizers():
    yield optimizer("slim", requires=(any_of("mine.own"),))

@hookimpl
def luthier_model_patches():
    yield ModelPatch(name="press", summary="Presses.", config=Options, apply=lambda model, profile, config: print)

@hookimpl
def luthier_presets():
    yield Preset(name="both", slot="adapter", summary="Two.", config={"adapter": "slim", "patches": ["press"]})

@hookimpl
def luthier_data_formats():
    yield data_format("columns-x")
"""


@pytest.fixture
def catalog(install) -> Catalog:
    install("luthier-bad", "0.3", bad="@hookimpl\ndef luthier_adaptors():\n    yield adapter('lost')")
    return discover(install("luthier-mine", "1.2", mine=PLUGIN), disabled=(), strict=False)


def test_key(catalog: Catalog) -> None:
    (entry,) = explain("train.batch_tokens", catalog)
    field = RunConfig.__dataclass_fields__["train"].default.__dataclass_fields__["batch_tokens"]
    assert entry.kind == "key"
    assert entry.facts["type"] == "a whole number"
    assert entry.facts["default"] == str(field.default)
    assert entry.facts["bounds"] == "at least 8"
    assert entry.facts["unit"] == "tokens"
    assert yaml.safe_load(entry.example) == {"train": {"batch_tokens": field.default}}


def test_section(catalog: Catalog) -> None:
    (entry,) = explain("data.train", catalog)
    assert entry.kind == "section"
    assert [option.name for option in entry.fields][:2] == ["path", "hub"]
    assert yaml.safe_load(entry.example) == {"data": {"train": [{"path": "<path>", "format": "auto"}]}}


def test_slot_lists_its_methods(catalog: Catalog) -> None:
    entry = explain("adapter", catalog)[0]
    assert entry.facts["methods"] == "slim, both"
    assert yaml.safe_load(entry.example)["adapter"]["use"] == "slim"


def test_method_of_two_slots(catalog: Catalog) -> None:
    adapter, optimizer = explain("slim", catalog)
    assert (adapter.facts["slot"], optimizer.facts["slot"]) == ("adapter", "optimizer")
    assert adapter.facts["from"] == "luthier-mine 1.2"
    assert adapter.facts["provides"] == "base.frozen, mine.own"
    assert adapter.facts["requires"] == "model.attention or model.moe"
    assert adapter.facts["conflicts"] == "model.conv1d"
    assert adapter.facts["claims"] == "lora.forward"
    assert adapter.facts["auto"] == "a candidate, priority 3"
    assert optimizer.facts["auto"] == "only when named"
    assert [option.name for option in adapter.fields] == ["rank", "mode", "path"]
    assert yaml.safe_load(optimizer.example) == {"optimizer": "slim"}


@pytest.mark.parametrize("topic", ["slim.rank", "adapter.rank"])
def test_option(catalog: Catalog, topic: str) -> None:
    (entry,) = explain(topic, catalog)
    assert entry.name == "slim.rank"
    assert entry.facts["bounds"] == "at least 1, less than 64"
    assert entry.facts["unit"] == "rows"
    assert yaml.safe_load(entry.example) == {"adapter": {"use": "slim", "rank": 4}}


def test_option_of_a_patch_stands_in_a_list(catalog: Catalog) -> None:
    (entry,) = explain("press.path", catalog)
    assert entry.facts["default"] == "required"
    assert yaml.safe_load(entry.example) == {"patches": [{"use": "press", "path": "<path>"}]}


def test_preset_format_trait_claim_role(catalog: Catalog) -> None:
    assert "press" in explain("both", catalog)[0].facts["stands for"]
    assert explain("columns-x", catalog)[0].kind == "data format"
    trait = explain("base.frozen", catalog)[0]
    assert trait.facts == {"provided by": "adapter: slim"}
    assert explain("mine.own", catalog)[0].facts == {"provided by": "adapter: slim", "required by": "optimizer: slim"}
    assert explain("lora.forward", catalog)[0].facts["claimed by"] == "adapter: slim"
    assert explain("attn.q", catalog)[0].kind == "role"


def test_broken_plugin_by_its_name_and_by_what_was_lost(catalog: Catalog) -> None:
    for topic in ("bad", "lost"):
        (entry,) = explain(topic, catalog)
        assert entry.kind == "broken plugin"
        assert "did you mean luthier_adapters" in entry.facts["error"]


@pytest.mark.parametrize(
    ("topic", "near"),
    [
        ("train.batch_token", "train.batch_tokens"),
        ("slimm", "slim"),
        ("slim.rnak", "slim.rank"),
        ("base.frosen", "base.frozen"),
    ],
)
def test_unknown_topic_is_refused_with_the_nearest(catalog: Catalog, topic: str, near: str) -> None:
    with pytest.raises(ConfigError) as caught:
        explain(topic, catalog)
    assert near in caught.value.fix


def test_every_topic_has_an_answer_and_every_example_is_yaml(catalog: Catalog) -> None:
    for topic in topics(catalog):
        for entry in explain(topic, catalog):
            if entry.example and entry.kind != "command":
                assert isinstance(yaml.safe_load(entry.example), dict), topic


def test_every_example_of_the_built_ins_is_a_configuration() -> None:
    installed = discover(strict=False, disabled=())
    whole = {"model": "gpt2", "data": {"train": ["rows.jsonl"]}}
    for path, _ in walk(RunConfig):
        for entry in explain(path, installed):
            if entry.kind in ("key", "section") and "rows" not in path and "." not in path:
                parse_config(whole | yaml.safe_load(entry.example))
    for slot, offer in installed.offers():
        entry = next(item for item in explain(offer.value.name, installed) if item.facts.get("slot") == slot)
        config = parse_config(whole | yaml.safe_load(entry.example))
        chosen = getattr(config, slot)
        choice = chosen[0] if isinstance(chosen, tuple) else chosen
        assert choice.use == offer.value.name
        parse_options(offer.value.config, choice.options, where=slot)


def test_json_and_text_say_the_same(catalog: Catalog, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("slim", as_json=True, catalog=catalog) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["topic"] == "slim"
    assert report["entries"][0]["fields"][1]["choices"] == ["fast", "slow"]
    run("slim", as_json=False, catalog=catalog)
    text = capsys.readouterr().out
    for words in ("slim  (method)", "rank: a whole number", "at least 1, less than 64", "Thin side.", "use: slim"):
        assert words in text
    assert set(SLOTS) >= {entry["facts"]["slot"] for entry in report["entries"]}
