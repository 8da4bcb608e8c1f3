"""LoRA on quantised weights, from a configuration to a saved adapter: it learns, resumes, and loads elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("bitsandbytes")

SMALL: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "mixtral": {"num_local_experts": 4},
}


@pytest.fixture
def settings(tiny_folder: Callable[..., Path], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`settings("llama", patches=["nf4"], ...)`: a configuration of six steps."""

    def make(kind: str, **changes: Any) -> dict[str, Any]:
        data = tmp_path / "rows.jsonl"
        rows = [{"instruction": f"Say {word}.", "output": word * 3} for word in ("ab", "cd", "ef", "gh", "ij", "kl")]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config: dict[str, Any] = {
            "model": str(tiny_folder(kind, **SMALL.get(kind, {}))),
            "data": {"train": [str(data)], "eval": 1, "max_length": 200},
            "stage": "sft",
            "adapter": "lora",
            "patches": [],
            "optimizer": {"use": "adamw", "lr": 1e-2},
            "train": {"max_steps": 6, "batch_tokens": 300, "eval_every": 2},
            "precision": "fp32",
            "output": str(tmp_path / "run"),
        }
        return config | changes

    return make


def train(config: dict[str, Any], **options: Any) -> list[float]:
    import luthier

    losses: list[float] = []

    def observe(event: Any) -> None:
        if event.kind == "step":
            losses.append(event.values["loss"])

    luthier.train(luthier.load_config(config), observers=[observe], **options)
    return losses


@pytest.mark.parametrize("kind", ["llama", "mixtral", "gpt2"])
@pytest.mark.parametrize("use", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_learns(kind: str, use: str, precision: str, settings: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """With an evaluation after every second step."""
    losses = train(settings(kind, patches=[use], precision=precision))
    assert len(losses) == 6
    assert losses[-1] < losses[2] < losses[0]
    results = json.loads((tmp_path / "run" / "all_results.json").read_text())
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert results["parameters"] - results["trained_parameters"] == plan["profile"]["parameters"]
    assert {"weights.quantized", "base.frozen"} <= set(plan["traits"])


@pytest.mark.parametrize("use", ["nf4", "int8"])
def test_with_checkpointing_it_is_the_same(use: str, settings: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """No gradient is needed at the embeddings: the recomputation is of the kind that does without."""
    plain = train(settings("llama", patches=[use]))
    recomputed = train(settings("llama", patches=[use, "checkpointing"], output=str(tmp_path / "other")))
    assert recomputed == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("use", ["nf4", "int8"])
def test_a_resumed_run_is_bit_exact(use: str, settings: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """Six steps, against six of which the last three come after a restart, on weights that were quantised again."""
    import threading

    from luthier.core.errors import Interrupted

    whole = train(settings("llama", patches=[use], output=str(tmp_path / "whole")))
    config = settings("llama", patches=[use])
    stop = threading.Event()
    first: list[float] = []

    def observe(event: Any) -> None:
        if event.kind == "step":
            first.append(event.values["loss"])
            if len(first) == 3:
                stop.set()

    import luthier

    config["model"] = json.loads((tmp_path / "whole" / "plan.json").read_text())["model"]["path"]
    with pytest.raises(Interrupted):
        luthier.train(luthier.load_config(config), observers=[observe], stop=stop)
    assert first + train(config, resume=True) == whole
    one, other = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "run"))
    assert one == other


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("use", ["nf4", "int8"])
def test_peft_loads_the_adapter_on_plain_and_on_quantised_weights(
    kind: str, use: str, settings: Callable[..., dict[str, Any]], tmp_path: Path, ids: Any
) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from luthier.core.loading import load_model
    from luthier.core.plan import Plan

    config = settings(kind, patches=[use])
    train(config)
    plan = Plan.from_json((tmp_path / "run" / "plan.json").read_text())
    saved = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert all(weight.dtype == torch.float32 for weight in saved.values())
    assert not any("base_layer" in name for name in saved)
    outputs = {}
    for name, base in (
        ("plain", AutoModelForCausalLM.from_pretrained(config["model"], dtype=torch.float32)),
        ("quantised", load_model(plan)),
    ):
        tuned: Any = PeftModel.from_pretrained(base, tmp_path / "run").eval()
        loaded = {key.replace(".default", ""): value for key, value in tuned.state_dict().items() if "lora_" in key}
        assert loaded.keys() == saved.keys()
        assert all(torch.equal(loaded[key], value) for key, value in saved.items())
        with torch.no_grad():
            outputs[name] = tuned(input_ids=ids).logits
            with tuned.disable_adapter():
                assert not torch.allclose(tuned(input_ids=ids).logits, outputs[name], atol=1e-3)
    spread = outputs["plain"].abs().max()
    assert 0 < (outputs["plain"] - outputs["quantised"]).abs().max() < 0.5 * spread


# ---- the preset


def test_the_preset_is_lora_on_nf4(settings: Callable[..., dict[str, Any]]) -> None:
    import luthier

    config = settings("llama", adapter={"use": "qlora", "rank": 4})
    plan = luthier.plan({**config, "patches": "auto"})
    assert plan.step("adapter").method == "lora"
    assert plan.step("adapter").config["rank"] == 4
    assert [step.method for step in plan.steps_in("patches")] == ["nf4"]
    assert plan.load_options["quantization_config"]["bnb_4bit_quant_type"] == "nf4"
    assert "qlora" in plan.step("adapter").why
    assert survives_json(plan)


def survives_json(plan: Any) -> bool:
    from luthier.core.plan import Plan

    return Plan.from_json(plan.to_json()) == plan


def test_options_of_nf4_beside_the_preset_are_kept(settings: Callable[..., dict[str, Any]]) -> None:
    import luthier

    patches = [{"use": "nf4", "double_quant": False, "skip": ["mlp.down"]}, "checkpointing"]
    plan = luthier.plan(settings("llama", adapter="qlora", patches=patches))
    taken = {step.method: step.config for step in plan.steps_in("patches")}
    assert taken.keys() == {"nf4", "checkpointing"}
    assert taken["nf4"]["double_quant"] is False
    assert plan.load_options["quantization_config"]["bnb_4bit_use_double_quant"] is False


def test_quantised_weights_are_predicted_to_take_less(settings: Callable[..., dict[str, Any]]) -> None:
    import luthier

    plans = [luthier.plan(settings("llama", patches=patches)).memory.weights for patches in ([], ["int8"], ["nf4"])]
    assert plans[0] > plans[1] > plans[2]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("use", ["nf4", "int8"])
def test_the_adapter_is_folded_into_either_base(
    kind: str, use: str, settings: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Into the dequantised weights it gives the model that was trained; into the original ones a model near it.

    int8 is measured in evaluation mode, where it rounds activations too: more than the difference between the two bases.
    """
    import luthier

    train(settings(kind, patches=[use]))
    exact = luthier.merge(tmp_path / "run", tmp_path / "dequantized", base="dequantized")
    near = luthier.merge(tmp_path / "run", tmp_path / "original", base="original")
    assert exact.from_quantized is not None
    assert near.from_quantized is not None
    assert exact.relative < 1e-4
    assert near.relative < 1e-4
    if use == "nf4":
        assert exact.from_quantized < 0.01 * near.from_quantized
