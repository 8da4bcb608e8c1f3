"""nf4, fp4 and int8: exactly which weights are quantised, and what the plan says of the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.calling import call
from luthier.core.context import BuildContext
from luthier.core.contracts import NothingPatched
from luthier.core.plan import Precision
from luthier.core.quantized import count_parameters
from luthier.registry.catalog import discover
from luthier.registry.detect import detect

from .conftest import BITS, FORMATS, Loaded


def precision_of(name: str) -> Precision:
    weights, compute = FORMATS[name]
    return Precision(name=name, weights=weights, compute=compute, why="")  # type: ignore[arg-type]


@pytest.mark.parametrize("use", BITS)
def test_exactly_the_projections_of_attention_and_mlp_are_quantised(
    use: str, kind: str, quantised: Callable[..., Loaded]
) -> None:
    loaded = quantised(kind, use)
    linear = {
        name
        for role in ("attn", "mlp")
        for group in loaded.profile.groups(role)
        if group.kind in ("linear", "conv1d")
        for name in group.names
    }
    assert set(loaded.layers) == linear
    assert f"{len(linear)} linear layers are quantised" in loaded.notices[0]
    assert ("4 fused expert weights are not" in loaded.notices[0]) == (kind == "mixtral")
    for name, module in loaded.layers.items():
        source = loaded.model.get_submodule(name)
        assert module.weight.requires_grad is False
        assert count_parameters(module.weight) == source.in_features * source.out_features
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


@pytest.mark.parametrize("use", BITS)
def test_skip_leaves_roles_and_names_out(use: str, quantised: Callable[..., Loaded]) -> None:
    loaded = quantised("llama", use, skip=("mlp.down", "v_proj", "model.layers.0.*"))
    left = {"model.layers.1.self_attn." + name for name in ("q_proj", "k_proj", "o_proj")}
    assert set(loaded.layers) == left | {"model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj"}
    assert loaded.model.model.layers[0].mlp.up_proj.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "reason", "fix"),
    [
        ({"skip": ["mlp.dwon"]}, "skip: no module of llama is called 'mlp.dwon'", "mlp.down"),
        ({"skip": ["attn", "mlp"]}, "no linear projection of attention or MLP left", "shorten skip"),
    ],
)
@pytest.mark.parametrize("use", BITS)
def test_a_skip_that_means_nothing_or_everything_is_refused(
    use: str, options: dict[str, Any], reason: str, fix: str, tiny_folder: Callable[..., Path]
) -> None:
    from luthier.core.errors import PlanRefused

    with pytest.raises(PlanRefused) as caught:
        Loaded(tiny_folder("llama"), use, **options)
    assert [reason in problem.reason and fix in problem.fix for problem in caught.value.problems] == [True]


def test_a_model_without_such_projections_is_refused(tiny_folder: Callable[..., Path]) -> None:
    from luthier.core.environment import Environment

    profile = detect(tiny_folder("mamba", num_hidden_layers=2))
    patch: Any = discover().method("patches", "nf4")
    machine = Environment(python="3.11", platform="linux", cpu="x", cores=1, memory=1)
    answer = patch.supports(profile, machine, patch.config())
    assert answer.kind == "no"
    assert "mamba has no linear projection of attention or MLP" in answer.reason


@pytest.mark.parametrize("use", BITS)
def test_a_model_that_was_loaded_plain_is_an_error(use: str, load: Callable[[str], tuple[Any, Any]]) -> None:
    model, profile = load("llama")
    patch: Any = discover().method("patches", use)
    with pytest.raises(NothingPatched, match="no quantised layer"):
        call(patch.apply, model, profile, patch.config(), context=BuildContext(precision=precision_of("fp32")))


@pytest.mark.parametrize("use", BITS)
def test_fused_experts_are_said_with_their_share(use: str, quantised: Callable[..., Loaded]) -> None:
    loaded = quantised("mixtral", use)
    profile = loaded.profile
    share = sum(profile.role_parameters[f"mlp.experts.{part}"] for part in ("gate_up", "down")) / profile.parameters
    (warning,) = [text for text in loaded.plan.warnings if use in text]
    assert f"the experts ({share:.0%}) stay in the run's precision" in warning
    assert loaded.model.model.layers[0].mlp.experts.gate_up_proj.dtype == torch.float32


def test_unfused_experts_are_quantised() -> None:
    """Jamba before version 5 and others keep each expert as linear layers; here they are made by hand."""
    from luthier.core.frozen import FrozenDict
    from luthier.core.profile import ArchitectureProfile, RoleGroup
    from luthier.plugins._bitsandbytes.storage import storage_of

    group = RoleGroup(
        pattern="model.layers.*.experts.*.w1",
        kind="linear",
        shape=(8, 4),
        in_features=4,
        out_features=8,
        layers=(0, 1),
        experts=3,
    )
    profile = ArchitectureProfile(
        model_type="toy", architecture="Toy", decoder="model.layers", layers=2, layer_classes=("Layer",), hidden_size=4,
        vocab_size=9, roles=FrozenDict({"mlp.experts": (group,)}), parameters=200,
    )  # fmt: skip
    found = storage_of(profile, ())
    assert len(found.quantised) == 6
    assert found.weights == 6 * 32
