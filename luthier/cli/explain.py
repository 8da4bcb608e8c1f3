"""`luthier explain TOPIC`: the documentation of a key, method, option, trait, claim, data format, chat template or role.

Everything comes from the dataclasses and the catalog themselves, so that it cannot fall behind them.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from luthier.cli.text import output_console, print_json
from luthier.core.catalog import BrokenPlugin, Catalog, Offer
from luthier.core.config.reference import FieldDoc, describe, sample, sample_value, walk, yaml_text
from luthier.core.config.schema import SLOT_KEYS, RunConfig
from luthier.core.contracts import AnyMethod
from luthier.core.data.templates import named_templates
from luthier.core.errors import ConfigError
from luthier.core.extensions import DataFormat, Preset
from luthier.core.profile import ROLE_GROUPS, ROLES
from luthier.core.traits import CLAIMS, TRAITS


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One answer: what the topic is, its facts as "label: text", its options, and YAML that uses it."""

    kind: str
    name: str
    summary: str
    facts: dict[str, str] = field(default_factory=dict)
    fields: tuple[FieldDoc, ...] = ()
    example: str = ""

    def to_plain(self) -> dict[str, Any]:
        plain = {name.name: getattr(self, name.name) for name in dataclasses.fields(self)}
        return plain | {"fields": [option.to_plain() for option in self.fields]}


def run(topic: str, *, as_json: bool, catalog: Catalog | None = None) -> int:
    """Print everything that is called `topic`; raises ConfigError with the nearest names when nothing is."""
    if catalog is None:
        from luthier.registry.catalog import discover

        catalog = discover()
    entries = explain(topic, catalog)
    if as_json:
        print_json({"topic": topic, "entries": [entry.to_plain() for entry in entries]})
        return 0
    console = output_console()
    for entry in entries:
        _print(entry, console)
    return 0


def explain(topic: str, catalog: Catalog) -> list[Entry]:
    """The entries of a topic, in the order key, method, preset, format, template, trait, claim, role, broken plugin."""
    entries = [
        *_keys(topic, catalog),
        *_methods(topic, catalog),
        *_slot_options(topic, catalog),
        *_named(topic, catalog),
        *_templates(topic),
        *_vocabulary(topic, catalog),
        *(_broken(broken) for broken in catalog.broken if _is_about(broken, topic)),
    ]
    if not entries:
        near = difflib.get_close_matches(topic, topics(catalog), n=3, cutoff=0.5)
        fix = f"did you mean {' or '.join(near)}?" if near else "see `luthier methods`, or docs/config.md for every key"
        raise ConfigError(f"nothing is called {topic!r}", fix=fix)
    return entries


def topics(catalog: Catalog) -> list[str]:
    """Every word that `explain` knows."""
    words = {path for path, _ in walk(RunConfig)} | {
        *TRAITS,
        *CLAIMS,
        *ROLES,
        *ROLE_GROUPS,
        *catalog.formats,
        *catalog.commands,
        *named_templates(),
    }
    for slot, offer in catalog.offers():
        method = offer.value
        options = [option.name for option in dataclasses.fields(method.config)]
        words |= {method.name, *(f"{owner}.{option}" for owner in (method.name, slot) for option in options)}
        words |= method.provides | method.conflicts | method.claims
        words = words.union(*(requirement.traits for requirement in method.requires))
    return sorted(words.union(*catalog.presets.values()))


def _keys(topic: str, catalog: Catalog) -> Iterator[Entry]:
    for path, option in walk(RunConfig):
        if path != topic:
            continue
        if path in SLOT_KEYS:
            names = ", ".join([*catalog.slot(path), *catalog.presets.get(path, {})])
            facts = _facts_of(option) | {"methods": names or "none is installed", "more": "luthier explain METHOD"}
            first = next(iter(catalog.slot(path).values()), None)
            example = _method_example(path, first.value) if first else _yaml({path: "auto"})
            yield Entry(kind="key", name=path, summary=option.doc, facts=facts, example=example)
            continue
        fields = describe(option.section) if option.section is not None else ()
        kind = "section" if fields else "key"
        example = _yaml(_at(path, _section_sample(option)))
        yield Entry(kind=kind, name=path, summary=option.doc, facts=_facts_of(option), fields=fields, example=example)


def _methods(topic: str, catalog: Catalog) -> Iterator[Entry]:
    name, _, option = topic.partition(".")
    for slot, offer in catalog.find(name):
        if not option:
            yield _method_entry(slot, offer)
        else:
            yield from _options(slot, offer.value, option)


