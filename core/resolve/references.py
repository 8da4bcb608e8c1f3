"""How a stage gets its reference policy: the first of the ways it can use that the chosen methods allow, by their traits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from luthier.core.contracts import MemoryTerms, Reference, TrainingStage
from luthier.core.errors import Problem
from luthier.core.memory import DTYPE_BYTES
from luthier.core.plan import Precision
from luthier.core.profile import ArchitectureProfile
from luthier.core.references import WORDS
from luthier.core.resolve.picks import Pick, Situation, defect, facts_of
from luthier.core.traits import Trait

# What must be true of the run; the other ways need nothing.
NEEDS: Final[dict[str, Trait]] = {"disabled": "reference.by_disabling", "copied": "adapter.copies"}
FLOAT32: Final = 4


def choose_reference(picks: Sequence[Pick], situation: Situation) -> tuple[Reference | None, list[Problem]]:
    """The way for this run's stage; None where its stage needs no reference, or is not known."""
    stage = next((pick for pick in picks if isinstance(pick.method, TrainingStage)), None)
    if stage is None or not isinstance(stage.method, TrainingStage):
        return None, []
    try:
        ways = tuple(stage.method.references(stage.config))
    except Exception as error:
        return None, [defect(stage.title, stage.offer, "in its `references`", error)]
    unknown = [way for way in ways if way not in WORDS]
    if unknown:
        wrong = ValueError(f"there is no reference {unknown[0]!r}")
        return None, [defect(stage.title, stage.offer, "in its `references`", wrong)]
    facts = facts_of(picks, situation)
    for way in ways:
        if way not in NEEDS or NEEDS[way] in facts:
            return way, []
    if not ways or not any(pick.slot == "adapter" for pick in picks):
        return None, []
    adapter = next(pick for pick in picks if pick.slot == "adapter")
    why = adapter.declaration.reasons.get(NEEDS[ways[0]], f"{adapter.title} does not provide {NEEDS[ways[0]]}")
    return None, [
        Problem(
            reason=f"{stage.title} needs as its reference {' or '.join(WORDS[way] for way in ways)}, and {why}",
            methods=(stage.title, adapter.title),
            fix="leave the stage's `reference` to `auto`, or take another adapter",
        )
    ]


def made_true(reference: Reference | None) -> frozenset[Trait]:
    """The traits that a choice makes true of the run."""
    return frozenset({"reference.model"} if reference == "model" else ())


def reference_terms(
    reference: Reference | None, terms: Iterable[MemoryTerms], profile: ArchitectureProfile, precision: Precision
) -> list[MemoryTerms]:
    """What the reference takes of the memory: another model, another adapter, or nothing."""
    shares = list(terms)
    if reference == "copied":
        return [MemoryTerms(constant=FLOAT32 * sum(share.added for share in shares))]
    if reference != "model":
        return []
    width = float(DTYPE_BYTES[precision.weights])
    stored = [share for share in shares if share.weight_bytes is not None]
    # A copy of the model with everything on it.
    whole = profile.parameters * width + sum(share.added * (share.trainable_bytes or width) for share in shares)
    for share in stored:
        count = profile.parameters if share.stored_parameters is None else share.stored_parameters
        whole += count * ((share.weight_bytes or 0.0) - width)
    return [MemoryTerms(constant=round(whole))]
