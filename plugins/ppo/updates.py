"""The updates of one rollout: epochs over its mini-batches, each an optimizer step.

    mini-batch -> micro-batches of at most `train.batch_tokens` tokens: forward, backward
               -> gradients clipped, optimizer, schedule

Every answer token of a mini-batch weighs the same, however it is cut into micro-batches. The partition is that of the
rollout and its order is drawn anew in each epoch: a forward pass here has the shapes of the one that gave the old
log-probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.core.errors import LuthierError
from luthier.core.schedule import OptimizerOptions, build_schedule
from luthier.plugins.ppo.forward import states_at, without_dropout
from luthier.plugins.ppo.mathematics import policy_loss, value_loss
from luthier.plugins.ppo.rollout import Measure, Rollout

if TYPE_CHECKING:
    from luthier.core.runtime import Runtime
    from luthier.plugins.ppo import PpoConfig


@dataclass
class Sums:
    """Sums over the answer tokens of all mini-batches of an update, on the device, and what is known of each step."""

    tokens: int = 0
    steps: int = 0
    grad_norm: Any = 0.0
    totals: dict[str, Any] = field(default_factory=dict)

    def add(self, **values: Tensor) -> None:
        for name, value in values.items():
            self.totals[name] = self.totals.get(name, 0.0) + value.detach()

    def means(self) -> dict[str, float]:
        """Everything per token; the gradient norm per optimizer step."""
        found = {name: float(value) / max(self.tokens, 1) for name, value in self.totals.items()}
        return found | {"grad_norm": float(self.grad_norm) / max(self.steps, 1)}


class Learner:
    """The optimizer over all that trains, and what it does with a rollout. `done` counts its steps over the whole run."""

    def __init__(self, runtime: Runtime, config: PpoConfig, measure: Measure, *, updates: int) -> None:
        self.config, self.measure, self.roles = config, measure, measure.roles
        with self.roles.with_head():
            self.optimizer, options, self.after_step = runtime.build_optimizer()
        self.parameters = [one for group in self.optimizer.param_groups for one in group["params"]]
        self.max_grad_norm = options.max_grad_norm if isinstance(options, OptimizerOptions) else 0.0
        minibatches = min(config.mini_batches, config.batch)
        self.schedule = build_schedule(self.optimizer, options, updates * config.ppo_epochs * minibatches)
        self.done = 0

    def update(self, rollout: Rollout, advantages: Tensor, returns: Tensor, *, step: int) -> dict[str, float]:
        """All epochs; returns means over tokens. Raises LuthierError where a loss or a gradient is no finite number."""
        sums = Sums()
        with without_dropout(self.roles.model):
            for _ in range(self.config.ppo_epochs):
                for number in torch.randperm(len(rollout.minibatches)).tolist():
                    micro = rollout.minibatches[number]
                    tokens = sum(int(rollout.mask[places].sum()) for places in micro)
                    for places in micro:
                        self._backward(rollout, places, advantages, returns, tokens, sums, step)
                    sums.tokens += tokens
                    self._optimizer_step(sums, step)
        return sums.means()

    def _backward(
        self,
        rollout: Rollout,
        places: list[int],
        advantages: Tensor,
        returns: Tensor,
        tokens: int,
        sums: Sums,
        step: int,
    ) -> None:
        """Gradients of one micro-batch, whose share of the mini-batch is its part of `tokens`."""
        config, roles, where = self.config, self.roles, rollout.mask[places]
        batch = self.measure.batch(
            [rollout.prompts[place] for place in places], [rollout.answers[place] for place in places]
        )
        with self.measure.autocast():
            hidden, logits = states_at(roles.model, batch.ids, batch.mask, batch.places, logits=True)
            assert logits is not None
            logprobs, entropy = self.measure.statistics(logits, batch)
            del logits
            policy = policy_loss(logprobs, rollout.logprobs[places][where], advantages[places][where], config.clip_range)
            loss = policy.loss
            if config.entropy_coef:
                loss = loss - config.entropy_coef * entropy.sum()
            value = None if roles.value_adapter else self._value_loss(hidden, rollout, places, where, returns)
            if value is not None:
                loss = loss + config.value_coef * value.loss
        _assert_finite(loss, "loss", step)
        (loss / tokens).backward()
        del hidden, logprobs, loss
        if value is None:
            # Backward inside the block: layers that compute their activations again do so with the adapter active now.
            with roles.values() as model:
                with self.measure.autocast():
                    hidden, _ = states_at(model, batch.ids, batch.mask, batch.places, logits=False)
                    value = self._value_loss(hidden, rollout, places, where, returns)
                _assert_finite(value.loss, "value loss", step)
                (config.value_coef * value.loss / tokens).backward()
        sums.add(
            policy_loss=policy.loss,
            value_loss=value.loss,
            clip_fraction=policy.clipped,
            value_clip_fraction=value.clipped,
            approximate_kl=policy.kl,
            entropy=entropy.sum(),
        )

    def _value_loss(self, hidden: Tensor, rollout: Rollout, places: list[int], where: Tensor, returns: Tensor) -> Any:
        values = self.roles.head(hidden)
        return value_loss(values, rollout.values[places][where], returns[places][where], self.config.value_clip_range)

    def _optimizer_step(self, sums: Sums, step: int) -> None:
        clip: Callable[[float], Any] | None = getattr(self.optimizer, "clip_grad_norm_", None)
        limit = self.max_grad_norm or math.inf
        norm = clip(limit) if clip is not None else torch.nn.utils.clip_grad_norm_(self.parameters, limit)
        _assert_finite(torch.as_tensor(norm), "gradient norm", step)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        for call in self.after_step:
            call(self.done)
        sums.steps += 1
        sums.grad_norm += norm


def _assert_finite(value: Tensor, what: str, step: int) -> None:
    number = float(value.detach())
    if not math.isfinite(number):
        raise LuthierError(
            f"the {what} of step {step} is {number}: training has diverged, and the weights of this step were not saved",
            where="train",
            fix="lower `optimizer.lr` or raise `kl.coef`, and look at the rewards; earlier checkpoints are intact",
        )