def _slot_options(topic: str, catalog: Catalog) -> Iterator[Entry]:
    slot, _, option = topic.partition(".")
    if slot in SLOT_KEYS and option:
        for offer in catalog.slot(slot).values():
            yield from _options(slot, offer.value, option)


def _options(slot: str, method: AnyMethod, option: str) -> Iterator[Entry]:
    for found in describe(method.config):
        if found.name == option:
            example = _yaml({slot: _in_slot(slot, {"use": method.name, option: sample_value(found)})})
            yield Entry(
                kind="option",
                name=f"{method.name}.{option}",
                summary=found.doc,
                facts={"method": f"{slot}: {method.name}"} | _facts_of(found),
                example=example,
            )


def _method_entry(slot: str, offer: Offer[AnyMethod]) -> Entry:
    from luthier.cli.methods import describe_method

    plain = describe_method(slot, offer)
    method = offer.value
    numerics = {
        "exact": "the same as the plain model",
        "close": "close to the plain model: rounding differs",
        "changes": "different from the plain model, on purpose",
    }
    facts = {
        "slot": slot,
        "from": str(offer.provider),
        "available": "yes" if plain["available"] else f"no, {', '.join(plain['missing'])} is missing: {plain['install']}",
        "provides": ", ".join(plain["provides"]),
        "requires": "; ".join(str(requirement) for requirement in method.requires),
        "conflicts": ", ".join(plain["conflicts"]),
        "claims": ", ".join(plain["claims"]),
        "numbers": numerics[method.numerics],
        "auto": f"a candidate, priority {method.priority}" if method.priority > 0 else "only when named",
        "packages": ", ".join(method.packages),
        "reference": method.reference,
    }
    return Entry(
        kind="method",
        name=method.name,
        summary=method.summary,
        facts={label: text for label, text in facts.items() if text},
        fields=describe(method.config),
        example=_method_example(slot, method),
    )


def _named(topic: str, catalog: Catalog) -> Iterator[Entry]:
    for slot, presets in catalog.presets.items():
        if topic in presets:
            yield _preset_entry(slot, presets[topic])
    if topic in catalog.formats:
        yield _format_entry(catalog.formats[topic])
    if topic in catalog.commands:
        offer = catalog.commands[topic]
        yield Entry(
            kind="command",
            name=topic,
            summary=offer.value.summary,
            facts={"from": str(offer.provider)},
            example=f"luthier {topic}",
        )


def _preset_entry(slot: str, offer: Offer[Preset]) -> Entry:
    facts = {"slot": slot, "from": str(offer.provider), "stands for": yaml_text(offer.value.config)}
    return Entry(
        kind="preset", name=offer.value.name, summary=offer.value.summary, facts=facts, example=f"{slot}: {offer.value.name}"
    )


def _format_entry(offer: Offer[DataFormat]) -> Entry:
    value = offer.value
    return Entry(
        kind="data format",
        name=value.name,
        summary=value.summary,
        facts={"kind": value.kind, "columns": value.columns, "from": str(offer.provider)},
        example=f"data:\n  train: [{{path: rows.jsonl, format: {value.name}}}]",
    )


def _templates(topic: str) -> Iterator[Entry]:
    templates = named_templates()
    if topic in ("template", "templates"):
        summary = "A built-in chat template, named with `data.template`."
        yield Entry(kind="list", name=topic, summary=summary, facts={name: one.summary for name, one in templates.items()})
    if topic in templates:
        template = templates[topic]
        facts = {
            "writes": " ".join(["bos"] * template.bos + list(template.tokens)),
            "ends a turn": template.stop or "the tokenizer's eos",
            "system": template.system,
            "tools": "yes" if template.tools else "no",
            "reasoning": "yes" if template.thinking else "no",
            "options": ", ".join(template.options),
        }
        facts = {label: text for label, text in facts.items() if text}
        example = _yaml({"data": {"template": topic}})
        yield Entry(kind="chat template", name=topic, summary=template.summary, facts=facts, example=example)


