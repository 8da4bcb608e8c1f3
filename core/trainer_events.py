"""When a run logs, evaluates, saves and stops, and what it tells its observers meanwhile.

A transformers callback, because those are the public places of its loop. Each `step` and `evaluate` event is also a line
of metrics.jsonl.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from luthier.core.best import end_early

if TYPE_CHECKING:
    from luthier.core.trainer import RunTrainerMixin


class RunCallback(TrainerCallback):
    """The core's decisions for one trainer."""

    def __init__(self, trainer: RunTrainerMixin) -> None:
        self.trainer, self.runtime = trainer, trainer.runtime

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        for call in self.trainer.after_step:
            call(state.global_step + 1)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> TrainerControl:
        train, step = self.runtime.config.train, state.global_step
        if args.ignore_data_skip:
            # Trainer counts from where it resumed, because it did not skip what had trained.
            state.epoch = step / state.max_steps
        last = step >= state.max_steps
        stop = self.runtime.stop.is_set() and not last
        if self.trainer.eval_dataset is not None:
            control.should_evaluate |= last or _due(step, train.eval_every)
        control.should_save |= stop or _due(step, train.save_every)
        # Logged before it is saved: the report is where a loss that is no number stops the run.
        control.should_log |= last or control.should_save or control.should_evaluate or _due(step, train.log_every)
        control.should_training_stop |= stop
        return control

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        if not logs or "loss" not in logs:
            return
        watch, step = self.trainer.watch, state.global_step
        interval = watch.read(loss=logs["loss"], grad_norm=logs.get("grad_norm"))
        extra = {key: value for key, value in logs.items() if key not in ("loss", "grad_norm", "learning_rate", "epoch")}
        self._tell(
            "step",
            step=step,
            steps=state.max_steps,
            loss=logs["loss"],
            lr=logs.get("learning_rate"),
            grad_norm=logs.get("grad_norm"),
            epoch=self.trainer.schedule.epoch_of(step),
            tokens_per_second=interval.tokens_per_second,
            trained_tokens_per_second=interval.trained_tokens_per_second,
            memory=self.runtime.meter.peak,
            remaining=watch.remaining(state.max_steps - step),
            **extra,
        )

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **_: Any
    ) -> None:
        values = dict(metrics or {})
        self.trainer.evaluated = (state.global_step, values)
        self._tell("evaluate", step=state.global_step, **{key.removeprefix("eval_"): value for key, value in values.items()})
        best = self.trainer.best
        if best is not None:
            better = best.note(state.global_step, values)
            # The last step's weights need no checkpoint to come back from: they are what is in memory.
            control.should_save |= better and best.keep and state.global_step < state.max_steps
            if end_early(self.runtime, best):
                # Not saved: a run that was cut off before its end and resumed from here would go on training.
                control.should_training_stop, control.should_save = True, False

    def _tell(self, kind: str, **values: Any) -> None:
        self.runtime.output.append_metrics({"event": kind, **values})
        self.runtime.emit(kind, **values)


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
