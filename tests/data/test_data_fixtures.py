"""The shared tiny models are what they promise: reproducible, loadable with their tokenizer, and safe to break."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gpt2"])
def test_tiny_folder(tiny_folder: Callable[..., Path], tiny_tokenizer: Any, model_type: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, other = tiny_folder(model_type), tiny_folder(model_type)
    assert folder != other
    (other / "config.json").unlink()
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert (model.config.hidden_size, model.config.num_hidden_layers, model.dtype) == (64, 2, torch.float32)
    conversation = [{"role": "user", "content": "é"}, {"role": "assistant", "content": "y\n"}]
    loaded = AutoTokenizer.from_pretrained(folder)
    assert loaded.apply_chat_template(conversation) == tiny_tokenizer.apply_chat_template(conversation)
    assert (loaded.pad_token, loaded.eos_token, loaded.bos_token) == ("<pad>", "<eos>", "<bos>")
    assert model.get_input_embeddings().weight.shape[0] == len(loaded)


def test_tiny_folder_takes_configuration(tiny_folder: Callable[..., Path]) -> None:
    from transformers import AutoConfig

    assert AutoConfig.from_pretrained(tiny_folder("llama", num_hidden_layers=3)).num_hidden_layers == 3
