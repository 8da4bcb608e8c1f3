"""Optimizers that break one promise each: the contract catches every one, and a sound one passes every check."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from luthier.core.contracts import MemoryTerms, OptimizerMethod
from luthier.core.optimizing import AdamOptions, decay_groups, trained_parameters
from luthier.core.testing import OptimizerContract

Caught = Callable[..., None]
PROMISES = sorted(name for name in vars(OptimizerContract) if name.startswith("test_"))


@dataclass(frozen=True, kw_only=True)
class Options(AdamOptions):
    """Those of Adam."""


class Momentum(torch.optim.Optimizer):
    """Steps by the sign of a running mean: the sound one, with places for the faults of the others."""

    def __init__(self, groups: Any, options: Options) -> None:
        super().__init__(groups, {"lr": options.lr, "betas": options.betas})
        self.count = 0

    def rate(self, group: dict[str, Any]) -> float:
        return float(group["lr"])

    def decay(self, group: dict[str, Any]) -> float:
        return float(group["weight_decay"])

    def blend(self, group: dict[str, Any]) -> tuple[float, float]:
        first, second = group["betas"]
        return first, second

    def moving(self, group: dict[str, Any]) -> Iterable[Any]:
        return (parameter for parameter in group["params"] if parameter.grad is not None)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.count += 1
        for group in self.param_groups:
            first, second = self.blend(group)
            for parameter in self.moving(group):
                gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
                mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
                mean.lerp_(gradient, 1 - second)
                update = torch.sign(mean.lerp(gradient, 1 - first)).add_(parameter, alpha=self.decay(group))
                parameter.sub_(update, alpha=self.rate(group))


def build_with(cls: type[Momentum], parameters: Callable[[Any], Any] | None = None) -> Callable[..., Any]:
    def build(model: Any, config: Options) -> Any:
        groups = decay_groups(model, config.weight_decay) if parameters is None else parameters(model)
        return cls(groups, config), ()

    return build


SOUND = OptimizerMethod(
    name="sound",
    summary="Momentum's sign.",
    config=Options,
    build=build_with(Momentum),
    memory=lambda profile, config: MemoryTerms(optimizer_copies=1),
)


def but(cls: type[Momentum] = Momentum, **changes: Any) -> OptimizerMethod[Any]:
    return dataclasses.replace(SOUND, **{"build": build_with(cls), **changes})


@pytest.mark.parametrize("name", PROMISES)
@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_a_sound_one_passes(name: str, kind: str, check: Caught) -> None:
    check(OptimizerContract, name, SOUND, kind=kind)


# ---- what is broken


class Deaf(Momentum):
    """Steps at a rate of its own."""

    def rate(self, group: dict[str, Any]) -> float:
        return 0.01


class Stubborn(Momentum):
    """Keeps the rate that it was built with, whatever the schedule says."""

    def __init__(self, groups: Any, options: Options) -> None:
        super().__init__(groups, options)
        self.kept = options.lr

    def rate(self, group: dict[str, Any]) -> float:
        return self.kept


class Undecayed(Momentum):
    def decay(self, group: dict[str, Any]) -> float:
        return 0.0


class Growing(Momentum):
    def decay(self, group: dict[str, Any]) -> float:
        return -float(group["weight_decay"])


class FixedBetas(Momentum):
    def blend(self, group: dict[str, Any]) -> tuple[float, float]:
        return 0.9, 0.99


class OneBeta(Momentum):
    def blend(self, group: dict[str, Any]) -> tuple[float, float]:
        return float(group["betas"][0]), 0.99


class Forgetful(Momentum):
    """Its momentum is not part of its state."""

    def __init__(self, groups: Any, options: Options) -> None:
        super().__init__(groups, options)
        self.means: dict[Any, Any] = {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in self.moving(group):
                mean = self.means.setdefault(parameter, torch.zeros_like(parameter))
                mean.lerp_(parameter.grad, 0.1)
                parameter.sub_(mean, alpha=10 * self.rate(group))


class Counting(Momentum):
    """Something depends on a count that is not saved."""

    def rate(self, group: dict[str, Any]) -> float:
        return float(group["lr"]) * (0.5 if self.count > 3 else 1.0)


class Holder:
    pass


class Objects(Momentum):
    """Keeps a Python object in its state."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        for group in self.param_groups:
            for parameter in self.moving(group):
                self.state[parameter]["holder"] = Holder()


class Careless(Momentum):
    """Cannot take its state back before it has any."""

    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["mean"] = torch.zeros_like(parameter)


class Pushing(Momentum):
    """Decays what has no gradient."""

    def moving(self, group: dict[str, Any]) -> Iterable[Any]:
        return group["params"]

    def decay(self, group: dict[str, Any]) -> float:
        return 0.1


