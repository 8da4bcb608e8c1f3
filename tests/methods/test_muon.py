"""`muon`: the written-out iteration in float64, torch's Muon and AdamW on every matrix, and which parameters get which."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from luthier.core.contracts import NothingPatched
from luthier.core.frozen import FrozenDict
from luthier.core.profile import ArchitectureProfile, RoleGroup
from luthier.core.schedule import build_schedule
from luthier.plugins import muon
from luthier.plugins.muon import MuonConfig, orthogonal
from luthier.plugins.muon.optimizer import step_size
from luthier.plugins.muon.orthogonal import orthogonalise

from .stepping import CLIP, COMMON, STEPS, factor

Load = Callable[[str], tuple[Any, Any]]
A, B, C = 3.4445, -4.7750, 2.0315


class Small(nn.Module):
    """Embeddings, a projection, one stored transposed, two fused experts, a norm, a head."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(12, 6)
        layer = nn.Module()
        layer.up, layer.norm = nn.Linear(6, 10), nn.LayerNorm(10)
        layer.turned = nn.Linear(6, 10, bias=False)
        layer.experts = nn.Parameter(torch.randn(2, 10, 10) / 3)
        self.layers = nn.ModuleList([layer])
        self.head = nn.Linear(10, 12, bias=False)
        self.to(dtype)

    def forward(self, ids: Tensor) -> Tensor:
        layer, hidden = self.layers[0], self.embed(ids)
        hidden = layer.norm(layer.up(hidden)) + layer.turned(hidden)
        return self.head(sum(torch.tanh(hidden @ expert) for expert in layer.experts))


def group(name: str, kind: Any, shape: tuple[int, ...], inputs: int, outputs: int, experts: int = 0) -> RoleGroup:
    return RoleGroup(
        pattern=name, kind=kind, shape=shape, in_features=inputs, out_features=outputs, layers=(0,), experts=experts
    )


# `turned` is a (10, 6) weight that the profile says lies as (inputs, outputs), as Conv1D's would.
PROFILE = ArchitectureProfile(
    model_type="small",
    architecture="Small",
    decoder="layers",
    layers=1,
    layer_classes=(),
    hidden_size=6,
    vocab_size=12,
    roles=FrozenDict(
        {
            "mlp.up": (group("layers.*.up", "linear", (10, 6), 6, 10),),
            "attn.q": (group("layers.*.turned", "conv1d", (10, 6), 10, 6),),
            "mlp.experts.down": (group("layers.*.experts", "parameter", (2, 10, 10), 10, 10, 2),),
            "embed": (group("embed", "embedding", (12, 6), 12, 6),),
            "head": (group("head", "linear", (12, 10), 10, 12),),
        }
    ),
)
ORTHOGONAL = ("layers.0.up.weight", "layers.0.turned.weight", "layers.0.experts")


def gradients_of(model: nn.Module, step: int) -> None:
    draw = torch.Generator().manual_seed(step)
    ids, wanted = (torch.randint(0, 12, (40,), generator=draw) for _ in range(2))
    nn.functional.cross_entropy(model(ids), wanted).backward()
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)


