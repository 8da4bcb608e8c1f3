"""What the stages learned on the real model: from the committed result of `python -m luthier.benchmarks.learning`, and, as
`chain`, from that of `make rlhf`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from blocks import ROOT, table

RESULTS = ROOT / "benchmarks" / "results"


def learned(page: Path, words: list[str]) -> str:
    """One row for each check."""
    document: dict[str, Any] = json.loads((RESULTS / "learning.json").read_text(encoding="utf-8"))
    rows = [
        [f"`{name}`", f"`{found['config']}`", TEXTS[name](found), minutes(found["seconds"])]
        for name, found in document["checks"].items()
    ]
    machine = document["machine"]
    note = f"SmolLM2-135M, {machine['cores']} cores of {machine['cpu']}, seeds as in the files."
    return f"{table(['check', 'configuration', 'found', 'time'], rows)}\n\n{note}"


def rm(found: dict[str, Any]) -> str:
    return (
        f"held-out accuracy {found['eval_accuracy']:.2f}; of choosing the longer answer {found['eval_accuracy_longer']:.2f}"
    )


def dpo(found: dict[str, Any]) -> str:
    return f"held-out accuracy {found['eval_accuracy']:.2f}, margin 0 -> {found['eval_margin']:.2f}"


def ppo(found: dict[str, Any]) -> str:
    return (
        f"reward {found['reward_first']:.2f} -> {found['reward_last']:.2f} of {found['reward_greatest']:.0f} in "
        f"{found['updates']} updates: {found['gap_closed']:.0%} of the gap; KL {found['kl']:.1f}, its target "
        f"{found['kl_target']:.0f}"
    )


def ppo_reward(found: dict[str, Any]) -> str:
    return (
        f"held-out reward {found['eval_reward_before']:.2f} -> {found['eval_reward']:.2f} in {found['updates']} updates; "
        f"KL {found['kl']:.1f}, its target {found['kl_target']:.0f}"
    )


def grpo(found: dict[str, Any]) -> str:
    return (
        f"valid JSON {found['valid_first']:.2f} -> {found['valid_last']:.2f} of the answers, in {found['updates']} updates"
    )


TEXTS = {"rm": rm, "dpo": dpo, "ppo": ppo, "ppo-reward": ppo_reward, "grpo": grpo}


def chain(page: Path, words: list[str]) -> str:
    """The stages of the chain, their times and numbers, and the mean reward of the three answers after each."""
    document: dict[str, Any] = json.loads((RESULTS / "rlhf.json").read_text(encoding="utf-8"))
    rows = []
    for name in ("start", "sft", "rm", "ppo", "dpo"):
        stage = document["stages"].get(name, {})
        numbers = [f"{key} {value:.2f}" for key, value in stage.items() if isinstance(value, float) and key != "seconds"]
        rewards = [answer["reward"] for answer in document["answers"].get(name, [])]
        mean = f"{sum(rewards) / len(rewards):+.2f}" if rewards else ""
        rows.append([f"`{name}`", minutes(stage["seconds"]) if stage else "", ", ".join(numbers), mean])
    machine = document["machine"]
    note = f"{minutes(document['seconds'])} in all, on {machine['cores']} cores of {machine['cpu']}."
    return f"{table(['stage', 'time', 'held out', 'mean reward of the three answers'], rows)}\n\n{note}"


def minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.1f} min"