class Hiding(Momentum):
    """Takes the gradients away in the backward pass, and offers no clipping of its own."""

    def __init__(self, groups: Any, options: Options) -> None:
        super().__init__(groups, options)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.register_post_accumulate_grad_hook(self.take)

    def take(self, parameter: torch.Tensor) -> None:
        with torch.no_grad():
            parameter.sub_(torch.sign(parameter.grad), alpha=1e-3)  # type: ignore[arg-type]
        parameter.grad = None


class Clipless(Momentum):
    """Claims to clip, and does not."""

    def clip_grad_norm_(self, max_norm: float) -> torch.Tensor:
        parameters = [parameter for group in self.param_groups for parameter in self.moving(group)]
        return torch.nn.utils.clip_grad_norm_(parameters, float("inf"))


class Hoarding(Momentum):
    """Its state is a slice of something large."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in self.moving(group):
                if not self.state[parameter]:
                    large = torch.zeros(4, *parameter.shape, dtype=parameter.dtype)
                    self.state[parameter]["mean"] = large[0]
        super().step()


class Ascending(Momentum):
    def rate(self, group: dict[str, Any]) -> float:
        return -float(group["lr"])


class Narrow(Momentum):
    """Squares small numbers in float16, beside bfloat16 weights, and divides by what is left of them."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        for group in self.param_groups:
            for parameter in self.moving(group):
                if parameter.dtype == torch.bfloat16:
                    tiny = torch.full_like(parameter, 1e-5).half() ** 2
                    parameter.mul_((tiny / tiny).to(parameter.dtype))


class Norms(Momentum):
    """Moves a tensor that nobody gave it: the model's own buffer."""

    model: Any = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        next(self.model.buffers()).mul_(1.01)


def build_norms(model: Any, config: Options) -> Any:
    optimizer = Norms(decay_groups(model, config.weight_decay), config)
    optimizer.model = model
    return optimizer, ()


def everything(model: Any) -> Any:
    return [{"params": list(model.parameters()), "weight_decay": 0.0}]


def all_decayed(model: Any, config: Options) -> Any:
    groups = [{"params": list(trained_parameters(model).values()), "weight_decay": config.weight_decay}]
    return Momentum(groups, config), ()


BROKEN = [
    ("test_it_moves_only_what_trains", but(build=build_norms), "tensors that do not train were changed"),
    ("test_a_frozen_parameter_stays", but(build=build_with(Momentum, everything)), "was frozen, and was moved"),
    ("test_the_rate_is_honoured", but(Deaf), "at twice the rate the first step is 1.000 times as long"),
    ("test_the_schedule_is_honoured", but(Stubborn), "at a rate of zero"),
    ("test_weight_decay_is_honoured", but(Undecayed), "weight_decay changes nothing"),
    ("test_weight_decay_is_honoured", but(Growing), "away from zero"),
    ("test_weight_decay_is_honoured", but(build=all_decayed), "which is a vector"),
    ("test_betas_are_honoured", but(FixedBetas), r"betas\[0\] changes nothing"),
    ("test_betas_are_honoured", but(OneBeta), r"betas\[1\] changes nothing"),
    ("test_gradients_can_be_clipped", but(Hiding), "there is no gradient in .grad"),
    ("test_gradients_can_be_clipped", but(Clipless), "clipped to a norm of"),
    ("test_parameters_without_gradient_are_left_alone", but(Pushing), "without a gradient was moved"),
    ("test_it_resumes_bit_for_bit", but(Forgetful), "after resuming, the losses are"),
    ("test_it_resumes_bit_for_bit", but(Counting), "after resuming, the losses are"),
    ("test_it_resumes_bit_for_bit", but(Objects), "cannot be written as tensors and JSON"),
    ("test_its_state_can_be_loaded_where_it_was", but(Careless), "is another once the state was loaded"),
    ("test_bfloat16", but(Narrow), "a step is no number"),
    (
        "test_the_state_is_as_large_as_declared",
        but(memory=lambda *_: MemoryTerms(optimizer_copies=2)),
        r"its state takes \d+ bytes, memory\(\) declares",
    ),
    ("test_the_state_is_as_large_as_declared", but(Hoarding), r"its state takes \d+ bytes"),
    ("test_the_loss_falls", but(Ascending), "the loss went from"),
]


@pytest.mark.parametrize(
    ("name", "broken", "words"),
    BROKEN,
    ids=[f"{name.removeprefix('test_')}-{index}" for index, (name, *_) in enumerate(BROKEN)],
)
def test_a_broken_one_is_caught(name: str, broken: OptimizerMethod[Any], words: str, caught: Caught) -> None:
    caught(OptimizerContract, name, broken, words)


def test_every_promise_has_an_optimizer_that_breaks_it() -> None:
    assert {name for name, *_ in BROKEN} == set(PROMISES)
