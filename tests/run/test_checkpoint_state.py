"""Optimizer, schedule and generators come back bit for bit, and nothing of them is a pickle."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from luthier.core.checkpoint import capture_rng, load_state, pack, read_packed, restore_rng, save_state, unpack, write_packed
from luthier.core.errors import ModelError


def same(a: Any, b: Any) -> bool:
    """Equal in value, type, dtype and every bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        bits = [x.reshape(-1).view(torch.uint8) for x in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)


def three_groups(model: nn.Module) -> list[dict[str, Any]]:
    a, b, c, d = model.parameters()
    return [{"params": [a], "lr": 0.1}, {"params": [b, d], "weight_decay": 0.3}, {"params": [c], "betas": (0.5, 0.7)}]


Builder = Callable[[nn.Module], torch.optim.Optimizer]
OPTIMIZERS: dict[str, tuple[Builder, torch.dtype]] = {
    "adamw": (lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, amsgrad=True), torch.float32),
    "adamw-bf16": (lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2), torch.bfloat16),
    "adamw-fused": (lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, fused=True), torch.float32),
    "groups": (lambda m: torch.optim.AdamW(three_groups(m), lr=1e-2), torch.float32),
    "sgd-momentum": (lambda m: torch.optim.SGD(m.parameters(), lr=1e-2, momentum=0.9, nesterov=True), torch.float32),
    "adafactor": (lambda m: torch.optim.Adafactor(m.parameters(), lr=1e-2), torch.float32),
    "adafactor-bf16": (lambda m: torch.optim.Adafactor(m.parameters(), lr=1e-2), torch.bfloat16),
    "tensor-lr": (lambda m: torch.optim.Adam(m.parameters(), lr=torch.tensor(0.01), foreach=False), torch.float32),
}


class Fp32Moments(torch.optim.Optimizer):
    """Keeps an fp32 moment beside each bf16 parameter, and nested state, as memory-saving optimizers do."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["moment"] = state.get("moment", 0) + parameter.grad.float() / 3
                state["inner"] = {"history": [state["moment"] * 2], "rank": 4, "kind": None, "scale": float("inf")}
                parameter.data -= (group["lr"] * state["moment"]).to(parameter.dtype)


OPTIMIZERS["fp32-moments"] = (lambda m: Fp32Moments(m.parameters()), torch.bfloat16)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any, steps: int) -> None:
    dtype = next(model.parameters()).dtype
    for _ in range(steps):
        model(torch.randn(5, 6, dtype=dtype)).square().sum().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_is_exact_and_training_goes_on_the_same(name: str, tmp_path: Path) -> None:
    build, dtype = OPTIMIZERS[name]
    first, second = net(dtype), net(dtype)
    optimizer = build(first)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    train(first, optimizer, scheduler, 3)
    save_state(tmp_path, optimizer=optimizer, scheduler=scheduler, rng=capture_rng(), progress={"step": 3})

    second.load_state_dict(first.state_dict())
    other = build(second)
    again = torch.optim.lr_scheduler.LambdaLR(other, lambda step: 1 / (step + 1))
    load_state(tmp_path, optimizer=other, scheduler=again)
    assert same(other.state_dict(), optimizer.state_dict())
    assert same(again.state_dict(), scheduler.state_dict())
    assert read_packed(tmp_path, "progress") == {"step": 3}

    random_states = capture_rng()
    train(first, optimizer, scheduler, 2)
    restore_rng(random_states)
    train(second, other, again, 2)
    assert same(dict(second.state_dict()), dict(first.state_dict()))
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_generators_go_on_where_they_were(tmp_path: Path) -> None:
    random.gauss(0, 1)
    np.random.standard_normal()  # leaves one number of the pair waiting
    torch.rand(3)
    write_packed(tmp_path, "rng", capture_rng())

    def draw() -> list[Any]:
        return [
            random.random(),
            random.gauss(0, 1),
            *np.random.standard_normal(3),
            torch.rand(4).tolist(),
            torch.randn(1).item(),
        ]

    expected = draw()
    draw()
    restore_rng(read_packed(tmp_path, "rng"))
    assert draw() == expected


def test_any_nesting_comes_back(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    value = {
        "numbers": [1, True, None, -0.0, 1e-300, float("inf"), float("-inf"), float("nan"), 2**80],
        "tuple": (1, ("x", [])),
        3: {"$": "a key of ours", "empty": {}},
        "transposed": base.t(),
        "views": [base[0], base[0], base],
        "scalar": torch.tensor(2.5, dtype=torch.bfloat16),
        "none": torch.empty(0, 4),
        "int8": torch.tensor([-3], dtype=torch.int8),
    }
    write_packed(tmp_path, "value", value)
    assert same(read_packed(tmp_path, "value"), value)


@pytest.mark.parametrize("bad", [object(), {1, 2}, np.zeros(2), nn.Linear(1, 1), b"bytes"])
def test_what_cannot_be_kept_is_named_by_its_key(bad: Any) -> None:
    with pytest.raises(ModelError) as caught:
        pack({"state": {0: {"projector": bad}}}, {}, "optimizer")
    assert caught.value.where == "optimizer.state.0.projector"
    assert type(bad).__name__ in str(caught.value)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write_packed(tmp_path, "optimizer", {"a": torch.ones(100)})
    whole = (tmp_path / "optimizer.safetensors").read_bytes()
    (tmp_path / "optimizer.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"optimizer\.safetensors"):
        read_packed(tmp_path, "optimizer")
    (tmp_path / "optimizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"optimizer\.json"):
        read_packed(tmp_path, "optimizer")
    with pytest.raises(ModelError, match=r"scheduler\.json"):
        read_packed(tmp_path, "scheduler")


def test_another_optimizer_is_refused(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    save_state(tmp_path, optimizer=optimizer, scheduler=scheduler, rng=capture_rng(), progress={})
    with pytest.raises(ModelError, match="does not take this state"):
        load_state(tmp_path, optimizer=torch.optim.AdamW(three_groups(model)), scheduler=scheduler)


def test_unpack_knows_no_other_kind() -> None:
    with pytest.raises(ValueError, match="unknown kind"):
        unpack({"$": "pickle", "value": "..."}, {})
