"""Runs that fail outside the training steps: what the user is told, and what is left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Run = Callable[..., tuple[int, str, str]]
Write = Callable[..., Path]


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("place", ["luthier.core.engine.load_model", "transformers.AutoModelForCausalLM.from_pretrained"])
def test_out_of_memory_while_loading_has_its_exit_code(
    luthier: Run, write_config: Write, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    lack = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nGPU 0 has")
    monkeypatch.setattr(place, raising(lack))
    code, _, err = luthier("train", write_config())
    assert code == 6
    assert "Tried to allocate 2.00 GiB" in err
    assert "the weights alone take" in err
    assert "GPU 0 has" not in err


def test_other_errors_of_a_method_are_not_taken_for_it(
    luthier: Run, write_config: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luthier.plugins.lora.updates.attach_lora", raising(RuntimeError("shapes differ")))
    code, _, err = luthier("train", write_config())
    assert code == 1
    assert "shapes differ" in err


def test_a_method_that_found_nothing_to_change_is_no_defect(
    luthier: Run, write_config: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.core.contracts import NothingPatched

    monkeypatch.setattr("luthier.plugins.lora.updates.attach_lora", raising(NothingPatched("lora: nothing there")))
    code, _, err = luthier("train", write_config())
    assert code == 2
    assert "error: lora: nothing there" in err
    assert "defect" not in err


def test_a_patch_that_cannot_be_taken_back_leaves_the_others(
    luthier: Run, write_config: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the results are there all the same."""
    from luthier.core import engine

    undone: list[str] = []
    build = engine._build

    def build_with_two_more(runtime: Any) -> None:
        build(runtime)
        runtime.undo += [lambda: undone.append("first"), raising(RuntimeError("stuck"))]

    monkeypatch.setattr(engine, "_build", build_with_two_more)
    code, out, err = luthier("train", write_config(), "--json")
    assert code == 0
    assert json.loads(out)["steps"] == 3
    assert undone == ["first"]
    assert "a patch could not be taken back: RuntimeError: stuck" in err


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_is_no_number_does_not_cost_the_weights(
    luthier: Run, write_config: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    from luthier.core.trainer import RunTrainer

    fit = RunTrainer.fit
    monkeypatch.setattr(RunTrainer, "fit", lambda self: fit(self) | {"eval_loss": value})
    code, _, err = luthier("train", write_config())
    assert code == 0, err
    assert f"the metric eval_loss is {value}" in err
    results = json.loads((tmp_path / "run" / "all_results.json").read_text(), parse_constant=raising(ValueError("not JSON")))
    assert "eval_loss" not in results
    assert (tmp_path / "run" / "adapter_model.safetensors").exists()


def test_a_warm_up_longer_than_the_run_is_said(luthier: Run, write_config: Write) -> None:
    _, _, err = luthier("train", write_config(), "optimizer.warmup=10")
    assert "warning" in err
    assert "optimizer.warmup asks for 10 steps and the run has 3" in " ".join(err.split())


def test_a_run_can_be_resumed_where_the_probe_decides_otherwise(
    luthier: Run, write_config: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its config.yaml names the precision that was taken; the configuration with `auto` is refused, with the reason."""
    from luthier.core.environment import MatmulRate
    from luthier.registry import probe

    def rates(bf16: float) -> Callable[..., dict[str, MatmulRate]]:
        found = {"float32": MatmulRate(gflops=100, error=0), "bfloat16": MatmulRate(gflops=bf16, error=0)}
        return lambda *_: found

    monkeypatch.setattr(probe, "matmul_rates", rates(50))
    config = write_config()
    assert luthier("train", config, "train.save_every=2")[0] == 0
    monkeypatch.setattr(probe, "matmul_rates", rates(400))
    code, _, err = luthier("train", config, "train.save_every=2", "--resume")
    assert code == 2
    assert "changed: precision: 'fp32' became 'bf16'\n" in err
    code, _, err = luthier("train", tmp_path / "run" / "config.yaml", "--resume")
    assert code == 0, err


def test_a_resumed_run_may_save_and_report_at_other_steps(luthier: Run, write_config: Write, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    config = write_config()
    assert luthier("train", config, "train.save_every=2")[0] == 0
    first = load_file(tmp_path / "run" / "adapter_model.safetensors")
    code, _, err = luthier("train", config, "train.save_every=1", "train.log_every=3", "--resume")
    assert code == 0, err
    second = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [(KeyboardInterrupt(), 130, "interrupted"), (RuntimeError("shapes differ"), 1, "RuntimeError: shapes differ")],
)
def test_every_failure_is_a_json_document(
    luthier: Run, write_config: Write, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    monkeypatch.setattr("luthier.plan", raising(error))
    got, out, err = luthier("plan", write_config(), "--json")
    assert got == code
    assert json.loads(out) == {"error": said, "where": "", "fix": "", "exit_code": code}
    assert said in err


def test_wrong_usage_is_a_json_document_too(luthier: Run, write_config: Write) -> None:
    code, out, err = luthier("data", "inspect", write_config(), "--rows", "-1", "--json")
    assert code == json.loads(out)["exit_code"] == 2
    assert "--rows" in json.loads(out)["error"]
    assert "Usage:" in err
