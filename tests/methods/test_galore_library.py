"""`galore` with `backend: galore-torch`: the library's steps as they are, its state as tensors, every option honoured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from galore_torch import GaLoreAdamW
from torch import nn

from luthier.core.checkpoint import capture_rng, load_state, save_state
from luthier.core.schedule import build_schedule
from luthier.core.testing.measuring import storage_bytes, tensors_in
from luthier.plugins import galore
from luthier.plugins.galore import GaloreConfig

Load = Callable[[str], tuple[Any, Any]]

OPTIONS: dict[str, Any] = {"backend": "galore-torch", "lr": 1e-3, "rank": 8, "refresh": 3, "weight_decay": 0.1}


@pytest.fixture
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that keeps the library's 8-bit optimizer from the CPU is that it waits for CUDA after each weight."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)


def make(load: Load, **changes: Any) -> tuple[Any, Any]:
    model, profile = load("llama")
    return model, galore.build(model, GaloreConfig(**OPTIONS | changes), profile=profile)[0]


def steps(model: Any, optimizer: Any, first: int, last: int) -> None:
    for step in range(first, last):
        ids = torch.randint(0, 250, (2, 12), generator=torch.Generator().manual_seed(step))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in model.parameters()]


def test_the_steps_are_the_librarys(load: Load) -> None:
    """Against the library built by hand, with rate, betas, eps and decay; in float64, see test_galore.py for why."""
    adam = {"lr": 2e-3, "betas": (0.8, 0.95), "eps": 1e-6}
    model, profile = load("llama")
    optimizer, _ = galore.build(model.double(), GaloreConfig(**OPTIONS | adam), profile=profile)
    reference = load("llama")[0].double()
    names = {name for name, _ in reference.named_parameters() if "proj" in name}
    parts: dict[bool, list[Any]] = {True: [], False: []}
    for name, weight in reference.named_parameters():
        parts[name in names].append(weight)
    library = GaLoreAdamW(
        [
            {"params": parts[True], "rank": 8, "update_proj_gap": 3, "scale": 0.25, "proj_type": "std", "weight_decay": 0.1},
            {"params": [w for w in parts[False] if w.ndim == 2], "weight_decay": 0.1},
            {"params": [w for w in parts[False] if w.ndim == 1]},
        ],
        **adam,
        no_deprecation_warning=True,
    )
    for one, own in ((model, optimizer), (reference, library)):
        steps(one, own, 0, 8)
    for own, expected in zip(weights(model), weights(reference), strict=True):
        assert (own - expected).abs().max() < 1e-12  # a contiguous projector may be multiplied in another order


def test_the_projector_has_no_hidden_memory(load: Load) -> None:
    """The library's is a slice of the decomposition's whole factor."""
    model, optimizer = make(load)
    steps(model, optimizer, 0, 1)
    tensors = list(tensors_in(optimizer.state_dict()["state"]))
    assert storage_bytes(tensors) == sum(tensor.nbytes for tensor in tensors)
    weight = nn.Parameter(torch.randn(64, 128))
    library = GaLoreAdamW(
        [{"params": [weight], "rank": 8, "update_proj_gap": 3, "scale": 0.25, "proj_type": "std"}],
        no_deprecation_warning=True,
    )
    weight.grad = torch.randn(64, 128)
    library.step()
    held = library.state[weight]["projector"].ortho_matrix
    assert storage_bytes([held]) == 64 / 8 * held.nbytes


@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("stop", [3, 4])
def test_it_resumes_bit_for_bit(load: Load, without_cuda: None, tmp_path: Path, bits: int, stop: int) -> None:
    """At a refresh and between two; the library's own state cannot be saved."""
    config = GaloreConfig(**OPTIONS, bits=bits)
    straight, optimizer = make(load, bits=bits)
    steps(straight, optimizer, 0, 8)
    first, optimizer = make(load, bits=bits)
    steps(first, optimizer, 0, stop)
    scheduler = build_schedule(optimizer, config, 8)
    save_state(tmp_path, optimizer=optimizer, scheduler=scheduler, rng=capture_rng(), progress={})
    second, optimizer = make(load, bits=bits)
    second.load_state_dict(first.state_dict())
    load_state(tmp_path, optimizer=optimizer, scheduler=build_schedule(optimizer, config, 8))
    for group in optimizer.param_groups:
        group["lr"] = config.lr  # the schedule of this test stands still
    steps(second, optimizer, stop, 8)
    different = [
        name for (name, a), b in zip(straight.named_parameters(), weights(second), strict=True) if not torch.equal(a, b)
    ]
    assert not different


@pytest.mark.parametrize("change", [{"lr": 2e-3}, {"betas": (0.5, 0.999)}, {"betas": (0.9, 0.9)}, {"weight_decay": 0.5}])
def test_8_bits_honour_the_options(load: Load, without_cuda: None, change: dict[str, Any]) -> None:
    (model, optimizer), (other, changed) = make(load, bits=8), make(load, bits=8, **change)
    for one, own in ((model, optimizer), (other, changed)):
        steps(one, own, 0, 4)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(model.get_parameter(name), other.get_parameter(name))


def test_8_bits_are_near_32(load: Load, without_cuda: None) -> None:
    """One projector throughout: a new one may have other signs, and the moments carry on with the old."""
    start, options = weights(load("llama")[0]), {"weight_decay": 0.0, "refresh": 100}
    (model, optimizer), (other, eight) = make(load, bits=32, **options), make(load, bits=8, **options)
    for one, own in ((model, optimizer), (other, eight)):
        steps(one, own, 0, 5)
    for before, exact, near in zip(start, weights(model), weights(other), strict=True):
        assert (near - exact).norm() < 0.1 * (exact - before).norm()
    assert all("unorm_vec" not in state for state in eight.state.values())


def test_bytes_of_8_bit_state_are_as_predicted(load: Load, without_cuda: None) -> None:
    from luthier.core.targets import every_target
    from luthier.plugins.galore.terms import memory_terms

    model, profile = load("llama")
    config = GaloreConfig(**OPTIONS, bits=8)
    optimizer, _ = galore.build(model, config, profile=profile)
    steps(model, optimizer, 0, 1)
    size = memory_terms(profile, config).optimizer_state
    assert size is not None
    sizes = [size(target.matrix) for target in every_target(profile)]
    # One map of 256 float32 numbers for each moment, shared by all.
    predicted = sum(4 * one.numbers + one.bytes for one in sizes) + 2 * 4 * 256
    assert storage_bytes(tensors_in(optimizer.state_dict()["state"])) == pytest.approx(predicted, rel=0.01)
