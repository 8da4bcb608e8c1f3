"""The loss as a picture, and the model card."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import yaml

from luthier.core.frozen import FrozenDict
from luthier.core.plan import MemoryForecast, ModelReference, Plan, Precision, SourceSummary, Step
from luthier.core.profile import ArchitectureProfile
from luthier.core.report import model_card, plot_losses, smoothed

RESULTS: dict[str, Any] = {
    "train_loss": 0.71234,
    "eval_loss": 0.6543,
    "steps": 120,
    "tokens": 1234567,
    "tokens_per_second": 412.3,
    "trained_parameters": 4884480,
    "memory": {"measured_peak": 2 * 1024**3, "measured_is": "resident in the process"},
    "data": {"rows": 800, "kept": 790, "dropped": {"longer than max_length": 10}, "labels_from": "template"},
    "versions": {"torch": "2.13.0"},
}


def make_plan(*, detachable: bool = True, kind: Any = "hub") -> Plan:
    return Plan(
        model=ModelReference(name="org/Tiny-Model", path="/models/tiny", kind=kind),
        profile=ArchitectureProfile(
            model_type="llama",
            architecture="LlamaForCausalLM",
            decoder="model.layers",
            layers=2,
            layer_classes=(),
            hidden_size=32,
            vocab_size=64,
            parameters=134515008,
        ),
        steps=(
            Step(
                slot="adapter",
                method="thin",
                provider="luthier 0.1",
                config=FrozenDict({"rank": 8, "target": ("attn", "a|b")}),
            ),
            Step(slot="stage", method="teach", provider="luthier 0.1"),
        ),
        precision=Precision(name="fp32", weights="float32", compute="float32", why="bf16 is slower here"),
        config=FrozenDict(),
        data=(SourceSummary(path="data/train.jsonl", format="alpaca", kind="conversation", rows=800, why=""),),
        traits=("adapter.detachable",) if detachable else (),
        memory=MemoryForecast(peak=3 * 1024**3),
    )


def front_matter(card: str) -> dict[str, Any]:
    _, matter, _ = card.split("---\n", 2)
    return yaml.safe_load(matter)


def test_the_card_of_an_adapter() -> None:
    card = model_card(make_plan(), RESULTS, license="apache-2.0")
    assert front_matter(card) == {
        "library_name": "peft",
        "base_model": "org/Tiny-Model",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["luthier", "teach", "thin"],
    }
    for part in (
        "134,515,008",
        "0.6543",
        "1,234,567",
        "2.00 GiB",
        "3.00 GiB",
        "longer than max_length: 10",
        "a\\|b",
        "alpaca",
    ):
        assert part in card, part


@pytest.mark.parametrize("detachable", [True, False])
def test_the_card_shows_code_that_parses_in_five_lines(detachable: bool) -> None:
    card = model_card(make_plan(detachable=detachable), RESULTS)
    code = card.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert len(code.strip().splitlines()) <= 5
    assert ("PeftModel" in code) is detachable


def test_a_local_base_is_no_hub_id() -> None:
    matter = front_matter(model_card(make_plan(kind="folder"), {}))
    assert "base_model" not in matter
    assert "license" not in matter


def test_smoothing_is_the_trailing_mean() -> None:
    values = [4.0, 2.0, 6.0, 0.0, 10.0]
    assert smoothed(values, 3) == pytest.approx([np.mean(values[max(0, i - 2) : i + 1]) for i in range(5)])
    assert smoothed(values, 1) == values
    assert smoothed([], 3) == []


def records(steps: int) -> list[dict[str, Any]]:
    random = np.random.RandomState(0)
    train = [
        {"event": "step", "step": s, "loss": 3 * np.exp(-s / 60) + 0.4 + 0.15 * random.randn()} for s in range(1, steps + 1)
    ]
    return train + [{"event": "evaluate", "step": s, "loss": 3 * np.exp(-s / 60) + 0.5} for s in range(50, steps + 1, 50)]


def test_the_picture_has_ink_in_both_colours(tmp_path: Path) -> None:
    plot_losses(records(200), tmp_path / "loss.png")
    picture = matplotlib.image.imread(tmp_path / "loss.png")[..., :3]
    assert picture.shape[0] > 400
    for colour in ((0x25, 0x63, 0xA8), (0xC2, 0x41, 0x0C)):
        assert (np.abs(picture - np.array(colour) / 255).max(-1) < 0.02).sum() > 50


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_short_runs_have_a_picture_too(tmp_path: Path, steps: int) -> None:
    plot_losses(records(steps), tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes()[:4] == b"\x89PNG"


def test_nothing_heavy_is_imported_with_these_modules() -> None:
    names = ("output", "checkpoint", "saving", "meter", "report", "progress", "schedule")
    imports = "; ".join(f"import luthier.core.{name}" for name in names)
    heavy = "{'torch', 'transformers', 'peft', 'matplotlib', 'safetensors'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"import sys; {imports}; assert not {heavy}, {heavy}"], check=True)
