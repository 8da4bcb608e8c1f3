"""`lion` follows the paper's algorithm 2; decay on matrices only; one momentum in the parameter's format."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.plugins import lion
from luthier.plugins.lion import LionConfig

from .stepping import COMMON, difference, small_model, stepped, written_out


def rule(parameter: Tensor, gradient: Tensor, state: dict[str, Any], rate: float, step: int, decay: float) -> Tensor:
    momentum = state.get("m", torch.zeros_like(parameter))
    update = torch.sign(0.8 * momentum + 0.2 * gradient)
    state["m"] = 0.95 * momentum + 0.05 * gradient
    return parameter - rate * (update + decay * parameter)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_steps_follow_the_paper(weight_decay: float) -> None:
    config = LionConfig(lr=3e-3, betas=(0.8, 0.95), weight_decay=weight_decay, **COMMON)
    model = small_model()
    optimizer, after = lion.build(model, config)
    assert after == ()
    assert difference(stepped(model, optimizer, config), written_out(rule, 3e-3, weight_decay)) < 1e-12


def test_decay_matters_to_the_reference() -> None:
    """A run without decay is another one, so that the test above can fail."""
    assert difference(written_out(rule, 3e-3, 0.0), written_out(rule, 3e-3, 0.3)) > 0.01


def test_betas_outside_their_range_are_refused() -> None:
    with pytest.raises(ValueError, match="betas"):
        LionConfig(betas=(0.9, 1.0))
