"""`lora_plus`: PEFT's own groups for plain LoRA, the paper's rates in float64, and what else trains keeps its rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from torch import Tensor

from luthier.core.contracts import NothingPatched
from luthier.core.memory import forecast
from luthier.core.options import NoOptions
from luthier.core.plan import Precision
from luthier.core.schedule import build_schedule
from luthier.plugins import dora, full, lora, lora_plus
from luthier.plugins.dora import DoraConfig
from luthier.plugins.lora import LoraConfig
from luthier.plugins.lora_plus import LoraPlusConfig

from . import drawn
from .stepping import STEPS, factor

Load = Callable[[str], tuple[Any, Any]]
BETAS, EPS = (0.8, 0.95), 1e-6


def adamw_at(rates: Callable[[str], float]) -> drawn.Rule:
    """AdamW (arXiv:1711.05101, algorithm 2) whose rate is multiplied by `rates(name)`."""

    def rule(name: str, place: Tensor, grad: Tensor, state: dict[str, Any], rate: float, step: int, decay: float) -> Tensor:
        rate = rate * rates(name)
        state["m"] = BETAS[0] * state.get("m", 0.0) + (1 - BETAS[0]) * grad
        state["v"] = BETAS[1] * state.get("v", 0.0) + (1 - BETAS[1]) * grad**2
        first, second = state["m"] / (1 - BETAS[0] ** step), state["v"] / (1 - BETAS[1] ** step)
        return place - rate * decay * place - rate * first / (second.sqrt() + EPS)

    return rule


@pytest.mark.parametrize("adapter", ["lora", "dora", "whole head"])
def test_steps_follow_the_paper(adapter: str, load: Load) -> None:
    """B at ratio x lr; A, DoRA's magnitudes and a head that trains whole at lr; magnitudes are not decayed."""
    model, profile = load("llama")
    if adapter == "dora":
        model = dora.attach(model, profile, DoraConfig(rank=4))
    else:
        saved = ("head",) if adapter == "whole head" else ()
        model = lora.attach(model, profile, LoraConfig(rank=4, modules_to_save=saved))
    model = model.double()
    parameters = drawn.trained(model)
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    config = LoraPlusConfig(lr=1e-3, ratio=8, betas=BETAS, eps=EPS, weight_decay=0.1, **drawn.SCHEDULE)
    optimizer, after = lora_plus.build(model, config)
    assert after == ()
    got = drawn.stepped(model, optimizer, config, parameters)
    rule = adamw_at(lambda name: 8.0 if ".lora_B." in name else 1.0)
    assert drawn.difference(got, drawn.written_out(rule, start, 1e-3, 0.1), start) < 1e-12


def test_plain_lora_moves_as_with_pefts_groups(kind: str, load: Load) -> None:
    ours, profile = load(kind)
    ours = lora.attach(ours, profile, LoraConfig(rank=4))
    theirs, _ = load(kind)
    theirs = lora.attach(theirs, profile, LoraConfig(rank=4))
    theirs.load_state_dict(ours.state_dict())
    config = LoraPlusConfig(lr=1e-3, weight_decay=0.1, **drawn.SCHEDULE)
    start = {name: parameter.detach().clone() for name, parameter in drawn.trained(ours).items()}
    reference = create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16.0, loraplus_weight_decay=0.1
    )
    optimizer, _ = lora_plus.build(ours, config)
    got = drawn.stepped(ours, optimizer, config, drawn.trained(ours))
    expected = drawn.stepped(theirs, reference, config, drawn.trained(theirs))
    assert drawn.difference(got, expected, start) < 1e-5


def test_the_schedule_scales_every_rate(load: Load) -> None:
    model, profile = load("llama")
    config = LoraPlusConfig(lr=1e-3, ratio=4, **drawn.SCHEDULE)
    optimizer, _ = lora_plus.build(lora.attach(model, profile, LoraConfig(rank=4)), config)
    scheduler = build_schedule(optimizer, config, STEPS)
    for step in range(STEPS):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([1e-3 * factor(step), 4e-3 * factor(step)])
        optimizer.step()
        scheduler.step()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_updates_of_embeddings_have_a_rate_of_their_own(load: Load) -> None:
    model, _ = load("llama")
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"]))
    optimizer, _ = lora_plus.build(model, LoraPlusConfig(lr=1e-3, embedding_lr=1e-5))
    rates = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in drawn.trained(model).items():
        expected = 1e-5 if "embed_tokens" in name else 16e-3 if ".lora_B." in name else 1e-3
        assert rates[parameter] == pytest.approx(expected), name


def test_fused_experts(load: Load) -> None:
    model, profile = load("mixtral")
    model = lora.attach(model, profile, LoraConfig(rank=4, target=("attn", "experts")))
    optimizer, _ = lora_plus.build(model, LoraPlusConfig(lr=1e-3))
    rates = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    experts = {name: parameter for name, parameter in drawn.trained(model).items() if "experts" in name}
    assert experts
    for name, parameter in experts.items():
        assert rates[parameter] == pytest.approx(16e-3 if ".lora_B." in name else 1e-3), name


def test_without_an_update_there_is_nothing_to_do(load: Load) -> None:
    model, profile = load("llama")
    with pytest.raises(NothingPatched, match="lora_plus"):
        lora_plus.build(full.attach(model, profile, NoOptions()), LoraPlusConfig())


def test_state_bytes_are_as_predicted(kind: str, load: Load) -> None:
    model, profile = load(kind)
    options = LoraConfig(rank=4)
    model = lora.attach(model, profile, options)
    optimizer, _ = lora_plus.build(model, LoraPlusConfig())
    drawn.step_once(drawn.trained(model), optimizer, 0)
    tensors = [state[key] for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    measured = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    terms = [lora.memory(profile, options), lora_plus.memory(profile, LoraPlusConfig())]
    precision = Precision(name="bf16", weights="bfloat16", compute="bfloat16", why="")
    assert measured == forecast(profile, terms, precision, 8).optimizer
