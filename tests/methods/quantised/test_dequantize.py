"""Quantised layers as plain ones: `core/dequantize.py`, and the patch `dequantize` on checkpoints that arrive quantised."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.dequantize import dequantize_model, dequantized_weight, is_quantized_linear
from luthier.core.errors import ModelError, PlanRefused
from luthier.core.saving import quiet

pytest.importorskip("bitsandbytes")

SMALL: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "mixtral": {"num_local_experts": 4},
    "qwen3": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "8bit": {"load_in_8bit": True},
}


def load_quantised(folder: Path, bits: str, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.quantizers.auto import AutoQuantizationConfig

    from luthier.core.plan import Precision
    from luthier.core.quantized import settle

    settings = AutoQuantizationConfig.from_dict({"quant_method": "bitsandbytes", **SETTINGS[bits]})
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=settings)
    settle(model, Precision(name="fp32", weights="float32", compute="float32", why=""))
    return model.eval()


def logits(model: Any, ids: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits.float()


@pytest.fixture
def checkpoint(tiny_folder: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """`checkpoint("llama", "4bit") -> folder` of a checkpoint that bitsandbytes quantised, as save_pretrained writes it."""

    def make(kind: str, bits: str) -> Path:
        plain = tiny_folder(kind, **SMALL.get(kind, {}))
        folder = tmp_path / f"{kind}-{bits}"
        with quiet():
            load_quantised(plain, bits).save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            if (plain / file).is_file():
                shutil.copy(plain / file, folder / file)
        return folder

    return make


@pytest.fixture
def fp8(tiny_folder: Callable[..., Path]) -> tuple[Path, dict[str, Any]]:
    """A llama in fp8 with one scale for each block of 32 x 32, as DeepSeek publishes its models; and its plain weights."""
    from safetensors.torch import load_file, save_file

    folder = tiny_folder("llama")
    stored, plain = {}, {}
    for name, weight in load_file(folder / "model.safetensors").items():
        stored[name] = plain[name] = weight
        if "_proj" in name:
            rows, columns = weight.shape
            blocks = weight.reshape(rows // 32, 32, columns // 32, 32)
            scale = blocks.abs().amax((1, 3)) / 448
            codes = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
            stored[name] = codes.reshape(rows, columns)
            stored[name.replace("weight", "weight_scale_inv")] = scale
            plain[name] = (codes.float() * scale[:, None, :, None]).reshape(rows, columns)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    settings = {"quant_method": "fp8", "weight_block_size": [32, 32], "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return folder, plain


# ---- core/dequantize.py


@pytest.mark.parametrize("bits", SETTINGS)
def test_the_plain_model_computes_the_same(bits: str, kind: str, tiny_folder: Callable[..., Path], ids: Any) -> None:
    """Training mode, where int8 leaves activations unquantised on the CPU; no dropout in these models but gpt2's."""
    changes = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if kind == "gpt2" else {}
    folder = tiny_folder(kind, **SMALL.get(kind, {}), **changes)
    model = load_quantised(folder, bits).train()
    names = [name for name, module in model.named_modules() if is_quantized_linear(module)]
    expected = logits(model, ids)
    plain = dequantize_model(model, torch.float32)
    assert (logits(plain, ids) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert not any(is_quantized_linear(module) for module in plain.modules())
    wanted = {"gpt2": "Conv1D"}.get(kind, "Linear")
    assert {type(plain.get_submodule(name)).__name__ for name in names} == {wanted}
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.float32}
    assert not getattr(plain, "is_quantized", False)


