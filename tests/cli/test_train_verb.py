"""`luthier plan` and `luthier train` as a user runs them, on a tiny model."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from luthier.plugins.lora import LoraConfig

Run = Callable[..., tuple[int, str, str]]
Write = Callable[..., Path]


def test_plan_prints_steps_with_reasons(luthier: Run, write_config: Write) -> None:
    code, out, _ = luthier("plan", write_config())
    assert code == 0
    for word in ("lora", "adamw", "sdpa", "sft", "named in the configuration", "auto:", "precision", "peak", "12 rows"):
        assert word in out


def test_plan_json_is_one_document_and_round_trips(luthier: Run, write_config: Write) -> None:
    from luthier.core.plan import Plan

    code, out, err = luthier("plan", write_config(), "--json")
    document = json.loads(out)
    assert code == 0
    assert err == ""
    assert {"model", "profile", "steps", "load_options", "warnings", "problems", "rejected", "memory"} <= set(document)
    assert {"weights", "gradients", "optimizer", "activations", "peak"} == set(document["memory"])
    assert {"slot", "method", "provider", "config", "why"} <= set(document["steps"][0])
    assert document["load_options"]["attn_implementation"] == "sdpa"
    plan = Plan.from_json(out)
    assert plan.to_plain() == document


def test_train_leaves_a_whole_run(luthier: Run, write_config: Write, tmp_path: Path) -> None:
    code, out, err = luthier("train", write_config(), "train.save_every=2", "data.eval=2", "--json")
    assert code == 0, err
    run = tmp_path / "run"
    results = json.loads(out)
    assert results == json.loads((run / "all_results.json").read_text())
    left = {path.name for path in run.iterdir()}
    assert {
        "config.yaml", "plan.json", "environment.json", "adapter_model.safetensors", "adapter_config.json", "tokenizer.json",
        "README.md", "metrics.jsonl", "all_results.json", "training_loss.png", "checkpoint-2",
    } <= left  # fmt: skip
    assert not [path for path in run.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert results["steps"] == 3
    assert results["eval_loss"] > 0
    assert results["data"]["held_out"] == 2
    assert results["memory"]["measured_peak"] > results["memory"]["predicted"]["weights"] > 0
    assert err.count("step ") >= 3
    again = yaml.safe_load((run / "config.yaml").read_text())
    written = {
        "use": "lora",
        "rank": 4,
        "alpha": None,
        "dropout": 0.0,
        "target": ["all"],
        "rank_pattern": {},
        "init": "default",
    }
    assert written.items() <= again["adapter"].items()
    assert set(again["adapter"]) == {"use", *(field.name for field in dataclasses.fields(LoraConfig))}


def test_the_saved_adapter_loads_in_plain_peft(luthier: Run, write_config: Write, tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from luthier.core.plan import Plan

    assert luthier("train", write_config())[0] == 0
    run = tmp_path / "run"
    plan = Plan.from_json((run / "plan.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(plan.model.path, dtype=torch.float32)
    tuned = peft.PeftModel.from_pretrained(base, run)
    ids = AutoTokenizer.from_pretrained(run)("say 3", return_tensors="pt").input_ids
    with torch.no_grad():
        after = tuned(input_ids=ids).logits
        with tuned.disable_adapter():
            before = tuned(input_ids=ids).logits
    assert (after - before).abs().max() > 1e-4
    assert base.config.use_cache


def test_resolved_config_runs_to_the_same_weights(luthier: Run, write_config: Write, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    assert luthier("train", write_config())[0] == 0
    assert luthier("train", tmp_path / "run" / "config.yaml", f"output={tmp_path / 'again'}")[0] == 0
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("run", "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_full_fine_tuning_saves_a_model_that_transformers_loads(luthier: Run, write_config: Write, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    code, _, err = luthier("train", write_config(adapter="full", patches=["checkpointing"], attention="eager"))
    assert code == 0, err
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "run", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.use_cache


def test_resume_of_another_run_is_refused_with_the_difference(luthier: Run, write_config: Write) -> None:
    assert luthier("train", write_config(), "train.save_every=2")[0] == 0
    code, _, err = luthier("train", write_config(), "train.save_every=2", "adapter.rank=8", "--resume")
    assert code == 2
    assert "adapter.rank: 4 became 8" in err


def test_interrupt_saves_and_resume_gives_the_same_weights(luthier: Run, write_config: Write, tmp_path: Path) -> None:
    """A real SIGINT to a real process; afterwards the resumed run equals one that was never interrupted."""
    from safetensors.torch import load_file

    config = write_config(adapter={"use": "lora", "rank": 4, "dropout": 0.1}, train={"batch_tokens": 128, "max_steps": 60})
    command = [sys.executable, "-m", "luthier", "train", str(config)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if line.startswith("step 3/"):
            process.send_signal(signal.SIGINT)
    assert process.wait() == 130, "".join(seen)
    text = "".join(seen)
    assert "--resume" in text
    checkpoints = list((tmp_path / "run").glob("checkpoint-*"))
    assert len(checkpoints) == 1
    assert luthier("train", config, "--resume")[0] == 0
    assert luthier("train", config, f"output={tmp_path / 'straight'}")[0] == 0
    resumed, straight = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("run", "straight"))
    assert all(torch.equal(resumed[key], straight[key]) for key in straight)
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 61))


def test_overwrite_replaces_the_earlier_run(luthier: Run, write_config: Write, tmp_path: Path) -> None:
    assert luthier("train", write_config(), "train.save_every=2")[0] == 0
    (tmp_path / "run" / "mine.txt").write_text("keep me")
    assert luthier("train", write_config(), "--overwrite")[0] == 0
    assert not (tmp_path / "run" / "checkpoint-2").exists()
    assert (tmp_path / "run" / "mine.txt").read_text() == "keep me"


def test_a_failed_run_keeps_what_overwrite_would_replace(
    luthier: Run, write_config: Write, rows: Path, tmp_path: Path
) -> None:
    assert luthier("train", write_config())[0] == 0
    before = (tmp_path / "run" / "adapter_model.safetensors").read_bytes()
    rows.write_text("")
    assert luthier("train", write_config(), "--overwrite")[0] == 4
    assert (tmp_path / "run" / "adapter_model.safetensors").read_bytes() == before


def test_out_of_memory_has_its_own_exit_code(luthier: Run, write_config: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.core.trainer import RunTrainer

    def full(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(RunTrainer, "compute_loss", full)
    code, _, err = luthier("train", write_config())
    assert code == 6
    assert "batch_tokens" in err
    assert "predicted" in err


def test_help_needs_little_time_and_no_torch() -> None:
    heavy = "any(name in sys.modules for name in ('torch', 'transformers', 'pydantic', 'rich'))"
    code = f"import sys; from luthier.cli import main; main(['--help']); sys.exit({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for verb in ("demo", "plan", "train", "methods", "explain", "profile", "doctor"):
        assert verb in done.stdout
