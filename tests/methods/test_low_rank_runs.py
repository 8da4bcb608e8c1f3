"""Whole runs of `lora` and `dora` through the engine: stopped and resumed bit for bit, and what comes out is merged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.errors import ConfigError

from .running import configuration, resumed_equals_straight, train

RESUMED: dict[str, tuple[str, dict[str, Any], list[Any]]] = {
    "pissa": ("gemma2", {"use": "lora", "rank": 4, "init": "pissa", "modules_to_save": ["embed"]}, []),
    "corda": ("llama", {"use": "lora", "rank": 4, "init": "corda", "init_batches": 2, "bias": "none"}, []),
    "eva": ("gpt2", {"use": "lora", "rank": 4, "init": "eva", "init_batches": 2, "dropout": 0.1, "bias": "all"}, []),
    "experts": ("mixtral", {"use": "lora", "rank": 4, "target": ["attn", "experts"]}, []),
    "loftq": ("llama", {"use": "lora", "rank": 4, "init": "loftq"}, ["nf4"]),
    "dora": ("llama", {"use": "dora", "rank": 4, "trainable_tokens": ["<|assistant|>", 7]}, []),
}
SMALL = {"gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4}, "mixtral": {"num_local_experts": 4}}


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path_factory.getbasetemp() / "luthier-cache"))


@pytest.mark.parametrize("case", RESUMED)
def test_resumed_is_bit_for_bit_the_straight_run(case: str, tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    kind, adapter, patches = RESUMED[case]
    model = tiny_folder(kind, **SMALL.get(kind, {"head_dim": 16} if kind == "gemma2" else {}))
    assert resumed_equals_straight(configuration(model, tmp_path, patches, adapter=adapter))


def merge(run: Path, into: Path, **options: Any) -> Any:
    from luthier.core.merging import merge_run
    from luthier.registry.catalog import discover

    return merge_run(run, into, discover(), **options)


def test_a_stacked_run_goes_on_and_is_merged(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    """A run's output is the folder that `stack_on` and `continue_from` take; what is merged is the sum of all."""
    from transformers import AutoModelForCausalLM

    model = tiny_folder("llama")
    first = configuration(model, tmp_path, [], adapter={"use": "lora", "rank": 2}, output=str(tmp_path / "first"))
    train(first)
    second = {"use": "lora", "rank": 4, "target": ["attn"], "init": "pissa", "stack_on": [first["output"]]}
    run = configuration(model, tmp_path, [], adapter=second)
    assert resumed_equals_straight(run)
    report = merge(Path(run["output"]), tmp_path / "merged")
    assert report.relative < 1e-5
    going_on = {"use": "lora", "rank": 2, "continue_from": first["output"]}
    train(configuration(model, tmp_path, [], adapter=going_on, output=str(tmp_path / "third")))
    base, merged = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (model, tmp_path / "merged")
    )
    name = "model.layers.0.mlp.up_proj.weight"  # only the first run adapted it
    assert torch.linalg.matrix_rank(merged.get_parameter(name) - base.get_parameter(name), rtol=1e-4) == 2


def test_an_update_that_makes_up_for_quantisation_belongs_on_it(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    """LoftQ's A and B hold W - Q: on W itself, that would be counted twice."""
    run = configuration(tiny_folder("llama"), tmp_path, ["nf4"], adapter={"use": "lora", "rank": 4, "init": "loftq"})
    train(run)
    with pytest.raises(ConfigError, match="makes up for the quantisation"):
        merge(Path(run["output"]), tmp_path / "merged", base="original")
    report = merge(Path(run["output"]), tmp_path / "merged", base="dequantized")
    assert report.relative < 1e-4
