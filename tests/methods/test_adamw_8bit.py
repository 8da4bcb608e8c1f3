"""`adamw_8bit`: AdamW from moments stored block by block, 32-bit state where the options say so, exact loading."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from luthier.core.checkpoint import capture_rng, load_state, save_state
from luthier.core.contracts import Matrix
from luthier.core.environment import Environment
from luthier.core.frozen import FrozenDict
from luthier.core.profile import ArchitectureProfile, RoleGroup
from luthier.core.schedule import build_schedule
from luthier.plugins import adamw_8bit
from luthier.plugins.adamw_8bit import AdamW8bitConfig

from .stepping import COMMON, difference, small_model, stepped, written_out

pytest.importorskip("bitsandbytes")

BETA1, BETA2, EPS = 0.8, 0.95, 1e-6
BLOCK = 256
Load = Callable[[str], tuple[Any, Any]]


def profile(**roles: tuple[RoleGroup, ...]) -> ArchitectureProfile:
    return ArchitectureProfile(
        model_type="small",
        architecture="Small",
        decoder="",
        layers=1,
        layer_classes=(),
        hidden_size=8,
        vocab_size=8,
        roles=FrozenDict(roles),
    )


def in_blocks(flat: Tensor) -> Tensor:
    return nn.functional.pad(flat.flatten(), (0, -flat.numel() % BLOCK)).view(-1, BLOCK)


def read(state: dict[str, Any], which: int) -> Tensor:
    """A moment in float64, decoded by hand: the code's value times the greatest number of its block of 256."""
    codes, scales = state[f"state{which}"], state[f"absmax{which}"].double()
    values = state[f"qmap{which}"].double()[codes.long()]
    return (in_blocks(values) * scales[:, None]).flatten()[: codes.numel()].view(codes.shape)


