"""Fills the generated blocks of README.md and docs/: the configuration reference, tables of methods, excerpts of the source.

python docs/gen/reference.py           write what is stale
python docs/gen/reference.py --check   write nothing; exit code 1 when something is stale
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import data_pages
import excerpts
import learning
import matrix
import measured
import methods
from blocks import ROOT, Renderer, pages, refresh, table

from luthier.core.config.reference import describe
from luthier.core.config.schema import RunConfig
from luthier.core.errors import ExitCode
from luthier.core.profile import ROLE_GROUPS, ROLES
from luthier.core.traits import CLAIMS, TRAITS

NOT_BY_METHODS = {"model": "the model", "device": "the machine", "engine": "the way the run is started"}
EXIT_MEANING = {
    ExitCode.DONE: "done",
    ExitCode.REFUSED: "the command line, the configuration, the model, the output folder or the plan was refused",
    ExitCode.ENVIRONMENT: "a package, a device, a network resource or a plugin that the run needs is not there",
    ExitCode.DATA: "the training or evaluation data cannot be used",
    ExitCode.BUDGET: "the run is predicted not to fit the memory budget",
    ExitCode.OUT_OF_MEMORY: "the device ran out of memory while the plan was running",
    ExitCode.INTERRUPTED: "the user stopped the run; a checkpoint was saved",
}


def config(page: Path, words: list[str]) -> str:
    """One table for the top level and one for each section."""
    parts = [methods.option_table(describe(RunConfig))]
    for path, cls, doc in sections(RunConfig):
        shorthand = getattr(cls, "SHORTHAND", "")
        short = f" A plain string stands for `{shorthand}`." if shorthand else ""
        parts.append(f"## `{path}`\n\n{doc}{short}\n\n{methods.option_table(describe(cls))}")
    return "\n\n".join(parts)


def sections(cls: type, prefix: str = "", seen: set[type] | None = None) -> Iterator[tuple[str, type, str]]:
    """(path, dataclass, documentation) of every section, each dataclass once, at the first place it stands."""
    seen = set() if seen is None else seen
    for field in describe(cls):
        if field.section is None or field.section in seen:
            continue
        seen.add(field.section)
        path = f"{prefix}{field.name}"
        yield path, field.section, field.doc
        yield from sections(field.section, f"{path}.", seen)


# Where traits come from that no method provides, by how they begin.
FROM = {
    "model.": "the model",
    "device.": "the machine",
    "engine.": "the launch",
    "batches.": "`data.packing`",
    "rows.held_out": "`data.eval`",
    "rows.evaluated": "`train.eval_every`",
    "rows.all_learned": "`data.train_on: all`",
}


def traits(page: Path, words: list[str]) -> str:
    """The traits, with the built-in methods that provide each whatever their options."""
    catalog = methods.own_catalog()
    rows = []
    for trait, meaning in TRAITS.items():
        who = ", ".join(f"`{name}`" for _, name in catalog.providers_of(trait))
        if not who:
            who = FROM.get(trait) or FROM.get(trait.partition(".")[0] + ".", "")
        rows.append([f"`{trait}`", meaning, who])
    return table(["trait", "true when", "from"], rows)


def claims(page: Path, words: list[str]) -> str:
    """The claims, with the built-in methods that make each."""
    offers = list(methods.own_catalog().offers())
    rows = []
    for claim, meaning in CLAIMS.items():
        who = ", ".join(f"`{offer.value.name}`" for _, offer in offers if claim in offer.value.claims)
        rows.append([f"`{claim}`", meaning, who])
    return table(["claim", "the one who", "claimed by"], rows)


def roles(page: Path, words: list[str]) -> str:
    """Role groups and roles."""
    groups = [[f"`{name}`", ", ".join(f"`{role}`" for role in members)] for name, members in ROLE_GROUPS.items()]
    single = [[f"`{role}`", meaning] for role, meaning in ROLES.items()]
    return table(["group", "roles"], groups) + "\n\n" + table(["role", "module"], single)


def exitcodes(page: Path, words: list[str]) -> str:
    """The exit codes of the command line."""
    return table(["code", "name", "meaning"], [[str(int(code)), f"`{code.name}`", EXIT_MEANING[code]] for code in ExitCode])


RENDERERS: dict[str, Renderer] = {
    "chain": learning.chain,
    "claims": claims,
    "config": config,
    "counted": data_pages.counted,
    "datasets": data_pages.datasets,
    "declaration": methods.declaration,
    "excerpt": excerpts.excerpt,
    "exitcodes": exitcodes,
    "format": data_pages.format_facts,
    "formats": methods.formats,
    "learned": learning.learned,
    "matrix": matrix.matrix,
    "stages": matrix.stages,
    "measured": measured.measured,
    "methods": methods.methods,
    "options": methods.options,
    "output": excerpts.output,
    "overview": methods.overview,
    "ppo_memory": measured.ppo_memory,
    "preset": methods.preset,
    "requests": data_pages.requests,
    "roles": roles,
    "slots": methods.slots,
    "speed": measured.speed,
    "stream": measured.stream,
    "templates": data_pages.templates,
    "traits": traits,
}


def stale() -> dict[Path, str]:
    """Every page that is not as it should be, with the text it should have."""
    found = {}
    for page in pages():
        text = page.read_text(encoding="utf-8")
        fresh = refresh(page, text, RENDERERS)
        if fresh != text:
            found[page] = fresh
    return found


def main(words: list[str]) -> int:
    behind = stale()
    for page, text in behind.items():
        name = page.relative_to(ROOT)
        if "--check" in words:
            print(f"{name} is stale: run python docs/gen/reference.py", file=sys.stderr)
        else:
            page.write_text(text, encoding="utf-8")
            print(f"wrote {name}")
    return 1 if behind and "--check" in words else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
