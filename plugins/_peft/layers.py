"""PEFT's tuners on exactly the modules that were wanted: too few or too many is an error, never a surprise."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any

import peft
from torch import nn

from luthier.core.contracts import NothingPatched
from luthier.core.profile import ArchitectureProfile
from luthier.core.scoring import SCORE


def wrap(model: nn.Module, options: Any, wanted: Collection[str], *, method: str, parameters: Collection[str] = ()) -> Any:
    """The model wrapped by PEFT with `options` (a PeftConfig), its base frozen; checks that exactly `wanted` were adapted.

    `parameters` are those adapted by `target_parameters`, by full name. Raises NothingPatched, naming modules, when the
    loaded model lacks some of them or PEFT adapted others.
    """
    names = {name for name, _ in model.named_modules()} | {name for name, _ in model.named_parameters()}
    require_modules([*wanted, *parameters], names, method=method)
    with warnings.catch_warnings():
        # PEFT still asks transformers by the names that 5.23 deprecates.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        # Patterns for parameters are used, and this says that they are not.
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys did not match", RuntimeWarning)
        # They are tied: see `whole.py`.
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")
        adapted = peft.get_peft_model(model, options)
    found = set(adapted.base_model.targeted_module_names) | set(adapted.base_model.targeted_parameter_names)
    wanted = {*wanted, *parameters}
    if found != set(wanted):
        extra, lost = sorted(found - set(wanted))[:2], sorted(set(wanted) - found)[:2]
        raise NothingPatched(
            f"{method}: PEFT adapted {len(found)} modules where {len(wanted)} were wanted"
            + (f"; too many: {', '.join(extra)}" if extra else "")
            + (f"; missing: {', '.join(lost)}" if lost else "")
        )
    return adapted


def require_modules(wanted: Collection[str], names: Collection[str], *, method: str) -> None:
    """Raises NothingPatched where the loaded model lacks modules that its profile names."""
    lost = sorted(set(wanted) - set(names))[:3]
    if lost or not wanted:
        raise NothingPatched(
            f"{method}: the loaded model lacks the modules that its profile names: {', '.join(lost) or 'none named'}"
        )


def task_type(profile: ArchitectureProfile) -> str:
    """PEFT's name for what the model does: of one that scores sequences, PEFT has the score head train, and saves it."""
    return "SEQ_CLS" if profile.has(SCORE) else "CAUSAL_LM"


def shortest_targets(wanted: Collection[str], names: Collection[str]) -> list[str]:
    """Last path components (`q_proj`) where they single out exactly the wanted modules, else full names.

    PEFT adapts a module when its name equals a target or ends in "." + target; other tools read the short form best.
    """
    suffixes = {name.rpartition(".")[2] for name in wanted}
    matched = {name for name in names if name.rpartition(".")[2] in suffixes}
    return sorted(suffixes) if matched == set(wanted) else sorted(wanted)
