"""`paged_adamw` and `paged_adamw_8bit`: what they need, what they keep, and that paged state is paged again after loading.

On the CPU bitsandbytes warns and keeps plain state, with the same steps; the last test is for a machine with CUDA.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from luthier.core.checkpoint import capture_rng, load_state, save_state
from luthier.core.contracts import Matrix
from luthier.core.environment import Environment
from luthier.core.optimizing import AdamOptions
from luthier.core.profile import ArchitectureProfile
from luthier.core.schedule import build_schedule
from luthier.plugins import paged_adamw
from luthier.plugins.paged_adamw import PagedAdamW8bitConfig, PagedAdamWConfig
from luthier.registry.detect import detect

from .stepping import COMMON, difference, small_model, stepped

pytest.importorskip("bitsandbytes")

CONFIGS = (PagedAdamWConfig, PagedAdamW8bitConfig)


@pytest.fixture(scope="module")
def profile() -> ArchitectureProfile:
    return detect(LlamaConfig(num_hidden_layers=1))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("device", "kind"), [("cuda", "yes"), ("cpu", "missing"), ("mps", "missing")])
def test_it_needs_cuda(profile: Any, config: Any, device: Any, kind: str) -> None:
    here = Environment(python="3.11", platform="test", cpu="test", cores=2, memory=1, device=device)
    support = paged_adamw.supports(profile, here, config())
    assert support.kind == kind
    assert kind == "yes" or ("CUDA" in support.reason and "adamw" in support.fix)


@pytest.mark.parametrize(("config", "bits"), [(PagedAdamWConfig, torch.float32), (PagedAdamW8bitConfig, torch.uint8)])
def test_it_asks_for_pages(profile: Any, config: Any, bits: torch.dtype) -> None:
    layer = nn.Linear(64, 64, bias=False)
    optimizer, after = paged_adamw.build(layer, config(), profile)
    assert after == ()
    layer.weight.grad = torch.ones(64, 64)
    with pytest.warns(UserWarning, match="not supported on CPU"):
        optimizer.step()
    assert optimizer.is_paged
    assert optimizer.state[layer.weight]["state1"].dtype == bits


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_with_32_bits_steps_are_torchs(profile: Any) -> None:
    """torch.optim.AdamW in float64, with decay on matrices and our schedule and clipping on both."""
    options: dict[str, Any] = {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.2, **COMMON}
    config = PagedAdamWConfig(**options)
    model, reference = small_model(torch.float32), small_model()
    got = stepped(model, paged_adamw.build(model, config, profile)[0], config)
    groups = [
        {"params": [parameter for parameter in reference.parameters() if parameter.ndim >= 2], "weight_decay": 0.2},
        {"params": [parameter for parameter in reference.parameters() if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    expected = stepped(reference, torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.95)), config)
    assert difference([parameter.double() for parameter in got], expected) < 1e-5


def test_the_state_of_a_tensor(profile: Any) -> None:
    matrix = Matrix(role="attn.q", shape=(100, 101))
    wide, narrow = (paged_adamw.memory(profile, config()).optimizer_state for config in CONFIGS)
    assert wide is not None
    assert narrow is not None
    assert wide(matrix).bytes == 8 * 10100
    assert narrow(matrix).bytes == 2 * 10100 + 8 * 40


def two_runs(config: AdamOptions, profile: Any, device: str, folder: Path) -> tuple[Any, Any]:
    """(parameters, optimizer) after six steps in one, and after three, a checkpoint and three more."""

    def fresh() -> tuple[nn.Module, Any, Any]:
        torch.manual_seed(0)
        layer = nn.Linear(512, 512).to(device)
        optimizer, _ = paged_adamw.build(layer, config, profile)
        return layer, optimizer, build_schedule(optimizer, config, 6)

    def train(layer: nn.Module, optimizer: Any, scheduler: Any, steps: range) -> None:
        for step in steps:
            inputs = torch.randn(4, 512, generator=torch.Generator().manual_seed(step)).to(device)
            layer(inputs).square().sum().backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

    straight, first, second = fresh(), fresh(), fresh()
    train(*straight, range(6))
    train(*first, range(3))
    save_state(folder, optimizer=first[1], scheduler=first[2], rng=capture_rng(), progress={})
    second[0].load_state_dict(first[0].state_dict())
    load_state(folder, optimizer=second[1], scheduler=second[2])
    train(*second, range(3, 6))
    for one, two in zip(straight[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(one, two)
    return second[0], second[1]


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("config", CONFIGS)
def test_it_resumes_bit_for_bit(config: Any, profile: Any, tmp_path: Path) -> None:
    two_runs(config(lr=0.01, weight_decay=0.1), profile, "cpu", tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("config", CONFIGS)
def test_loaded_state_is_paged_again(config: Any, profile: Any, tmp_path: Path) -> None:
    layer, optimizer = two_runs(config(lr=0.01, weight_decay=0.1), profile, "cuda", tmp_path)
    state = optimizer.state[layer.weight]
    assert all(getattr(state[name], "is_paged", False) for name in ("state1", "state2"))
    assert not getattr(optimizer.state[layer.bias]["state1"], "is_paged", False)
