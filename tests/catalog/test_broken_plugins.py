"""Every way for a plugin to be broken: listed with its error and distribution, raising only when it is selected."""

from __future__ import annotations

import pytest

from luthier.core.errors import ConfigError, ExitCode, PluginError
from luthier.registry.catalog import discover

GOOD = """
@hookimpl
def luthier_adapters():
    yield adapter("sound")
"""

# name of the case: code of the plugin, words that its error must hold, a name that is lost with it ("" when unknowable)
CASES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "import_error": (
        "import no_such_package_anywhere",
        ("importing bad failed", "ModuleNotFoundError", "no_such_package_anywhere"),
        "",
    ),
    "syntax_error": ("def (:", ("importing bad failed", "SyntaxError"), ""),
    "crash_at_import": ("raise RuntimeError('no licence found')", ("importing bad failed", "no licence found"), ""),
    "exit_at_import": ("raise SystemExit(7)", ("importing bad failed", "sys.exit(7)"), ""),
    "misspelt_hook": (
        "@hookimpl\ndef luthier_adaptors():\n    yield adapter('lost')",
        ("no hook luthier_adaptors", "did you mean luthier_adapters"),
        "adapter: lost",
    ),
    "hook_without_prefix": (
        "@hookimpl\ndef adapters():\n    yield adapter('lost')",
        ("no hook adapters", "did you mean luthier_adapters"),
        "adapter: lost",
    ),
    "unmarked_hook": (
        "def luthier_adapters():\n    yield adapter('lost')",
        ("luthier_adapters is not marked with @hookimpl",),
        "adapter: lost",
    ),
    "unmarked_and_misspelt": (
        GOOD + "def luthier_optimisers():\n    yield optimizer('lost')",
        ("luthier_optimisers is not marked", "did you mean luthier_optimizers"),
        "optimizer: lost",
    ),
    "no_hook_at_all": ("x = 1", ("no function marked with @hookimpl",), ""),
    "wrong_argument": (
        "@hookimpl\ndef luthier_event(evnt):\n    pass\n@hookimpl\ndef luthier_adapters():\n    yield adapter('lost')",
        ("luthier_event", "evnt"),
        "adapter: lost",
    ),
    "argument_of_a_hook_that_has_none": (
        "@hookimpl\ndef luthier_adapters(model):\n    yield adapter('lost')",
        ("luthier_adapters", "model"),
        "",
    ),
    "hook_raises": (
        "@hookimpl\ndef luthier_adapters():\n    yield adapter('lost')\n    raise OSError('disk on fire')",
        ("luthier_adapters failed", "OSError: disk on fire"),
        "adapter: lost",
    ),
    "hook_exits": (
        "@hookimpl\ndef luthier_adapters():\n    raise SystemExit(3)",
        ("luthier_adapters failed", "sys.exit(3)"),
        "",
    ),
    "hook_returns_nothing": (
        "@hookimpl\ndef luthier_adapters():\n    [adapter('lost')]",
        ("luthier_adapters returned None", "Adapter"),
        "",
    ),
    "hook_returns_one": (
        "@hookimpl\ndef luthier_adapters():\n    return adapter('lost')",
        ("luthier_adapters must return an iterable of Adapter, returned Adapter",),
        "",
    ),
    "hook_is_a_wrapper": (
        "@hookimpl(wrapper=True)\ndef luthier_adapters():\n    return (yield)",
        ("luthier_adapters is a hook wrapper",),
        "",
    ),
    "not_a_description": (
        "@hookimpl\ndef luthier_adapters():\n    yield {'name': 'lost'}",
        ("luthier_adapters gave a dict", "it takes Adapter descriptions"),
        "",
    ),
    "description_of_another_hook": (
        "@hookimpl\ndef luthier_optimizers():\n    yield adapter('lost')",
        ("luthier_optimizers gave an Adapter 'lost'", "OptimizerMethod", "offer this one from luthier_adapters"),
        "adapter: lost",
    ),
    "config_is_no_dataclass": (
        "class Options:\n    rank: int = 1\n@hookimpl\ndef luthier_adapters():\n    yield adapter('lost', config=Options)",
        ("config must be a frozen keyword-only dataclass", "'lost'"),
        "adapter: lost",
    ),
    "config_is_an_instance": (
        "@dataclass(frozen=True, kw_only=True)\nclass Options:\n    rank: int = 1\n"
        "@hookimpl\ndef luthier_adapters():\n    yield adapter('lost', config=Options())",
        ("config must be a frozen keyword-only dataclass",),
        "adapter: lost",
    ),
    "config_is_not_frozen": (
        "@dataclass(kw_only=True)\nclass Options:\n    rank: int = 1\n"
        "@hookimpl\ndef luthier_adapters():\n    yield adapter('lost', config=Options)",
        ("config Options is not frozen",),
        "adapter: lost",
    ),
    "config_is_positional": (
        "@dataclass(frozen=True)\nclass Options:\n    rank: int = 1\n"
        "@hookimpl\ndef luthier_adapters():\n    yield adapter('lost', config=Options)",
        ("config Options is not keyword-only (rank)",),
        "adapter: lost",
    ),
    "config_with_the_key_of_the_name": (
        "@dataclass(frozen=True, kw_only=True)\nclass Options:\n    use: int = 1\n"
        "@hookimpl\ndef luthier_adapters():\n    yield adapter('lost', config=Options)",
        ("an option named 'use'",),
        "adapter: lost",
    ),
    "config_with_unknown_annotation": (
        "@dataclass(frozen=True, kw_only=True)\nclass Options:\n    rank: 'NoSuchType' = 1\n"
        "@hookimpl\ndef luthier_adapters():\n    yield adapter('lost', config=Options)",
        ("annotations of config Options cannot be resolved", "NoSuchType"),
        "adapter: lost",
    ),
    "name_that_yaml_cannot_say": (
        "@hookimpl\ndef luthier_adapters():\n    yield adapter('My Method')",
        ("'My Method'", "lower-case letters"),
        "adapter: My Method",
    ),
    "name_with_a_meaning": ("@hookimpl\ndef luthier_adapters():\n    yield adapter('auto')", ("'auto' has a meaning",), ""),
    "no_summary": ("@hookimpl\ndef luthier_adapters():\n    yield adapter('lost', summary=' ')", ("summary is empty",), ""),
    "not_callable": (
        "@hookimpl\ndef luthier_adapters():\n    yield adapter('lost', attach='peft', merge=1)",
        ("attach is not callable", "merge is not callable"),
        "adapter: lost",
    ),
    "traits_in_a_string": (
        "@hookimpl\ndef luthier_adapters():\n    yield adapter('lost', provides='base.frozen')",
        ("provides must be a frozenset of strings, got str",),
        "adapter: lost",
    ),
    "misspelt_trait": (
        "@hookimpl\ndef luthier_adapters():\n    yield adapter('lost', provides=frozenset({'base.frosen'}))",
        ("no trait 'base.frosen'", "did you mean 'base.frozen'"),
        "adapter: lost",
    ),
    "trait_without_prefix": (
        "@hookimpl\ndef luthier_adapters():\n    yield adapter('lost', conflicts=frozenset({'frozen'}))",
        ("conflicts", "'frozen' needs a prefix"),
        "adapter: lost",
    ),
    "misspelt_claim": (
        "@hookimpl\ndef luthier_adapters():\n    yield adapter('lost', claims=frozenset({'lora.foward'}))",
        ("claims", "did you mean 'lora.forward'"),
        "adapter: lost",
    ),
    "requirement_without_any_of": (
        "@hookimpl\ndef luthier_adapters():\n    yield adapter('lost', requires=('base.frozen',))",
        ("requires must be a tuple of any_of(...)",),
        "adapter: lost",
    ),
    "package_that_is_no_requirement": (
        "@hookimpl\ndef luthier_adapters():\n    yield adapter('lost', packages=('peft => 1',))",
        ("'peft => 1' is no requirement",),
        "adapter: lost",
    ),
    "packages_in_a_string": (
        "@hookimpl\ndef luthier_adapters():\n    yield adapter('lost', packages='peft')",
        ("packages must be a tuple",),
        "adapter: lost",
    ),
    "unknown_numerics": (
        "@hookimpl\ndef luthier_adapters():\n    yield adapter('lost', numerics='perfect')",
        ("numerics is 'perfect'", "exact, close, changes"),
        "adapter: lost",
    ),
    "unknown_phase": (
        "@hookimpl\ndef luthier_model_patches():\n"
        "    yield ModelPatch(name='lost', summary='A test.', apply=lambda m, p, c: None, phase='later')",
        ("phase is 'later'",),
        "patches: lost",
    ),
    "preset_of_no_slot": (
        "@hookimpl\ndef luthier_presets():\n    yield Preset(name='p', slot='adaptor', summary='A test.', config={})",
        ("no slot 'adaptor'",),
        "",
    ),
    "preset_that_leaves_its_slot_empty": (
        "@hookimpl\ndef luthier_presets():\n"
        "    yield Preset(name='lost', slot='adapter', summary='A test.', config={'patches': []})",
        ("its own slot, `adapter`",),
        "adapter: lost",
    ),
    "family_with_unknown_role": (
        "@hookimpl\ndef luthier_architectures():\n"
        "    yield ArchitectureFamily(name='f', model_types=('lost',), roles={'atn.o': 'x'})",
        ("no role 'atn.o'", "did you mean 'attn.o'"),
        "architecture: lost",
    ),
    "family_of_one_string": (
        "@hookimpl\ndef luthier_architectures():\n    yield ArchitectureFamily(name='f', model_types='lost', roles={})",
        ("model_types must be a tuple",),
        "",
    ),
    "format_of_unknown_kind": (
        "@hookimpl\ndef luthier_data_formats():\n"
        "    yield DataFormat(name='lost', summary='A test.', kind='prose', columns='x', detect=print, convert=print)",
        ("kind is 'prose'",),
        "format: lost",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_broken_plugin_is_kept_aside_and_raises_only_when_selected(install, case: str) -> None:
    code, words, lost = CASES[case]
    install("luthier-sound", "2.1", sound=GOOD)
    catalog = discover(install("luthier-bad", "0.3", bad=code), strict=False, disabled=())

    assert set(catalog.slot("adapter")) == {"sound"}, "the other plugin is untouched"
    assert catalog.method("adapter", "sound").summary == "A test."
    (broken,) = catalog.broken
    assert (broken.provider.distribution, broken.provider.version) == ("luthier-bad", "0.3")
    for word in words:
        assert word in broken.error
    if lost:
        slot, _, name = lost.partition(": ")
        assert lost in broken.names
        assert catalog.broken_for(slot, name) == broken
    with pytest.raises(PluginError) as caught:
        catalog.method("adapter", "bad")  # the name of the plugin: all that a user knows when it cannot be imported
    assert "luthier-bad 0.3" in str(caught.value)
    assert words[0] in str(caught.value)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


@pytest.mark.parametrize("case", CASES)
def test_strict_raises_at_once(install, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    code, words, _ = CASES[case]
    points = install("luthier-bad", "0.3", bad=code)
    monkeypatch.setenv("LUTHIER_STRICT_PLUGINS", "1")
    with pytest.raises(PluginError) as caught:
        discover(points)
    assert all(word in str(caught.value) for word in words)
    assert "luthier-bad 0.3" in str(caught.value)


def test_lost_method_raises_with_the_plugins_own_error(install) -> None:
    points = install("luthier-bad", bad=CASES["misspelt_hook"][0])
    with pytest.raises(PluginError, match="did you mean luthier_adapters"):
        discover(points, strict=False).method("adapter", "lost")


def test_unknown_name_points_to_the_plugins_that_may_have_offered_it(install) -> None:
    points = install("luthier-bad", "0.3", bad="import no_such_package_anywhere")
    with pytest.raises(ConfigError, match=r"Broken plugins.*bad \(luthier-bad 0\.3\)"):
        discover(points, strict=False).method("adapter", "something")


def test_traceback_is_kept_for_debugging(install) -> None:
    catalog = discover(install("luthier-bad", bad="def fail():\n    1 / 0\nfail()"), strict=False)
    assert "ZeroDivisionError" in catalog.broken[0].trace
    with pytest.raises(PluginError) as caught:
        catalog.method("adapter", "bad")
    assert any("1 / 0" in note for note in caught.value.__notes__)


def test_ctrl_c_during_import_belongs_to_the_user(install) -> None:
    with pytest.raises(KeyboardInterrupt):
        discover(install("luthier-bad", bad="raise KeyboardInterrupt"), strict=False)


def test_what_a_plugin_prints_stays_out_of_standard_output(install, capsys: pytest.CaptureFixture[str]) -> None:
    discover(install("luthier-loud", loud="print('Thank you for using LOUD')" + GOOD), strict=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "Thank you" in err


def test_entry_point_that_names_a_class(install) -> None:
    code = "class Plugin:\n    @hookimpl\n    def luthier_adapters(self):\n        yield adapter('lost')\nplugin = Plugin()"
    points = install("luthier-a", points={"bad": "classy:Plugin"}, classy=code)
    assert "must name a module or an object" in discover(points, strict=False).broken[0].error
    points = install("luthier-b", points={"good": "classy:plugin"})
    assert "lost" in discover(points, strict=False).slot("adapter"), "an instance is as good as a module"


def test_entry_point_that_names_nothing(install) -> None:
    points = install("luthier-a", points={"bad": "module_a:plugin"}, module_a="")
    assert "AttributeError" in discover(points, strict=False).broken[0].error


def test_all_problems_of_a_plugin_are_told_together(install) -> None:
    code = "@hookimpl\ndef luthier_adapters():\n    yield adapter('A')\n    yield optimizer('o')\n"
    code += "@hookimpl\ndef luthier_optimizers():\n    raise ValueError('third')"
    error = discover(install("luthier-bad", bad=code), strict=False).broken[0].error
    assert all(word in error for word in ("lower-case", "luthier_adapters gave an OptimizerMethod", "third"))
