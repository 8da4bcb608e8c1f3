"""Every configuration that the documentation shows is one that plans; the small ones also train, on a tiny random model.

A configuration is a file of examples/, or a ```yaml block of a page that is whole (has `model` and `data`). Fragments are
not looked at. Only the model is replaced: by a folder, so that no test needs the network.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

import luthier
from luthier.cli import main
from luthier.core.config.yaml_text import read_yaml
from luthier.core.environment import Environment, MatmulRate
from luthier.core.errors import PlanRefused
from luthier.core.frozen import FrozenDict
from luthier.registry.catalog import discover

ROOT = Path(__file__).parents[2]
YAML = re.compile(r"^```yaml[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r'title="([^"]+)"')
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


def with_tiny_model(content: dict[str, Any], model: Path, output: Path) -> dict[str, Any]:
    return content | {"model": str(model), "output": str(output)}


def whole(text: str) -> dict[str, Any] | None:
    """The configuration in a text, or None where it is only a part of one."""
    content = read_yaml(text, "block")
    return content if isinstance(content, dict) and {"model", "data"} <= content.keys() else None


def shown() -> Iterator[Any]:
    """Every whole configuration in a page, named by page and line. The refused one on cli.md is tested below."""
    for page in sorted((ROOT / "docs").rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        for match in YAML.finditer(text):
            content = whole(match[1])
            if content is not None and "refused.yaml" not in match[1]:
                line = text.count("\n", 0, match.start()) + 1
                # An excerpt of examples/ names its data as seen from the file (that it is the file's text is tested too).
                title = TITLE.search(match[0].splitlines()[0])
                source: Any = ROOT / title[1] if title else content
                yield pytest.param(content, source, id=f"{page.relative_to(ROOT / 'docs')}:{line}")


@pytest.fixture
def machine() -> Environment:
    """A machine whose bfloat16 pays, so that the plan does not depend on the one that runs the test."""
    rates = {"float32": MatmulRate(gflops=100, error=1e-7), "bfloat16": MatmulRate(gflops=300, error=3e-3)}
    return Environment(
        python="3.11", platform="test", cpu="test", cores=2, memory=16 * 2**30, matmul=FrozenDict(rates),
        packages=FrozenDict({
            "bitsandbytes": "0.50.2", "lion-pytorch": "0.2.5", "peft": "0.21.2", "trl": "1.16.0",
            "rouge-score": "0.1.2", "sacrebleu": "2.5.1", "jieba": "0.42.1",
        }),
    )  # fmt: skip


@pytest.mark.parametrize(("content", "source"), list(shown()))
def test_configuration_of_a_page_plans(
    content: dict[str, Any],
    source: Any,
    tiny_folder: Any,
    machine: Environment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    config = luthier.load_config(source, [f"model={tiny_folder()}", f"output={tmp_path / 'out'}"])
    plan = luthier.plan(config, environment=machine)
    for slot in ("adapter", "optimizer", "attention", "stage"):
        asked = content.get(slot, "auto")
        name = asked["use"] if isinstance(asked, dict) else asked
        step = plan.step(slot)
        assert name in ("auto", step.method) or f"preset {name}" in step.why


def test_the_pages_show_configurations() -> None:
    assert len(list(shown())) >= 8


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_trains(path: Path, tiny_folder: Any, tmp_path: Path) -> None:
    """Three steps, in float32; every method and option as the file says. The file is read where it lies."""
    content = whole(path.read_text(encoding="utf-8"))
    assert content is not None
    assert path.read_text(encoding="utf-8").startswith("# "), "an example begins with what it shows"
    overrides = [f"model={tiny_folder()}", f"output={tmp_path / 'out'}", "train.max_steps=3", "train.log_every=1"]
    results = luthier.train(luthier.load_config(path, overrides))
    assert results["steps"] == 3
    kind = discover().method("stage", results["stage"]).data_kind
    if kind in ("text", "conversation"):
        # A random model knows nothing: its loss is that of a guess, ln 262 = 5.57 where the run added no tokens.
        guess = math.log(len(AutoTokenizer.from_pretrained(tmp_path / "out")))
        assert results["train_loss"] == pytest.approx(guess, abs=0.5)
    assert math.isfinite(results["train_loss"])
    measured = "eval_reward" if kind == "prompt" else "eval_loss"
    assert (measured in results) == bool(content["data"].get("eval"))
    traits = json.loads((tmp_path / "out" / "plan.json").read_text(encoding="utf-8"))["traits"]
    saved = "adapter_model.safetensors" if "adapter.detachable" in traits else "model.safetensors"
    assert (tmp_path / "out" / saved).is_file()
    # What the run left is itself a configuration, and says the same.
    again = luthier.load_config(tmp_path / "out" / "config.yaml")
    assert again.train.max_steps == 3


def refused_example(page: Path) -> tuple[str, str]:
    """The configuration that a page shows as refused, and what `luthier plan` is shown to say about it."""
    text = page.read_text(encoding="utf-8")
    config = next(match[1] for match in YAML.finditer(text) if "shedule" in match[1])
    shown_output = re.search(r"^\$ luthier plan refused\.yaml\n(.*?)^(?:\$|```)", text, re.MULTILINE | re.DOTALL)
    assert shown_output is not None
    return config, shown_output[1].strip()


@pytest.mark.parametrize("page", ["README.md", "docs/cli.md"])
def test_refused_example_says_what_is_shown(
    page: str, tiny_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, expected = refused_example(ROOT / page)
    content = whole(config)
    assert content is not None
    path = tmp_path / "refused.yaml"
    path.write_text(yaml.safe_dump(with_tiny_model(content, tiny_folder(), tmp_path / "out")), encoding="utf-8")
    monkeypatch.chdir(ROOT)
    assert main(["plan", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.err.strip() == expected
    assert printed.out == ""


def test_refused_example_has_every_problem(
    tiny_folder: Any, tmp_path: Path, machine: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With any one of them mended the others stay: each problem is found on its own."""
    content = whole(refused_example(ROOT / "README.md")[0])
    assert content is not None
    content = with_tiny_model(content, tiny_folder(), tmp_path / "out")
    mended: dict[str, Any] = {
        "adapter": "lora",
        "optimizer": "adamw",
        "patches": ["checkpointing"],
        "train": {"eval_every": None},
    }
    monkeypatch.chdir(ROOT)
    for key, value in mended.items():
        with pytest.raises(PlanRefused) as caught:
            luthier.plan(luthier.load_config(content | {key: value}), environment=machine)
        assert len(caught.value.problems) == 3, key
    assert luthier.plan(luthier.load_config(content | mended), environment=machine).steps
