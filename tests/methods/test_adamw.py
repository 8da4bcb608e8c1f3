"""`adamw` is torch's AdamW: the same steps as a plain one, decay on matrices only, state as predicted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from luthier.core.contracts import MemoryTerms
from luthier.core.memory import forecast
from luthier.core.plan import Precision
from luthier.plugins import adamw
from luthier.plugins.adamw import AdamWConfig
from luthier.registry.detect import detect


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4)).double()


def run(model: nn.Module, optimizer: Any, steps: int = 20) -> list[torch.Tensor]:
    inputs = torch.randn(32, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for _ in range(steps):
        optimizer.zero_grad()
        model(inputs).pow(2).mean().backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def reference(weight_decay: float) -> list[torch.Tensor]:
    """AdamW written out from the paper's algorithm 2, decoupled decay on matrices only."""
    model = small_model()
    parameters = list(model.parameters())
    inputs = torch.randn(32, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    first = [torch.zeros_like(parameter) for parameter in parameters]
    second = [torch.zeros_like(parameter) for parameter in parameters]
    lr, beta1, beta2, eps = 0.01, 0.8, 0.95, 1e-6
    for step in range(1, 21):
        grads = torch.autograd.grad(model(inputs).pow(2).mean(), parameters)
        with torch.no_grad():
            for parameter, grad, m, v in zip(parameters, grads, first, second, strict=True):
                m.mul_(beta1).add_(grad, alpha=1 - beta1)
                v.mul_(beta2).add_(grad * grad, alpha=1 - beta2)
                decay = lr * weight_decay if parameter.ndim >= 2 else 0.0
                update = (m / (1 - beta1**step)) / ((v / (1 - beta2**step)).sqrt() + eps)
                parameter.mul_(1 - decay).sub_(lr * update)
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_steps_follow_the_paper(weight_decay: float) -> None:
    model = small_model()
    config = AdamWConfig(lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=weight_decay)
    optimizer, after = adamw.build(model, config)
    assert after == ()
    for got, expected in zip(run(model, optimizer), reference(weight_decay), strict=True):
        assert (got - expected).abs().max() < 1e-12


def test_only_trainable_parameters_and_fused() -> None:
    model = small_model()
    model[0].requires_grad_(False)
    optimizer, _ = adamw.build(model, AdamWConfig())
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in held} == {id(p) for p in model.parameters() if p.requires_grad}
    assert all(group["fused"] for group in optimizer.param_groups)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_state_bytes_are_as_predicted(dtype: Any) -> None:
    model = nn.Linear(64, 64, bias=False, dtype=getattr(torch, dtype))
    optimizer, _ = adamw.build(model, AdamWConfig())
    model(torch.randn(2, 64, dtype=getattr(torch, dtype))).sum().backward()
    optimizer.step()
    moments = [state[key] for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    measured = sum(tensor.numel() * tensor.element_size() for tensor in moments)
    profile = detect(LlamaConfig(num_hidden_layers=1))
    terms = [MemoryTerms(trainable=64 * 64), adamw.memory(profile, AdamWConfig())]
    precision = Precision(name="fp32", weights=dtype, compute=dtype, why="")
    assert measured == forecast(profile, terms, precision, batch_tokens=8).optimizer


def test_betas_outside_their_range_are_refused() -> None:
    with pytest.raises(ValueError, match="betas"):
        AdamWConfig(betas=(0.9, 1.0))
