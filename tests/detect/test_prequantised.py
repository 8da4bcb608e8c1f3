"""Checkpoints that arrive quantised: every method of transformers is known, and the plan says what it allows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import PlanRefused
from luthier.core.prequantized import STORAGES, read_quantization
from luthier.core.profile import ArchitectureProfile
from luthier.core.serial import from_plain, to_plain
from luthier.registry.detect import detect

LLAMA = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": 300,
}  # fmt: skip
COMPRESSED = {
    "quant_method": "compressed-tensors", "format": "pack-quantized",
    "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 128, "type": "int"}, "targets": ["Linear"]}},
}  # fmt: skip
# As the methods write them, with the bits that they stand for.
PUBLISHED: dict[str, tuple[dict[str, Any], float | None]] = {
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 4),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}, 4),
    "bitsandbytes 4": ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, 4),
    "bitsandbytes 8": ({"quant_method": "bitsandbytes", "_load_in_8bit": True, "load_in_8bit": True}, 8),
    "fp8": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 8),
    "fbgemm_fp8": ({"quant_method": "fbgemm_fp8"}, 8),
    "mxfp4": ({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, 4),
    "hqq": ({"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}}, 4),
    "aqlm": ({"quant_method": "aqlm", "in_group_size": 8, "nbits_per_codebook": 16}, 2),
    "eetq": ({"quant_method": "eetq", "weights": "int8"}, 8),
    "quanto": ({"quant_method": "quanto", "weights": "int4"}, 4),
    "torchao 8": ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}}, 8),
    "torchao 4": ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}}, None),
    "compressed": (COMPRESSED, 4),
    "higgs": ({"quant_method": "higgs", "bits": 4}, 4),
    "vptq": ({"quant_method": "vptq"}, None),
    "made up": ({"quant_method": "made-up", "bits": 5}, 5),
}


@pytest.fixture
def published(tmp_path: Path) -> Callable[[str], Path]:
    """A folder with nothing but the configuration of a llama that was quantised so."""

    def make(name: str) -> Path:
        (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"quantization_config": PUBLISHED[name][0]}))
        return tmp_path

    return make


def refused(folder: Path, **changes: Any) -> PlanRefused:
    import luthier

    data = folder / "rows.jsonl"
    data.write_text('{"instruction": "a", "output": "b"}\n')
    config = {"model": str(folder), "data": {"train": [str(data)]}, "adapter": "lora", "patches": []}
    with pytest.raises(PlanRefused) as caught:
        luthier.plan({**config, "output": str(folder / "run"), **changes})
    return caught.value


def test_every_method_of_transformers_is_in_the_table() -> None:
    """gguf apart: Luthier reads these files as plain weights from the start (core/loading.py)."""
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    assert set(AUTO_QUANTIZER_MAPPING) - {"gguf"} == set(STORAGES) - {"torchao_int8"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_profile_says_how_it_is_stored(name: str, published: Callable[[str], Path]) -> None:
    profile = detect(published(name))
    settings, bits = PUBLISHED[name]
    assert profile.quantization is not None
    assert profile.prequantized == profile.quantization.method == settings["quant_method"]
    assert profile.quantization.bits == bits
    assert {"model.prequantized", "weights.quantized"} <= profile.traits
    assert ("weights.quantized.4bit" in profile.traits) == (bits == 4)
    assert ("weights.quantized.8bit" in profile.traits) == (bits == 8)
    assert from_plain(ArchitectureProfile, json.loads(json.dumps(to_plain(profile)))) == profile
    assert bool(profile.quantization.untrainable) == (
        name in ("fbgemm_fp8", "mxfp4", "torchao 4", "higgs", "vptq", "made up")
    )


def test_bitsandbytes_writes_its_bits_in_several_ways() -> None:
    for key in ("load_in_8bit", "_load_in_8bit"):
        assert read_quantization({"quant_method": "bitsandbytes", key: True}).bits == 8
        assert read_quantization({key: True}).method == "bitsandbytes"
    assert read_quantization({"quant_method": "bitsandbytes", "load_in_4bit": True}).dora
    assert not read_quantization({"quant_method": "bitsandbytes", "load_in_8bit": True}).dora


def test_a_configuration_object_says_the_same(published: Callable[[str], Path]) -> None:
    from transformers import AutoConfig, BitsAndBytesConfig

    config = AutoConfig.from_pretrained(published("bitsandbytes 4"))
    config.quantization_config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    assert detect(config).traits == detect(published("bitsandbytes 4")).traits


@pytest.mark.parametrize(
    ("name", "package"),
    [("gptq", "gptqmodel"), ("awq", "gptqmodel"), ("compressed", "compressed-tensors"), ("aqlm", "aqlm")],
)
def test_packages_that_are_missing_are_an_environment_problem(
    name: str, package: str, published: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.core.environment import Environment
    from luthier.registry import environment

    bare = Environment(python="3.11", platform="linux", cpu="x", cores=1, memory=1)
    monkeypatch.setattr(environment, "read_environment", lambda **_: bare)
    error = refused(published(name))
    assert int(error.code) == 3
    (problem,) = [problem for problem in error.problems if problem.where == "model"]
    assert package in problem.reason
    assert "pip install" in problem.fix


@pytest.mark.parametrize("name", ["mxfp4", "made up", "vptq"])
def test_what_cannot_be_trained_on_is_refused(name: str, published: Callable[[str], Path]) -> None:
    error = refused(published(name))
    assert int(error.code) == 2
    assert ["cannot be trained on" in problem.reason for problem in error.problems] == [True]
    assert ("add patches: dequantize" in error.problems[0].fix) == (name == "mxfp4")


def test_mxfp4_as_plain_weights_plans(published: Callable[[str], Path]) -> None:
    import luthier

    folder = published("mxfp4")
    (folder / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    config = {"model": str(folder), "data": {"train": [str(folder / "rows.jsonl")]}, "adapter": "full"}
    plan = luthier.plan({**config, "patches": ["dequantize"], "output": str(folder / "run")})
    asked = plan.load_options["quantization_config"]
    assert (asked["quant_method"], asked["dequantize"]) == ("mxfp4", True)
    assert tuple(asked["modules_to_not_convert"]) == ("lm_head",)


def test_gptq_cannot_be_dequantised(published: Callable[[str], Path]) -> None:
    error = refused(published("gptq"), patches=["dequantize"])
    assert any("cannot turn weights quantised by gptq into plain ones" in problem.reason for problem in error.problems)


@pytest.mark.parametrize("adapter", ["full", {"use": "freeze", "layers": 1}])
def test_training_the_weights_themselves_is_refused(adapter: Any, published: Callable[[str], Path]) -> None:
    error = refused(published("bitsandbytes 4"), adapter=adapter)
    assert int(error.code) == 2
    assert any("model.prequantized" in problem.reason for problem in error.problems)


def test_dora_on_gptq_is_refused_with_its_reason(published: Callable[[str], Path]) -> None:
    error = refused(published("gptq"), adapter="dora")
    assert any("weights.no_dora" in problem.reason and "norm" in problem.reason for problem in error.problems)


def test_the_profile_verb_shows_it(published: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    from luthier.cli import main

    assert main(["profile", str(published("gptq"))]) == 0
    shown = capsys.readouterr().out
    assert "quantised (gptq, 4 bits)" in shown
    assert main(["profile", str(published("mxfp4"))]) == 0
    shown = capsys.readouterr().out
    assert "cannot be trained on as they are stored" in shown
    assert "can be loaded as plain weights" in shown
