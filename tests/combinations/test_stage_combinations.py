"""Every stage with every adapter, from data of its kind: it plans, it runs, and it moves nothing but what was declared.

`make test` runs each stage once, and each adapter at least once; `make test-all` every pair.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier.core.config import ModelConfig
from luthier.core.engine import execute
from luthier.core.plan import SourceSummary
from luthier.core.resolve import resolve
from luthier.core.resolve.matrix import NO_QUANTISATION, combination_config, example_of, ordered
from luthier.core.trained import method_of

from .conftest import Watched, installed, moving

USER = [{"role": "user", "content": f"Name the number after {index}."} for index in range(6)]
GOOD = [{"role": "assistant", "content": f"It is {index + 1}."} for index in range(6)]
BAD = [{"role": "assistant", "content": f"Perhaps {index}, or {index + 7}?"} for index in range(6)]
ROWS: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": f"After {index} comes {index + 1}."} for index in range(6)],
    "conversation": [{"messages": [ask, good]} for ask, good in zip(USER, GOOD, strict=True)],
    "preference": [
        {"prompt": [ask], "chosen": [good], "rejected": [bad]} for ask, good, bad in zip(USER, GOOD, BAD, strict=True)
    ],
    "unpaired": [
        {"prompt": [ask], "completion": [good if index % 2 else bad], "label": bool(index % 2)}
        for index, (ask, good, bad) in enumerate(zip(USER, GOOD, BAD, strict=True))
    ],
    "prompt": [{"prompt": [ask]} for ask in USER],
}


def pairs() -> Iterator[tuple[str, str]]:
    catalog, _ = installed()
    return ((stage, adapter) for stage in sorted(catalog.slot("stage")) for adapter in ordered("adapter", catalog))


def sample() -> list[tuple[str, str]]:
    """Each stage once, the adapters in turn."""
    catalog, _ = installed()
    adapters = ordered("adapter", catalog)
    return [(stage, adapters[number % len(adapters)]) for number, stage in enumerate(sorted(catalog.slot("stage")))]


def short(method: Any) -> dict[str, Any]:
    """For a stage that writes answers itself: a few tokens, with a reward that tells those of a random model apart."""
    fields = {field.name for field in dataclasses.fields(method.config)}
    if not {"max_new_tokens", "reward"} <= fields:
        return {}
    return {"max_new_tokens": 8, "reward": [{"use": "regex", "pattern": "[a-m]"}]}


def config(stage: str, adapter: str, model: Path, work: Path) -> dict[str, Any]:
    """Two steps, in float32."""
    catalog, _ = installed()
    method: Any = catalog.method("stage", stage)
    data = work / f"{method.data_kind}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS[method.data_kind]), encoding="utf-8")
    return {
        "model": str(model),
        "data": {"train": [str(data)], "max_length": 96},
        "stage": {"use": stage, **method.example, **short(method)},
        "adapter": {"use": adapter, **catalog.method("adapter", adapter).example},
        "optimizer": {"use": "adamw", "lr": 1e-3, "schedule": "constant", "warmup": 0},
        "patches": [],
        "precision": "fp32",
        "train": {"max_steps": 2, "batch_tokens": 512},
        "output": str(work / f"{stage}-{adapter}"),
    }


def test_every_pair_plans(tiny_models: dict[str, Path]) -> None:
    """With the reference that the adapter's traits allow, where the stage needs one."""
    import luthier.api

    catalog, environment = installed()
    model, profile = luthier.api.read_model(ModelConfig(name=str(tiny_models["llama"])), catalog)
    for stage, adapter in pairs():
        method: Any = catalog.method("stage", stage)
        plan = resolve(
            combination_config(adapter, NO_QUANTISATION, "adamw", catalog, stage=example_of("stage", stage, catalog)),
            model=model,
            profile=profile,
            environment=environment,
            catalog=catalog,
            data=(SourceSummary(path="rows", format="any", kind=method.data_kind, rows=6, why=""),),
        )
        what = f"{stage} x {adapter}"
        ways = method.references(method_of(plan.step("stage"), catalog)[1])
        reference = plan.step("stage").reference
        assert (reference in ways) if ways else reference is None, what
        assert reference != "disabled" or "reference.by_disabling" in plan.traits, what
        assert reference != "copied" or "adapter.copies" in plan.traits, what
        assert (plan.task, "model.score_head" in plan.traits) == (method.task, method.task == "score"), what


def check(stage: str, adapter: str, model: Path, work: Path) -> None:
    catalog, environment = installed()
    watched = Watched()
    spied = moving(catalog, watched)
    plan = luthier.plan(config(stage, adapter, model, work), catalog=spied, environment=environment)
    results = execute(plan, spied, environment=environment)
    what = f"{stage} x {adapter}"
    assert results["steps"] == 2, what
    assert math.isfinite(results["train_loss"]), what
    assert watched.changed, f"{what}: nothing was trained"
    assert watched.changed <= watched.declared, f"{what}: {sorted(watched.changed - watched.declared)[:3]}"


@pytest.mark.parametrize(("stage", "adapter"), sample())
def test_every_stage_runs(stage: str, adapter: str, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    check(stage, adapter, tiny_models["llama"], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "adapter"), list(pairs()))
def test_every_pair_runs(stage: str, adapter: str, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    check(stage, adapter, tiny_models["llama"], tmp_path)
