"""`lora_fa`: the nearest step to the full gradient, the paper's optimizer in float64, and PEFT's where that works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from peft.optimizers import lorafa
from torch import Tensor, nn

from luthier.core.contracts import NothingPatched
from luthier.core.memory import forecast
from luthier.core.options import NoOptions
from luthier.core.plan import Precision
from luthier.plugins import full, lora, lora_fa
from luthier.plugins.lora import LoraConfig
from luthier.plugins.lora_fa import LoraFaConfig

from . import drawn

Load = Callable[[str], tuple[Any, Any]]
BETAS, EPS = (0.8, 0.95), 1e-6
EXPERTS = 4
ROWS = tuple(range(20))


def paper_rule(factors: dict[str, Tensor], scale: float) -> drawn.Rule:
    """AdamW, for a B on the least-squares solution of  min over d of |s d A - G|  where g = s G A^T is what B got.

    The solution is worked out here from G = g (A^T)^+ / s by torch's least squares, not by the formula that the method uses.
    """

    def rule(name: str, place: Tensor, grad: Tensor, state: dict[str, Any], rate: float, step: int, decay: float) -> Tensor:
        if ".lora_B." in name:
            a = factors[name.replace(".lora_B.", ".lora_A.")]
            if "experts" in name:  # A: (experts, rank, in); B: (out, rank, experts)
                a = a.reshape(EXPERTS, -1, a.shape[-1])
                parts = grad.reshape(grad.shape[0], -1, EXPERTS)
                grad = torch.stack([nearest(parts[..., one], a[one], scale) for one in range(EXPERTS)], dim=-1)
                grad = grad.reshape(place.shape)
            else:
                grad = nearest(grad, a, scale)
        state["m"] = BETAS[0] * state.get("m", 0.0) + (1 - BETAS[0]) * grad
        state["v"] = BETAS[1] * state.get("v", 0.0) + (1 - BETAS[1]) * grad**2
        first, second = state["m"] / (1 - BETAS[0] ** step), state["v"] / (1 - BETAS[1] ** step)
        return place - rate * decay * place - rate * first / (second.sqrt() + EPS)

    return rule


def nearest(grad: Tensor, a: Tensor, scale: float) -> Tensor:
    whole = torch.linalg.lstsq(a, grad.mT / scale).solution.mT  # a G with g = s G A^T; the part of G across A is free
    return torch.linalg.lstsq(scale * a.mT, whole.mT).solution.mT


@pytest.mark.parametrize("adapter", ["lora", "whole head", "rank pattern", "experts", "gpt2"])
def test_steps_follow_the_paper(adapter: str, load: Load) -> None:
    model, profile = load("mixtral" if adapter == "experts" else "gpt2" if adapter == "gpt2" else "llama")
    torch.manual_seed(0)
    target = ("attn", "experts") if adapter == "experts" else ("all",)
    saved = ("head",) if adapter == "whole head" else ()
    model = lora.attach(model, profile, LoraConfig(rank=4, alpha=6, target=target, modules_to_save=saved))
    model = model.double()
    optimizer, after = lora_fa.build(
        model, config := LoraFaConfig(lr=1e-3, betas=BETAS, eps=EPS, weight_decay=0.1, **drawn.SCHEDULE)
    )
    assert after == ()
    parameters = drawn.trained(model)
    assert not any(".lora_A." in name for name in parameters)
    factors = {name: parameter.detach().clone() for name, parameter in model.named_parameters() if ".lora_A." in name}
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    got = drawn.stepped(model, optimizer, config, parameters)
    expected = drawn.written_out(paper_rule(factors, 6 / 4), start, 1e-3, 0.1)
    assert drawn.difference(got, expected, start) < 1e-9
    for name, factor in factors.items():
        assert torch.equal(model.get_parameter(name), factor), name


def test_the_correction_is_the_nearest_step(load: Load) -> None:
    """For the real gradient G of a weight, no other step of B comes nearer to it than the corrected one."""
    model, profile = load("llama")
    torch.manual_seed(0)
    model = lora.attach(model, profile, LoraConfig(rank=4, target=("attn.q",))).double()
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    layer.base_layer.weight.requires_grad_(True)
    optimizer, _ = lora_fa.build(model, LoraFaConfig(lr=1e-3))
    ids = torch.randint(0, 250, (2, 12), generator=torch.Generator().manual_seed(1))
    model(input_ids=ids, labels=ids).loss.backward()
    wanted = layer.base_layer.weight.grad
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    optimizer.step()
    step = b.grad  # the step leaves what it used
    solution = torch.linalg.lstsq(layer.scaling["default"] * a.mT, wanted.mT).solution.mT
    assert torch.allclose(step, solution, rtol=1e-5, atol=1e-8 * float(solution.abs().max()))


def test_plain_lora_moves_as_with_pefts_optimizer(kind: str, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT's takes the correction under bfloat16 autocast where the device can: switched off for the comparison."""
    monkeypatch.setattr(lorafa, "is_bf16_available", lambda: False)
    ours, profile = load(kind)
    ours = lora.attach(ours, profile, LoraConfig(rank=4))
    theirs, _ = load(kind)
    theirs = lora.attach(theirs, profile, LoraConfig(rank=4))
    theirs.load_state_dict(ours.state_dict())
    config = LoraFaConfig(lr=1e-3, eps=1e-12, **drawn.SCHEDULE)
    optimizer, _ = lora_fa.build(ours, config)
    reference = lorafa.create_lorafa_optimizer(theirs, r=4, lora_alpha=8, lr=1e-3)
    reference.param_groups[0]["eps"] = 1e-12  # its eps is added before the bias correction, ours after
    start = {name: parameter.detach().clone() for name, parameter in drawn.trained(ours).items()}
    got = drawn.stepped(ours, optimizer, config, drawn.trained(ours))
    expected = drawn.stepped(theirs, reference, config, drawn.trained(theirs))
    assert drawn.difference(got, expected, start) < 1e-4


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_updates_of_embeddings_train_whole(load: Load) -> None:
    """Their A starts at zero: fixed, the update could never be anything else."""
    model, _ = load("llama")
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"]))
    optimizer, _ = lora_fa.build(model, LoraFaConfig(lr=1e-3))
    names = set(drawn.trained(model))
    assert any("lora_embedding_A" in name for name in names)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in drawn.trained(model).values()}


