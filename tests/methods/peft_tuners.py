"""Options that make each of PEFT's tuners fit the tiny models, and what the tests of them share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import pytest
import torch

from luthier.plugins.peft import PeftConfig

OPTIONS: dict[str, dict[str, Any]] = {
    "c3a": {"block_size": 32},
    "fourierft": {"n_frequency": 20},
    "gralora": {"r": 4},
    "hira": {"r": 4},
    "lily": {"r": 4},
    "miss": {"r": 8},
    "osf": {"effective_rank": 8},
    "peanut": {"r": 4},
    "prefix_tuning": {"num_virtual_tokens": 5},
    "prompt_tuning": {"num_virtual_tokens": 5},
    "psoft": {"r": 8},
    "pvera": {"r": 8},
    "randlora": {"r": 4, "randlora_alpha": 8},
    "road": {"group_size": 16},
    "shira": {"r": 2},
    "supertuning": {"sparsity": 0.9},
    "tinylora": {"u": 8},
    "unilora": {"theta_d_length": 32},
    "vblora": {"vector_length": 16, "num_vectors": 8},
    "vera": {"r": 8},
    "waveft": {"n_frequency": 20},
}


# Run each time; the others are `slow` wherever a test is not about the table itself.
USUAL: Final = ("ia3", "ln_tuning", "lokr", "miss", "prefix_tuning", "prompt_tuning", "shira", "vera")


def usual_first(tuners: Iterable[str]) -> list[Any]:
    """One parameter for each, in order."""
    return [pytest.param(tuner, marks=() if tuner in USUAL else pytest.mark.slow) for tuner in tuners]


def config_of(tuner: str, **options: Any) -> PeftConfig:
    return PeftConfig(tuner=tuner, options=OPTIONS.get(tuner, {}) | options)


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Of the row's own tokens: virtual ones stand before them."""
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=ids).logits
    return found[:, -ids.shape[1] :].float()


def loss(model: Any, ids: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model.train()(input_ids=ids, labels=ids, attention_mask=torch.ones_like(ids), use_cache=False).loss
    return found


def trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def shake(model: torch.nn.Module, scale: float = 0.05) -> None:
    torch.manual_seed(0)
    for parameter in trained(model).values():
        parameter.data += scale * torch.randn_like(parameter)
