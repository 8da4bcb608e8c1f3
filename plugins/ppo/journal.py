"""What a run of `ppo` tells its observers, and keeps in metrics.jsonl."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from luthier.core.progress import StepWatch
from luthier.core.schedule import clipped_warmup

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.core.rewards import RewardBatch
    from luthier.core.runtime import Runtime
    from luthier.plugins.ppo.prompts import Prompts
    from luthier.plugins.ppo.rollout import Rollout


def mean(values: Iterable[float]) -> float:
    """The mean of some numbers; 0 for none."""
    numbers = [float(value) for value in values]
    return sum(numbers) / max(len(numbers), 1)


def rollout_metrics(rollout: Rollout, judged: RewardBatch, scores: Tensor) -> dict[str, float]:
    """Means over the answers: `reward` as the terms say, each term by itself, `score` after the missing-EOS penalty."""
    return {
        "reward": mean(judged.total),
        **{f"reward_{name}": mean(values) for name, values in judged.terms.items()},
        "score": float(scores.mean()),
        "answer_tokens": rollout.answer_tokens / len(rollout.answers),
        "finished": mean(answer.finished for answer in rollout.answers),
    }


class Journal:
    """Steps are noted one by one; a report is about those since the last one, as their means."""

    def __init__(self, runtime: Runtime, prompts: Prompts, watch: StepWatch) -> None:
        self._runtime, self._prompts, self._watch = runtime, prompts, watch
        self._steps: list[Mapping[str, float]] = []

    def start(self, *, held_out: int) -> None:
        """The "start" event, and a warning where the warm-up is longer than the run."""
        runtime, config = self._runtime, self._runtime.method(self._runtime.plan.step("stage"))[1]
        runtime.emit(
            "start",
            steps=self._prompts.updates,
            rows=len(self._prompts.rows),
            held_out=held_out,
            reference=runtime.plan.step("stage").reference,
            resumed_from=runtime.resume_from.name if runtime.resume_from else None,
        )
        _, optimizer = runtime.method(runtime.plan.step("optimizer"))
        clipped = clipped_warmup(optimizer, self._prompts.updates * config.ppo_epochs * config.mini_batches)
        if clipped:
            runtime.emit("warning", clipped)

    def note(self, step: int, metrics: Mapping[str, float], *, report: bool) -> None:
        """Remember a step, and report. Raises LuthierError where a loss is no finite number."""
        import torch

        self._steps.append(metrics)
        self._watch.loss(step, torch.tensor(metrics["loss"]))
        if report:
            self.report(step)

    def report(self, step: int) -> None:
        """The "step" event of all steps since the last one, `step` being the latest; nothing where there are none."""
        if not self._steps:
            return
        last = self._steps[-1]
        means = {name: mean(one[name] for one in self._steps) for name in last} | {"lr": last["lr"]}
        self._steps.clear()
        interval = self._watch.read(loss=means["loss"], grad_norm=means["grad_norm"])
        self._tell(
            "step",
            step=step,
            steps=self._prompts.updates,
            epoch=self._prompts.epoch_of(step),
            tokens_per_second=interval.tokens_per_second,
            trained_tokens_per_second=interval.trained_tokens_per_second,
            memory=self._runtime.meter.peak,
            remaining=self._watch.remaining(self._prompts.updates - step),
            **means,
        )

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """The "evaluate" event."""
        self._tell("evaluate", step=step, **metrics)

    def _tell(self, kind: Any, **values: Any) -> None:
        self._runtime.output.append_metrics({"event": kind, **values})
        self._runtime.emit(kind, **values)
