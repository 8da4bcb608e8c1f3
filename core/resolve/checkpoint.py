"""What a checkpoint that arrives quantised needs and forbids, whichever methods the run is made of.

A method that removes `model.prequantized` (because it has the weights loaded in another way) answers for itself: then
nothing of this holds.
"""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.contracts import MemoryTerms
from luthier.core.errors import Problem
from luthier.core.prequantized import stored_bytes
from luthier.core.profile import Quantization
from luthier.core.requirements import install_command, missing_packages, why_missing
from luthier.core.resolve.compat import ways_to_remove
from luthier.core.resolve.picks import Pick, Situation, facts_of

PREQUANTIZED = "model.prequantized"


def checkpoint_problems(picks: Sequence[Pick], situation: Situation) -> list[Problem]:
    """Packages and device that the stored weights need, and whether anything can train on them at all."""
    quantization = _as_stored(picks, situation)
    if quantization is None:
        return []
    ways = ways_to_remove(PREQUANTIZED, picks, situation)
    what = f"the weights are stored quantised ({quantization.method})"
    if quantization.untrainable:
        fix = ", or ".join([*ways, "take a checkpoint that is not quantised"])
        return [Problem(reason=f"{what}, and cannot be trained on: {quantization.untrainable}", where="model", fix=fix)]
    problems = []
    missing = missing_packages(quantization.packages, situation.environment.packages)
    if missing:
        lacking = ", ".join(why_missing(text, situation.environment.packages) for text in missing)
        fix = ", or ".join([install_command(missing), *ways])
        problems.append(Problem(reason=f"{what}, which needs {lacking}", where="model", fix=fix, kind="environment"))
    if quantization.cuda and situation.environment.device != "cuda":
        fix = ", or ".join(["run it on a machine with a CUDA device", *ways])
        problems.append(Problem(reason=f"{what}, which needs a CUDA device", where="model", fix=fix, kind="environment"))
    return problems


def stored_terms(picks: Sequence[Pick], situation: Situation) -> list[MemoryTerms]:
    """What the quantised weights take, where no method changes how they are stored."""
    if _as_stored(picks, situation) is None:
        return []
    numbers, each = stored_bytes(situation.profile)
    return [MemoryTerms(weight_bytes=each, stored_parameters=numbers)] if numbers else []


def _as_stored(picks: Sequence[Pick], situation: Situation) -> Quantization | None:
    return situation.profile.quantization if PREQUANTIZED in facts_of(picks, situation) else None
