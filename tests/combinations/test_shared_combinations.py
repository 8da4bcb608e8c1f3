"""The table of which combinations plan and which are refused, kept outside the repository; skipped without it.

A case is run as soon as every method it names is installed; until then it is skipped, and says which one it waits for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier.core.errors import PlanRefused
from luthier.registry.catalog import discover

TABLE = Path(__file__).parents[3] / "shared" / "combinations.yaml"
DOCUMENT: dict[str, Any] = yaml.safe_load(TABLE.read_text()) if TABLE.is_file() else {"defaults": {}, "cases": []}
EXIT = {"ok": 0, "refused": 2, "environment": 3}
SLOTS = ("stage", "adapter", "optimizer", "attention", "patches")

USER = {"role": "user", "content": "hello"}
GOOD, BAD = {"role": "assistant", "content": "good day"}, {"role": "assistant", "content": "what"}
FILES = {
    "conversation.jsonl": {"messages": [USER, GOOD]},
    "preference.jsonl": {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
}
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300}
SMALL_BY_TYPE: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 300},
    "mamba": {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 300},
    "mixtral": SMALL | {"num_key_value_heads": 2, "num_local_experts": 4},
}
# Cases that wait for the kernels of later issues; any other case that waits has lost its method.
MAY_WAIT = {
    "two-losses", "two-lora-kernels", "unsloth-missing", "flash-missing", "lora-gpt2", "fused-gpt2", "s2-on-mamba",
    "s2-llama",
}  # fmt: skip


def names(value: Any) -> Iterator[str]:
    """The method names that a slot's value mentions."""
    for one in value if isinstance(value, list) else [value]:
        yield one["use"] if isinstance(one, Mapping) else one


def waits_for(case: Mapping[str, Any]) -> list[str]:
    """Methods of a case that are not installed yet; a misspelt name is what its case is about."""
    catalog = discover()
    wanted = [(slot, name) for slot in SLOTS if slot in case["set"] for name in names(case["set"][slot])]
    lacking = [name for slot, name in wanted if name not in {**catalog.slot(slot), **catalog.presets.get(slot, {})}]
    lacking += [name for name in case.get("rejected", []) if not list(catalog.find(name))]
    if "typo" in case["id"]:
        return []
    return lacking


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data files and a folder with a config.json for each model type."""
    from transformers import AutoConfig

    root = tmp_path_factory.mktemp("combinations")
    for name, row in FILES.items():
        (root / name).write_text(json.dumps(row) + "\n")
    for model_type, small in SMALL_BY_TYPE.items():
        AutoConfig.for_model(model_type, **small).save_pretrained(root / model_type)
    return root


@pytest.mark.skipif(not DOCUMENT["cases"], reason="../shared/combinations.yaml is not here")
@pytest.mark.parametrize("case", DOCUMENT["cases"], ids=[case["id"] for case in DOCUMENT["cases"]])
def test_case(case: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import luthier

    lacking = waits_for(case)
    if lacking:
        assert case["id"] in MAY_WAIT, f"not installed: {lacking}"
        pytest.skip(f"waits for: {', '.join(lacking)}")
    monkeypatch.chdir(folder)
    raw = DOCUMENT["defaults"] | case["set"]
    raw["model"] = str(folder / raw["model"])
    try:
        plan = luthier.plan(luthier.load_config(raw))
    except PlanRefused as refused:
        code, text, plan, problems = int(refused.code), str(refused), None, len(refused.problems)
    else:
        code, text, problems = 0, "", 0
    assert problems >= case.get("problems_at_least", 0)
    assert code == EXIT[case["expect"]], text
    assert case.get("says", "").lower() in text.lower()
    if plan is not None:
        assert set(case.get("steps", [])) <= {step.method for step in plan.steps}
        assert set(case.get("rejected", [])) <= {entry.method for entry in plan.rejected}
        if "says_not" in case:
            assert case["says_not"] not in {step.reference for step in plan.steps}
