"""A run that was stopped and resumed is the run that was never stopped, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.contracts import OptimizerMethod
from luthier.core.errors import ExitCode, Interrupted, OutputError

MODELS = {
    "full": {},
    "full-dropout": {"dropout": 0.2},
    "lora-dropout": {"lora": 0.3, "dropout": 0.1},
}


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def stop_after(run: Any, step: int) -> None:
    """Set the flag that Ctrl-C sets, from an observer, while that step is reported."""
    record = run.runtime.emit_to

    def observe(event: Any) -> None:
        record(event)
        if event.kind == "step" and event.values["step"] == step - 1:
            run.runtime.stop.set()

    run.runtime.emit_to = observe


@pytest.mark.parametrize("name", MODELS)
def test_ten_steps_are_five_and_five(name: str, make_run: Any, llama: Any) -> None:
    held_out = {"held_out": (9, 21, 5), "eval_every": 3}
    straight = make_run(llama(0, **MODELS[name]), folder="straight", **held_out)
    expected = straight.trainer().fit()

    first = make_run(llama(0, **MODELS[name]), folder="run", **held_out)
    stop_after(first, 5)
    with pytest.raises(Interrupted, match=r"after step 5 of 10.*checkpoint-5[\s\S]*--resume") as caught:
        first.trainer().fit()
    assert caught.value.exit_code == ExitCode.INTERRUPTED
    first.runtime.output.release()
    torch.manual_seed(12345)

    # Same base weights as ever, adapter weights of another seed: all that was trained has to come from the checkpoint.
    fresh = llama(0, **MODELS[name])
    for parameter in fresh.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    second = make_run(fresh, folder="run", resume=True, **held_out)
    metrics = second.trainer().fit()

    losses = [event["loss"] for event in straight.told("step")]
    assert [event["loss"] for event in first.told("step") + second.told("step")] == losses
    assert [event["lr"] for event in first.told("step") + second.told("step")] == [e["lr"] for e in straight.told("step")]
    for key, value in weights(straight.runtime.model).items():
        assert torch.equal(weights(fresh)[key], value), key
    assert metrics["eval_loss"] == expected["eval_loss"]
    for key in ("steps", "tokens", "trained_tokens", "train_loss"):
        assert metrics[key] == pytest.approx(expected[key], rel=1e-12), key
    lines = [json.loads(line) for line in (second.runtime.output.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines if line["event"] == "step"] == losses


def test_work_after_the_checkpoint_is_done_again(make_run: Any, llama: Any) -> None:
    """A run killed two steps after its last checkpoint; dropout shows whether the random numbers are the same."""
    straight = make_run(llama(0, dropout=0.2), folder="straight", accumulation=3)
    straight.trainer().fit()

    class Killed(RuntimeError):
        pass

    def build(model: Any, options: Any) -> Any:
        def after(step: int) -> None:
            if step == 6:
                raise Killed

        return torch.optim.AdamW(model.parameters(), lr=options.lr), (after,)

    from luthier.core.schedule import OptimizerOptions

    dying = OptimizerMethod(name="adam", summary="", config=OptimizerOptions, build=build)
    options = {"lr": 1e-2}
    first = make_run(llama(0, dropout=0.2), accumulation=3, save_every=4, optimizer=dying, options=options)
    with pytest.raises(Killed):
        first.trainer().fit()
    first.runtime.output.release()
    second = make_run(llama(1, dropout=0.2), accumulation=3, resume=True)
    second.trainer().fit()
    assert [event["step"] for event in second.told("step")] == [5, 6, 7, 8, 9, 10]
    assert [event["loss"] for event in second.told("step")] == [e["loss"] for e in straight.told("step")][4:]
    for key, value in weights(straight.runtime.model).items():
        assert torch.equal(weights(second.runtime.model)[key], value), key


def test_a_finished_run_resumes_to_its_results(make_run: Any, llama: Any) -> None:
    first = make_run(llama(), save_every=5, held_out=(8, 12))
    expected = first.trainer().fit()
    first.runtime.output.release()
    second = make_run(llama(3), resume=True, save_every=5, held_out=(8, 12))
    metrics = second.trainer().fit()
    assert second.told("step") == []
    assert metrics["eval_loss"] == expected["eval_loss"]
    assert metrics["train_loss"] == expected["train_loss"]


def test_other_data_is_refused(make_run: Any, llama: Any, rows: Any) -> None:
    first = make_run(llama(), max_steps=4, save_every=2)
    first.trainer().fit()
    first.runtime.output.release()
    with pytest.raises(OutputError, match="other data or other batches"):
        make_run(llama(), resume=True, max_steps=4, rows=rows((5, 6, 7, 8))).trainer().fit()


def test_a_checkpoint_holds_tensors_and_json_only(make_run: Any, llama: Any) -> None:
    for name, options in MODELS.items():
        run = make_run(llama(0, **options), folder=name, max_steps=2, save_every=1, keep_checkpoints=1)
        before = set(run.runtime.output.path.iterdir())
        run.trainer().fit()
        left = {path.name for path in set(run.runtime.output.path.iterdir()) - before}
        assert left == {"checkpoint-2", "metrics.jsonl", ".luthier.json"}
        files = [path for path in (run.runtime.output.path / "checkpoint-2").rglob("*") if path.is_file()]
        assert {path.suffix for path in files} == {".safetensors", ".json"}
        trained = "adapter_model.safetensors" if "lora" in options else "model.safetensors"
        assert trained in {path.name for path in files}


def test_the_cache_setting_is_the_models_own(make_run: Any, llama: Any) -> None:
    model = llama()
    assert model.config.use_cache is True
    seen: list[bool] = []
    model.register_forward_pre_hook(lambda module, *args: seen.append(module.config.use_cache))
    run = make_run(model, max_steps=2, save_every=1)
    run.trainer().fit()
    assert seen
    assert not any(seen)
    assert model.config.use_cache is True
    saved = json.loads((Path(run.runtime.output.path) / "checkpoint-2" / "config.json").read_text())
    assert saved.get("use_cache", True) is True