def newton_schulz(matrix: Tensor, steps: int) -> Tensor:
    """Jordan's iteration by singular values: x -> a x + b x^3 + c x^5 on each, the vectors as they are."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.pow(2).sum().sqrt()
    for _ in range(steps):
        s = A * s + B * s**3 + C * s**5
    return u @ torch.diag(s) @ v


def by_hand(lr: float, adamw_lr: float, decay: float, adjust: str, nesterov: bool) -> dict[str, Tensor]:
    """Twenty-four steps in float64: Muon (momentum 0.9, 5 iterations) and AdamW (betas 0.8 and 0.95)."""
    model = Small(torch.float64)
    m: dict[str, Any] = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    v = {name: tensor.clone() for name, tensor in m.items()}
    for step in range(STEPS):
        gradients_of(model, step)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                gradient = parameter.grad
                assert gradient is not None
                shrink = decay if parameter.ndim >= 2 else 0.0
                if name in ORTHOGONAL:
                    m[name] = 0.9 * m[name] + 0.1 * gradient
                    ahead = 0.9 * m[name] + 0.1 * gradient if nesterov else m[name]
                    stack = ahead if ahead.ndim == 3 else ahead[None]
                    update = torch.stack([newton_schulz(one, 5) for one in stack]).view(parameter.shape)
                    outputs, inputs = (6, 10) if "turned" in name else parameter.shape[-2:]
                    original = math.sqrt(max(1, outputs / inputs))
                    size = 0.2 * math.sqrt(max(outputs, inputs)) if adjust == "match_rms_adamw" else original
                    rate = lr * factor(step)
                    parameter.copy_(parameter * (1 - rate * shrink) - rate * size * update)
                else:
                    m[name] = 0.8 * m[name] + 0.2 * gradient
                    v[name] = 0.95 * v[name] + 0.05 * gradient**2
                    update = m[name] / (1 - 0.8 ** (step + 1)) / ((v[name] / (1 - 0.95 ** (step + 1))).sqrt() + 1e-6)
                    rate = adamw_lr * factor(step)
                    parameter.copy_(parameter * (1 - rate * shrink) - rate * update)
        model.zero_grad()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("adjust", "nesterov", "decay", "adamw_lr"),
    [("match_rms_adamw", True, 0.0, None), ("match_rms_adamw", False, 0.1, 0.003), ("original", True, 0.1, 0.003)],
)
def test_steps_are_as_written_out(
    adjust: Any, nesterov: bool, decay: float, adamw_lr: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orthogonal, "COMPUTE", torch.float64)
    config = MuonConfig(
        lr=0.02,
        adamw_lr=adamw_lr,
        momentum=0.9,
        nesterov=nesterov,
        adjust=adjust,
        weight_decay=decay,
        betas=(0.8, 0.95),
        eps=1e-6,
        **COMMON,
    )
    model = Small(torch.float64)
    optimizer, after = muon.build(model, config, PROFILE)
    assert after == ()
    scheduler = build_schedule(optimizer, config, STEPS)
    for step in range(STEPS):
        gradients_of(model, step)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    expected = by_hand(0.02, adamw_lr or 0.02, decay, adjust, nesterov)
    start = {name: parameter.detach() for name, parameter in Small(torch.float64).named_parameters()}
    for name, parameter in model.named_parameters():
        moved = float((expected[name] - start[name]).abs().max())
        assert float((parameter.detach() - expected[name]).abs().max()) < 1e-9 * moved, name


@pytest.mark.parametrize("shape", [(10, 6), (6, 10), (8, 8), (4, 10, 6), (1, 3, 7)])
def test_it_makes_orthogonal(shape: tuple[int, ...]) -> None:
    """Singular values of the result lie in Jordan's band, whatever those of the matrix."""
    torch.manual_seed(0)
    result = orthogonalise(torch.randn(shape, dtype=torch.float64), 5)
    assert result.shape == shape
    assert result.dtype == torch.bfloat16
    values = torch.linalg.svdvals(result.double())
    assert float(values.min()) > 0.5
    assert float(values.max()) < 1.3


def test_zeros_stay_zeros_and_leave_their_neighbours_alone() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, 6, 10)
    matrices[1] = 0
    result = orthogonalise(matrices, 5)
    assert torch.equal(result[1], torch.zeros(6, 10, dtype=torch.bfloat16))
    assert torch.isfinite(result).all()
    assert torch.allclose(result[2].float(), orthogonalise(matrices[2], 5).float(), atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adjust", ["match_rms_adamw", "original"])
def test_each_matrix_moves_as_with_torch(adjust: Any, dtype: torch.dtype) -> None:
    """torch.optim.Muon on the projection and on every expert; torch.optim.AdamW on the rest; the same gradients."""
    config = MuonConfig(lr=0.02, adamw_lr=0.003, adjust=adjust, weight_decay=0.1, betas=(0.8, 0.95))
    ours, theirs = Small(dtype), Small(dtype)
    optimizer, _ = muon.build(ours, config, PROFILE)
    experts = [nn.Parameter(expert.detach().clone()) for expert in theirs.layers[0].experts]
    matrices = [theirs.layers[0].up.weight, *experts]
    reference = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn=adjust)
    others = [parameter for name, parameter in theirs.named_parameters() if name not in ORTHOGONAL]
    rest = torch.optim.AdamW(
        [
            {"params": [parameter for parameter in others if parameter.ndim >= 2], "weight_decay": 0.1},
            {"params": [parameter for parameter in others if parameter.ndim < 2], "weight_decay": 0.0},
        ],
        lr=0.003,
        betas=(0.8, 0.95),
    )
    start = {name: parameter.detach().clone() for name, parameter in ours.named_parameters()}
    for step in range(20):
        gradients_of(ours, step)
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            other.grad = mine.grad
        for index, expert in enumerate(experts):
            expert.grad = ours.layers[0].experts.grad[index].clone()
        for one in (optimizer, reference, rest):
            one.step()
        optimizer.zero_grad()
    for name, parameter in theirs.named_parameters():
        if name not in ORTHOGONAL:
            assert torch.equal(ours.get_parameter(name), parameter), name
    pairs = [(ours.layers[0].up.weight, matrices[0], start["layers.0.up.weight"])]
    pairs += list(zip(ours.layers[0].experts, experts, start["layers.0.experts"], strict=True))
    for got, expected, before in pairs:
        moved = (expected - before).abs().max()
        # The iteration is in bfloat16 in both, of 8 bits, and the order of its sums differs.
        assert (got - expected).abs().max() < 0.02 * moved


