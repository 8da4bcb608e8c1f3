"""`galore` with `layerwise: true`: the same numbers, and whole gradients freed as they come up."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from luthier.plugins import galore
from luthier.plugins.galore import GaloreConfig

Load = Callable[[str], tuple[Any, Any]]


def batch(step: int) -> Tensor:
    return torch.randint(0, 250, (2, 12), generator=torch.Generator().manual_seed(step))


def optimizer_of(model: nn.Module, profile: Any, *, layerwise: bool, **options: Any) -> Any:
    values = {"lr": 1e-3, "rank": 8, "refresh": 4, "weight_decay": 0.1} | options
    return galore.build(model, GaloreConfig(layerwise=layerwise, **values), profile=profile)[0]


def projected(optimizer: Any) -> list[nn.Parameter]:
    return [weight for group in optimizer.param_groups if "rank" in group for weight in group["params"]]


def backward(model: Any, step: int, parts: int = 1) -> None:
    for part in range(parts):
        ids = batch(10 * step + part)
        (model(input_ids=ids, labels=ids).loss / parts).backward()


def difference(first: nn.Module, second: nn.Module) -> float:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


@pytest.mark.parametrize("svd", ["exact", "randomized"])
def test_without_accumulation_it_is_the_same_step(load: Load, kind: str, svd: str) -> None:
    """Ten steps with two refreshes after the first, unclipped: bit for bit."""
    (one, profile), (other, _) = load(kind), load(kind)
    plain, layerwise = (optimizer_of(m, profile, layerwise=freed, svd=svd) for m, freed in ((one, False), (other, True)))
    for step in range(10):
        for model, optimizer in ((one, plain), (other, layerwise)):
            backward(model, step)
            optimizer.step()
            optimizer.zero_grad()
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_accumulation_adds_up_projected_gradients(load: Load) -> None:
    """Three micro-batches are one step of their sum, up to rounding, where the projector is the same."""
    (one, profile), (other, _) = load("llama"), load("llama")
    plain, layerwise = (optimizer_of(m, profile, layerwise=freed) for m, freed in ((one, False), (other, True)))
    for step in range(
        4
    ):  # the first has one micro-batch, so that both find the same projector; the next is due at the fifth
        for model, optimizer in ((one, plain), (other, layerwise)):
            backward(model, step, parts=3 if step else 1)
            optimizer.step()
            optimizer.zero_grad()
    assert difference(one, other) < 1e-5
    assert difference(one, load("llama")[0]) > 1e-3


def test_at_a_refresh_the_first_micro_batch_gives_the_projector(load: Load) -> None:
    """The held sum is the first gradient and the second, both in the space of the first (from torch's SVD of it)."""
    (model, profile), (reference, _) = load("llama"), load("llama")
    optimizer = optimizer_of(model, profile, layerwise=True)
    name = "model.layers.1.mlp.down_proj.weight"
    weight = dict(model.named_parameters())[name]
    gradients = []
    for part in range(2):
        ids = batch(part)
        reference.zero_grad()
        reference(input_ids=ids, labels=ids).loss.backward()
        gradients.append(dict(reference.named_parameters())[name].grad.clone())
        model(input_ids=ids, labels=ids).loss.backward()
    basis = torch.linalg.svd(gradients[0], full_matrices=False).U[:, :8]  # 64 x 128: the rows are the short side
    assert (optimizer.state[weight]["projector"] - basis).abs().max() < 1e-5
    assert (optimizer._held[weight] - basis.mT @ (gradients[0] + gradients[1])).abs().max() < 1e-6


def test_never_two_whole_gradients_of_projected_weights(load: Load) -> None:
    """Counted each time that autograd has finished one, by hooks that run before the optimizer's."""
    model, profile = load("llama")
    alive: list[int] = []
    names = {id(weight): name for name, weight in model.named_parameters()}
    projections = [weight for weight in model.parameters() if "proj" in names[id(weight)]]

    def count(_: Tensor) -> None:
        alive.append(sum(weight.grad is not None for weight in projections))

    for weight in projections:
        weight.register_post_accumulate_grad_hook(count)
    optimizer = optimizer_of(model, profile, layerwise=True)
    assert {id(weight) for weight in projected(optimizer)} == {id(weight) for weight in projections}
    backward(model, 0, parts=2)
    assert len(alive) == 2 * len(projections)
    assert max(alive) == 1
    assert all(weight.grad is None for weight in projections)
    assert all(weight.grad is not None for weight in model.parameters() if "proj" not in names[id(weight)])


def test_the_norm_is_of_what_is_held(load: Load) -> None:
    """Projected gradients through torch's SVD, and the others whole; clipped to half, half is left."""
    (model, profile), (reference, _) = load("llama"), load("llama")
    optimizer = optimizer_of(model, profile, layerwise=True)
    for one in (model, reference):
        backward(one, 0)
    squares = 0.0
    for name, weight in reference.named_parameters():
        values = torch.linalg.svdvals(weight.grad.double()) if "proj" in name else weight.grad.double()
        squares += float((values[:8] if "proj" in name else values).pow(2).sum())
    norm = float(optimizer.clip_grad_norm_(float("inf")))
    assert norm == pytest.approx(squares**0.5, rel=1e-5)
    assert float(optimizer.clip_grad_norm_(norm / 2)) == pytest.approx(norm, rel=1e-6)
    assert float(optimizer.clip_grad_norm_(float("inf"))) == pytest.approx(norm / 2, rel=1e-4)
    assert not hasattr(optimizer_of(reference, profile, layerwise=False), "clip_grad_norm_")


def test_zero_grad_drops_what_is_held(load: Load) -> None:
    (model, profile), (reference, _) = load("llama"), load("llama")
    optimizer, other = (optimizer_of(m, profile, layerwise=True) for m in (model, reference))
    backward(model, 7)
    optimizer.zero_grad()
    assert float(optimizer.clip_grad_norm_(float("inf"))) == 0
    for one, own in ((model, optimizer), (reference, other)):
        backward(one, 0)
        own.step()
    assert difference(model, reference) == 0


def test_it_goes_on_after_its_state_was_loaded(load: Load) -> None:
    """Loading puts new groups in place of those that the hooks were made for: the rate is that of the new ones."""
    model, profile = load("llama")
    optimizer = optimizer_of(model, profile, layerwise=True)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.param_groups[0]["refresh"] = 1
    before = None
    for step in range(2):
        backward(model, step)
        optimizer.step()
        basis = optimizer.state[projected(optimizer)[0]]["projector"].clone()
        assert before is None or not torch.equal(basis, before)
        before = basis


def test_the_hooks_go_with_the_optimizer(load: Load) -> None:
    model, profile = load("llama")
    optimizer = optimizer_of(model, profile, layerwise=True)
    weight = projected(optimizer)[0]
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None
    assert not weight._post_accumulate_grad_hooks
    backward(model, 0)
    assert weight.grad is not None


def test_a_second_optimizer_over_the_same_weights_takes_over(load: Load) -> None:
    """The first is still alive, as that of an earlier run may be, and gets nothing any more."""
    model, profile = load("llama")
    first = optimizer_of(model, profile, layerwise=True)
    second = optimizer_of(model, profile, layerwise=True)
    backward(model, 0)
    assert not first._held
    assert len(second._held) == len(projected(second))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    second.step()
    assert all(not torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_a_gradient_set_by_hand_counts(load: Load) -> None:
    (model, profile), (reference, _) = load("llama"), load("llama")
    optimizer, plain = (optimizer_of(m, profile, layerwise=freed) for m, freed in ((model, True), (reference, False)))
    for one in (model, reference):
        for place, weight in enumerate(one.parameters()):
            weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(place))
    optimizer.step()
    plain.step()
    assert difference(model, reference) == 0
