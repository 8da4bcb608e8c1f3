"""`peft` in whole runs: on quantised weights, stopped and resumed, planned beside what it cannot bear."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import luthier
from luthier.core.errors import PlanRefused
from luthier.core.merging import merge_run
from luthier.plugins import peft
from luthier.plugins.peft.tuners import TUNERS
from luthier.registry.catalog import discover
from luthier.registry.detect import detect
from tests.methods.peft_tuners import OPTIONS, USUAL, config_of, logits, loss, shake, trained
from tests.methods.running import configuration, resumed_equals_straight, train, weights

STORAGES: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "int8": {"load_in_8bit": True},
}
COMPUTED = [
    pytest.param(name, storage, marks=() if name in USUAL else pytest.mark.slow)
    for name, tuner in TUNERS.items()
    for storage in STORAGES
    if tuner.quantised == "any" or (tuner.quantised == "8bit" and storage == "int8")
]


def quantised(folder: Path, storage: str, dtype: torch.dtype) -> Any:
    """The model as bitsandbytes stores it, made fit for training as a run does it."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from luthier.core.plan import Precision
    from luthier.core.quantized import settle

    name: Any = str(dtype).removeprefix("torch.")
    config = BitsAndBytesConfig(**STORAGES[storage])
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=dtype, device_map={"": "cpu"})
    settle(model, Precision(name="fp32", weights=name, compute=name, why=""))
    return model


@pytest.mark.parametrize(("tuner", "storage"), COMPUTED)
def test_on_quantised_weights_it_computes_what_it_does_on_their_values(
    tuner: str, storage: str, tiny_folder: Callable[..., Path], ids: Any
) -> None:
    """The same update on the quantised weights and on the dequantised ones: as far apart as the two bases are."""
    from luthier.core.dequantize import dequantize_model

    folder = tiny_folder("llama")
    profile, config = detect(folder), config_of(tuner)
    stored = quantised(folder, storage, torch.float32)
    plain = dequantize_model(quantised(folder, storage, torch.float32), torch.float32)
    apart = (logits(stored, ids) - logits(plain, ids)).abs().max()
    found = []
    for model in (stored, plain):
        torch.manual_seed(3)
        adapted = peft.attach(model, profile, config)
        shake(adapted)
        found.append(logits(adapted, ids))
        torch.manual_seed(4)
        loss(adapted, ids).backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in trained(adapted).values())
    assert (found[0] - found[1]).abs().max() <= 2 * apart + 1e-4


@pytest.mark.parametrize(("tuner", "storage"), COMPUTED)
def test_float32_beside_quantised_bfloat16(tuner: str, storage: str, tiny_folder: Callable[..., Path], ids: Any) -> None:
    folder = tiny_folder("llama")
    adapted = peft.attach(quantised(folder, storage, torch.bfloat16), detect(folder), config_of(tuner))
    loss(adapted, ids).backward()
    assert {parameter.dtype for parameter in trained(adapted).values()} == {torch.float32}
    assert all(torch.isfinite(parameter.grad).all() for parameter in trained(adapted).values())


@pytest.mark.parametrize(
    ("tuner", "options", "precision", "patches"),
    [
        ("ia3", {}, "bf16", ["nf4"]),
        ("ln_tuning", {}, "bf16", ["checkpointing"]),
        ("vera", {"save_projection": False}, "fp32", []),
        ("pvera", {}, "fp32", []),
        ("shira", {}, "fp32", []),
        ("prompt_tuning", {}, "fp32", ["checkpointing"]),
        ("prefix_tuning", {}, "fp32", []),
    ],
)
def test_a_run_resumes_bit_for_bit(
    tuner: str,
    options: dict[str, Any],
    precision: str,
    patches: list[str],
    tiny_folder: Callable[..., Path],
    tmp_path: Path,
) -> None:
    adapter = {"use": "peft", "tuner": tuner, "options": OPTIONS.get(tuner, {}) | options}
    config = configuration(tiny_folder("llama"), tmp_path, patches, adapter=adapter, precision=precision)
    assert resumed_equals_straight(config)
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run").values())


def test_merged_it_is_a_plain_model(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    adapter = {"use": "peft", "tuner": "lokr", "options": {"r": 4}}
    train(configuration(tiny_folder("phi3"), tmp_path, [], adapter=adapter))
    assert merge_run(tmp_path / "run", tmp_path / "merged", discover()).relative < 1e-4


@pytest.mark.parametrize(
    ("tuner", "options", "patches", "words"),
    [
        ("hra", {}, ["nf4"], "computes with the weights themselves"),
        ("hra", {}, ["int8"], "computes with the weights themselves"),
        ("lokr", {}, ["nf4"], "packed 4-bit weights"),
        ("prefix_tuning", {"num_virtual_tokens": 4}, ["checkpointing"], "no longer sees"),
        ("adalora", {}, [], "every training step"),
        ("vera", {"rank": 4}, [], "unknown key"),
    ],
)
def test_plans_that_are_refused(
    tuner: str, options: dict[str, Any], patches: list[str], words: str, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = {"use": "peft", "tuner": tuner, "options": options}
    with pytest.raises(PlanRefused) as refused:
        luthier.plan(configuration(tiny_folder("llama"), tmp_path, patches, adapter=adapter))
    assert words in str(refused.value)
