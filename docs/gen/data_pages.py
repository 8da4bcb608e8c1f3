"""Blocks of the pages on data: the public data sets that are known, what one format wants, and the chat templates.

The data sets stand in docs/data/datasets.yaml, which tests/data/formats/test_known_datasets.py feeds through.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from blocks import ROOT, table
from methods import option_table, own_catalog

from luthier.core.config.reference import describe
from luthier.core.data.templates import named_templates

SOURCE = ROOT / "docs" / "data" / "datasets.yaml"
HUB = "https://huggingface.co/datasets"


def known() -> dict[str, list[dict[str, Any]]]:
    """The data sets of docs/data/datasets.yaml, by group."""
    groups: dict[str, list[dict[str, Any]]] = yaml.safe_load(SOURCE.read_text(encoding="utf-8"))
    return groups


def datasets(page: Path, words: list[str]) -> str:
    """`datasets`: a table for each group, with columns, format, kind and what to write."""
    formats = own_catalog().formats
    parts = []
    for group, sets in known().items():
        rows = [[_link(item), _columns(item), f"`{item['format']}`", _written(item)] for item in sets]
        kinds = sorted({formats[item["format"]].value.kind for item in sets})
        headings = ["data set", "columns", "format", "beside `hub:`"]
        parts.append(f"## {group}\n\nRows hold: {', '.join(kinds)}.\n\n{table(headings, rows)}")
    return "\n\n".join(parts)


def counted(page: Path, words: list[str]) -> str:
    """`counted`: how many data sets there are, and how many need nothing named."""
    sets = [item for group in known().values() for item in group]
    detected = sum(not {"format", "columns"}.intersection(item.get("write", {})) for item in sets)
    return f"{len(sets)} data sets; the format of {detected} is detected, the others name a format or rename columns."


def format_facts(page: Path, words: list[str]) -> str:
    """`format NAME`: what its rows hold, its columns and its options."""
    found = own_catalog().formats[words[0]].value
    facts = f"Rows hold: {found.kind}. Columns: {found.columns}."
    options = describe(found.config)
    return f"{facts}\n\n{option_table(options)}" if options else facts


def requests(page: Path, words: list[str]) -> str:
    """`requests`: what the format for summaries asks before a text, by its pair of columns."""
    from luthier.plugins.summaries import PAIRS

    rows = [[f"`{text}`, `{summary}`", request or "nothing"] for (text, summary), request in PAIRS.items()]
    return table(["columns", "request"], rows)


def templates(page: Path, words: list[str]) -> str:
    """`templates`: every named chat template with its special tokens and what it has a place for."""
    headings = ["name", "for", "special tokens", "end of turn", "system message", "tools", "reasoning", "options"]
    rows = []
    for template in named_templates().values():
        tokens = [f"`{token}`" for token in template.special_tokens if token != template.stop]
        rows.append(
            [
                f"`{template.name}`",
                template.summary.removesuffix("."),
                " ".join((["bos"] if template.bos else []) + tokens),
                f"`{template.stop}`" if template.stop else "eos",
                template.system,
                "yes" if template.tools else "",
                "yes" if template.thinking else "",
                " ".join(f"`{option}`" for option in template.options),
            ]
        )
    return table(headings, rows)


def _link(item: dict[str, Any]) -> str:
    return f"[{item['name']}]({HUB}/{item['name']})"


def _columns(item: dict[str, Any]) -> str:
    names = [f"`{name}`" for name in item["row"]]
    return ", ".join([*names, "..."] if item.get("more") else names)


def _written(item: dict[str, Any]) -> str:
    parts = []
    if item.get("write"):
        text = yaml.safe_dump(item["write"], default_flow_style=True, allow_unicode=True, sort_keys=False, width=1000)
        parts.append(f"`{text.strip().removeprefix('{').removesuffix('}')}`")
    if "otherwise" in item:
        otherwise = item["otherwise"]
        parts.append("otherwise an error" if otherwise == "error" else f"otherwise taken as `{otherwise}`")
    if "note" in item:
        parts.append(item["note"])
    return "; ".join(parts)
