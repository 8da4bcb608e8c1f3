"""A reward run: the scores are those of transformers' own class on the folder, whatever the batch and the padding."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import luthier
from luthier.core.config.schema import Choice
from luthier.core.errors import LuthierError
from luthier.core.frozen import freeze
from luthier.core.rewards import RewardError, Scored, open_rewards, support_rewards
from luthier.core.rewards.runs import closing_tokens, same_texts
from luthier.core.testing.surroundings import installed_catalog

PAIRS = [{"prompt": f"say {word}", "chosen": f"{word}!", "rejected": "no"} for word in ("ash", "birch", "cedar", "elm")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of `rm` with a whole model and with an adapter, and one of `sft`, of a random tiny llama."""
    from tests.conftest import _save_tiny

    base = tmp_path_factory.mktemp("reward-runs")
    _save_tiny(base / "model", "llama", {})
    (base / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    for name, stage, adapter in (("full", "rm", "full"), ("lora", "rm", "lora"), ("sft", "sft", "full")):
        source = {"path": str(base / "pairs.jsonl"), "kind": "conversation" if stage == "sft" else "auto"}
        luthier.train(
            {
                "model": str(base / "model"),
                "data": {"train": [source], "max_length": 64},
                "stage": stage,
                "adapter": adapter,
                "optimizer": {"use": "adamw", "lr": 0.01},
                "precision": "fp32",
                "train": {"max_steps": 2},
                "output": str(base / name),
            }
        )
    return {"base": base, **{name: base / name for name in ("full", "lora", "sft")}}


def answers(tokenizer: Any, *texts: str, finished: bool = True) -> list[Scored]:
    made = []
    for row, text in enumerate(texts):
        messages = [{"role": "user", "content": f"say {row}"}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        ids = tokenizer(text, add_special_tokens=False)["input_ids"] + ([tokenizer.eos_token_id] if finished else [])
        made.append(
            Scored(
                prompt=tokenizer.decode(prompt),
                text=text,
                ids=ids,
                prompt_ids=prompt,
                finished=finished,
                reference=None,
                row=row,
                messages=messages,
            )
        )
    return made


def runtime(tokenizer: Any) -> Any:
    return SimpleNamespace(catalog=installed_catalog(), tokenizer=tokenizer, plan=SimpleNamespace(device="cpu"))


def opened(folder: Path, tokenizer: Any, **options: Any) -> Any:
    choice = Choice(use="run", options=freeze({"path": str(folder), **options}))
    return open_rewards([choice], runtime=runtime(tokenizer))


def expected(folder: Path, base: Path, tokenizer: Any, said: list[Scored]) -> list[float]:
    """One conversation at a time, by the libraries alone."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    if (folder / "adapter_config.json").is_file():
        model: Any = AutoModelForSequenceClassification.from_pretrained(base / "model", num_labels=1)
        model = PeftModel.from_pretrained(model, folder)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.eval()
    values = []
    for answer in said:
        whole = [*(answer.messages or ()), {"role": "assistant", "content": answer.text}]
        ids = tokenizer.apply_chat_template(whole)["input_ids"]
        assert ids[-2] == tokenizer.eos_token_id
        ids.pop()  # the newline after the end of the turn, which is no part of the answer
        if not answer.finished:
            ids.pop()
        values.append(float(model(input_ids=torch.tensor([ids])).logits[0, 0]))
    return values


@pytest.mark.parametrize("name", ["full", "lora"])
def test_scores_are_those_of_the_libraries(folders: dict[str, Path], tiny_tokenizer: Any, name: str) -> None:
    said = answers(tiny_tokenizer, "ash!", "no", "a much longer answer than the others", "x")
    want = expected(folders[name], folders["base"], tiny_tokenizer, said)
    assert max(want) - min(want) > 1e-3
    for size in (4096, 60, 1):
        got = opened(folders[name], tiny_tokenizer, batch_tokens=size, weight=2).score(said)
        assert got.terms["run"] == pytest.approx(want, abs=1e-5)
        assert got.total == pytest.approx([2 * value for value in want], abs=1e-5)


def test_an_answer_that_was_cut_is_scored_at_its_last_token(folders: dict[str, Path], tiny_tokenizer: Any) -> None:
    """As rows that were cut are in training: no end is read where none came."""
    reward = opened(folders["full"], tiny_tokenizer)
    whole, cut = (answers(tiny_tokenizer, "ash!", "no", finished=ended) for ended in (True, False))
    want = expected(folders["full"], folders["base"], tiny_tokenizer, cut)
    assert reward.score(cut).total == pytest.approx(want, abs=1e-5)
    assert reward.score(whole).total != pytest.approx(want, abs=1e-3)
    assert closing_tokens(tiny_tokenizer) == [tiny_tokenizer.eos_token_id]


def test_another_chat_template_is_read_from_the_messages(folders: dict[str, Path], tiny_tokenizer: Any) -> None:
    policy = tiny_tokenizer.__class__.from_pretrained(folders["base"] / "model")
    policy.chat_template = "{% for message in messages %}[{{ message['content'] }}]{% endfor %}"
    assert not same_texts(policy, tiny_tokenizer)
    said = answers(policy, "ash!", "no")
    want = expected(folders["full"], folders["base"], tiny_tokenizer, said)
    assert opened(folders["full"], policy).score(said).total == pytest.approx(want, abs=1e-5)
    blind = [Scored(**{**vars(answer), "messages": None}) for answer in said]
    with pytest.raises(RewardError, match="another tokenizer or chat template, and row 0"):
        opened(folders["full"], policy).score(blind)


def test_what_is_too_long_for_it(folders: dict[str, Path], tiny_tokenizer: Any) -> None:
    with pytest.raises(RewardError, match=r"row 1 .* tokens with its answer, and the reward model reads 512"):
        opened(folders["full"], tiny_tokenizer).score(answers(tiny_tokenizer, "a", "b" * 600))


def test_a_folder_that_is_no_reward_run(folders: dict[str, Path], tiny_tokenizer: Any, tmp_path: Path) -> None:
    for folder, said in (
        (folders["sft"], "a run of the stage sft, which trains no reward model"),
        (tmp_path, "no plan.json"),
    ):
        with pytest.raises(RewardError, match=said):
            opened(folder, tiny_tokenizer)
        support = support_rewards([Choice(use="run", options=freeze({"path": str(folder)}))])
        assert not support
        assert said in support.reason


def test_sharing_is_for_stages_that_can(folders: dict[str, Path], tiny_tokenizer: Any) -> None:
    with pytest.raises(LuthierError, match="cannot share"):
        opened(folders["lora"], tiny_tokenizer, share="true")
    assert opened(folders["lora"], tiny_tokenizer, share=False)


def test_in_a_stage(folders: dict[str, Path], tmp_path: Path) -> None:
    rows = tmp_path / "prompts.jsonl"
    rows.write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in PAIRS))
    train: Callable[..., Any] = luthier.train
    results = train(
        {
            "model": str(folders["base"] / "model"),
            "data": {"train": [str(rows)], "max_length": 64, "eval": 1},
            "stage": {
                "use": "grpo",
                "reward": {"use": "run", "path": str(folders["lora"])},
                "num_generations": 2,
                "prompts_per_step": 2,
                "max_new_tokens": 4,
            },
            "adapter": "lora",
            "precision": "fp32",
            "train": {"max_steps": 1},
            "output": str(tmp_path / "run"),
        }
    )
    assert isinstance(results["eval_reward_run"], float)
