"""Answers as a metric of evaluations during training: the held-out rows' questions, asked again each time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from luthier.core.errors import DataError
from luthier.core.evaluation.answers import answered, questions, totals
from luthier.core.evaluation.metrics import TextMetrics

if TYPE_CHECKING:
    from luthier.core.runtime import Runtime


class HeldOutAnswers:
    """Called in an evaluation, gives `eval_exact_match`, ... of the answers to at most `at_most` held-out rows, the first.

    Made before training begins, it says once how many rows are asked and why others are not. Raises DataError where none
    can be, MissingEnvironmentError where the metrics' packages are not there.
    """

    def __init__(self, runtime: Runtime, wanted: Sequence[str], *, at_most: int, max_new_tokens: int) -> None:
        from luthier.core.generation import end_tokens

        assert runtime.data is not None
        assert runtime.tokenizer is not None
        self._runtime, self._max_new_tokens = runtime, max_new_tokens
        self._metrics = TextMetrics(wanted)
        found = questions(
            runtime.data.eval,
            runtime.tokenizer,
            end_tokens(runtime.model, runtime.tokenizer),
            max_new_tokens=max_new_tokens,
            context=runtime.plan.profile.context_length,
            at_most=at_most,
        )
        self._asked = found.asked
        reasons = "; ".join(f"{reason}: {count}" for reason, count in found.reasons.items())
        if not found.asked:
            raise DataError(f"no held-out row can be answered ({reasons})", where="data.eval", fix="hold out other rows")
        said = f"evaluation: {len(found.asked)} of {len(runtime.data.eval)} held-out rows are answered"
        runtime.notice(f"{said}; left out: {reasons}" if reasons else said)

    def __call__(self) -> dict[str, float]:
        # Not ended by Ctrl-C: the run goes on from its checkpoint as if it had not been stopped, evaluations included.
        made = answered(
            self._runtime.model,
            self._runtime.tokenizer,
            self._asked,
            self._metrics,
            max_new_tokens=self._max_new_tokens,
            batch_tokens=self._runtime.config.train.batch_tokens,
        )
        return {f"eval_{name}": value for name, value in totals(made, self._metrics).items()}
