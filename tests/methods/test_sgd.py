"""`sgd` is gradient descent with momentum: against the written-out steps, with and without momentum and look-ahead."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.plugins import sgd
from luthier.plugins.sgd import SGDConfig

from .stepping import COMMON, difference, small_model, stepped, written_out


def rule_with(momentum: float, nesterov: bool) -> Any:
    """Sutskever et al. 2013 in the form of torch: the rate multiplies the sum of gradients, not each of them."""

    def rule(parameter: Tensor, gradient: Tensor, state: dict[str, Any], rate: float, step: int, decay: float) -> Tensor:
        penalised = gradient + decay * parameter
        state["v"] = momentum * state.get("v", torch.zeros_like(parameter)) + penalised
        ahead = penalised + momentum * state["v"] if nesterov else state["v"]
        return parameter - rate * ahead

    return rule


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.8, False), (0.8, True)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_steps_are_as_written_out(momentum: float, nesterov: bool, weight_decay: float) -> None:
    config = SGDConfig(lr=0.05, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, **COMMON)
    model = small_model()
    optimizer, after = sgd.build(model, config)
    assert after == ()
    assert (
        difference(stepped(model, optimizer, config), written_out(rule_with(momentum, nesterov), 0.05, weight_decay)) < 1e-12
    )
    assert bool(optimizer.state) == bool(momentum), "without momentum there is no state"


def test_a_parameter_may_get_its_first_gradient_late() -> None:
    """torch's fused kernel fails here: an expert module may see its first token in the second step."""
    early, late = (torch.nn.Linear(2, 2, bias=False) for _ in range(2))
    optimizer, _ = sgd.build(torch.nn.ModuleList([early, late]), SGDConfig(lr=0.1))
    before = late.weight.detach().clone()
    early.weight.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(late.weight, before)
    late.weight.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.allclose(late.weight, before - 0.1)


def test_looking_ahead_needs_momentum() -> None:
    with pytest.raises(ValueError, match="nesterov"):
        SGDConfig(momentum=0.0, nesterov=True)