def nearest(moment: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
    """What block-wise quantisation (arXiv:2110.02861, section 2.1) makes of a moment, and the scale of each number."""
    blocks = in_blocks(moment)
    scale = blocks.abs().amax(dim=1, keepdim=True)
    index = (blocks[..., None] / scale[..., None] - code.double()).abs().argmin(dim=-1)
    parts = (code.double()[index] * scale, scale.expand_as(blocks))
    one, two = (part.flatten()[: moment.numel()].view(moment.shape) for part in parts)
    return one, two


def rule(parameter: Tensor, gradient: Tensor, state: dict[str, Any], rate: float, step: int, decay: float) -> Tensor:
    """AdamW (Loshchilov and Hutter 2019, algorithm 2)."""
    state["m"] = BETA1 * state.get("m", torch.zeros_like(parameter)) + (1 - BETA1) * gradient
    state["v"] = BETA2 * state.get("v", torch.zeros_like(parameter)) + (1 - BETA2) * gradient**2
    update = state["m"] / (1 - BETA1**step) / ((state["v"] / (1 - BETA2**step)).sqrt() + EPS)
    return parameter * (1 - rate * decay) - rate * update


@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
def test_with_32_bits_steps_follow_the_paper(weight_decay: float) -> None:
    """In float32, as bitsandbytes computes."""
    config = AdamW8bitConfig(
        lr=0.01, betas=(BETA1, BETA2), eps=EPS, weight_decay=weight_decay, min_8bit_size=10**6, **COMMON
    )
    model = small_model(torch.float32)
    optimizer, after = adamw_8bit.build(model, config, profile())
    assert after == ()
    got = [parameter.double() for parameter in stepped(model, optimizer, config)]
    assert difference(got, written_out(rule, 0.01, weight_decay)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_8_bits_each_step_follows_from_the_state_before_it(dtype: torch.dtype) -> None:
    """Parameters by the paper from the moments as they are stored; moments stored as the nearest code.

    Within 1/32768 of the block's greatest number: so fine is the table by which bitsandbytes rounds on the CPU.
    """
    torch.manual_seed(0)
    layer = nn.Linear(70, 60, bias=False).to(dtype)
    weight = layer.weight
    config = AdamW8bitConfig(lr=0.01, betas=(BETA1, BETA2), eps=EPS, weight_decay=0.2, warmup=4)
    optimizer, _ = adamw_8bit.build(layer, config, profile())
    scheduler = build_schedule(optimizer, config, 20)
    for step in range(1, 21):
        weight.grad = (torch.randn(60, 70) * torch.logspace(-2, 1, 70)).to(dtype)
        before, state = weight.detach().double(), {}
        if step > 1:
            state = {"m": read(optimizer.state[weight], 1), "v": read(optimizer.state[weight], 2)}
        rate = optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()
        expected = rule(before, weight.grad.double(), state, rate, step, 0.2)
        rounding = 1e-6 if dtype == torch.float32 else 2.0**-8
        assert ((weight.double() - expected).abs() <= 1e-5 * rate + rounding * expected.abs()).all()
        for which, moment in ((1, state["m"]), (2, state["v"])):
            best, scale = nearest(moment, optimizer.state[weight][f"qmap{which}"])
            error = (read(optimizer.state[weight], which) - moment).abs()
            assert (error <= (best - moment).abs() + scale / 32000).all()


def test_embeddings_and_small_tensors_keep_32_bits(kind: str, load: Load) -> None:
    model, shape = load(kind)
    optimizer, _ = adamw_8bit.build(model, AdamW8bitConfig(), shape)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    assert embeddings
    for parameter in model.parameters():
        wide = id(parameter) in embeddings or parameter.numel() < 4096
        assert optimizer.state[parameter]["state1"].dtype == (torch.float32 if wide else torch.uint8)


def test_embeddings_may_have_8_bits(load: Load) -> None:
    model, shape = load("llama")
    optimizer, _ = adamw_8bit.build(model, AdamW8bitConfig(embeddings_32bit=False), shape)
    table = model.get_input_embeddings().weight
    table.grad = torch.ones_like(table)
    optimizer.step()
    assert optimizer.state[table]["state1"].dtype == torch.uint8


def test_an_override_of_another_run_does_not_reach_this_one() -> None:
    """bitsandbytes keeps overrides by id(parameter) for the whole process."""
    from bitsandbytes.optim import GlobalOptimManager

    layer = nn.Linear(64, 64, bias=False)
    manager = GlobalOptimManager.get_instance()
    manager.pid2config[id(layer.weight)] = {"optim_bits": 32}
    try:
        optimizer, _ = adamw_8bit.build(layer, AdamW8bitConfig(), profile())
        layer.weight.grad = torch.ones(64, 64)
        optimizer.step()
    finally:
        del manager.pid2config[id(layer.weight)]
    assert optimizer.state[layer.weight]["state1"].dtype == torch.uint8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_loads_bit_for_bit_and_shares_its_maps(dtype: torch.dtype, tmp_path: Any) -> None:
    def fresh() -> tuple[nn.Module, Any, Any]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 80), nn.Linear(80, 3)).to(dtype)
        optimizer, _ = adamw_8bit.build(model, AdamW8bitConfig(lr=0.01, weight_decay=0.1), profile())
        return model, optimizer, build_schedule(optimizer, AdamW8bitConfig(), 10)

    def train(model: nn.Module, optimizer: Any, scheduler: Any, steps: range) -> None:
        for step in steps:
            inputs = torch.randn(4, 64, generator=torch.Generator().manual_seed(step)).to(dtype)
            model(inputs).square().sum().backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

    first, second = fresh(), fresh()
    train(*first, range(5))
    save_state(tmp_path, optimizer=first[1], scheduler=first[2], rng=capture_rng(), progress={})
    second[0].load_state_dict(first[0].state_dict())
    load_state(tmp_path, optimizer=second[1], scheduler=second[2])
    train(*first, range(5, 10))
    train(*second, range(5, 10))
    for one, two in zip(first[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(one, two)
        for key, value in first[1].state[one].items():
            other = second[1].state[two][key]
            assert other == value if isinstance(value, int) else (torch.equal(other, value) and other.dtype == value.dtype)
    maps = {state["qmap1"].data_ptr() for state in second[1].state.values() if "qmap1" in state}
    assert len(maps) == 1, "each parameter would hold a copy of the map"


def test_the_state_of_a_tensor() -> None:
    state = adamw_8bit.memory(profile(), AdamW8bitConfig()).optimizer_state
    assert state is not None
    # 100 x 101 numbers are 39 whole blocks of 256 and a part of one, with two scales of 4 bytes each.
    assert state(Matrix(role="attn.q", shape=(100, 101))).bytes == 2 * 10100 + 8 * 40
    assert state(Matrix(role="attn.q", shape=(4095,))).bytes == 8 * 4095
    assert state(Matrix(role="embed", shape=(100, 101))).bytes == 8 * 10100
    narrow = adamw_8bit.memory(profile(), AdamW8bitConfig(min_8bit_size=0, embeddings_32bit=False)).optimizer_state
    assert narrow is not None
    assert narrow(Matrix(role="embed", shape=(256,))).bytes == 2 * 256 + 8


def test_mps_has_no_kernel() -> None:
    here = Environment(python="3.11", platform="test", cpu="test", cores=2, memory=1, device="mps")
    assert adamw_8bit.supports(profile(), here, AdamW8bitConfig()).kind == "missing"
