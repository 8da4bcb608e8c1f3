"""What a run tells while it trains, and how it ends when something is wrong."""

from __future__ import annotations

import errno
import math
from typing import Any

import numpy as np
import pytest
import torch

from luthier.core import saving
from luthier.core.contracts import Adapter, OptimizerMethod
from luthier.core.errors import ExitCode, LuthierError, OutOfMemoryError, OutputError
from luthier.core.schedule import OptimizerOptions


def test_a_step_event_says_what_happened(make_run: Any, llama: Any, capfd: pytest.CaptureFixture[str]) -> None:
    model = llama()
    norms: list[float] = []

    def build(trained: Any, options: Any) -> Any:
        optimizer = torch.optim.SGD(trained.parameters(), lr=options.lr)

        def note(*_: Any) -> None:
            squares = [float(p.grad.double().square().sum()) for p in trained.parameters()]
            norms.append(math.sqrt(sum(squares)))

        optimizer.register_step_pre_hook(note)
        return optimizer, ()

    options = {"lr": 1e-2, "warmup": 0.0, "max_grad_norm": 0.0}
    sgd = OptimizerMethod(name="sgd", summary="", config=OptimizerOptions, build=build)
    run = make_run(model, optimizer=sgd, options=options, accumulation=2, epochs=1.0, max_steps=None, log_every=1)
    trainer = run.trainer()
    capfd.readouterr()
    trainer.fit()
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "it/s" not in printed.err
    events = run.told("step")
    steps = trainer.schedule.steps
    assert [event["step"] for event in events] == list(range(1, steps + 1))
    assert {event["steps"] for event in events} == {steps}
    assert [event["grad_norm"] for event in events] == pytest.approx(norms, rel=1e-5)
    assert events[0]["lr"] == pytest.approx(1e-2)
    assert events[-1]["epoch"] == pytest.approx(1.0)
    assert events[-1]["remaining"] == 0
    assert all(
        event["memory"] > 0 and event["tokens_per_second"] > event["trained_tokens_per_second"] > 0 for event in events
    )
    totals = trainer.watch.totals
    rows = run.runtime.data.train
    assert totals.tokens == int(np.sum(rows.lengths))
    assert totals.trained_tokens == sum(int((rows[i]["labels"][1:] != -100).sum()) for i in range(len(rows)))


def test_reports_at_the_wanted_steps(make_run: Any, llama: Any) -> None:
    run = make_run(llama(), max_steps=10, log_every=4, save_every=3, eval_every=5, held_out=(5, 6), keep_checkpoints=2)
    run.trainer().fit()
    assert [event["step"] for event in run.told("step")] == [3, 4, 5, 6, 8, 9, 10]
    assert [event["step"] for event in run.told("evaluate")] == [5, 10]
    assert [event["step"] for event in run.told("checkpoint")] == [3, 6, 9]
    assert [path.name for path in run.runtime.output.checkpoints()] == ["checkpoint-6", "checkpoint-9"]


def test_clipping_and_after_step(make_run: Any, llama: Any) -> None:
    seen: list[tuple[int, float]] = []

    def build(model: Any, options: Any) -> Any:
        def after(step: int) -> None:
            squares = [float(p.grad.double().square().sum()) for p in model.parameters()]
            seen.append((step, math.sqrt(sum(squares))))

        return torch.optim.SGD(model.parameters(), lr=options.lr), (after,)

    sgd = OptimizerMethod(name="sgd", summary="", config=OptimizerOptions, build=build)
    run = make_run(llama(), optimizer=sgd, options={"max_grad_norm": 0.25}, max_steps=3)
    run.trainer().fit()
    assert [step for step, _ in seen] == [1, 2, 3]
    assert [norm for _, norm in seen] == pytest.approx([0.25] * 3, rel=1e-4)
    assert all(event["grad_norm"] > 0.25 for event in run.told("step"))


@pytest.mark.parametrize("log_every", [1, 7])
def test_a_loss_that_is_no_number_stops_the_run(make_run: Any, llama: Any, log_every: int) -> None:
    model = llama()

    def build(trained: Any, options: Any) -> Any:
        def poison(step: int) -> None:
            if step == 5:
                with torch.no_grad():
                    trained.lm_head.weight.fill_(float("nan"))

        return torch.optim.SGD(trained.parameters(), lr=1e-3), (poison,)

    sgd = OptimizerMethod(name="sgd", summary="", config=OptimizerOptions, build=build)
    run = make_run(model, optimizer=sgd, log_every=log_every, save_every=4)
    with pytest.raises(LuthierError, match="loss of step 6 is nan") as caught:
        run.trainer().fit()
    assert "optimizer.lr" in caught.value.fix
    assert [path.name for path in run.runtime.output.checkpoints()] == ["checkpoint-4"]


def test_an_infinite_gradient_is_not_saved(make_run: Any, llama: Any) -> None:
    model = llama()
    model.lm_head.weight.register_hook(lambda grad: grad * float("inf"))
    run = make_run(model, save_every=1)
    with pytest.raises(LuthierError, match=r"gradient norm of step 1 is (nan|inf)"):
        run.trainer().fit()
    assert run.runtime.output.checkpoints() == []


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"
        ),
    ],
    ids=["python", "cuda", "cpu"],
)
def test_out_of_memory_has_the_prediction_beside_it(make_run: Any, llama: Any, error: Exception) -> None:
    model = llama()
    calls: list[int] = []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 5:  # the first micro-batch of step 3
            raise error

    model.register_forward_pre_hook(fail)
    with pytest.raises(OutOfMemoryError, match=r"out of memory in step 3.*3\.00 GiB were predicted") as caught:
        make_run(model).trainer().fit()
    assert caught.value.exit_code == ExitCode.OUT_OF_MEMORY
    assert "train.batch_tokens" in caught.value.fix


def test_other_errors_are_not_memory(make_run: Any, llama: Any) -> None:
    model = llama()
    model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("shapes do not match")))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        make_run(model).trainer().fit()


def test_a_full_disk_while_training_keeps_the_checkpoint_before(make_run: Any, llama: Any) -> None:
    saves: list[int] = []

    def save(model: Any, folder: Any) -> None:
        saves.append(1)
        model.save_pretrained(folder)
        if len(saves) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    adapter = Adapter(name="own", summary="", attach=lambda model, profile, options: model, save=save)
    run = make_run(llama(), adapter=adapter, save_every=2)
    with pytest.raises(OutputError, match=r"disk is full while saving checkpoint-4.*checkpoint-2 is intact"):
        run.trainer().fit()
    assert [path.name for path in run.runtime.output.checkpoints()] == ["checkpoint-2"]
    saving.load_trained(llama(), run.runtime.output.path / "checkpoint-2", adapter, trainable=True)


def test_mixed_precision_leaves_the_model_as_it_was(make_run: Any, llama: Any) -> None:
    model = llama()
    seen: set[torch.dtype] = set()
    model.model.layers[0].mlp.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    make_run(model, precision=("float32", "bfloat16"), max_steps=2, held_out=(9,)).trainer().fit()
    assert seen == {torch.bfloat16}
    assert not {"forward", "_original_forward"} & set(vars(model))
    assert model(input_ids=torch.tensor([[3, 4]])).logits.dtype == torch.float32
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
