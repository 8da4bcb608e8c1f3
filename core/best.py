"""Which evaluation of a run was the best: its weights are kept, and a run that finds no better one ends early.

    evaluation -> `note` -> best so far?  a checkpoint is saved, and spared when older ones are pruned
                         -> how many in a row were not?  at `early_stopping` of them the run ends
    end of the run -> `take_best`: the weights of that checkpoint, where the last step was not the best

What is known so far is part of every checkpoint, so a resumed run goes on comparing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.contracts import Declaration
from luthier.core.errors import OutputError
from luthier.core.frozen import FrozenDict
from luthier.core.options import option
from luthier.core.traits import Trait, any_of

if TYPE_CHECKING:
    from luthier.core.runtime import Runtime
    from luthier.core.trainer import RunTrainerMixin

HELD_OUT: Final = "rows.held_out"
EVALUATED: Final = "rows.evaluated"
LOSS: Final = "loss"
# Of the metrics of evaluations, those of which less is better.
LOWER: Final = frozenset({LOSS, "perplexity", "unfinished"})


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """Options of a stage whose evaluations are compared; it adds `keep_best`, because it knows its metrics."""

    early_stopping: int | None = option(
        None,
        "End the run after so many evaluations in a row that were not better than the best before them, by the metric of "
        "`keep_best`, else by the held-out loss. Needs `train.eval_every`.",
        unit="evaluations",
        ge=1,
    )
    min_delta: float = option(
        0.0, "How much better an evaluation must be for `early_stopping` to begin counting anew.", unit="of the metric", ge=0
    )

    def __post_init__(self) -> None:
        if self.min_delta and self.early_stopping is None:
            raise ValueError("min_delta: belongs to early_stopping, which is not set")


def comparing_needs(keep_best: str | None, early_stopping: int | None) -> Declaration:
    """What a run must have for these options to have an effect: held-out rows, evaluated before its end."""
    wanted = {"keep_best": keep_best, "early_stopping": early_stopping}
    asked = " and ".join(name for name, value in wanted.items() if value is not None)
    if not asked:
        return Declaration()
    reasons: dict[Trait, str] = {
        HELD_OUT: f"{asked} compares evaluations of held-out rows",
        EVALUATED: f"{asked} compares several evaluations, and without it there is one, at the end",
    }
    return Declaration(requires=(any_of(HELD_OUT), any_of(EVALUATED)), reasons=FrozenDict(reasons))


class BestSoFar:
    """Compares the evaluations of one run by `metric`, a name as in the "evaluate" events.

    keep       the weights saved at the end are to be those of the best evaluation
    patience   after so many evaluations in a row that are not better by more than `min_delta` the run ends; None is never
    """

    def __init__(self, metric: str, *, keep: bool, patience: int | None = None, min_delta: float = 0.0) -> None:
        self.metric, self.keep, self.patience, self.min_delta = metric, keep, patience, min_delta
        self.step: int | None = None
        self.metrics: dict[str, float] = {}
        self._seen = -1
        self._waited = 0
        self._mark: float | None = None  # what has to be beaten for the count to begin anew

    @property
    def checkpoint(self) -> str | None:
        """The name of the folder that is to be spared."""
        return f"checkpoint-{self.step}" if self.keep and self.step is not None else None

    @property
    def ended(self) -> str:
        """Why the run ends now; "" where it goes on."""
        if self.patience is None or self._waited < self.patience:
            return ""
        best = f"{self.metrics[f'eval_{self.metric}']:.4g} at step {self.step}" if self.step is not None else "no number yet"
        return (
            f"{self._waited} evaluation{'s' if self._waited > 1 else ''} in a row did not better {self.metric} by more than "
            f"{self.min_delta:g}: the best is {best}"
        )

    def note(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Take note of an evaluation (names begin with `eval_`); whether it is the best so far. A repeated one is not.

        A metric that is no number is never better, and counts for `patience`. Raises KeyError where the metric is missing.
        """
        if step <= self._seen:
            return False
        self._seen = step
        value = float(metrics[f"eval_{self.metric}"])
        if math.isfinite(value) and self._gain(value, self._mark) > self.min_delta:
            self._mark, self._waited = value, 0
        else:
            self._waited += 1
        best = self.metrics.get(f"eval_{self.metric}")
        if not math.isfinite(value) or self._gain(value, best) <= 0:
            return False
        self.step, self.metrics = step, dict(metrics)
        return True

    def _gain(self, value: float, before: float | None) -> float:
        if before is None:
            return math.inf
        return before - value if self.metric in LOWER else value - before

    def state(self) -> dict[str, Any]:
        """JSON-shaped, for a checkpoint."""
        return {"step": self.step, "metrics": self.metrics, "seen": self._seen, "waited": self._waited, "mark": self._mark}

    def restore(self, state: Mapping[str, Any], run: Path) -> None:
        """Go on comparing. Raises OutputError where the checkpoint that was the best is not in the run's folder any more."""
        self.step, self.metrics = state["step"], dict(state["metrics"])
        self._seen, self._waited, self._mark = state["seen"], state["waited"], state["mark"]
        if self.checkpoint is not None and not (run / self.checkpoint).is_dir():
            raise OutputError(
                f"the best evaluation so far was at step {self.step}, and its {self.checkpoint} is not there any more",
                where=str(run),
                fix="put that folder back, or start anew with --overwrite",
            )


def compare_by(keep_best: str | None, options: EarlyStopping) -> BestSoFar | None:
    """What a stage gives its trainer for these options; None where nothing is compared."""
    if keep_best is None and options.early_stopping is None:
        return None
    patience, delta = options.early_stopping, options.min_delta
    return BestSoFar(keep_best or LOSS, keep=keep_best is not None, patience=patience, min_delta=delta)


def take_best(trainer: RunTrainerMixin) -> dict[str, float]:
    """At the end of a run: the best evaluation's weights into the model, where they are to be kept.

    Returns that evaluation's metrics and `best_step`; nothing where the last evaluation counts.
    """
    from luthier.core.saving import load_trained

    best, runtime = trainer.best, trainer.runtime
    if best is None or not best.keep:
        return {}
    if best.step is None:
        runtime.notice(f"no evaluation gave a number for {best.metric}: the weights of the last step are saved")
        return {}
    if best.step != trainer.state.global_step:
        folder = runtime.output.path / str(best.checkpoint)
        adapter: Any = runtime.method(runtime.plan.step("adapter"))[0]
        loaded = load_trained(trainer.model, folder, adapter, trainable=True)
        trainer.model = trainer.model_wrapped = runtime.model = loaded
        runtime.notice(f"{best.metric} was best at step {best.step}: the weights of {folder.name} are saved, not the last")
    return {**best.metrics, "best_step": best.step}


def end_early(runtime: Runtime, best: BestSoFar) -> bool:
    """Whether the run is to end now; then the reason is kept and told, once."""
    if best.ended and runtime.ended_early is None:
        runtime.ended_early = best.ended
        runtime.notice(f"the run ends early: {best.ended}")
    return bool(best.ended)
