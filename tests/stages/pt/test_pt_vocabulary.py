"""The whole way of a language that a model cuts too small: a vocabulary from texts, built in, pre-trained, merged, used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import luthier

EXAMPLES = Path(__file__).parents[3] / "examples"
SENTENCES = ("Das Wasser im See gefriert von oben.", "Die Fische im See leben unter dem Eis.")


def pieces_of(texts: list[str], path: Path) -> str:
    """A byte-level BPE of the texts, as docs/methods/pt.md makes one."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=200, min_frequency=2, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))
    return str(path)


@torch.no_grad()
def continued(model: Any, tokenizer: Any, beginning: str, count: int) -> list[int]:
    ids = torch.tensor([tokenizer(beginning, add_special_tokens=False)["input_ids"]])
    made = model.generate(ids, max_new_tokens=count, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    return made[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_from_texts_to_a_model_that_writes_new_pieces(
    adapter: str, tied: bool, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = tiny_folder("llama", tie_word_embeddings=tied)
    rows = tmp_path / "texts.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in SENTENCES * 8), encoding="utf-8")
    vocabulary = pieces_of(list(SENTENCES) * 8, tmp_path / "pieces.json")
    whole = {"use": "lora", "rank": 8, "modules_to_save": ["embed", "head"]}
    config: dict[str, Any] = {
        "model": str(base),
        "data": {"train": [str(rows)], "max_length": 32, "too_long": "split", "packing": True},
        "stage": "pt",
        "adapter": "full" if adapter == "full" else whole,
        "optimizer": {"use": "adamw", "lr": 0.01},
        "patches": [{"use": "new_tokens", "vocabulary": vocabulary, "pad_to_multiple_of": 8}],
        "precision": "fp32",
        "train": {"batch_tokens": 128, "max_steps": 30},
        "output": str(tmp_path / "run"),
    }
    results = luthier.train(luthier.load_config(config))
    old, tokenizer = (AutoTokenizer.from_pretrained(folder) for folder in (base, tmp_path / "run"))
    # Of the two sentences each word came up 8 times, so each sentence is a few pieces where it was one token a byte.
    text = SENTENCES[0]
    before, after = (one(text, add_special_tokens=False)["input_ids"] for one in (old, tokenizer))
    assert len(before) == len(text)
    assert len(after) < len(text) / 4
    assert results["data"]["tokens"] == 8 * sum(len(tokenizer(text)["input_ids"]) + 1 for text in SENTENCES)

    luthier.merge(tmp_path / "run", tmp_path / "merged")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    rows_now = model.get_input_embeddings().weight.shape[0]
    assert rows_now == model.config.vocab_size
    assert rows_now % 8 == 0
    assert 0 <= rows_now - len(tokenizer) < 8
    # The sentence, given its first piece: what comes is the rest of it, in new pieces.
    beginning = tokenizer.decode(after[:1])
    made = continued(model, tokenizer, beginning, len(after) - 1)
    assert beginning + tokenizer.decode(made) == text
    assert sum(one >= len(old) for one in made) > len(made) / 2
    # And not by chance: the original model writes something else.
    start = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    assert old.decode(continued(start, old, beginning, len(text))) != text[len(beginning) :]


def test_the_example_joins_what_the_pieces_say(tiny_tokenizer: Any) -> None:
    """The committed vocabulary shortens the committed texts, here to less than half of their bytes."""
    from luthier.plugins import new_tokens
    from luthier.plugins.new_tokens import NewTokensConfig

    config = yaml.safe_load((EXAMPLES / "pt-vocabulary.yaml").read_text(encoding="utf-8"))
    (patch,) = config["patches"]
    pieces = EXAMPLES.parent / patch["vocabulary"]
    texts = [json.loads(line)["text"] for line in (EXAMPLES / config["data"]["train"][0]).read_text("utf-8").splitlines()]
    before = sum(len(tiny_tokenizer(text)["input_ids"]) for text in texts)
    new_tokens.edit_tokenizer(tiny_tokenizer, None, NewTokensConfig(vocabulary=str(pieces)))  # type: ignore[arg-type]
    after = sum(len(tiny_tokenizer(text)["input_ids"]) for text in texts)
    assert before == sum(len(text.encode()) for text in texts)
    assert after < before / 2
