"""What a run has done so far: tokens, time, losses, counted without making the device wait.

Losses and token counts stay on the device until a step is reported; then everything is read at once, together with the
loss that the report needs anyway.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from luthier.core.errors import LuthierError

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100


def supervised_tokens(labels: Tensor) -> Tensor:
    """How many tokens of `labels` (B, T) are learned: position 0 of a row is never a target, because labels are shifted."""
    return (labels[..., 1:] != IGNORED).sum()


@dataclass(frozen=True, kw_only=True)
class Interval:
    """What happened between two reports; rates per second of training, evaluation and saving not counted."""

    steps: int
    seconds: float
    tokens: int
    trained_tokens: int

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def trained_tokens_per_second(self) -> float:
        return self.trained_tokens / self.seconds if self.seconds else 0.0


@dataclass(kw_only=True)
class Totals:
    """Sums over the whole run, kept in checkpoints so that a resumed run reports the whole."""

    steps: int = 0
    seconds: float = 0.0
    tokens: int = 0
    trained_tokens: int = 0
    loss: float = 0.0

    def metrics(self) -> dict[str, float]:
        """JSON-shaped results; `train_loss` is the mean over the optimizer steps."""
        seconds = self.seconds or math.inf
        return {
            "steps": self.steps,
            "train_loss": self.loss / max(self.steps, 1),
            "train_seconds": self.seconds,
            "tokens": self.tokens,
            "trained_tokens": self.trained_tokens,
            "tokens_per_second": self.tokens / seconds,
            "trained_tokens_per_second": self.trained_tokens / seconds,
        }


@dataclass
class StepWatch:
    """Counts between reports: `begin` and `count` when batches are fetched, `loss` for each micro-batch, `read` then."""

    totals: Totals = field(default_factory=Totals)
    session_seconds: float = 0.0
    session_steps: int = 0
    _started: float | None = None
    _tokens: Any = 0
    _trained: Any = 0
    _losses: list[tuple[int, Any]] = field(default_factory=list)

    def begin(self) -> None:
        """Start the clock of an interval, unless it runs."""
        if self._started is None:
            self._started = time.perf_counter()

    def count(self, batches: Iterable[Mapping[str, Any]], trained: Any = None) -> None:
        """Add the real (not padding) and the supervised tokens of these micro-batches; `trained` where they are counted."""
        for batch in batches:
            if "attention_mask" in batch:
                self._tokens = self._tokens + batch["attention_mask"].sum()
            elif "input_ids" in batch:
                self._tokens = self._tokens + batch["input_ids"].numel()
            if trained is None and "labels" in batch:
                self._trained = self._trained + supervised_tokens(batch["labels"])
        if trained is not None:
            self._trained = self._trained + trained

    def loss(self, step: int, loss: Tensor) -> None:
        """Remember the loss of a micro-batch of optimizer step `step` (counted from 1) until the next report."""
        self._losses.append((step, loss))

    def unread(self) -> float | None:
        """The mean loss of the optimizer steps since the last report; None where there were none."""
        steps = {step for step, _ in self._losses}
        return sum(float(loss) for _, loss in self._losses) / len(steps) if steps else None

    def read(self, *, loss: float, grad_norm: float | None) -> Interval:
        """Close the interval. Raises LuthierError naming the step whose loss, or gradient norm, is not a finite number."""
        seconds = time.perf_counter() - self._started if self._started is not None else 0.0
        if not math.isfinite(loss):
            step, value = next(((step, x) for step, x in self._losses if not math.isfinite(float(x))), (0, loss))
            raise _diverged(f"the loss of step {step} is {float(value)}")
        steps = len({step for step, _ in self._losses})
        if grad_norm is not None and not math.isfinite(grad_norm):
            raise _diverged(f"the gradient norm of step {self._losses[-1][0] if self._losses else 0} is {grad_norm}")
        interval = Interval(steps=steps, seconds=seconds, tokens=int(self._tokens), trained_tokens=int(self._trained))
        self.session_seconds += seconds
        self.session_steps += steps
        self.totals.steps += steps
        self.totals.seconds += seconds
        self.totals.tokens += interval.tokens
        self.totals.trained_tokens += interval.trained_tokens
        self.totals.loss += loss * steps
        self._started, self._tokens, self._trained = None, 0, 0
        self._losses.clear()
        return interval

    def remaining(self, steps: int) -> float:
        """Seconds that `steps` more steps will take at this session's mean."""
        return steps * self.session_seconds / self.session_steps if self.session_steps else 0.0

    def state(self) -> dict[str, float]:
        return asdict(self.totals)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue the sums of a checkpoint."""
        self.totals = Totals(**state)


def _diverged(what: str) -> LuthierError:
    return LuthierError(
        f"{what}: training has diverged, and the weights of this step were not saved",
        where="train",
        fix="lower `optimizer.lr` or raise `optimizer.warmup`, and look at its rows; earlier checkpoints are intact",
    )
