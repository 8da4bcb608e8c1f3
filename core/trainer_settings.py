"""How transformers' Trainer is set up for a run: its arguments, and what it changes on a model for good, put back.

Everything of it that writes, prints or decides is off; the core does that (trainer_events.py, output.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainingArguments

    from luthier.core.runtime import Runtime


def training_options(runtime: Runtime, *, steps: int) -> dict[str, Any]:
    """Arguments for `TrainingArguments`, or for a subclass of it: everything that writes, prints or decides is off."""
    train = runtime.config.train
    return {
        "output_dir": str(runtime.output.path),
        "max_steps": steps,
        "gradient_accumulation_steps": train.accumulation,
        "per_device_train_batch_size": 1,
        "seed": train.seed,
        "use_cpu": runtime.plan.device == "cpu",
        "bf16": runtime.plan.precision.autocast,
        "logging_strategy": "no",
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_nan_inf_filter": False,  # it hides a diverged loss, and waits for the device at every micro-batch
        "disable_tqdm": True,
        "report_to": [],
        "remove_unused_columns": False,
        "dataloader_pin_memory": runtime.plan.device != "cpu",
        "average_tokens_across_devices": False,
        # A stream goes on by itself: reading once more what has trained would take as long as the first time.
        "ignore_data_skip": runtime.config.data.streaming,
    }


def training_arguments(runtime: Runtime, *, steps: int, **extra: Any) -> TrainingArguments:
    """The arguments of a run of `steps` optimizer steps; `extra` overrides."""
    from transformers import TrainingArguments

    arguments = TrainingArguments(**(training_options(runtime, steps=steps) | extra))
    if arguments.n_gpu > 1:
        # One process trains on one device: DataParallel would split each batch over all visible GPUs.
        arguments._n_gpu = 1
    return arguments


@contextmanager
def cache_setting(model: Any, use_cache: bool | None) -> Iterator[None]:
    """Within the block the model's configuration has this `use_cache`; None leaves it alone."""
    config: Any = getattr(model, "config", None)
    if use_cache is None or not hasattr(config, "use_cache"):
        yield
        return
    before, config.use_cache = config.use_cache, use_cache
    try:
        yield
    finally:
        config.use_cache = before


@contextmanager
def own_forward(model: nn.Module) -> Iterator[None]:
    """After the block `model.forward` is what it was: accelerate wraps it for autocast.

    Its own `unwrap_model` goes on to take off the decorators of transformers' forward as well.
    """
    before = vars(model).get("forward")
    try:
        yield
    finally:
        vars(model).pop("_original_forward", None)
        vars(model).pop("forward", None)
        if before is not None:
            model.forward = before
