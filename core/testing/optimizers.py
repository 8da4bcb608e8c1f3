"""The contract of optimizers: they move what trains and nothing else, as far as they were told, and resume bit for bit.

The parameters are those of the first adapter that the method combines with: every parameter of the model, where it can.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from luthier.core.calling import call
from luthier.core.checkpoint import capture_rng, load_state, save_state
from luthier.core.contracts import AfterStep
from luthier.core.memory import forecast
from luthier.core.optimizing import AdamOptions, trained_parameters
from luthier.core.plan import Dtype
from luthier.core.resolve.picks import Pick, Situation
from luthier.core.schedule import OptimizerOptions, build_schedule
from luthier.core.testing import measuring
from luthier.core.testing.contract import Case, Contract, adapters_beside, attach, build_context, precision
from luthier.core.testing.models import token_batch

# torch's optimizers count their steps in a tensor of one float32 for each parameter.
COUNTER_BYTES: Final = 8


@dataclasses.dataclass
class Training:
    """A model and its optimizer, stepped as the trainer does it; `parameters` trained before the optimizer was built."""

    model: nn.Module
    parameters: dict[str, nn.Parameter]
    optimizer: Any
    after_step: tuple[AfterStep, ...]
    config: Any
    scheduler: Any
    steps: int = 0

    @property
    def holds_gradients(self) -> bool:
        """Whether the gradients are the optimizer's own, and not left whole in `.grad`."""
        return hasattr(self.optimizer, "clip_grad_norm_")

    def backward(self, seed: int | None = None) -> float:
        loss = measuring.loss_of(self.model, token_batch(seed=self.steps if seed is None else seed))
        loss.backward()
        return float(loss.detach())

    def clip(self, greatest: float) -> Tensor:
        """The norm of the gradients from before."""
        if self.holds_gradients:
            norm: Tensor = self.optimizer.clip_grad_norm_(greatest)
            return norm
        return torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), greatest)

    def step(self, seed: int | None = None) -> float:
        """One optimizer step on a batch of its own, or always on that of `seed`; returns the loss before it."""
        loss = self.backward(seed)
        if isinstance(self.config, OptimizerOptions) and self.config.max_grad_norm:
            self.clip(self.config.max_grad_norm)
        self.finish()
        return loss

    def finish(self) -> None:
        self.optimizer.step()
        self.steps += 1
        for after in self.after_step:
            after(self.steps)
        self.scheduler.step()
        self.optimizer.zero_grad()

    def weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}


