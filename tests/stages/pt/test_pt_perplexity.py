"""`pt` from a file of texts to the perplexity it reports, against plain transformers and PEFT in float64, text by text."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

import luthier

WORDS = ("ash", "birch", "cedar", "elm", "fir", "larch", "maple", "oak", "pine", "rowan", "willow", "yew")
LONGEST = 48
BOTH: dict[str, Any] = {"use": "lora", "rank": 4, "modules_to_save": ["embed", "head"]}


def texts(count: int, seed: int) -> list[str]:
    """Texts of 2 to 24 words: from one block to four of `LONGEST` bytes."""
    return [" ".join(WORDS[(seed + row * 5 + n * (row + 1)) % 12] for n in range(2 + row * 7 % 23)) for row in range(count)]


def write(path: Path, rows: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def configuration(model: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    data = {
        "train": [write(folder / "train.jsonl", texts(12, 0))],
        "eval": [write(folder / "held-out.jsonl", texts(7, 3))],
        "max_length": LONGEST,
        "too_long": "split",
        **changes.pop("data", {}),
    }
    config: dict[str, Any] = {
        "model": str(model),
        "data": data,
        "stage": "pt",
        "adapter": "full",
        "optimizer": {"use": "adamw", "lr": 0.01},
        "patches": [],
        "precision": "fp32",
        "train": {"batch_tokens": 96, "max_steps": 3},
        "output": str(folder / "run"),
    }
    return config | changes


def saved_model(base: Path, run: Path) -> Any:
    """What the run left, as transformers and PEFT load it, in float64."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    whole = run if (run / "model.safetensors").is_file() else base
    model: Any = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float64)
    return (model if whole == run else PeftModel.from_pretrained(model, run).double()).eval()


def blocks(tokenizer: Any, text: str) -> list[list[int]]:
    """The text and its end in pieces of `LONGEST` tokens."""
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return [ids[at : at + LONGEST] for at in range(0, len(ids), LONGEST)]


@torch.no_grad()
def expected_perplexity(model: Any, tokenizer: Any, rows: list[str]) -> tuple[float, int]:
    """exp of the mean negative log likelihood of every token that has one before it in its block, and their number."""
    total, count = 0.0, 0
    for block in (block for row in rows for block in blocks(tokenizer, row)):
        ids = torch.tensor([block])
        logits = model(input_ids=ids).logits[0]
        total += float(cross_entropy(logits[:-1], ids[0, 1:], reduction="sum"))
        count += len(block) - 1
    return math.exp(total / count), count


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("adapter", ["full", "embeddings and head"])
def test_the_perplexity_of_what_was_saved(
    adapter: str, tied: bool, packing: bool, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    base = tiny_folder("llama", tie_word_embeddings=tied)
    chosen = "full" if adapter == "full" else BOTH
    config = configuration(base, tmp_path, adapter=chosen, data={"packing": packing})
    results = luthier.train(luthier.load_config(config))
    run = tmp_path / "run"
    expected, tokens = expected_perplexity(saved_model(base, run), AutoTokenizer.from_pretrained(run), texts(7, 3))
    assert results["eval_perplexity"] == pytest.approx(expected, rel=1e-5)
    assert results["eval_tokens"] == tokens
    assert results["eval_perplexity"] < 0.5 * 262  # it learned: a guess among all tokens has 262


def test_embeddings_and_head_move_and_stay_one_matrix_where_they_are_one(
    tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Both rows are learned on an untied model; a tied one has one matrix before and after, merged too."""
    from transformers import AutoModelForCausalLM

    for tied in (True, False):
        base = tiny_folder("llama", tie_word_embeddings=tied)
        folder = tmp_path / f"tied-{tied}"
        folder.mkdir()
        config = configuration(base, folder, adapter=BOTH)
        luthier.train(luthier.load_config(config))
        luthier.merge(folder / "run", folder / "merged")
        before, after = (
            AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32) for place in (base, folder / "merged")
        )
        embeddings, head = after.get_input_embeddings().weight, after.get_output_embeddings().weight
        assert (embeddings.data_ptr() == head.data_ptr()) == tied
        assert (embeddings - before.get_input_embeddings().weight).abs().max() > 1e-3
        assert (head - before.get_output_embeddings().weight).abs().max() > 1e-3
        ids = torch.arange(97, 117)[None]
        with torch.no_grad():
            error = (after(input_ids=ids).logits - saved_model(base, folder / "run").float()(input_ids=ids).logits).abs()
        assert error.max() < 1e-4


def test_long_texts_are_learned_in_blocks(tiny_folder: Callable[..., Path], tiny_tokenizer: Any, tmp_path: Path) -> None:
    """Every block of `max_length` tokens is a row, and one of a single token is left out and counted."""
    lone = "x" * LONGEST  # its end token alone would be the second block
    rows = [*texts(12, 0), lone]
    data = {"train": [write(tmp_path / "lone.jsonl", rows)], "eval": 0.0}
    results = luthier.train(luthier.load_config(configuration(tiny_folder(), tmp_path, data=data)))
    expected = [block for row in rows for block in blocks(tiny_tokenizer, row) if len(block) > 1]
    assert results["data"]["tokens"] == sum(map(len, expected))
    assert results["data"]["trained_tokens"] == sum(len(block) - 1 for block in expected)
    assert results["data"]["added"] == {"parts of rows that were split": len(expected) - len(rows)}
    assert results["data"]["cut"] == {"last block of a single token left out": 1}
