"""Fixtures that every area of the tests shares: a tokenizer and models small enough to build for a single test."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")

TinyFolder = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tokenised data of tests stays out of the user's cache; models and measurements there are shared."""
    from luthier.core.caching import CACHE_VARIABLE, cache_folder

    real, own = cache_folder(), tmp_path_factory.mktemp("session-cache")
    for name in ("models", "probe"):
        (real / name).mkdir(parents=True, exist_ok=True)
        (own / name).symlink_to((real / name).resolve())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(own))
        yield


def make_tiny_tokenizer() -> Any:
    """A new copy of the contract kit's: one token for each byte, then the special tokens; with a chat template."""
    from luthier.core.testing.models import tiny_tokenizer

    return copy.deepcopy(tiny_tokenizer())


@pytest.fixture
def tiny_tokenizer() -> Any:
    """A byte-level tokenizer with pad, eos, bos and a chat template with generation marks; a new one for each test."""
    return make_tiny_tokenizer()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> TinyFolder:
    """`tiny_folder("llama", num_hidden_layers=3) -> Path`: a folder with a saved random model and the tiny tokenizer.

    Hidden size 64, 2 layers, 4 heads, 2 key-value heads, float32, the same weights each time. Every call gives a copy of
    its own, which the test may change or break.
    """
    built: dict[str, Path] = {}

    def make(model_type: str = "llama", **config: Any) -> Path:
        key = repr((model_type, sorted(config.items())))
        if key not in built:
            built[key] = tmp_path_factory.mktemp(f"built-{model_type}") / model_type
            _save_tiny(built[key], model_type, config)
        return Path(shutil.copytree(built[key], tmp_path_factory.mktemp(model_type) / model_type))

    return make


def _save_tiny(folder: Path, model_type: str, config: dict[str, Any]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = make_tiny_tokenizer()
    small: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **small | config), dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
