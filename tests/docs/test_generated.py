"""What stands between the generated markers of README.md and docs/ is what the code says today."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from luthier.cli.app import VERBS
from luthier.core.config.reference import walk
from luthier.core.config.schema import RunConfig
from luthier.core.contracts import SLOTS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

# The first two need CUDA, the third has no cost of its own; ppo has a benchmark of its own (ppo_memory); the last three wait
# for their rows of `python -m luthier.benchmarks.methods`, which has them.
NOT_MEASURED = {"paged_adamw", "paged_adamw_8bit", "dequantize", "ppo", "kto", "grpo", "rloo"}
NO_PAPER = {"dequantize"}


@pytest.fixture(scope="module")
def reference() -> Iterator[ModuleType]:
    """docs/gen/reference.py, imported with its siblings and forgotten again."""
    before = set(sys.modules)
    sys.path.insert(0, str(DOCS / "gen"))
    try:
        import reference as module  # type: ignore[import-not-found]

        yield module
    finally:
        sys.path.remove(str(DOCS / "gen"))
        for name in ("reference", "data_pages", "matrix", "measured", "methods", "excerpts", "blocks"):
            if name not in before:
                sys.modules.pop(name, None)


def test_no_page_is_stale(reference: ModuleType) -> None:
    stale = [str(page.relative_to(ROOT)) for page in reference.stale()]
    assert not stale, f"run python docs/gen/reference.py: {stale}"


def test_every_marker_is_closed_and_filled() -> None:
    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        text = page.read_text(encoding="utf-8")
        opened, closed = re.findall(r"<!-- (\w+):begin", text), re.findall(r"<!-- (\w+):end -->", text)
        assert opened == closed, page
        assert not re.search(r"^[A-Z]+_OUTPUT$|^MEASURED$", text, re.MULTILINE), f"{page} has a placeholder"


def test_check_reports_what_is_stale(
    reference: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- exitcodes:begin -->\nold\n<!-- exitcodes:end -->\nafter\n", encoding="utf-8")
    monkeypatch.setattr(reference, "pages", lambda: [page])
    monkeypatch.setattr(reference, "ROOT", tmp_path)
    assert reference.main(["--check"]) == 1
    assert "page.md is stale" in capsys.readouterr().err
    assert "old" in page.read_text(encoding="utf-8")
    assert reference.main([]) == 0
    text = page.read_text(encoding="utf-8")
    assert "| 130 | `INTERRUPTED` |" in text
    assert text.startswith("before\n<!-- exitcodes:begin -->\n")
    assert text.endswith("<!-- exitcodes:end -->\nafter\n")
    assert reference.main(["--check"]) == 0


def test_an_unknown_marker_is_an_error(reference: ModuleType) -> None:
    text = "<!-- nothing:begin -->\n<!-- nothing:end -->"
    with pytest.raises(KeyError, match="nothing"):
        reference.refresh(Path("page.md"), text, reference.RENDERERS)


def test_an_excerpt_is_the_source_with_its_decorators(reference: ModuleType) -> None:
    shown = reference.RENDERERS["excerpt"](ROOT / "README.md", ["core/plan.py", "Rejected", "Plan.steps_in"])
    source = (ROOT / "core" / "plan.py").read_text(encoding="utf-8")
    body = shown.split("\n", 1)[1].removesuffix("\n```")
    cls, method = body.split("\n\n\n")
    assert cls.startswith("@dataclass(frozen=True, kw_only=True)\nclass Rejected:")
    assert cls in source
    assert "".join(method.split()) in "".join(source.split())
    with pytest.raises(KeyError, match="no Gone"):
        reference.RENDERERS["excerpt"](ROOT / "README.md", ["core/plan.py", "Gone"])


def test_every_key_is_in_the_configuration_reference() -> None:
    text = (DOCS / "config.md").read_text(encoding="utf-8")
    for path, option in walk(RunConfig):
        assert f"| `{path.rpartition('.')[2]}` |" in text, path
        assert option.doc.split("|")[0] in text, path


def test_every_built_in_method_has_a_page_with_its_declaration_and_options(reference: ModuleType) -> None:
    catalog = sys.modules["methods"].own_catalog()
    assert not catalog.broken
    found = set()
    for slot in SLOTS:
        for name in catalog.slot(slot):
            text = (DOCS / "methods" / f"{name}.md").read_text(encoding="utf-8")
            assert text.startswith(f"# `{name}`"), name
            assert f"<!-- declaration:begin {slot} {name} -->" in text
            assert f"<!-- options:begin {slot} {name} -->" in text
            assert "## Memory" in text
            assert "## Combines with" in text
            assert "## Example" in text
            assert name in NOT_MEASURED or f"<!-- measured:begin {name} -->" in text, name
            assert name in NO_PAPER or re.search(r"https?://", text), name
            assert f"methods/{name}.md" in (ROOT / "README.md").read_text(encoding="utf-8")
            assert f"methods/{name}.md" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
            found.add(name)
    assert {page.stem for page in (DOCS / "methods").glob("*.md")} == found | {"index"}


def test_every_built_in_preset_is_described_and_listed(reference: ModuleType) -> None:
    """On the page of a method, where its block shows what it stands for; `preset_page` raises where there is none."""
    methods = sys.modules["methods"]
    found = [(slot, name) for slot, presets in methods.own_catalog().presets.items() for name in presets]
    assert found
    for slot, name in found:
        page = methods.preset_page(slot, name)
        assert f"`{name}`" in page.read_text(encoding="utf-8")
        assert f"[`{name}`]({page.name})" in (DOCS / "methods" / "index.md").read_text(encoding="utf-8")
    with pytest.raises(KeyError, match="0 pages"):
        methods.preset_page("adapter", "nothing")


def test_links_hold_no_space() -> None:
    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        prose = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not [target for target in re.findall(r"\]\(([^)]*)\)", prose) if " " in target], page


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_section_with_its_options(verb: str) -> None:
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert f"\n## {verb}\n" in text
    section = text.split(f"\n## {verb}\n", 1)[1].split("\n## ", 1)[0]
    assert f"$ luthier {verb} --help" in section
    assert "JSON:" in section


def test_links_between_files_lead_somewhere() -> None:
    """mkdocs checks those inside docs/; this one also the README's and those that leave docs/."""
    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page}: {target}"


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