def test_one_without_gradient_is_left_alone(load: Load) -> None:
    model, profile = load("llama")
    model = lora.attach(model, profile, LoraConfig(rank=4))
    optimizer, _ = lora_fa.build(model, LoraFaConfig(lr=1e-3, weight_decay=0.5))
    first, *others = drawn.trained(model).values()
    nn.init.ones_(first)
    for parameter in others:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert torch.equal(first, torch.ones_like(first))
    assert first not in optimizer.state


def test_without_an_update_there_is_nothing_to_do(load: Load) -> None:
    model, profile = load("llama")
    with pytest.raises(NothingPatched, match="lora_fa"):
        lora_fa.build(full.attach(model, profile, NoOptions()), LoraFaConfig())


@pytest.mark.parametrize("adapted", [{"target": ("all",)}, {"target": ("attn", "experts")}, {"trainable_tokens": ROWS}])
def test_memory_is_as_predicted(kind: str, adapted: dict[str, Any], load: Load) -> None:
    """State, and gradients of what trains: A has neither, token rows, which have the shape of one, have both."""
    model, profile = load(kind)
    if "experts" in adapted.get("target", ()) and not profile.experts:
        adapted = {"target": ("mlp",)}
    found, state, gradients = predicted_and_measured(model, profile, LoraConfig(rank=4, **adapted))
    assert found.optimizer == pytest.approx(state, rel=0.01)
    assert found.gradients == pytest.approx(gradients, rel=0.01)


def test_the_a_of_a_head_is_predicted_with_moments(load: Load) -> None:
    """Its gradient is told by the B beside it; by itself it might be token rows, so its moments are counted: too many."""
    model, profile = load("llama")
    assert not profile.tied_embeddings
    found, state, gradients = predicted_and_measured(model, profile, LoraConfig(rank=4, target=("all", "head")))
    assert found.gradients == pytest.approx(gradients, rel=0.01)
    assert found.optimizer == pytest.approx(state + 2 * 4 * 4 * profile.hidden_size, rel=0.01)


def predicted_and_measured(model: Any, profile: Any, options: LoraConfig) -> tuple[Any, int, int]:
    """The forecast; bytes of the state after a step, and of the float32 gradients of all that trains."""
    model = lora.attach(model, profile, options)
    optimizer, _ = lora_fa.build(model, LoraFaConfig())
    parameters = drawn.trained(model)
    drawn.step_once(parameters, optimizer, 0)
    tensors = [tensor for state in optimizer.state.values() for key, tensor in state.items() if key != "step"]
    measured = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    terms = [lora.memory(profile, options), lora_fa.memory(profile, LoraFaConfig())]
    found = forecast(profile, terms, Precision(name="bf16", weights="bfloat16", compute="bfloat16", why=""), 8)
    return found, measured, 4 * sum(parameter.numel() for parameter in parameters.values())
