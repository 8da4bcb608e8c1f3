"""Every installed training stage keeps the contract of stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.core.testing import TrainingStageContract
from luthier.core.testing.stages import WORDS
from luthier.core.testing.surroundings import installed_catalog

# By name: the rows of a stage that does not learn from conversations.
ROWS: dict[str, Sequence[Mapping[str, Any]]] = {
    "pt": [{"text": f"the {word} tree stands by the {word} road, and so it does today"} for word in WORDS],
}

for _name in sorted(installed_catalog().slot("stage")):
    _parts = {"method": _name, "rows": ROWS.get(_name, ())}
    globals()[f"Test_{_name}"] = type(f"Test_{_name}", (TrainingStageContract,), _parts)


def test_there_is_a_stage() -> None:
    assert installed_catalog().slot("stage")
