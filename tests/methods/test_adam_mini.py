"""`adam_mini`: the partition of each kind of model, the paper's step in float64, and its authors' code where that works."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.core.checkpoint import load_state, save_state
from luthier.core.contracts import MemoryTerms
from luthier.core.memory import forecast
from luthier.core.options import NoOptions
from luthier.core.plan import Precision
from luthier.core.targets import every_target, whole
from luthier.plugins import adam_mini, full, lora
from luthier.plugins.adam_mini import AdamMiniConfig
from luthier.plugins.lora import LoraConfig
from luthier.registry.detect import detect

from . import drawn

Load = Callable[[str], tuple[Any, Any]]
HEAD = 16  # of every tiny model: 64 features in 4 heads
BETAS, EPS = (0.8, 0.95), 1e-6


def block_numbers(kind: str, name: str, shape: torch.Size) -> Tensor:
    """For every number of a tensor the block it is in, from the paper's partition and what each model calls its parts."""
    leaf = name.removesuffix(".weight").rpartition(".")[2]
    each = torch.arange(math.prod(shape)).reshape(shape)
    rows = torch.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
    if name.endswith("bias"):
        return each
    if len(shape) == 1:
        return torch.zeros(shape, dtype=torch.long)
    if kind == "gpt2" and leaf in ("c_attn", "c_proj", "c_fc"):  # Conv1D: a column is a neuron
        return torch.arange(shape[1]).expand(shape)
    if leaf in ("q_proj", "k_proj"):
        return rows // HEAD
    if len(shape) == 3:  # (experts, out, in)
        return (torch.arange(shape[0])[:, None] * shape[1] + torch.arange(shape[1]))[:, :, None].expand(shape)
    return rows


def paper_rule(kind: str) -> drawn.Rule:
    """Algorithm 1 of the paper, with decoupled decay; v has one number a block."""

    def rule(name: str, place: Tensor, grad: Tensor, state: dict[str, Any], rate: float, step: int, decay: float) -> Tensor:
        blocks = block_numbers(kind, name, place.shape).reshape(-1)
        count = int(blocks.max()) + 1
        sums = torch.zeros(count, dtype=torch.float64).index_add_(0, blocks, grad.reshape(-1) ** 2)
        means = sums / torch.bincount(blocks, minlength=count)
        state["m"] = BETAS[0] * state.get("m", 0.0) + (1 - BETAS[0]) * grad
        state["v"] = BETAS[1] * state.get("v", 0.0) + (1 - BETAS[1]) * means
        first = state["m"] / (1 - BETAS[0] ** step)
        second = (state["v"] / (1 - BETAS[1] ** step))[blocks].reshape(place.shape)
        return place - rate * decay * place - rate * first / (second.sqrt() + EPS)

    return rule


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_steps_follow_the_paper(kind: str, load: Load, weight_decay: float) -> None:
    model, profile = load(kind)
    model = full.attach(model.double(), profile, NoOptions())
    parameters = drawn.trained(model)
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    config = AdamMiniConfig(lr=0.01, betas=BETAS, eps=EPS, weight_decay=weight_decay, **drawn.SCHEDULE)
    optimizer, after = adam_mini.build(model, config, profile)
    assert after == ()
    got = drawn.stepped(model, optimizer, config, parameters)
    expected = drawn.written_out(paper_rule(kind), start, 0.01, weight_decay)
    assert drawn.difference(got, expected, start) < 1e-12


@pytest.mark.parametrize("fused", [False, True])
def test_steps_are_those_of_its_authors(fused: bool, load: Load) -> None:
    """Where heads are as wide as hidden size / heads, which is what their code assumes.

    A fused `qkv_proj` is taken by neuron there too, because `v_proj` is a part of the name.
    """
    library = pytest.importorskip("adam_mini")
    ours, profile = load("phi3" if fused else "llama")
    theirs, _ = load("phi3" if fused else "llama")
    config = AdamMiniConfig(lr=0.01, betas=(0.9, 0.98), eps=1e-7, weight_decay=0.1, **drawn.SCHEDULE)
    start = {name: parameter.detach().clone() for name, parameter in ours.named_parameters()}
    optimizer, _ = adam_mini.build(ours, config, profile)
    reference = library.Adam_mini(
        theirs.named_parameters(), lr=0.01, betas=(0.9, 0.98), eps=1e-7, weight_decay=0.1, verbose=False, dim=64, n_heads=4,
        n_kv_heads=2,
    )  # fmt: skip
    got = drawn.stepped(ours, optimizer, config, drawn.trained(ours))
    expected = drawn.stepped(theirs, reference, config, drawn.trained(theirs))
    assert drawn.difference(got, expected, start) < 1e-5


