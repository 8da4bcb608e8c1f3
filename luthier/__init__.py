"""Luthier: fine-tuning of language models out of composable methods, planned before it runs.

import luthier

config = luthier.load_config("config.yaml", ["adapter.rank=8"])
plan = luthier.plan(config)      # raises PlanRefused with every reason, or says what will happen and why
results = luthier.train(plan)    # the content of all_results.json
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "evaluate", "inspect_data", "load_config", "merge", "plan", "train"]

if TYPE_CHECKING:
    from luthier.api import evaluate, inspect_data, load_config, merge, plan, train


def __getattr__(name: str) -> Any:
    """`luthier.plan` and the rest are imported when they are first used, so that `luthier --help` stays quick."""
    if name in __all__:
        from luthier import api

        return getattr(api, name)
    raise AttributeError(f"module 'luthier' has no attribute {name!r}")
