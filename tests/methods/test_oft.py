"""`oft`: rotations that are orthogonal, start at the identity, are counted, and can be switched off and folded in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from luthier.core.contracts import NothingPatched
from luthier.core.environment import Environment
from luthier.core.merging import merge_run
from luthier.plugins import oft
from luthier.plugins.oft import OftConfig
from luthier.registry.catalog import discover
from tests.methods.running import configuration, resumed_equals_straight, train

Load = Callable[[str], tuple[Any, Any]]
HERE = Environment(python="3.11", platform="test", cpu="test", cores=2, memory=1 << 30)
EXACT, NEUMANN = "exact", "neumann"


def rotations(model: Any) -> dict[str, Any]:
    """PEFT's rotation modules by name."""
    kind = peft.tuners.oft.layer.OFTRotationModule
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def turn(model: Any, scale: float = 0.02) -> None:
    torch.manual_seed(0)
    for module in rotations(model).values():
        torch.nn.init.normal_(module.weight, std=scale)


def skew(parameters: torch.Tensor, size: int) -> torch.Tensor:
    """(blocks, size (size - 1) / 2) upper triangles, row by row, to skew-symmetric matrices."""
    upper = torch.zeros(len(parameters), size, size, dtype=parameters.dtype)
    row, column = torch.triu_indices(size, size, 1)
    upper[:, row, column] = parameters
    return upper - upper.transpose(1, 2)


def attached(load: Load, kind: str = "llama", **options: Any) -> Any:
    model, profile = load(kind)
    return oft.attach(model, profile, OftConfig(**{"block_size": 16} | options)).eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"block_size": None},
        {"block_size": None, "blocks": 4},
        {"share_blocks": True},
        {"layers": (1,), "target": ("attn",)},
    ],
)
def test_the_output_is_unchanged_and_parameters_are_counted(
    options: dict[str, Any], kind: str, load: Load, ids: Any
) -> None:
    model, profile = load(kind)
    config = OftConfig(**{"block_size": 16} | options)
    support = oft.supports(profile, HERE, config)
    if kind == "gpt2":
        assert support.kind == "no"
        assert "Conv1D" in support.reason
        return
    assert support
    with torch.no_grad():
        before = model(input_ids=ids).logits
        adapted = oft.attach(model, profile, config).eval()
        assert torch.equal(adapted(input_ids=ids).logits, before)
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    terms = oft.memory(profile, config)
    assert terms.trainable == terms.added == sum(parameter.numel() for parameter in trained)
    assert terms.trainable == sum(matrix.size * matrix.count for matrix in terms.matrices)


def test_parameters_of_a_block_are_its_upper_triangle(load: Load) -> None:
    """b (b - 1) / 2 for every b inputs of every module: 6 of 64 inputs and one of 128, in two layers."""
    _, profile = load("llama")
    assert oft.memory(profile, OftConfig(block_size=8)).trainable == 2 * (6 * 64 + 128) // 8 * (8 * 7 // 2)
    assert oft.memory(profile, OftConfig(block_size=8, share_blocks=True)).trainable == 2 * 7 * 28
    assert oft.memory(profile, OftConfig(blocks=2)).trainable == 2 * 2 * (6 * 32 * 31 // 2 + 64 * 63 // 2)


@pytest.mark.parametrize("cayley", [EXACT, NEUMANN])
def test_rotations_are_orthogonal(cayley: str, load: Load) -> None:
    """(I + Q)^-1 (I - Q) of a skew-symmetric Q in float64; the series up to the power that it leaves out."""
    adapted = attached(load, cayley=cayley).double()
    turn(adapted)
    for module in rotations(adapted).values():
        applied = module(torch.eye(module.in_features, dtype=torch.float64))
        error = (applied @ applied.T - torch.eye(module.in_features, dtype=torch.float64)).abs().max()
        size = skew(module.weight.detach(), 16).flatten(1).norm(dim=1).max()  # bounds the spectral norm
        assert error < (1e-12 if cayley == EXACT else 8 * size**4 / (1 - size))
        assert (applied - torch.eye(module.in_features, dtype=torch.float64)).abs().max() > 1e-3


@pytest.mark.parametrize("terms", [4, 5, 8])
def test_the_series_is_that_of_the_paper(terms: int, load: Load) -> None:
    """(I + Q)(I - Q)^-1 = (I + Q)(I + Q + Q^2 + ...) = I + 2Q + 2Q^2 + ... , cut after `terms` powers.

    arXiv:2506.19847, section 3.3; the last power counts once, as (I + Q) times the cut series gives it.
    """
    adapted = attached(load, neumann_terms=terms).double()
    turn(adapted, scale=0.05)
    module = next(iter(rotations(adapted).values()))
    one = skew(module.weight.detach(), 16)
    series = sum(torch.linalg.matrix_power(one, power) for power in range(terms - 1))
    expected = torch.block_diag(*((torch.eye(16, dtype=torch.float64) + one) @ series))
    applied = module(torch.eye(64, dtype=torch.float64))
    assert (applied - expected).abs().max() < 1e-12


def test_inputs_are_rotated_before_the_frozen_weight(load: Load) -> None:
    adapted = attached(load, cayley=EXACT).double()
    turn(adapted, scale=0.1)
    layer = adapted.base_model.model.model.layers[0].mlp.down_proj
    one = skew(layer.oft_R["default"].weight.detach(), 16)
    unit = torch.eye(16, dtype=torch.float64)
    rotation = torch.block_diag(*((unit - one) @ torch.linalg.inv(unit + one)))
    inputs = torch.randn(3, 128, dtype=torch.float64)
    expected = inputs @ rotation @ layer.base_layer.weight.T
    assert (layer(inputs) - expected).abs().max() < 1e-10


@pytest.mark.parametrize("options", [{}, {"cayley": EXACT}, {"share_blocks": True}, {"constrained": True, "eps": 0.5}])
def test_disabled_is_the_base_and_merged_is_unmerged(options: dict[str, Any], load: Load, ids: Any) -> None:
    model, profile = load("phi3")
    with torch.no_grad():
        base = model(input_ids=ids).logits
        adapted = oft.attach(model, profile, OftConfig(block_size=16, **options)).eval()
        turn(adapted, scale=0.1)
        changed = adapted(input_ids=ids).logits
        with adapted.disable_adapter():
            assert torch.equal(adapted(input_ids=ids).logits, base)
        merged = oft.merge(adapted)(input_ids=ids).logits
    assert (changed - base).abs().max() > 1e-2
    assert (merged - changed).abs().max() < 1e-5


def test_constrained_rotations_stay_within_their_radius(load: Load, ids: Any) -> None:
    """COFT: the norm of every block's skew-symmetric matrix is at most eps / sqrt(blocks)."""
    adapted = attached(load, constrained=True, eps=0.5)
    turn(adapted, scale=0.3)
    with torch.no_grad():
        adapted(input_ids=ids)
    for module in rotations(adapted).values():
        norms = skew(module.weight.detach(), 16).flatten(1).norm(dim=1)
        assert norms.max() == pytest.approx(0.5 / len(norms) ** 0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"block_size": 24}, "24 does not divide the 64 inputs"),
        ({"block_size": 128}, "128 does not divide the 64 inputs"),
        ({"blocks": 64}, "into two or more each"),
        ({"target": ("mixer",)}, "mixer"),
        ({"layers": (9,)}, "9"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], words: str, load: Load) -> None:
    _, profile = load("llama")
    refusal = oft.supports(profile, HERE, OftConfig(**options))
    assert refusal.kind == "no"
    assert words in refusal.reason
    assert refusal.fix


