"""A chosen template goes with the model: into its folder, checkpoints and a merged model, with its end of turn."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier.core.data.templates import named_templates
from luthier.core.errors import DataError
from luthier.core.trained import read_run, run_tokenizer
from luthier.registry.catalog import discover

ROWS = [
    {"messages": [{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": f"It is {n}."}]}
    for n in range(6)
]
STOP = "<|im_end|>"


@pytest.fixture
def base_model(tiny_folder: Callable[..., Path]) -> Path:
    """A base model: ChatML's tokens in the vocabulary, another end token, no template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny_folder("llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = None
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", STOP]})
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def train(base_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """`train(adapter="full", template="chatml")`: a run of two steps with a checkpoint after the first."""

    def run(*, adapter: Any = "full", **data: Any) -> Path:
        rows = tmp_path / "rows.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        config = {
            "model": str(base_model),
            "data": {"train": [str(rows)], "max_length": 200} | data,
            "adapter": adapter,
            "patches": [],
            "precision": "fp32",
            "train": {"max_steps": 2, "batch_tokens": 512, "save_every": 1},
            "output": str(tmp_path / "run"),
        }
        luthier.train(luthier.load_config(config))
        return tmp_path / "run"

    return run


def ends_of(folder: Path) -> list[int]:
    from transformers import AutoModelForCausalLM

    ends = AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id
    return ends if isinstance(ends, list) else [ends]


def template_of(folder: Path) -> str:
    from transformers import AutoTokenizer

    return str(AutoTokenizer.from_pretrained(folder).chat_template)


def test_with_a_whole_model_and_its_checkpoints(train: Callable[..., Path], tiny_tokenizer: Any) -> None:
    folder = train(template="chatml")
    chatml = named_templates()["chatml"].text
    stop = len(tiny_tokenizer) + 1  # the second of the two tokens that were added
    for place in (folder, folder / "checkpoint-1"):
        assert template_of(place) == chatml
        assert ends_of(place) == [tiny_tokenizer.eos_token_id, stop]


def test_with_a_merged_model(train: Callable[..., Path], tmp_path: Path, tiny_tokenizer: Any) -> None:
    folder = train(adapter={"use": "lora", "rank": 2}, template="chatml")
    luthier.merge(folder, tmp_path / "merged")
    assert template_of(folder) == template_of(tmp_path / "merged") == named_templates()["chatml"].text
    assert ends_of(tmp_path / "merged") == [tiny_tokenizer.eos_token_id, len(tiny_tokenizer) + 1]


def test_a_checkpoint_keeps_the_template_when_its_file_has_changed(train: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    text = named_templates()["chatml"].text
    path.write_text(text)
    folder = train(template=str(path))
    path.write_text("something else")
    catalog = discover()
    # As in a run that was killed: its folder has a plan, and no model.
    for file in folder.glob("*token*"):
        file.unlink()
    (folder / "chat_template.jinja").unlink()
    plan = read_run(folder / "checkpoint-1")
    assert run_tokenizer(plan, folder / "checkpoint-1", catalog).chat_template == text
    assert run_tokenizer(plan, folder, catalog).chat_template == "something else"


def test_a_base_model_and_conversations_without_a_choice_are_refused(train: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="has no chat template") as caught:
        train()
    assert "data.template: chatml, internlm2" in caught.value.fix


def test_a_base_model_and_plain_text_need_no_template(train: Callable[..., Path], tmp_path: Path, base_model: Path) -> None:
    rows = tmp_path / "texts.jsonl"
    rows.write_text("".join(json.dumps({"text": f"Text number {n}."}) + "\n" for n in range(6)))
    folder = train(train=[str(rows)])
    assert not (folder / "chat_template.jinja").exists()
    assert ends_of(folder) == ends_of(base_model)


def test_what_the_template_lacks_is_told_in_the_run(train: Callable[..., Path], base_model: Path, tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    config = luthier.load_config(
        {"model": str(base_model), "data": {"train": [str(rows)], "template": "phi4"}, "output": str(tmp_path / "run")}
    )
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, max_steps=1))
    luthier.train(config, observers=[lambda event: told.append((event.kind, event.message))])
    assert any(kind == "warning" and "writes <|im_sep|>, which the vocabulary lacks" in text for kind, text in told)
    assert any(kind == "notice" and "<|im_end|> ends an answer" in text for kind, text in told)