def test_values_that_are_interleaved_go_by_neuron() -> None:
    """GPT-NeoX keeps q, k, v of one head after the other: blocks for [all q | all k | all v] would take values by head."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 50}
    config = AutoConfig.for_model("gpt_neox", **sizes, pad_token_id=0, bos_token_id=0, eos_token_id=0)
    model = AutoModelForCausalLM.from_config(config)
    optimizer, _ = adam_mini.build(model, AdamMiniConfig(lr=0.01), detect(config))
    weight = model.gpt_neox.layers[0].attention.query_key_value.weight
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    heads = 0.001 * weight.grad.double().reshape(4, 3, HEAD, 64).square().mean(dim=-1)  # as its forward splits them
    got = optimizer.state[weight]["exp_avg_sq"].double().reshape(4, 3, HEAD)
    assert torch.allclose(got[:, 2], heads[:, 2], rtol=1e-5)


def test_experts_that_lie_the_other_way(load: Load) -> None:
    """gpt_oss keeps (experts, in, out), and its down-projection can be square: the other matrix tells which way it lies."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_local_experts": 4, "num_hidden_layers": 1, "vocab_size": 50}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0, "eos_token_id": 0}
    config = AutoConfig.for_model("gpt_oss", **sizes, **heads)
    model = AutoModelForCausalLM.from_config(config)
    optimizer, _ = adam_mini.build(model, AdamMiniConfig(lr=0.01), detect(config))
    experts = model.model.layers[0].mlp.experts
    assert experts.down_proj.shape == (4, 64, 64)
    generator = torch.Generator().manual_seed(0)
    gradients = {}
    for parameter in (experts.gate_up_proj, experts.down_proj):
        gradients[parameter] = parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    for parameter, grad in gradients.items():
        means = 0.001 * grad.double().square().mean(dim=1)
        assert torch.allclose(optimizer.state[parameter]["exp_avg_sq"].double(), means, rtol=1e-5)


def test_factors_go_by_row_and_magnitudes_by_number(kind: str, load: Load) -> None:
    model, profile = load(kind)
    model = lora.attach(model, profile, LoraConfig(rank=4))
    optimizer, _ = adam_mini.build(model, AdamMiniConfig(lr=0.01), profile)
    parameters = drawn.trained(model)
    drawn.step_once(parameters, optimizer, 0)
    assert parameters
    for parameter in parameters.values():
        assert optimizer.state[parameter]["exp_avg_sq"].shape == parameter.shape[:1]


def test_one_without_gradient_is_left_alone(load: Load) -> None:
    model, profile = load("llama")
    optimizer, _ = adam_mini.build(model, AdamMiniConfig(lr=0.01, weight_decay=0.5), profile)
    quiet, loud = model.lm_head.weight, model.model.embed_tokens.weight
    before = quiet.detach().clone()
    loud.grad = torch.ones_like(loud)
    optimizer.step()
    assert torch.equal(quiet, before)
    assert quiet not in optimizer.state
    assert optimizer.state[loud]["step"] == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_state_bytes_are_as_predicted(kind: str, dtype: Any, load: Load) -> None:
    model, profile = load(kind)
    model = full.attach(model.to(getattr(torch, dtype)), profile, NoOptions())
    config = AdamMiniConfig(lr=0.01)
    optimizer, _ = adam_mini.build(model, config, profile)
    drawn.step_once(drawn.trained(model), optimizer, 0)
    tensors = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    measured = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    matrices = whole(profile, every_target(profile), layers=profile.layers)
    terms = [MemoryTerms(trainable=profile.parameters, matrices=matrices), adam_mini.memory(profile, config)]
    precision = Precision(name="fp32", weights=dtype, compute=dtype, why="")
    assert measured == pytest.approx(forecast(profile, terms, precision, 8).optimizer, rel=0.01)
    adamw = 2 * sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    assert measured < 0.55 * adamw


def test_state_survives_a_checkpoint_beside_bfloat16_weights(load: Load, tmp_path: Any) -> None:
    """Second moments stay float32, and the next step is the one that would have been."""
    from luthier.core.schedule import build_schedule

    runs = []
    for saved in (False, True):
        model, profile = load("mixtral")
        model = model.bfloat16()
        config = AdamMiniConfig(lr=0.01, **drawn.SCHEDULE)
        optimizer, _ = adam_mini.build(model, config, profile)
        for step in range(3):
            drawn.step_once(drawn.trained(model), optimizer, step)
        if saved:
            save_state(tmp_path, optimizer=optimizer, scheduler=build_schedule(optimizer, config, 8), rng={}, progress={})
            optimizer, _ = adam_mini.build(model, config, profile)
            load_state(tmp_path, optimizer=optimizer, scheduler=build_schedule(optimizer, config, 8))
            assert {state["exp_avg_sq"].dtype for state in optimizer.state.values()} == {torch.float32}
            for group in optimizer.param_groups:
                group["lr"] = 0.01
        drawn.step_once(drawn.trained(model), optimizer, 3)
        runs.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
