"""What the method pages, the index of methods and the README's table say, taken from the catalog."""

from __future__ import annotations

import os
import re
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

import yaml
from blocks import ROOT, table

from luthier.core.catalog import Catalog, Offer
from luthier.core.config.reference import FieldDoc, describe
from luthier.core.contracts import SLOTS, AnyMethod
from luthier.core.frozen import thaw
from luthier.core.hookspecs import ENTRY_POINT_GROUP
from luthier.registry.catalog import discover

SLOT_MEANING = {
    "patches": "how the model's own code and weights are changed; any number",
    "adapter": "which parameters train",
    "optimizer": "how they move",
    "attention": "which kernel computes attention",
    "stage": "what is learned, from which kind of data",
}
NUMERICS = {
    "exact": "the same numbers as the plain model",
    "close": "close to the plain model: rounding differs",
    "changes": "different from the plain model, on purpose",
}


@cache
def own_catalog() -> Catalog:
    """The methods of this distribution: what else is installed beside it does not belong into its documentation."""
    points = [point for point in entry_points(group=ENTRY_POINT_GROUP) if point.dist and point.dist.name == "luthier"]
    return discover(points, strict=True, disabled=())


def page_of(name: str) -> Path:
    """Where the page of a method stands."""
    return ROOT / "docs" / "methods" / f"{name}.md"


def link(page: Path, target: Path, text: str) -> str:
    return f"[{text}]({os.path.relpath(target, page.parent)})"


def methods(page: Path, words: list[str]) -> str:
    """Every method and preset that is built in, with links to their pages, and the names of the data formats."""
    rows = []
    catalog = own_catalog()
    for slot in SLOTS:
        for name, offer in sorted(catalog.slot(slot).items(), key=lambda item: (-item[1].value.priority, item[0])):
            auto = "yes" if offer.value.priority > 0 else "when named"
            rows.append([slot, link(page, page_of(name), f"`{name}`"), offer.value.summary, auto])
        for name, preset in sorted(catalog.presets.get(slot, {}).items()):
            text = link(page, preset_page(slot, name), f"`{name}`")
            rows.append([f"{slot} (preset)", text, preset.value.summary, "when named"])
    names = ", ".join(f"`{name}`" for name in sorted(catalog.formats))
    rows.append(["data", link(page, ROOT / "docs" / "data" / "formats.md", "formats"), names, "detected"])
    return table(["slot", "name", "what it does", "`auto`"], rows)


def overview(page: Path, words: list[str]) -> str:
    """One row for each slot, with its methods and presets by name, and one for the data formats."""
    rows = []
    catalog = own_catalog()
    for slot in SLOTS:
        order = sorted(catalog.slot(slot).items(), key=lambda item: (-item[1].value.priority, item[0]))
        names = [link(page, page_of(name), f"`{name}`") for name, _ in order]
        presets = [link(page, preset_page(slot, name), f"`{name}`") for name in sorted(catalog.presets.get(slot, {}))]
        rows.append([slot, SLOT_MEANING[slot], ", ".join(names + presets)])
    formats = link(page, ROOT / "docs" / "data" / "formats.md", f"{len(catalog.formats)} formats")
    rows.append(["data", "what the rows look like; found by their columns", formats])
    return table(["slot", "what it decides", "built in"], rows)


def preset_page(slot: str, name: str) -> Path:
    """The page of a method on which a preset is described: the one that has its `preset SLOT NAME` block."""
    marker = f"<!-- preset:begin {slot} {name} -->"
    pages = sorted((ROOT / "docs" / "methods").glob("*.md"))
    found = [page for page in pages if marker in page.read_text(encoding="utf-8")]
    if len(found) != 1:
        raise KeyError(f"{len(found)} pages of docs/methods/ have the block {marker}, where one has to")
    return found[0]


def preset(page: Path, words: list[str]) -> str:
    """What a preset stands for: `preset SLOT NAME`."""
    slot, name = words
    stands_for = yaml.safe_dump(thaw(own_catalog().presets[slot][name].value.config), sort_keys=False)
    return f"```yaml\n# {slot}: {name} stands for\n{stands_for}```"


def slots(page: Path, words: list[str]) -> str:
    """The slots and how many methods each takes."""
    return table(["slot", "what it decides"], [[f"`{slot}`", SLOT_MEANING[slot]] for slot in SLOTS])


def options(page: Path, words: list[str]) -> str:
    """The options of a method: `options SLOT NAME`."""
    fields = describe(_offer(words).value.config)
    return option_table(fields) if fields else "None."


def declaration(page: Path, words: list[str]) -> str:
    """What a method declares: `declaration SLOT NAME`."""
    import matrix  # which asks for the catalog here

    offer = _offer(words)
    method: AnyMethod = offer.value
    facts = {
        "slot": f"`{words[0]}`",
        "provides": _code(sorted(method.provides)),
        "requires": "; ".join(" or ".join(f"`{trait}`" for trait in sorted(need.traits)) for need in method.requires),
        "conflicts with": _code(sorted(method.conflicts)),
        "claims": _code(sorted(method.claims)),
        "combines with": matrix.partners(*words),
        "removes": _code(sorted(method.removes)),
        "numbers": NUMERICS[method.numerics],
        "`auto`": f"a candidate, priority {method.priority}" if method.priority > 0 else "taken only when named",
        "packages": _code(list(method.packages)),
        "reference": _linked(method.reference),
    }
    return table(["", ""], [[label, text] for label, text in facts.items() if text])


def formats(page: Path, words: list[str]) -> str:
    """The data formats and the columns they want."""
    found = [offer.value for _, offer in sorted(own_catalog().formats.items())]
    return table(["format", "rows hold", "columns", ""], [[f"`{f.name}`", f.kind, f.columns, f.summary] for f in found])


def option_table(fields: tuple[FieldDoc, ...] | list[FieldDoc]) -> str:
    """Key, type, default, unit, bounds and meaning of each option; a column that says nothing anywhere is left out."""
    columns = {
        "key": [f"`{field.name}`" for field in fields],
        "type": [field.type for field in fields],
        "default": ["required" if field.required else _default(field) for field in fields],
        "unit": [field.unit for field in fields],
        "bounds": [field.bounds for field in fields],
        "meaning": [field.doc for field in fields],
    }
    shown = {heading: cells for heading, cells in columns.items() if any(cells)}
    return table(list(shown), [list(row) for row in zip(*shown.values(), strict=True)])


def _default(field: FieldDoc) -> str:
    return field.default_text if field.default_text == "as below" else f"`{field.default_text}`"


def _offer(words: list[str]) -> Offer[AnyMethod]:
    slot, name = words
    return own_catalog().slot(slot)[name]


def _code(words: list[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _linked(reference: str) -> str:
    linked = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", reference)
    return f"<{reference}>" if reference.startswith("http") else linked
