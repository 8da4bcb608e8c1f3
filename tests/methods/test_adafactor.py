"""`adafactor` follows algorithms 4 and 5 of the paper at our own rate; state is rows plus columns, also of experts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from luthier.core.contracts import Matrix
from luthier.plugins import adafactor
from luthier.plugins.adafactor import AdafactorConfig
from luthier.registry.detect import detect

from .stepping import COMMON, difference, small_model, stepped, written_out


def rms(tensor: Tensor) -> float:
    return float(tensor.detach().pow(2).mean().sqrt())


def rule_with(*, decay_rate: float, eps: tuple[float, float], clip: float, scale: bool) -> Any:
    """The paper's update with sums of squares as means, which cancel in the quotient; a rate in place of its 1/sqrt(t)."""

    def rule(parameter: Tensor, gradient: Tensor, state: dict[str, Any], rate: float, step: int, decay: float) -> Tensor:
        beta2 = 1 - step**decay_rate
        squares = gradient**2 + eps[0]
        if parameter.ndim >= 2:
            rows = beta2 * state.get("r", 0) + (1 - beta2) * squares.sum(-1)
            columns = beta2 * state.get("c", 0) + (1 - beta2) * squares.sum(-2)
            state.update(r=rows, c=columns)
            estimate = rows[..., :, None] * columns[..., None, :] / rows.sum(-1)[..., None, None]
        else:
            estimate = state["v"] = beta2 * state.get("v", 0) + (1 - beta2) * squares
        update = gradient / estimate.sqrt()
        update = update / max(1.0, rms(update) / clip)
        alpha = rate * (max(eps[1], rms(parameter)) if scale else 1.0)
        return parameter - alpha * decay * parameter - alpha * update

    return rule


@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale_parameter": True, "eps": (1e-12, 0.05)},
        {"decay_rate": -0.5, "clip_threshold": 0.4},
    ],
)
def test_steps_follow_the_paper(options: dict[str, Any], weight_decay: float) -> None:
    config = AdafactorConfig(lr=0.01, weight_decay=weight_decay, **options, **COMMON)
    rule = rule_with(
        decay_rate=config.decay_rate,
        eps=config.eps,
        clip=config.clip_threshold,
        scale=config.scale_parameter,
    )
    model = small_model()
    optimizer, after = adafactor.build(model, config)
    assert after == ()
    assert difference(stepped(model, optimizer, config), written_out(rule, 0.01, weight_decay)) < 1e-12


def test_each_expert_is_factored_by_itself() -> None:
    """A (3, 4, 5) tensor takes the steps of its three matrices; without the threshold, which is of the whole tensor."""
    torch.manual_seed(0)
    experts = nn.Parameter(torch.randn(3, 4, 5, dtype=torch.float64))
    config = AdafactorConfig(lr=0.01, clip_threshold=1e6, weight_decay=0.1)
    single = [nn.Parameter(experts[index].detach().clone()) for index in range(3)]
    optimizers = [adafactor.build(nn.ParameterList(parameters), config)[0] for parameters in ([experts], single)]
    for _ in range(20):
        experts.grad = torch.randn_like(experts)
        for index, parameter in enumerate(single):
            parameter.grad = experts.grad[index].clone()
        for optimizer in optimizers:
            optimizer.step()
    for index, parameter in enumerate(single):
        assert (experts[index] - parameter).abs().max() < 1e-12


def test_an_update_that_starts_at_zero_moves_by_the_rate() -> None:
    """LoRA's B: torch.optim.Adafactor would move it a thousandth of that."""
    layer = nn.Linear(8, 8, bias=False, dtype=torch.float64)
    nn.init.zeros_(layer.weight)
    optimizer, _ = adafactor.build(layer, AdafactorConfig(lr=0.01))
    layer.weight.grad = torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    assert rms(layer.weight) == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize(
    ("shape", "numbers"), [((7,), 7), ((4, 5), 4 + 5), ((3, 4, 5), 3 * 4 + 3 * 5), ((2, 3, 1, 4), 2 * 3 * 1 + 2 * 3 * 4)]
)
def test_state_is_rows_and_columns(shape: tuple[int, ...], numbers: int) -> None:
    from transformers import LlamaConfig

    profile = detect(LlamaConfig(num_hidden_layers=1))
    parameter = nn.Parameter(torch.zeros(shape, dtype=torch.bfloat16))
    optimizer, _ = adafactor.build(nn.ParameterList([parameter]), AdafactorConfig())
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    held = [value for value in optimizer.state[parameter].values() if isinstance(value, Tensor)]
    assert sum(tensor.numel() * tensor.element_size() for tensor in held) == 4 * numbers + 4
    state = adafactor.memory(profile, AdafactorConfig()).optimizer_state
    assert state is not None
    size = state(Matrix(role="any", shape=shape))
    assert (size.bytes, size.numbers) == (4 * numbers + 4, 0)


def test_eps_must_be_positive() -> None:
    with pytest.raises(ValueError, match="eps"):
        AdafactorConfig(eps=(0.0, 1e-3))