def test_an_expert_without_tokens_is_left_alone() -> None:
    model = Small(torch.float32)
    optimizer, _ = muon.build(model, MuonConfig(lr=0.02, weight_decay=0.1), PROFILE)
    gradients_of(model, 0)
    optimizer.step()
    experts = model.layers[0].experts
    before, momentum = experts.detach().clone(), optimizer.state[experts]["momentum"].clone()
    gradients_of(model, 1)
    assert experts.grad is not None
    experts.grad[1] = 0
    optimizer.step()
    assert torch.equal(experts[1], before[1])
    assert torch.equal(optimizer.state[experts]["momentum"][1], momentum[1])
    assert not torch.equal(experts[0], before[0])


def test_a_parameter_without_a_gradient_is_left_alone() -> None:
    model = Small(torch.float32)
    optimizer, _ = muon.build(model, MuonConfig(lr=0.02, weight_decay=0.1), PROFILE)
    gradients_of(model, 0)
    model.layers[0].up.weight.grad = model.head.weight.grad = None
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == before.keys() - {"layers.0.up.weight", "head.weight"}
    assert len(optimizer.state) == len(changed)


EXPECTED = {
    "llama": r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.weight",
    "qwen3": r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.weight",
    "gemma2": r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.weight",
    "gpt2": r"transformer\.h\.\d+\.(attn\.(c_attn|c_proj)|mlp\.(c_fc|c_proj))\.weight",
    "phi3": r"model\.layers\.\d+\.(self_attn\.(qkv|o)_proj|mlp\.(gate_up|down)_proj)\.weight",
    "mixtral": r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj\.weight|mlp\.experts\.(gate_up|down)_proj)",
}


def test_which_parameters_are_made_orthogonal(kind: str, load: Load) -> None:
    """Projections and experts; never embeddings, head, router, norms, biases."""
    model, profile = load(kind)
    optimizer, _ = muon.build(model, MuonConfig(), profile)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_method: dict[str, set[str]] = {"muon": set(), "adamw": set()}
    for part in optimizer.param_groups:
        by_method[part["method"]] |= {names[id(parameter)] for parameter in part["params"]}
    assert by_method["muon"] == {name for name in names.values() if re.fullmatch(EXPECTED[kind], name)}
    assert by_method["adamw"] == set(names.values()) - by_method["muon"]


def test_conv1d_is_scaled_by_inputs_and_outputs_not_rows_and_columns(load: Load) -> None:
    model, profile = load("gpt2")
    optimizer, _ = muon.build(model, MuonConfig(), profile)
    turned = {id(parameter) for part in optimizer.param_groups if part.get("transposed") for parameter in part["params"]}
    layer = model.transformer.h[0]
    assert id(layer.mlp.c_fc.weight) in turned
    assert step_size(layer.mlp.c_fc.weight.shape, "original", transposed=True) == pytest.approx(2.0)  # 64 -> 256
    assert step_size(layer.mlp.c_proj.weight.shape, "original", transposed=True) == 1.0
    assert step_size(layer.mlp.c_fc.weight.shape, "match_rms_adamw", transposed=True) == pytest.approx(0.2 * 16)


def test_only_what_trains_is_in_it(load: Load) -> None:
    model, profile = load("llama")
    model.requires_grad_(False)
    model.model.layers[1].requires_grad_(True)
    optimizer, _ = muon.build(model, MuonConfig(), profile)
    held = {id(parameter) for part in optimizer.param_groups for parameter in part["params"]}
    assert held == {id(parameter) for parameter in model.model.layers[1].parameters()}


def test_no_matrix_to_move_is_an_error(load: Load) -> None:
    model, profile = load("llama")
    model.requires_grad_(False)
    model.get_input_embeddings().requires_grad_(True)
    with pytest.raises(NothingPatched, match="no hidden matrix trains"):
        muon.build(model, MuonConfig(), profile)
