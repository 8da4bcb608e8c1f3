"""Names that two distributions offer, and that nothing depends on the order of installation."""

from __future__ import annotations

import random

import pytest

from luthier.core.errors import PluginError
from luthier.registry.catalog import discover

HOOK = "@hookimpl\ndef luthier_{hook}():\n    yield {value}\n"


def offering(*names: str) -> str:
    return "@hookimpl\ndef luthier_adapters():\n" + "".join(f"    yield adapter({name!r})\n" for name in names)


def test_two_plugins_of_one_name_are_both_kept_aside(install) -> None:
    install("luthier-a", "1.0", points={"twin": "twin_a"}, twin_a=offering("first", "shared"))
    install("luthier-b", "2.0", points={"twin": "twin_b"}, twin_b=offering("second", "shared"))
    catalog = discover(install("luthier-c", other=offering("third")), strict=False)

    assert set(catalog.slot("adapter")) == {"third"}
    assert [broken.provider.distribution for broken in catalog.broken] == ["luthier-a", "luthier-b"]
    for broken in catalog.broken:
        assert "more than one plugin is named 'twin'" in broken.error
        assert "luthier-a 1.0 (twin_a) and luthier-b 2.0 (twin_b)" in broken.error
    for name in ("first", "second", "shared", "twin"):
        with pytest.raises(PluginError, match=r"luthier-a 1\.0"):
            catalog.method("adapter", name)


def test_two_methods_of_one_name_are_lost_and_the_others_stay(install) -> None:
    install("luthier-a", "1.0", plugin_a=offering("shared", "only-a"))
    catalog = discover(install("luthier-b", "2.0", plugin_b=offering("only-b", "shared")), strict=False)

    assert set(catalog.slot("adapter")) == {"only-a", "only-b"}
    assert {broken.names for broken in catalog.broken} == {("adapter: shared",)}
    with pytest.raises(PluginError) as caught:
        catalog.method("adapter", "shared")
    assert "luthier-a 1.0 (plugin_a) and luthier-b 2.0 (plugin_b)" in str(caught.value)


def test_one_name_in_two_slots_is_no_clash(install) -> None:
    both = offering("twice") + "@hookimpl\ndef luthier_optimizers():\n    yield optimizer('twice')\n"
    catalog = discover(install("luthier-a", plugin_a=both), strict=True)
    assert [slot for slot, _ in catalog.find("twice")] == ["adapter", "optimizer"]


def test_one_plugin_that_offers_a_name_twice(install) -> None:
    catalog = discover(install("luthier-a", plugin_a=offering("x", "x", "y")), strict=False)
    assert set(catalog.slot("adapter")) == {"y"}
    with pytest.raises(PluginError, match="2 times"):
        catalog.method("adapter", "x")


def test_preset_and_method_of_one_name_clash(install) -> None:
    preset = "Preset(name='shared', slot='adapter', summary='A test.', config={'adapter': 'lora'})"
    install("luthier-a", plugin_a=offering("shared"))
    catalog = discover(install("luthier-b", plugin_b=HOOK.format(hook="presets", value=preset)), strict=False)
    assert not catalog.slot("adapter")
    assert not catalog.presets["adapter"]
    with pytest.raises(PluginError, match=r"luthier-a.*luthier-b"):
        catalog.method("adapter", "shared")


@pytest.mark.parametrize(
    ("hook", "value", "lost"),
    [
        ("data_formats", "data_format('shared')", "format: shared"),
        ("commands", "command('shared')", "command: shared"),
        ("architectures", "family('f', 'shared', 'mine-{which}')", "architecture: shared"),
        (
            "presets",
            "Preset(name='shared', slot='stage', summary='A test.', config=dict(stage='sft'))",
            "stage: shared",
        ),
    ],
)
def test_supporting_descriptions_clash_alike(install, hook: str, value: str, lost: str) -> None:
    install("luthier-a", "1.0", plugin_a=HOOK.format(hook=hook, value=value.format(which="a")) + offering("only-a"))
    points = install("luthier-b", "2.0", plugin_b=HOOK.format(hook=hook, value=value.format(which="b")))
    catalog = discover(points, strict=False)
    assert set(catalog.slot("adapter")) == {"only-a"}
    assert not catalog.formats
    assert not catalog.commands
    assert not catalog.architectures
    assert len(catalog.broken) == 2
    assert all(lost in broken.names for broken in catalog.broken)
    assert all("luthier-a 1.0" in broken.error and "luthier-b 2.0" in broken.error for broken in catalog.broken)
    area, _, name = lost.partition(": ")
    if area in ("format", "command"):
        with pytest.raises(PluginError, match=r"luthier-b 2\.0"):
            (catalog.data_format if area == "format" else catalog.command)(name)


def test_result_does_not_depend_on_the_order_of_entry_points(install) -> None:
    install("luthier-a", plugin_a=offering("shared", "only-a"), plugin_x="raise RuntimeError('x')")
    install("luthier-b", plugin_b=offering("shared", "only-b") + HOOK.format(hook="commands", value="command('c')"))
    install("luthier-c", points={"plugin_d": "module_c"}, module_c=offering("c"))
    install("luthier-e", plugin_e="@hookimpl\ndef luthier_event(event):\n    pass\n" + offering("e"))
    install("luthier-g", plugin_g=HOOK.format(hook="architectures", value="family('g', 'g-lm')"))
    points = install("luthier-d", points={"plugin_d": "module_d"}, module_d=offering("d"))

    def picture(order: list) -> tuple:
        catalog = discover(order, strict=False)
        return (
            [(slot, offer.value.name, offer.provider) for slot, offer in catalog.offers()],
            list(catalog.commands),
            [offer.provider for offer in catalog.architectures],
            [offer.provider for offer in catalog.observers],
            [(item.provider, item.error, item.names) for item in catalog.broken],
        )

    expected = picture(points)
    assert len(expected[4]) == 5, "x, the two d, and both who offer `shared`"
    for seed in range(25):
        shuffled = random.Random(seed).sample(points, len(points))
        assert picture(shuffled) == expected
