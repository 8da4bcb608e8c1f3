"""Optimizers with state of their own kind: ten steps are five, a checkpoint, and five more, bit for bit."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from luthier.core.contracts import OptimizerMethod
from luthier.core.errors import Interrupted
from luthier.registry.catalog import discover
from luthier.registry.detect import detect

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw_8bit": {"lr": 1e-2, "min_8bit_size": 512, "weight_decay": 0.1},
    "adafactor": {"lr": 1e-2, "weight_decay": 0.1},
    "lion": {"lr": 1e-3, "weight_decay": 0.1},
    "sgd": {"lr": 0.1, "nesterov": True, "weight_decay": 0.1},
    "muon": {"lr": 1e-2, "adamw_lr": 3e-3, "weight_decay": 0.1},
}


def method(name: str) -> OptimizerMethod[Any]:
    found: OptimizerMethod[Any] = discover().method("optimizer", name)  # type: ignore[assignment]
    return found


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def run_of(make_run: Any, llama: Any) -> Any:
    """`run_of(name, dtype, folder, ...)`: a run of that optimizer over the tiny Llama, its profile that of the model."""

    def make(name: str, dtype: torch.dtype, folder: str, **options: Any) -> Any:
        model = llama(0, dtype=dtype, **options.pop("model", {}))
        run = make_run(model, folder=folder, optimizer=method(name), options=OPTIMIZERS[name], **options)
        run.runtime.plan = dataclasses.replace(run.runtime.plan, profile=detect(model.config))
        return run

    return make


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ten_steps_are_five_and_five(name: str, dtype: torch.dtype, run_of: Any) -> None:
    straight = run_of(name, dtype, "straight")
    straight.trainer().fit()

    first = run_of(name, dtype, "run")
    record = first.runtime.emit_to

    def stop_after_five(event: Any) -> None:
        record(event)
        if event.kind == "step" and event.values["step"] == 4:
            first.runtime.stop.set()

    first.runtime.emit_to = stop_after_five
    with pytest.raises(Interrupted):
        first.trainer().fit()
    first.runtime.output.release()
    torch.manual_seed(12345)

    second = run_of(name, dtype, "run", resume=True)
    second.trainer().fit()
    assert [event["step"] for event in second.told("step")] == [6, 7, 8, 9, 10]
    losses = [event["loss"] for event in straight.told("step")]
    assert [event["loss"] for event in first.told("step") + second.told("step")] == losses
    for key, value in weights(straight.runtime.model).items():
        assert torch.equal(weights(second.runtime.model)[key], value), key


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_rate_follows_the_schedule_and_gradients_are_clipped(name: str, run_of: Any) -> None:
    """Ten steps without warm-up, linear to zero: (10 - t) / 10 of the rate; the norm reported is from before clipping."""
    run = run_of(name, torch.float32, "run")
    trainer = run.trainer()
    trainer.fit()
    lr = OPTIMIZERS[name]["lr"]
    # The default warm-up of 3% of ten steps is one step, at half the rate.
    expected = [lr / 2] + [lr * (10 - step) / 9 for step in range(1, 10)]
    assert [event["lr"] for event in run.told("step")] == pytest.approx(expected)
    assert trainer.args.max_grad_norm == 1.0
    assert any(event["grad_norm"] > 1.0 for event in run.told("step"))


@pytest.mark.parametrize("name", sorted(OPTIMIZERS.keys() - {"muon"}))
def test_only_the_adapter_is_in_it(name: str, run_of: Any) -> None:
    run = run_of(name, torch.float32, "run", model={"lora": 0.0}, max_steps=2)
    before = weights(run.runtime.model)
    trainer = run.trainer()
    trainer.fit()
    held = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in run.runtime.model.parameters() if parameter.requires_grad}
    changed = {key for key, value in weights(run.runtime.model).items() if not torch.equal(value, before[key])}
    assert changed
    assert all(".lora_A." in key or ".lora_B." in key for key in changed)
