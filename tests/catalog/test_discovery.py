"""Discovery of sound plugins: what the catalog holds, what is switched off, and what it must not import."""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import sys

import pytest

from luthier.core.catalog import Provider
from luthier.core.contracts import SLOTS
from luthier.core.errors import ConfigError
from luthier.core.extensions import RunEvent
from luthier.core.hookspecs import HOOKS
from luthier.core.options import DOC
from luthier.registry.catalog import discover

EVERY_HOOK = """
SEEN = []

@hookimpl
def luthier_model_patches():
    yield ModelPatch(name="p", summary="A test.", apply=lambda model, profile, config: (lambda: None))

@hookimpl
def luthier_adapters():
    return [adapter("b"), adapter("a", provides=frozenset({"all.mine", "base.frozen"}), requires=(any_of("all.mine"),))]

@hookimpl
def luthier_optimizers():
    return (optimizer("o"),)

@hookimpl
def luthier_attention_kernels():
    yield AttentionKernel(name="k", summary="A test.", implementation="sdpa")

@hookimpl
def luthier_training_stages():
    yield TrainingStage(name="s", summary="A test.", data_kind="text", run=lambda runtime, config: {})

@hookimpl
def luthier_data_formats():
    yield data_format("f")

@hookimpl
def luthier_presets():
    yield Preset(name="combo", slot="adapter", summary="A test.", config={"adapter": "a", "patches": ["p"]})

@hookimpl
def luthier_architectures():
    yield family("net", "net-lm", "net-xl")

@hookimpl
def luthier_commands():
    yield command("c")

@hookimpl
def luthier_event(event):
    SEEN.append(event.kind)
"""


def test_a_plugin_that_uses_every_hook(install) -> None:
    catalog = discover(install("luthier-all", "1.2", all_hooks=EVERY_HOOK), strict=True)
    provider = Provider(plugin="all_hooks", distribution="luthier-all", version="1.2", target="all_hooks")

    assert {slot: list(catalog.slot(slot)) for slot in SLOTS} == {
        "patches": ["p"], "adapter": ["a", "b"], "optimizer": ["o"], "attention": ["k"], "stage": ["s"],
    }  # fmt: skip
    assert {offer.provider for _, offer in catalog.offers()} == {provider}
    assert str(provider) == "luthier-all 1.2"
    assert list(catalog.presets["adapter"]) == ["combo"]
    assert catalog.data_format("f").columns == "x"
    assert catalog.command("c").run([]) == 0
    assert catalog.architectures[0].value.model_types == ("net-lm", "net-xl")
    assert catalog.providers_of("base.frozen") == [("adapter", "a")]
    catalog.observers[0].value(RunEvent(kind="start"))
    assert sys.modules["all_hooks"].SEEN == ["start"]
    assert len(HOOKS) == 10


def test_an_observer_may_leave_its_argument_out(install) -> None:
    code = "SEEN = []\n@hookimpl\ndef luthier_event():\n    SEEN.append(1)"
    catalog = discover(install("luthier-o", watcher=code), strict=True)
    catalog.observers[0].value(RunEvent(kind="finish"))
    assert sys.modules["watcher"].SEEN == [1]


def test_disabled_plugins_are_not_even_imported(install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("luthier-bad", crashing="raise RuntimeError")
    points = install("luthier-all", all_hooks=EVERY_HOOK)
    monkeypatch.setenv("LUTHIER_DISABLE_PLUGINS", "crashing, a")
    monkeypatch.setenv("LUTHIER_STRICT_PLUGINS", "1")
    catalog = discover(points)
    assert catalog.disabled == ("crashing",), "a plugin is switched off, not a method"
    assert "crashing" not in sys.modules
    assert "a" in catalog.slot("adapter")
    with pytest.raises(ConfigError, match="switched off by LUTHIER_DISABLE_PLUGINS"):
        catalog.method("adapter", "crashing")


def test_disabling_what_is_not_there_is_said(install, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert discover(install("luthier-all", all_hooks=EVERY_HOOK), disabled=["typo"], strict=True).disabled == ()
    assert "'typo', which is no installed plugin" in caplog.text


@pytest.mark.parametrize(
    ("slot", "name", "message"),
    [
        ("adapter", "comboo", "did you mean 'combo'?"),
        ("adapter", "o", "'o' belongs under `optimizer`"),
        ("stage", "zzzzzz", "there are: s"),
    ],
)
def test_unknown_method(install, slot: str, name: str, message: str) -> None:
    catalog = discover(install("luthier-all", all_hooks=EVERY_HOOK), strict=True)
    with pytest.raises(ConfigError) as caught:
        catalog.method(slot, name)
    assert message in str(caught.value)


def test_unknown_format_and_command(install) -> None:
    catalog = discover(install("luthier-all", all_hooks=EVERY_HOOK), strict=True)
    with pytest.raises(ConfigError, match="no data format named 'nope'; there are: f"):
        catalog.data_format("nope")
    with pytest.raises(ConfigError, match="no command named 'nope'; there are: c"):
        catalog.command("nope")


def test_discovery_of_the_built_ins_imports_nothing_heavy() -> None:
    code = (
        "import sys; from luthier.registry.catalog import discover; catalog = discover(strict=True, disabled=());"
        "assert catalog.slot('adapter'), 'nothing was discovered';"
        "heavy = 'torch transformers peft accelerate trl datasets bitsandbytes numpy pydantic yaml matplotlib rich'.split();"
        "print(' '.join(name for name in heavy if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_built_ins_are_sound_and_every_option_is_documented() -> None:
    catalog = discover(strict=True, disabled=())
    own = [offer for _, offer in catalog.offers() if offer.provider.distribution == "luthier"]
    assert own
    undocumented = [
        f"{offer.value.name}.{field.name}"
        for offer in own
        for field in dataclasses.fields(offer.value.config)
        if not field.metadata.get(DOC)
    ]
    assert not undocumented