class OptimizerContract(Contract):
    """For an `OptimizerMethod`. See `Contract` for what can be set, and besides:

    lr      the learning rate of the checks, where the options have the key and set none
    steps   in how many steps on one batch the loss has to fall by a twentieth
    """

    slot: ClassVar[str] = "optimizer"
    lr: ClassVar[float] = 1e-2
    steps: ClassVar[int] = 12

    # ---- what is looked at

    def partners(self, situation: Situation) -> Iterable[Pick | None]:
        return adapters_beside(situation)

    def training(self, case: Case, dtype: Dtype = "float32", *, constant: bool = True, **changes: Any) -> Training:
        """A fresh one; `changes` go into the options; with `constant` the schedule is left out."""
        pick, profile = self.pick(case), self.profile(case)
        model = self.adapted(case, dtype)
        parameters = trained_parameters(model)
        config = pick.config
        if hasattr(config, "lr") and "lr" not in case.options:
            config = dataclasses.replace(config, lr=self.lr)
        config = dataclasses.replace(config, **changes)
        torch.manual_seed(0)
        optimizer, after_step = call(pick.method.build, model, config, profile=profile)  # type: ignore[attr-defined]
        scheduler = build_schedule(optimizer, None if constant else config, 10)
        return Training(model, parameters, optimizer, tuple(after_step), config, scheduler)

    def adapted(self, case: Case, dtype: Dtype = "float32") -> Any:
        """The model with its adapter, moved away from where that starts, so that every parameter gets a gradient."""
        partner = self.verdict(case).partner
        assert partner is not None
        options = partner.method.load_options(self.profile(case), partner.config)
        base = self.load(case, dtype, options)
        model = attach(partner, base, self.profile(case), build_context(dtype)).train()
        measuring.shake(model)
        return model

    def moved(self, training: Training, steps: int = 1) -> dict[str, Tensor]:
        """How far each trained parameter goes in so many steps."""
        before = training.weights()
        for _ in range(steps):
            training.step()
        return {name: tensor - before[name] for name, tensor in training.weights().items()}

    def has(self, case: Case, key: str) -> bool:
        return hasattr(self.pick(case).config, key)

    # ---- what it promises

    def test_it_moves_only_what_trains(self, case: Case) -> None:
        """Also where others of the model's parameters have a gradient."""
        training = self.training(case)
        model = training.model
        frozen = measuring.state(model, trained=False, parameters=training.parameters)
        moved = self.moved(training, steps=2)
        touched = measuring.changed(model, frozen)
        assert not touched, f"{len(touched)} tensors that do not train were changed, first {touched[0]}"
        assert any(bool(step.any()) for step in moved.values()), "two steps moved nothing"
        assert all(bool(torch.isfinite(step).all()) for step in moved.values()), "after two steps a parameter is no number"

    def test_a_frozen_parameter_stays(self, case: Case) -> None:
        """One that was frozen before the optimizer was built, even if it has a gradient."""
        pick = self.pick(case)
        model = self.adapted(case)
        name, frozen = next(iter(trained_parameters(model).items()))
        frozen.requires_grad_(False)
        before = frozen.detach().clone()
        optimizer, _ = call(pick.method.build, model, pick.config, profile=self.profile(case))  # type: ignore[attr-defined]
        measuring.loss_of(model, token_batch()).backward()
        frozen.grad = torch.ones_like(frozen)
        optimizer.step()
        assert torch.equal(frozen, before), f"{name} was frozen, and was moved"

    def test_the_rate_is_honoured(self, case: Case) -> None:
        """Twice the rate is twice the first step."""
        if not self.has(case, "lr"):
            return
        once, twice = (self.moved(self.training(case, lr=self.lr * factor)) for factor in (0.01, 0.02))
        length, longer = _norm(once.values()), _norm(twice.values())
        assert length, "the first step moved nothing"
        assert abs(longer / length - 2) < 0.1, f"at twice the rate the first step is {longer / length:.3f} times as long"

    def test_the_schedule_is_honoured(self, case: Case) -> None:
        """The rate that is in force is that of the parameter groups: at zero nothing moves, not by decay either."""
        training = self.training(case)
        training.step()
        for group in training.optimizer.param_groups:
            group["lr"] = 0.0 if not isinstance(group["lr"], Tensor) else torch.zeros_like(group["lr"])
        training.scheduler.base_lrs = [0.0 for _ in training.optimizer.param_groups]
        before = training.weights()
        training.step()
        moved = [name for name, tensor in training.weights().items() if not torch.equal(tensor, before[name])]
        assert not moved, f"at a rate of zero {len(moved)} parameters moved, first {moved[0]}"

    def test_weight_decay_is_honoured(self, case: Case) -> None:
        """Where there is such an option: it draws weights towards zero; that of `AdamOptions` no vector, as it says."""
        if not self.has(case, "weight_decay"):
            return
        plain, decayed = self.training(case, weight_decay=0.0), self.training(case, weight_decay=0.5)
        before = plain.weights()
        free, drawn = self.moved(plain), self.moved(decayed)
        pull = {name: drawn[name] - free[name] for name in before}
        assert any(bool(one.any()) for one in pull.values()), "weight_decay changes nothing"
        inwards = sum(float((pull[name] * before[name]).sum()) for name in before)
        assert inwards < 0, "weight_decay draws the weights away from zero"
        if isinstance(plain.config, AdamOptions):
            vectors = [name for name, one in pull.items() if one.ndim < 2 and bool(one.any())]
            assert not vectors, f"weight_decay draws {vectors[0]}, which is a vector"

    def test_betas_are_honoured(self, case: Case) -> None:
        """Where there is such an option: each of them changes the third step."""
        if not self.has(case, "betas"):
            return
        betas = tuple(self.pick(case).config.betas)
        reference = self.moved(self.training(case), steps=3)
        for place in range(len(betas)):
            other = tuple(0.5 * beta if index == place else beta for index, beta in enumerate(betas))
            found = self.moved(self.training(case, betas=other), steps=3)
            differs = any(not torch.equal(found[name], step) for name, step in reference.items())
            assert differs, f"betas[{place}] changes nothing in three steps"

    def test_gradients_can_be_clipped(self, case: Case) -> None:
        """They are in `.grad`, or the optimizer clips what it holds and knows their norm."""
        training = self.training(case)
        _, gradients = measuring.gradients(self.adapted(case), token_batch(seed=0))
        expected = _norm(gradients[name] for name in training.weights() if name in gradients)
        training.backward(seed=0)
        norm = float(training.clip(expected / 10))
        left = float(training.clip(float("inf")))
        assert norm > 0, "after the backward pass there is no gradient in .grad, and there is no clip_grad_norm_"
        assert left <= expected / 10 * 1.01, (
            f"clipped to a norm of {expected / 10:.3e}, gradients of norm {left:.3e} are left"
        )
        assert norm <= expected * 1.01, f"the norm before clipping is given as {norm:.3e}, it is {expected:.3e}"
        training.finish()

    def test_parameters_without_gradient_are_left_alone(self, case: Case) -> None:
        training = self.training(case)
        if training.holds_gradients:
            return
        training.step()
        training.backward()
        without = [one for index, one in enumerate(training.parameters.values()) if index % 2]
        before = [parameter.detach().clone() for parameter in without]
        for parameter in without:
            parameter.grad = None
        training.finish()
        assert all(map(torch.equal, without, before)), "a parameter without a gradient was moved"

    def test_it_resumes_bit_for_bit(self, case: Case, tmp_path: Path) -> None:
        """Five steps are three, saved as tensors and JSON, loaded into a new optimizer, and two more."""
        straight = self.training(case, constant=False)
        losses = [straight.step() for _ in range(5)]
        first = self.training(case, constant=False)
        for _ in range(3):
            first.step()
        save_state(tmp_path, optimizer=first.optimizer, scheduler=first.scheduler, rng=capture_rng(), progress={})
        second = self.training(case, constant=False)
        second.model.load_state_dict(first.model.state_dict())
        load_state(tmp_path, optimizer=second.optimizer, scheduler=second.scheduler)
        second.steps = first.steps
        resumed = [second.step() for _ in range(2)]
        assert resumed == losses[3:], f"after resuming, the losses are {resumed} where they were {losses[3:]}"
        for name, tensor in straight.weights().items():
            assert torch.equal(second.weights()[name], tensor), f"after resuming, {name} is not what it was without"

    def test_its_state_can_be_loaded_where_it_was(self, case: Case) -> None:
        """accelerate puts an optimizer's own state back into it when it prepares it: that changes nothing."""
        reference, reloaded = self.training(case), self.training(case)
        reloaded.optimizer.load_state_dict(copy.deepcopy(reloaded.optimizer.state_dict()))
        for training in (reference, reloaded):
            training.step()
        reloaded.optimizer.load_state_dict(copy.deepcopy(reloaded.optimizer.state_dict()))
        for training in (reference, reloaded):
            training.step()
        for name, tensor in reference.weights().items():
            assert torch.equal(reloaded.weights()[name], tensor), f"{name} is another once the state was loaded where it was"

    def test_bfloat16(self, case: Case) -> None:
        training = self.training(case, "bfloat16")
        dtypes = [parameter.dtype for parameter in training.parameters.values()]
        moved = self.moved(training, steps=3)
        assert all(bool(torch.isfinite(step).all()) for step in moved.values()), (
            "beside bfloat16 weights, a step is no number"
        )
        assert any(bool(step.any()) for step in moved.values()), "three steps moved nothing"
        assert [parameter.dtype for parameter in training.parameters.values()] == dtypes, (
            "a step changed the dtype of a parameter"
        )

    def test_the_state_is_as_large_as_declared(self, case: Case) -> None:
        """The most bytes after one of five steps, memory behind slices included, against memory(): to one percent."""
        training = self.training(case)
        held = 0
        for _ in range(5):
            training.step()
            state = training.optimizer.state_dict()["state"]
            held = max(held, measuring.storage_bytes(measuring.tensors_in(state)))
        partner = self.verdict(case).partner
        assert partner is not None
        terms = partner.method.memory(self.profile(case), partner.config)
        shares = [terms, self.memory(case)]
        declared = forecast(self.profile(case), shares, precision("float32"), 1).optimizer
        allowed = 0.01 * declared + COUNTER_BYTES * len(training.weights())
        assert abs(held - declared) <= allowed, f"its state takes {held} bytes, memory() declares {declared}"

    def test_the_loss_falls(self, case: Case) -> None:
        """On one batch again and again."""
        training = self.training(case)
        losses = [training.step(seed=0) for _ in range(self.steps)]
        shown: Sequence[str] = [f"{loss:.3f}" for loss in (losses[0], losses[-1])]
        assert losses[-1] < 0.95 * losses[0], (
            f"in {self.steps} steps at lr {self.lr} the loss went from {' to '.join(shown)}"
        )


def _norm(tensors: Iterable[Tensor]) -> float:
    return float(torch.linalg.vector_norm(torch.stack([tensor.double().norm() for tensor in tensors])))
