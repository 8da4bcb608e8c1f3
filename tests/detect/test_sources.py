"""Where a model can come from, and the errors of each way: what, where, fix, exit code; never remote code unasked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.core.errors import ExitCode, LuthierError, MissingEnvironmentError, ModelError
from luthier.registry.detect import detect

LLAMA = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}


def folder(path: Path, text: str) -> Path:
    (path / "config.json").write_text(text, encoding="utf-8")
    return path


def refused(source: object, **options: object) -> LuthierError:
    with pytest.raises(LuthierError) as caught:
        detect(source, **options)  # type: ignore[arg-type]
    assert caught.value.where
    assert caught.value.fix
    return caught.value


def test_folder_configuration_and_model_give_one_profile(tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {key: value for key, value in LLAMA.items() if key != "model_type"}
    config = AutoConfig.for_model("llama", vocab_size=128, **fields)
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        meta = AutoModelForCausalLM.from_config(config)
    real = AutoModelForCausalLM.from_config(config)
    profiles = [detect(tmp_path), detect(str(tmp_path)), detect(config), detect(meta)]
    assert len({profile.roles for profile in profiles}) == 1
    assert detect(real).roles == profiles[0].roles
    assert next(real.parameters()).device.type == "cpu"


def test_missing_folder(tmp_path: Path) -> None:
    error = refused(tmp_path / "nowhere")
    assert isinstance(error, ModelError)
    assert "no such folder" in str(error)
    assert str(tmp_path / "nowhere") in error.where


def test_folder_without_configuration(tmp_path: Path) -> None:
    assert "no config.json" in str(refused(tmp_path))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{ nothing", "not valid JSON"),
        ("[1, 2]", "a mapping was expected"),
        ('{"hidden_size": 64}', "`model_type` is missing"),
        ('{"model_type": "no_such_thing"}', "'no_such_thing' is unknown to transformers"),
        (json.dumps(LLAMA | {"hidden_size": "wide"}), "hidden_size"),
        (json.dumps(LLAMA | {"num_hidden_layers": 0}), "layer"),
        ('{"model_type": "t5"}', "no causal language model"),
    ],
)
def test_configurations_that_cannot_be_used(tmp_path: Path, text: str, words: str) -> None:
    error = refused(folder(tmp_path, text))
    assert isinstance(error, ModelError)
    assert error.exit_code is ExitCode.REFUSED
    assert words in str(error)


def test_configuration_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00{")
    assert "not valid JSON" in str(refused(tmp_path))


def test_remote_code_is_never_run_unasked(tmp_path: Path) -> None:
    """The repository's Python file leaves a mark when it is executed."""
    mark = tmp_path / "executed"
    code = f"open({str(mark)!r}, 'w').close()\nfrom transformers import PretrainedConfig as C\n"
    (tmp_path / "c.py").write_text(code, encoding="utf-8")
    auto_map = {"AutoConfig": "c.C", "AutoModelForCausalLM": "c.M"}
    error = refused(folder(tmp_path, json.dumps({"model_type": "made_up", "auto_map": auto_map})))
    assert "code of its own, which was not run" in str(error)
    assert "trust_remote_code" in error.fix
    assert not mark.exists()


def test_known_type_with_remote_code_uses_the_code_of_transformers(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    (tmp_path / "c.py").write_text(f"open({str(mark)!r}, 'w').close()\n", encoding="utf-8")
    auto_map = {"AutoConfig": "c.C", "AutoModelForCausalLM": "c.M"}
    profile = detect(folder(tmp_path, json.dumps(LLAMA | {"auto_map": auto_map})))
    assert profile.architecture == "LlamaForCausalLM"
    assert not profile.remote_code
    assert not mark.exists()


def test_remote_code_runs_with_permission_and_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    code = (
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class MyConfig(LlamaConfig):\n    model_type = 'mine'\n"
        "class MyModel(LlamaForCausalLM):\n    config_class = MyConfig\n"
    )
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    auto_map = {"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.MyModel"}
    folder(tmp_path, json.dumps(LLAMA | {"model_type": "mine", "auto_map": auto_map}))
    profile = detect(tmp_path, trust_remote_code=True)
    assert profile.remote_code
    assert profile.architecture == "MyModel"
    assert profile.unclassified == ()


def test_hub_id_that_cannot_be_reached() -> None:
    error = refused("no-such-owner/no-such-model")
    assert isinstance(error, MissingEnvironmentError)
    assert error.exit_code is ExitCode.ENVIRONMENT
    assert "hub cannot be reached" in str(error)


def test_missing_gguf_file(tmp_path: Path) -> None:
    assert "model.gguf" in str(refused(tmp_path, gguf_file="model.gguf"))


def test_file_instead_of_a_folder(tmp_path: Path) -> None:
    folder(tmp_path, json.dumps(LLAMA))
    assert "this is a file" in str(refused(tmp_path / "config.json"))


def test_prequantised_checkpoints_say_so(tmp_path: Path) -> None:
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    profile = detect(folder(tmp_path, json.dumps(LLAMA | {"quantization_config": quantization, "dtype": "bfloat16"})))
    assert profile.prequantized == "gptq"
    assert "model.prequantized" in profile.traits
    assert profile.dtype == "bfloat16"
