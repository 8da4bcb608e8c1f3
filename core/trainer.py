"""The Trainer under every stage: transformers' loop, with our optimizer, data order, checkpoints and events.

transformers' Trainer runs the steps; nothing of it writes, prints or pickles here. `RunTrainerMixin` brings what every
stage shares and goes before any Trainer subclass; `RunTrainer` adds the token-weighted language-model loss:

    loss of an optimizer step = sum of token losses over all its micro-batches / supervised tokens in all of them

so that the split into micro-batches does not change the gradient
(https://huggingface.co/blog/gradient_accumulation tells how the mean of means went wrong).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments

from luthier.core.best import BestSoFar, take_best
from luthier.core.checkpoint import capture_rng, load_state, read_packed, restore_rng, save_state
from luthier.core.errors import DataError, Interrupted, LuthierError, OutOfMemoryError, OutputError
from luthier.core.meter import ran_out_of_memory
from luthier.core.output import CHECKPOINT_STATE, checkpoint_step
from luthier.core.progress import StepWatch, supervised_tokens
from luthier.core.saving import load_trained
from luthier.core.schedule import OptimizerOptions, build_schedule
from luthier.core.trainer_data import Schedule, go_on_after, place_after, schedule_fingerprint, train_loader
from luthier.core.trainer_events import RunCallback
from luthier.core.trainer_settings import cache_setting, own_forward, training_arguments

if TYPE_CHECKING:
    from luthier.core.contracts import Adapter
    from luthier.core.data import BatchSchedule
    from luthier.core.runtime import Runtime

GIB = 1024**3


class RunTrainerMixin:
    """Before a Trainer class: `class DpoTrainer(RunTrainerMixin, trl.DPOTrainer)`.

    runtime    the run: model, plan, output folder, events
    schedule   the micro-batches of the whole run, in order; `accumulation` of them make an optimizer step
    best       compares the run's evaluations, where the best one is kept or the run may end early

    `fit()` trains, and is what a stage calls.
    """

    runtime: Runtime
    schedule: Schedule
    model: Any
    args: TrainingArguments
    state: Any
    optimizer: Any
    lr_scheduler: Any
    control: Any
    model_accepts_loss_kwargs: bool
    train_dataset: Any
    eval_dataset: Any
    eval_schedule: BatchSchedule | None

    def __init__(
        self, *args: Any, runtime: Runtime, schedule: Schedule, best: BestSoFar | None = None, **kwargs: Any
    ) -> None:
        self.runtime, self.schedule, self.best = runtime, schedule, best
        self.watch = StepWatch()
        self.after_step: tuple[Any, ...] = ()
        self.optimizer_options: object = None
        self.evaluated: tuple[int, dict[str, float]] | None = None  # (step, metrics) of the last evaluation
        self._use_cache = getattr(getattr(runtime.model, "config", None), "use_cache", None)
        # Trainer switches the cache off for good, and a checkpoint would carry that on.
        with cache_setting(runtime.model, self._use_cache):
            super().__init__(*args, **kwargs)
        if self.args.world_size > 1:
            raise LuthierError(f"{self.args.world_size} processes were started, and this run trains in one", where="train")
        for printer in (PrinterCallback, ProgressCallback):
            self.remove_callback(printer)  # type: ignore[attr-defined]
        self.add_callback(RunCallback(self))  # type: ignore[attr-defined]

    # ---- the run

    def fit(self) -> dict[str, float]:
        """Train from the start, or from `runtime.resume_from`; returns the totals of the whole run.

        Raises Interrupted once a checkpoint is saved after `runtime.stop` was set, OutOfMemoryError when the device ran
        out, LuthierError when the loss is no longer a number, OutputError when the disk is full.
        """
        resume = self.runtime.resume_from
        if resume is not None:
            self.runtime.output.rewind_metrics(checkpoint_step(resume))
        try:
            self.train(resume_from_checkpoint=str(resume) if resume else None)
        except (MemoryError, RuntimeError) as error:
            if not ran_out_of_memory(error):
                raise
            raise self._out_of_memory(error) from error
        step, steps = self.state.global_step, self.state.max_steps
        if self.runtime.stop.is_set() and step < steps and self.runtime.ended_early is None:
            raise Interrupted(
                f"stopped after step {step} of {steps}; everything is saved in {self.runtime.output.latest_checkpoint}",
                fix="give the same command with --resume to continue",
            )
        metrics = self.watch.totals.metrics()
        if self.eval_dataset is not None and (self.evaluated is None or self.evaluated[0] != step):
            self.evaluate()  # type: ignore[attr-defined]  # a run that was resumed after its last step
        return metrics | (self.evaluated[1] if self.evaluated is not None else {}) | take_best(self)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's, with the key-value cache off and the model wrapped for autocast meanwhile."""
        with cache_setting(self.model, False), own_forward(self.model):
            return super().train(*args, **kwargs)  # type: ignore[misc]

    def _out_of_memory(self, error: BaseException) -> OutOfMemoryError:
        predicted = self.runtime.plan.memory.peak
        lines = str(error).splitlines() or [type(error).__name__]
        return OutOfMemoryError(
            f"out of memory in step {self.state.global_step + 1}: {self.runtime.meter.peak / GIB:.2f} GiB were in use at "
            f"the most, {predicted / GIB:.2f} GiB were predicted ({lines[0]})",
            where="train",
            fix=f"lower `train.batch_tokens` (now {self.runtime.config.train.batch_tokens}) or `data.max_length`, or train "
            "fewer parameters",
        )

    # ---- optimizer and data

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        """The plan's optimizer; clipping by its options."""
        if self.optimizer is None:
            self.optimizer, self.optimizer_options, self.after_step = self.runtime.build_optimizer()
            options = self.optimizer_options
            self.args.max_grad_norm = options.max_grad_norm if isinstance(options, OptimizerOptions) else 0.0
        return self.optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """The norm before clipping; by the optimizer where it holds the gradients itself."""
        own = self._own_clipping()
        return own(self.args.max_grad_norm) if own else super()._clip_grad_norm(model)  # type: ignore[misc]

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        own = self._own_clipping()
        if own and grad_norm is None:
            grad_norm = own(float("inf"))
        return super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[misc]

    def _own_clipping(self) -> Any:
        # accelerate wraps the optimizer, and hides what is not torch's.
        return getattr(getattr(self.optimizer, "optimizer", self.optimizer), "clip_grad_norm_", None)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule of the optimizer's options."""
        if self.lr_scheduler is None:
            self.lr_scheduler = build_schedule(optimizer or self.optimizer, self.optimizer_options, num_training_steps)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches in the order of the schedule."""
        collate, pin_memory = self.data_collator, self.args.dataloader_pin_memory  # type: ignore[attr-defined]
        return train_loader(self.schedule, self.train_dataset, collate, pin_memory=pin_memory)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of one optimizer step, counted."""
        self.watch.begin()
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        self.watch.count(batches, trained=items)
        return batches, items

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        self.watch.loss(self.state.global_step + 1, loss)
        return loss

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        """Not counted: Trainer walks over every module of the model for it, at each micro-batch."""
        return 0

    @contextmanager
    def held_out_batches(self) -> Iterator[Iterator[dict[str, Any]]]:
        """The micro-batches of the held-out rows, each row once, on the device; within the block nothing trains.

        The model comes back in the mode it was in, and no generator of the run has drawn.
        """
        assert self.eval_schedule is not None
        collate: Any = self.data_collator  # type: ignore[attr-defined]
        own = torch.Generator()
        loader = DataLoader(self.eval_dataset, batch_sampler=self.eval_schedule, collate_fn=collate, generator=own)
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), cache_setting(self.model, False), self.accelerator.autocast():  # type: ignore[attr-defined]
                yield (self._prepare_inputs(batch) for batch in loader)  # type: ignore[attr-defined]
        finally:
            self.model.train(was_training)

    # ---- checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        output, step = self.runtime.output, int(self.state.global_step)
        with output.atomic_folder(f"checkpoint-{step}") as folder, cache_setting(self.model, self._use_cache):
            self.runtime.save_model(folder)
            if self.runtime.tokenizer is not None:
                self.runtime.tokenizer.save_pretrained(str(folder))
            place = place_after(self.schedule, step)
            progress = {"step": step, "schedule": self._fingerprint, "totals": self.watch.state(), **place}
            progress |= {"best": self.best.state()} if self.best is not None else {}
            save_state(folder, optimizer=self.optimizer, scheduler=self.lr_scheduler, rng=capture_rng(), progress=progress)
            self.state.save_to_json(str(folder / CHECKPOINT_STATE))
            self.save_more(folder)
        spared = self.best.checkpoint if self.best is not None else None
        output.prune(self.runtime.config.train.keep_checkpoints, spare=spared)
        self.runtime.emit("checkpoint", step=step, folder=str(output.path / f"checkpoint-{step}"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        progress = read_packed(folder, "progress")
        if progress["schedule"] != self._fingerprint:
            raise OutputError(
                "this checkpoint belongs to other data or other batches, so the run cannot go on where it stopped",
                where=str(folder),
                fix="resume with the data, seed and `train` options of the first run (its config.yaml), or start anew with "
                "--overwrite",
            )
        adapter: Adapter[Any] = self.runtime.method(self.runtime.plan.step("adapter"))[0]  # type: ignore[assignment]
        loaded = load_trained(self.model, folder, adapter, trainable=True)
        self.model = self.model_wrapped = self.runtime.model = loaded
        self.watch.restore(progress["totals"])
        if self.best is not None:
            self.best.restore(progress["best"], folder.parent)
        go_on_after(self.schedule, progress)
        self.load_more(folder)

    def save_more(self, folder: Path) -> None:
        """What a subclass keeps in a checkpoint besides; here nothing."""

    def load_more(self, folder: Path) -> None:
        """The inverse of `save_more`, once the weights are loaded."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_state(Path(checkpoint), optimizer=self.optimizer, scheduler=self.lr_scheduler)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        states = read_packed(Path(checkpoint), "rng")
        restore_rng(states)
        if states["cuda"] and not torch.cuda.is_available():
            self.runtime.emit(
                "warning", "the checkpoint is of a CUDA run: its random numbers cannot be continued on this device"
            )

    @cached_property
    def _fingerprint(self) -> str:
        return schedule_fingerprint(self.schedule, self.train_dataset)


class RunTrainer(RunTrainerMixin, Trainer):
    """Trains a causal language model on {"input_ids", "attention_mask", "labels"} batches of (B, T), token-weighted.

        RunTrainer(runtime=runtime, schedule=schedule, data_collator=collate).fit()

    Data and arguments come from the runtime; `eval_schedule` has the micro-batches of the held-out rows, each once. An
    evaluation measures their loss unless `measure_loss` is off, and whatever `measure()` returns, as `eval_...`.
    """

    def __init__(
        self,
        *,
        runtime: Runtime,
        schedule: Schedule,
        data_collator: Any,
        eval_schedule: BatchSchedule | None = None,
        args: TrainingArguments | None = None,
        measure: Callable[[], Mapping[str, float]] | None = None,
        measure_loss: bool = True,
        **kwargs: Any,
    ) -> None:
        assert runtime.data is not None
        self.eval_schedule, self._measure, self._measure_loss = eval_schedule, measure, measure_loss
        super().__init__(
            model=runtime.model,
            args=args or training_arguments(runtime, steps=schedule.steps),
            train_dataset=runtime.data.train,
            eval_dataset=runtime.data.eval if eval_schedule is not None else None,
            data_collator=data_collator,
            runtime=runtime,
            schedule=schedule,
            **kwargs,
        )
        self._model_divides: bool = self.model_accepts_loss_kwargs
        # `compute_loss` below has done the division. 5.23 is told by the second line, older releases by the first.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """The supervised tokens of all micro-batches of an optimizer step; raises DataError when there are none."""
        items = sum(int(supervised_tokens(batch["labels"])) for batch in batch_samples)
        if not items:
            raise DataError(
                f"no token of optimizer step {self.state.global_step + 1} is supervised",
                where="data",
                fix="look at the rows that are trained on; `data.train_on: all` learns every token",
            )
        return torch.tensor(items, device=device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Sum of this micro-batch's token losses over `num_items_in_batch`; its mean when that is None."""
        if num_items_in_batch is None:
            outputs = model(**inputs)
            loss = outputs.loss
        elif self._model_divides:
            outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
            loss = outputs.loss
        else:
            outputs = model(**inputs)
            # In this order: the quotient of two integers would be float32, whatever the loss is.
            loss = outputs.loss * supervised_tokens(inputs["labels"]) / num_items_in_batch
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The held-out rows' metrics; the loss is the mean over all supervised tokens. Leaves mode and generators alone."""
        metrics = self._held_out_loss() if self._measure_loss else {}
        if self._measure is not None:
            with self.accelerator.autocast():
                metrics |= self._measure()
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _held_out_loss(self) -> dict[str, float]:
        total, tokens = 0.0, 0
        with self.held_out_batches() as batches:
            for inputs in batches:
                tokens += int(supervised_tokens(inputs["labels"]))
                one = torch.ones((), device=self.args.device)
                total += float(self.compute_loss(self.model, inputs, num_items_in_batch=one))
        return {"eval_loss": total / max(tokens, 1), "eval_tokens": tokens}
