"""What the contracts measure with: logits, gradients, a float64 reference, and what of a model has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from luthier.core.optimizing import trained_parameters
from luthier.core.testing.models import REFERENCE_ATTENTION, token_batch

Tensors = dict[str, Tensor]
STEP: Final = 1e-5
EXPERTS: Final = "_experts_implementation"


def logits(model: nn.Module, batch: Mapping[str, Tensor] | None = None) -> Tensor:
    """(B, T, V), float32 at the least, in evaluation mode and without the key-value cache."""
    batch = token_batch() if batch is None else batch
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            found = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    finally:
        model.train(was_training)
    return found if found.dtype == torch.float64 else found.float()


def difference(found: Tensor, reference: Tensor) -> float:
    """The greatest difference as a part of the greatest number of the reference; infinite where the shapes differ."""
    if found.shape != reference.shape or not bool(torch.isfinite(found).all()):
        return float("inf")
    scale = float(reference.abs().max()) if reference.numel() else 0.0
    return float((found.double() - reference.double()).abs().max()) / max(scale, 1e-30) if reference.numel() else 0.0


def loss_of(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The loss that the model itself gives for its labels."""
    loss: Tensor = model(**batch, use_cache=False).loss
    return loss


def gradients(model: nn.Module, batch: Mapping[str, Tensor] | None = None) -> tuple[float, Tensors]:
    """Loss and gradients of what trains; a parameter that gets none is left out. Random numbers are the same each time."""
    torch.manual_seed(0)
    model.zero_grad(set_to_none=True)
    loss = loss_of(model, token_batch() if batch is None else batch)
    loss.backward()
    found = {
        name: parameter.grad.detach().clone()
        for name, parameter in trained_parameters(model).items()
        if parameter.grad is not None
    }
    model.zero_grad(set_to_none=True)
    return float(loss.detach()), found


def wrong_gradients(found: Tensors, reference: Tensors, tolerance: float) -> str:
    """The first tensor whose gradient is not the reference's, and by how much; empty where all agree.

    Measured by the norm of the difference against that of the tensor's own gradient, with a floor at `tolerance` of the
    greatest one: what is zero but for rounding has no digits to compare.
    """
    if set(found) != set(reference):
        return f"one of them is without a gradient: {sorted(set(found) ^ set(reference))[0]}"
    greatest = max((float(one.norm()) for one in reference.values()), default=0.0)
    for name, one in reference.items():
        error = float((found[name].double() - one.double()).norm())
        if not error <= tolerance * max(float(one.norm()), 0.01 * greatest):
            return f"{name}: off by {error:.2e} where the gradient is {float(one.norm()):.2e}"
    return ""


class InFloat64(TorchFunctionMode):
    """Within it, what a model computes in float32 on purpose (norms, softmax, loss) is computed in float64 too."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        return func(*map(_wider, args), **{key: _wider(value) for key, value in (kwargs or {}).items()})


def _wider(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


@contextmanager
def float64(model: nn.Module) -> Iterator[None]:
    """The model turned to float64, for good, and computing in it within the block; fused experts take plain products."""
    model.double()
    configs: dict[int, Any] = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    before = [(config, config._experts_implementation) for config in configs.values() if hasattr(config, EXPERTS)]
    try:
        for config, _ in before:
            setattr(config, EXPERTS, REFERENCE_ATTENTION)
        with InFloat64():
            yield
    finally:
        for config, implementation in before:
            setattr(config, EXPERTS, implementation)


def wrong_slope(model: nn.Module, found: Tensors, batch: Mapping[str, Tensor] | None = None, tolerance: float = 1e-4) -> str:
    """The first tensor along which the loss does not fall as its gradient says; empty where all do. For use in `float64`.

    One random direction for each trained tensor: (L(p + e d) - L(p - e d)) / 2e against <gradient, d>, which needs nothing
    of the method's own backward pass.
    """
    batch = token_batch() if batch is None else batch
    generator = torch.Generator().manual_seed(3)
    greatest = max((float(one.norm()) for one in found.values()), default=0.0)
    for name, parameter in trained_parameters(model).items():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.device)
        direction /= direction.norm()
        gradient = found.get(name, torch.zeros_like(parameter))
        slope = _slope(parameter, direction, lambda: float(loss_of(model, batch).detach()))
        promised = float((gradient * direction).sum())
        floor = max(float(gradient.norm()), 1e-4 * greatest, 1e-8)
        # A random direction sees only a part 1/sqrt(n) of a gradient of n numbers.
        if not abs(slope - promised) <= tolerance * floor / parameter.numel() ** 0.5 + 1e-9:
            return f"{name}: the loss changes by {slope:.6e} along a direction for which the gradient says {promised:.6e}"
    return ""


def _slope(parameter: nn.Parameter, direction: Tensor, loss: Callable[[], float]) -> float:
    with torch.no_grad():
        kept = parameter.clone()
        parameter.copy_(kept + STEP * direction)
        above = loss()
        parameter.copy_(kept - STEP * direction)
        below = loss()
        parameter.copy_(kept)
    return (above - below) / (2 * STEP)


def shake(model: nn.Module, scale: float = 0.03) -> None:
    """Move everything that trains away from where it starts: many an adapter begins at zero, where errors do not show."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trained_parameters(model).values():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.add_(noise.to(parameter.device, parameter.dtype), alpha=scale)


def state(model: nn.Module, *, trained: bool | None = None, parameters: Mapping[str, nn.Parameter] | None = None) -> Tensors:
    """Copies of parameters and buffers by name; with `trained`, only of those that train, or only of all the others.

    `parameters` are those that count as trained; by default what trains now.
    """
    moving = {id(parameter) for parameter in (parameters or trained_parameters(model)).values()}
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    return {
        name: tensor.detach().clone()
        for name, tensor in tensors.items()
        if trained is None or (id(tensor) in moving) is trained
    }


def changed(model: nn.Module, before: Tensors) -> list[str]:
    """The names whose tensors are no longer what they were, bit for bit, or are gone."""
    now = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    return [name for name, tensor in before.items() if name not in now or not _same(now[name], tensor)]


def _same(one: Tensor, other: Tensor) -> bool:
    return (
        one.shape == other.shape and one.dtype == other.dtype and torch.equal(one.detach().nan_to_num(), other.nan_to_num())
    )


def storage_bytes(tensors: Any) -> int:
    """Memory behind these tensors, each storage once and whole: a slice of a large tensor keeps all of it."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in any nesting of dicts, lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