def test_fused_experts_and_a_tied_head_are_refused(load: Load) -> None:
    _, mixtral = load("mixtral")
    assert "experts" in oft.supports(mixtral, HERE, OftConfig(target=("experts",))).reason
    _, gemma = load("gemma2")
    assert "shares its matrix" in oft.supports(gemma, HERE, OftConfig(target=("head",))).reason


@pytest.mark.parametrize(
    "options",
    [{"block_size": 8, "blocks": 4}, {"eps": 0.1}, {"cayley": EXACT, "neumann_terms": 6}],
)
def test_options_that_contradict_each_other(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"block|eps|neumann"):
        OftConfig(**options)


def test_a_model_without_its_modules_is_an_error(load: Load) -> None:
    model, profile = load("llama")
    del model.model.layers[1].mlp.up_proj
    with pytest.raises(NothingPatched, match="up_proj"):
        oft.attach(model, profile, OftConfig(block_size=16))


@pytest.mark.parametrize(("cayley", "terms", "share"), [(NEUMANN, 5, False), (NEUMANN, 7, True), (EXACT, 5, False)])
def test_what_a_rotation_keeps_is_forecast(cayley: str, terms: int, share: bool, load: Load) -> None:
    """Counted by autograd's own hooks over all modules; plus the index of the triangle, which lies there all the time."""
    adapted = attached(load, cayley=cayley, neumann_terms=terms, share_blocks=share)
    _, profile = load("llama")
    config = OftConfig(block_size=16, cayley=cayley, neumann_terms=terms, share_blocks=share)  # type: ignore[arg-type]
    held = {tensor.untyped_storage().data_ptr() for tensor in [*adapted.parameters(), *adapted.buffers()]}
    kept: dict[int, tuple[int, torch.Tensor]] = {}
    given = []  # held as well: a freed address can be given out again, to a tensor that is kept

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            kept[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    index = 0
    for module in rotations(adapted).values():
        inputs = torch.randn(2, module.in_features, requires_grad=True)
        given.append(inputs)
        held.add(inputs.untyped_storage().data_ptr())
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            module(inputs)
        index += module.rows.nbytes + module.cols.nbytes
    assert oft.memory(profile, config).constant == sum(size for size, _ in kept.values()) + index


@pytest.mark.parametrize("storage", ["nf4", "int8"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_trains_on_quantised_weights(
    storage: str, precision: str, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    config = configuration(
        tiny_folder("llama"), tmp_path, [storage], adapter={"use": "oft", "block_size": 16}, precision=precision
    )
    results, _ = train(config)
    assert results["trained_parameters"] == 2 * (6 * 64 + 128) // 16 * 120
    report = merge_run(tmp_path / "run", tmp_path / "merged", discover(), base="dequantized")
    assert report.relative < 1e-4 if precision == "fp32" else report.relative < 3e-2


def test_a_run_resumes_bit_for_bit_and_merges(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    adapter = {"use": "oft", "block_size": 16, "constrained": True, "eps": 0.01}
    config = configuration(tiny_folder("qwen3"), tmp_path, ["checkpointing"], adapter=adapter)
    assert resumed_equals_straight(config)
    assert merge_run(tmp_path / "run", tmp_path / "merged", discover()).relative < 1e-4