@pytest.mark.parametrize("bits", SETTINGS)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
def test_it_is_saved_as_a_plain_model(
    bits: str, kind: str, tiny_folder: Callable[..., Path], ids: Any, tmp_path: Path
) -> None:
    """The names and shapes of the original files, so that transformers loads it without a remark."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    folder = tiny_folder(kind, **SMALL.get(kind, {}))
    plain = dequantize_model(load_quantised(folder, bits), torch.float32)
    with quiet():
        plain.save_pretrained(tmp_path / "plain")
        again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(logits(again.eval(), ids), logits(plain, ids))
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    before, after = (load_file(where / "model.safetensors") for where in (folder, tmp_path / "plain"))
    assert {name: weight.shape for name, weight in before.items()} == {name: weight.shape for name, weight in after.items()}


@pytest.mark.parametrize("used_before", [False, True])
@pytest.mark.parametrize("bits", SETTINGS)
def test_a_model_that_was_used_dequantises_to_the_same(
    bits: str, used_before: bool, tiny_folder: Callable[..., Path], ids: Any
) -> None:
    """bitsandbytes moves int8 scales from the weight to the layer at the first forward."""
    model = load_quantised(tiny_folder("llama"), bits, torch.bfloat16)
    weights = {name: dequantized_weight(module) for name, module in model.named_modules() if is_quantized_linear(module)}
    if used_before:
        logits(model, ids)
    plain = dequantize_model(model, torch.bfloat16)
    for name, weight in weights.items():
        assert weight.dtype == torch.float32
        assert torch.equal(plain.get_submodule(name).weight, weight.bfloat16()), name


def test_a_plain_model_is_only_cast(load: Callable[[str], tuple[Any, Any]], ids: Any) -> None:
    model, _ = load("llama")
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    dequantize_model(model, torch.bfloat16)
    assert all(torch.equal(parameter, weights[name].bfloat16()) for name, parameter in model.named_parameters())


# ---- the patch


def run(folder: Path, output: Path, **changes: Any) -> list[float]:
    import luthier

    data = output.parent / "rows.jsonl"
    rows = [{"instruction": f"Say {word}.", "output": word * 3} for word in ("ab", "cd", "ef", "gh")]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    losses = []
    config: dict[str, Any] = {
        "model": str(folder),
        "data": {"train": [str(data)], "max_length": 200},
        "stage": "sft",
        "adapter": "lora",
        "patches": ["dequantize"],
        "optimizer": {"use": "adamw", "lr": 5e-3},
        "train": {"max_steps": 4, "batch_tokens": 512},
        "precision": "fp32",
        "output": str(output),
    }
    observe: Any = lambda event: losses.append(event.values["loss"]) if event.kind == "step" else None  # noqa: E731
    luthier.train(luthier.load_config(config | changes), observers=[observe])
    return losses


@pytest.mark.parametrize("bits", SETTINGS)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_every_parameter_of_a_quantised_checkpoint_trains(
    bits: str, kind: str, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    folder = checkpoint(kind, bits)
    losses = run(folder, tmp_path / "run", adapter="full")
    assert losses[-1] < losses[0]
    results = json.loads((tmp_path / "run" / "all_results.json").read_text())
    assert results["trained_parameters"] == results["parameters"]
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert not getattr(model, "is_quantized", False)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fp8_is_read_as_plain_weights(precision: str, fp8: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    import luthier
    from luthier.core.loading import load_model

    folder, plain = fp8
    losses = run(folder, tmp_path / "run", precision=precision)
    assert losses[-1] < losses[0]
    plan = luthier.plan(tmp_path / "run" / "config.yaml")
    assert not {"model.prequantized", "weights.quantized"} & set(plan.traits)
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    for name, parameter in load_model(plan).named_parameters():
        assert torch.allclose(
            parameter.float(), plain[name].to(dtype).float(), rtol=1e-6 if dtype is torch.float32 else 1e-2
        )


def test_another_model_in_return_stops_the_run(
    fp8: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers may answer `dequantize()` with a new model; the run would go on with the packed one."""
    from luthier.plugins.dequantize import plain

    monkeypatch.setattr(plain, "dequantize_model", lambda model, dtype: copy.deepcopy(dequantize_model(model, dtype)))
    with pytest.raises(ModelError, match="another LlamaForCausalLM back for weights quantised by fp8"):
        run(fp8[0], tmp_path / "run")


def test_without_it_fp8_names_what_it_needs_and_this_way_out(fp8: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(PlanRefused) as caught:
        run(fp8[0], tmp_path / "run", patches=[])
    problems = caught.value.problems
    assert all(problem.where == "model" and problem.fix.endswith("or add patches: dequantize") for problem in problems)
    assert any("needs a CUDA device" in problem.reason for problem in problems)
    assert int(caught.value.code) == 3


@pytest.mark.parametrize("patches", [["nf4"], ["dequantize", "nf4"]])
def test_a_checkpoint_is_not_quantised_twice(patches: list[str], checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(PlanRefused) as caught:
        run(checkpoint("llama", "4bit"), tmp_path / "run", patches=patches)
    (problem,) = caught.value.problems
    assert ("model.prequantized" if len(patches) == 1 else "weights.storage") in problem.reason


def test_full_on_a_quantised_checkpoint_is_refused_with_the_way_out(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(PlanRefused) as caught:
        run(checkpoint("llama", "4bit"), tmp_path / "run", adapter="full", patches=[])
    assert {"model.prequantized", "weights.quantized"} <= {
        trait for problem in caught.value.problems for trait in problem.reason.split()
    }
    assert all("add patches: dequantize" in problem.fix for problem in caught.value.problems)


def test_on_a_plain_model_it_says_no(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(PlanRefused, match="the weights of this llama are not quantised"):
        run(tiny_folder("llama"), tmp_path / "run")


@pytest.mark.parametrize("bits", SETTINGS)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_lora_trains_on_a_checkpoint_as_it_is_stored(
    bits: str, kind: str, precision: str, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """Everything beside the packed weights in the run's format, which transformers leaves mixed."""
    import luthier
    from luthier.core.loading import load_model

    losses = run(checkpoint(kind, bits), tmp_path / "run", patches=[], precision=precision)
    assert losses[-1] < losses[0]
    plan = luthier.plan(tmp_path / "run" / "config.yaml")
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    model = load_model(plan)
    assert {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()} == {dtype}
    assert any(is_quantized_linear(module) for module in model.modules())
