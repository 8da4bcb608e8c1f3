"""`adam_mini`, `apollo`, `badam`, `lora_plus` and `lora_fa` in whole runs: they learn, and resume bit for bit."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier import plan, train
from luthier.core.errors import Interrupted, PlanRefused
from luthier.core.saving import read_weights

RUNS: dict[str, tuple[Any, dict[str, Any]]] = {
    "adam_mini": ("full", {"use": "adam_mini", "lr": 3e-3, "weight_decay": 0.01}),
    "adam_mini on lora": ({"use": "lora", "rank": 4}, {"use": "adam_mini", "lr": 1e-2}),
    "apollo": ("full", {"use": "apollo", "lr": 3e-3, "rank": 8, "update_proj_gap": 3}),
    "apollo mini": ("full", {"use": "apollo", "lr": 3e-3, "rank": 1, "scale_type": "tensor", "scale": 64}),
    "badam": ("full", {"use": "badam", "lr": 3e-3, "switch_every": 2, "seed": 1}),
    "lora_plus": ({"use": "lora", "rank": 4}, {"use": "lora_plus", "lr": 2e-3}),
    "lora_fa": ({"use": "lora", "rank": 4}, {"use": "lora_fa", "lr": 2e-2}),
}


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dtype probe is taken once for all tests, and never from the user's own cache."""
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path_factory.getbasetemp() / "luthier-cache"))


@pytest.fixture
def configuration(tiny_folder: Callable[..., Path], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`configuration("llama", "apollo", "run")`: ten steps on twelve short conversations, two micro-batches a step."""
    rows = tmp_path / "rows.jsonl"
    turns = [
        {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"{n}!"}]} for n in range(12)
    ]
    rows.write_text("".join(json.dumps(turn) + "\n" for turn in turns))
    folders: dict[str, Path] = {}

    def make(model_type: str, name: str, output: str, **changes: Any) -> dict[str, Any]:
        if model_type not in folders:
            small = {"num_local_experts": 4} if model_type == "mixtral" else {}
            folders[model_type] = tiny_folder(model_type, attention_dropout=0.1, **small)
        adapter, optimizer = RUNS[name]
        settings: dict[str, Any] = {
            "model": str(folders[model_type]),
            "data": {"train": [str(rows)], "max_length": 64},
            "adapter": adapter,
            "optimizer": optimizer,
            "train": {"batch_tokens": 64, "accumulation": 2, "max_steps": 10},
            "precision": "fp32",
            "output": str(tmp_path / output),
        }
        return settings | changes

    return make


def losses(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["event"] == "step"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {key: tensor for path in sorted(folder.glob("*.safetensors")) for key, tensor in read_weights(path).items()}


@pytest.mark.parametrize("model_type", ["llama", pytest.param("mixtral", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", RUNS)
def test_ten_steps_are_five_and_five(name: str, model_type: str, configuration: Any, tmp_path: Path) -> None:
    results = train(configuration(model_type, name, "straight"))
    straight = losses(tmp_path / "straight")
    assert len(straight) == 10
    assert all(map(math.isfinite, straight))
    assert sum(straight[-3:]) < 0.97 * sum(straight[:3])
    stop = threading.Event()

    def watch(event: Any) -> None:
        if event.kind == "step" and event.values["step"] == 4:
            stop.set()

    with pytest.raises(Interrupted, match="after step 5"):
        train(configuration(model_type, name, "stopped"), stop=stop, observers=[watch])
    torch.manual_seed(99)
    train(configuration(model_type, name, "stopped"), resume=True)
    assert losses(tmp_path / "stopped") == straight
    expected, found = weights(tmp_path / "straight"), weights(tmp_path / "stopped")
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    assert results["trained_parameters"] == trained(name, expected)


def trained(name: str, saved: dict[str, torch.Tensor]) -> int:
    """What is saved is what trained; of LoRA-FA's updates only B, and of a whole model everything, whatever the turn."""
    return sum(tensor.numel() for key, tensor in saved.items() if not (name == "lora_fa" and ".lora_A." in key))


@pytest.mark.parametrize("patches", [[], ["checkpointing"]])
def test_badam_with_recomputed_activations_is_the_same(patches: list[str], configuration: Any, tmp_path: Path) -> None:
    """A frozen layer below an active one, and above it, under checkpointing: every block moves."""
    train(configuration("llama", "badam", "run", patches=patches))
    plain = weights(Path(configuration("llama", "badam", "x")["model"]))
    moved = {key for key, tensor in weights(tmp_path / "run").items() if not torch.equal(tensor, plain[key])}
    assert moved == set(plain)


@pytest.mark.parametrize(
    ("name", "adapter", "says"),
    [
        ("apollo", {"use": "lora", "rank": 4}, "apollo"),
        ("badam", {"use": "lora", "rank": 4}, "badam"),
        ("lora_plus", "full", "lora_plus"),
        ("lora_fa", "full", "lora_fa"),
        ("lora_fa", {"use": "dora", "rank": 4}, r"adapter\.magnitude .*adapter: dora: .* a magnitude scales each row"),
    ],
)
def test_what_does_not_go_together_is_refused(name: str, adapter: Any, says: str, configuration: Any) -> None:
    with pytest.raises(PlanRefused, match=says):
        plan(configuration("llama", name, "run", adapter=adapter))