def _vocabulary(topic: str, catalog: Catalog) -> Iterator[Entry]:
    fields = {
        "provided by": lambda method: topic in method.provides,
        "required by": lambda method: any(topic in requirement.traits for requirement in method.requires),
        "conflicts with": lambda method: topic in method.conflicts,
    }
    facts = {label: _methods_where(catalog, holds) for label, holds in fields.items()}
    facts = {label: text for label, text in facts.items() if text}
    if topic in TRAITS or facts:
        yield Entry(kind="trait", name=topic, summary=TRAITS.get(topic, "A trait of a third party's own."), facts=facts)
    claimed = _methods_where(catalog, lambda method: topic in method.claims)
    if topic in CLAIMS or claimed:
        summary = CLAIMS.get(topic, "A claim of a third party's own.")
        facts = {"rule": "one method of a run at most may claim it"} | ({"claimed by": claimed} if claimed else {})
        yield Entry(kind="claim", name=topic, summary=summary, facts=facts)
    if topic in ROLES:
        yield Entry(kind="role", name=topic, summary=ROLES[topic], facts={"see": "luthier profile MODEL"})
    elif topic in ROLE_GROUPS:
        yield Entry(kind="role group", name=topic, summary="", facts={"roles": ", ".join(ROLE_GROUPS[topic])})


def _methods_where(catalog: Catalog, holds: Any) -> str:
    return ", ".join(f"{slot}: {offer.value.name}" for slot, offer in catalog.offers() if holds(offer.value))


def _broken(broken: BrokenPlugin) -> Entry:
    facts = {"from": str(broken.provider), "error": broken.error, "names lost": ", ".join(broken.names) or "unknown"}
    return Entry(kind="broken plugin", name=broken.provider.plugin, summary="It cannot be used.", facts=facts)


def _is_about(broken: BrokenPlugin, topic: str) -> bool:
    name = topic.partition(".")[0]
    return broken.provider.plugin == name or any(lost.endswith(f": {name}") for lost in broken.names)


def _facts_of(option: FieldDoc) -> dict[str, str]:
    facts = {"type": option.type, "default": option.default_text, "bounds": option.bounds, "unit": option.unit}
    return {label: text for label, text in facts.items() if text}


def _method_example(slot: str, method: AnyMethod) -> str:
    options = dict(method.example) or sample(method.config)
    return _yaml({slot: _in_slot(slot, {"use": method.name, **options} if options else method.name)})


def _section_sample(option: FieldDoc) -> Any:
    if option.section is None:
        return sample_value(option)
    return [sample(option.section)] if option.many else sample(option.section)


def _in_slot(slot: str, value: Any) -> Any:
    return [value] if slot == "patches" else value


def _at(path: str, value: Any) -> Any:
    """`value` under the dotted `path`; the items of a list of sections stand in a list."""
    lists = {found for found, option in walk(RunConfig) if option.many}
    parts = path.split(".")
    for depth in range(len(parts) - 1, 0, -1):
        value = {parts[depth]: value}
        if ".".join(parts[:depth]) in lists:
            value = [value]
    return {parts[0]: value}


def _yaml(data: Any) -> str:
    """The innermost mappings on one line each, unless a line would be too long to read."""
    import yaml

    def dump(flow: bool | None) -> str:
        text: str = yaml.safe_dump(data, default_flow_style=flow, sort_keys=False, width=10_000, allow_unicode=True)
        return text.strip()

    text = dump(None)
    return text if max(map(len, text.splitlines())) <= 72 else dump(False)


def _print(entry: Entry, console: Any) -> None:
    from rich.text import Text

    console.print(Text.assemble((entry.name, "bold"), (f"  ({entry.kind})", "dim")))
    if entry.summary:
        console.print(Text(entry.summary))
    width = max(map(len, entry.facts), default=0)
    for label, text in entry.facts.items():
        _indented(console, f"{label:<{width}}  {text}", 2, width + 4)
    for option in entry.fields:
        details = ", ".join(f"{label} {text}" for label, text in _facts_of(option).items() if label != "type")
        console.print()
        console.print(Text.assemble("  ", (option.name, "bold"), f": {option.type}"))
        _indented(console, f"{details}.", 6, 6)
        if option.doc:
            _indented(console, option.doc, 6, 6)
    if entry.example:
        console.print(Text("\n  example", style="dim"))
        for line in entry.example.splitlines():
            console.print(Text(f"    {line}"), soft_wrap=True)
    console.print()


def _indented(console: Any, text: str, first: int, rest: int) -> None:
    """Text wrapped to the console, every line indented; no spaces at the ends, so that it can be copied."""
    import textwrap

    lines = textwrap.wrap(
        text, console.width, initial_indent=" " * first, subsequent_indent=" " * rest, break_on_hyphens=False
    )
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
