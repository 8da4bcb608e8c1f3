"""Every installed training stage keeps the contract of stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.core.testing import TrainingStageContract
from luthier.core.testing.stages import WORDS
from luthier.core.testing.surroundings import installed_catalog

# By name: the rows of a stage that does not learn from conversations.
ROWS: dict[str, Sequence[Mapping[str, Any]]] = {
    **{
        name: [{"prompt": f"say {word}", "chosen": f"{word} {word}", "rejected": f"no {word}"} for word in WORDS]
        for name in ("cpo", "dpo", "orpo", "rm", "simpo")
    },
    "kto": [
        {"prompt": f"say {word}", "completion": answer, "label": answer != f"no {word}"}
        for word in WORDS
        for answer in (f"{word} {word}", f"no {word}")
    ],
    **{name: [{"prompt": f"say {word}"} for word in WORDS] for name in ("grpo", "ppo", "rloo")},
    "pt": [{"text": f"the {word} tree stands by the {word} road, and so it does today"} for word in WORDS],
}
# By name: what else is not as the contract has it. Answers of a random model must differ in their rewards, and the loss of
# answers that are compared with one another is about 0 in every step.
_ANSWERED: dict[str, Any] = {
    "options": (
        {"reward": [{"use": "regex", "pattern": r"[\w]{2}"}, {"use": "length", "max_tokens": 3}], "max_new_tokens": 8},
    ),
    "falls": False,
}
MORE: dict[str, dict[str, Any]] = {"grpo": _ANSWERED, "ppo": _ANSWERED, "rloo": _ANSWERED}

for _name in sorted(installed_catalog().slot("stage")):
    _parts = {"method": _name, "rows": ROWS.get(_name, ()), **MORE.get(_name, {})}
    globals()[f"Test_{_name}"] = type(f"Test_{_name}", (TrainingStageContract,), _parts)


def test_there_is_a_stage() -> None:
    assert installed_catalog().slot("stage")
