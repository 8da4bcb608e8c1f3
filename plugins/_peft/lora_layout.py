"""What the options of `lora` and `dora` mean for one model: every update with its rank and scale, and what trains beside.

    updates    modules that get B A, and fused expert weights that do
    whole      modules that train in whole (`modules_to_save`); tied embeddings and head always both
    biases     biases of the model that train
    rows       matrices of which single token rows train

Standard library only: a plan asks for this hundreds of times. What cannot be is answered by `check`, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from luthier.core.contracts import Matrix, MemoryTerms, Support
from luthier.core.profile import ROLE_GROUPS, ArchitectureProfile
from luthier.core.scoring import SCORE, score_targets
from luthier.core.targets import Selection, Target, every_target, holds_vocabulary, matching, per_target, select
from luthier.core.targets import check as check_selection
from luthier.plugins._peft.lora_options import LowRankOptions

EMBED, HEAD = "embed", "head"
WHOLE_KINDS = ("linear", "conv1d", "embedding", "norm")
STORED_BYTES = {"bfloat16": 2, "float16": 2}


@dataclass(frozen=True, kw_only=True)
class Update:
    """One module (or fused expert weight) and the low-rank update it gets.

    A is (rank, in) and B (out, rank); of fused experts one pair for each expert, stacked along the rank.
    """

    target: Target
    rank: int
    alpha: float
    rslora: bool = False

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def is_fused(self) -> bool:
        """Whether the weight is a 3-D parameter that holds all experts."""
        return is_fused(self.target)

    @property
    def stacked_rank(self) -> int:
        return self.rank * (self.target.group.experts if self.is_fused else 1)

    @property
    def shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Of A and of B."""
        group = self.target.group
        return (self.stacked_rank, group.in_features or 0), (group.out_features or 0, self.stacked_rank)

    @property
    def parameters(self) -> int:
        return sum(rows * columns for rows, columns in self.shapes)


def is_fused(target: Target) -> bool:
    return target.role in ROLE_GROUPS["experts"] and target.group.kind == "parameter" and len(target.group.shape) == 3


def selection(profile: ArchitectureProfile, options: LowRankOptions) -> Selection:
    """The modules that `target`, `exclude` and `layers` mean."""
    return select(profile, options.target, exclude=options.exclude, layers=options.layers)


def planned_updates(profile: ArchitectureProfile, options: LowRankOptions) -> tuple[Update, ...]:
    """Every update of the run, in the order of the profile's roles."""
    targets = selection(profile, options).targets
    ranks, _ = per_target(options.rank_pattern, targets)
    alphas, _ = per_target(options.alpha_pattern, targets)
    made = []
    for target in targets:
        rank = ranks.get(target.name, options.rank)
        alpha = alphas.get(target.name, options.alpha if options.alpha is not None else 2.0 * rank)
        made.append(Update(target=target, rank=rank, alpha=alpha, rslora=options.rslora))
    return tuple(made)


def whole_modules(profile: ArchitectureProfile, options: LowRankOptions) -> tuple[Target, ...]:
    """The modules that train in whole; with tied embeddings, one of embeddings and head means both. A score head always."""
    candidates = every_target(profile)
    chosen = {one.name for word in options.modules_to_save for one in matching(word, candidates)}
    tied = {one.name for one in candidates if one.role in (EMBED, HEAD)} if profile.tied_embeddings else set()
    if chosen & tied:
        chosen |= tied
    return (*(one for one in candidates if one.name in chosen and one.role != SCORE), *score_targets(profile))


def row_modules(profile: ArchitectureProfile, options: LowRankOptions) -> tuple[Target, ...]:
    """The matrices of which single token rows train: embeddings and head, or the one matrix that they share."""
    if not options.trainable_tokens and not options.new_tokens:
        return ()
    roles = (EMBED,) if profile.tied_embeddings else (EMBED, HEAD)
    return tuple(one for one in every_target(profile) if one.role in roles)


def trains_vocabulary(profile: ArchitectureProfile, options: LowRankOptions) -> bool:
    """Whether rows of the vocabulary train, in the embeddings and in a head of its own: all of them, or chosen ones."""
    return bool(row_modules(profile, options)) or holds_vocabulary(profile, whole_modules(profile, options))


def quantised_whole(profile: ArchitectureProfile, options: LowRankOptions) -> str:
    """Why quantised weights cannot be borne: a module that trains in whole would be one of them; empty where none is."""
    inside = [one.group.pattern for one in whole_modules(profile, options) if one.is_linear and one.layer is not None]
    return f"modules_to_save trains {inside[0]} in whole, which it cannot while it is quantised" if inside else ""


def biases(profile: ArchitectureProfile, options: LowRankOptions) -> tuple[Target, ...]:
    """The modules whose biases train."""
    if options.bias == "none":
        return ()
    candidates: tuple[Target, ...] = every_target(profile)
    if options.bias == "lora_only":
        candidates = tuple(update.target for update in planned_updates(profile, options))
    whole = {target.name for target in whole_modules(profile, options)}
    return tuple(one for one in candidates if one.group.bias and one.group.kind != "parameter" and one.name not in whole)


# ---- what cannot be


def check(profile: ArchitectureProfile, options: LowRankOptions, *, experts: str = "") -> Support:
    """No, with the word, module or option that cannot be taken, else yes.

    `experts` is the reason why fused expert weights cannot be adapted; empty where they can.
    """
    chosen = selection(profile, options)
    support = check_selection(profile, chosen, linear_only=False)
    if not support:
        return support
    checks = (
        _check_kinds(profile, options, chosen, experts),
        _check_patterns(profile, options, chosen),
        _check_whole(profile, options, chosen),
        _check_biases(profile, options),
        _check_rows(profile, options, chosen),
    )
    return next((answer for answer in checks if not answer), Support.yes())


def _check_kinds(profile: ArchitectureProfile, options: LowRankOptions, chosen: Selection, experts: str) -> Support:
    fused = [target for target in chosen.targets if is_fused(target)]
    if fused and experts:
        return Support.no(f"{fused[0].group.pattern} is the fused weight of all experts, and {experts}", _without(fused[0]))
    odd = [target for target in chosen.targets if not target.is_linear and not is_fused(target)]
    if odd:
        reason = f"{odd[0].group.pattern} is a {odd[0].group.kind} of {profile.model_type}, not a linear layer"
        return Support.no(reason, f"{_without(odd[0])}; `modules_to_save` trains it in whole")
    if fused and options.dropout:
        return Support.no(
            f"{fused[0].group.pattern} is the fused weight of all experts: W + B A is formed before the product, so that no "
            "dropout can act on the input of the update",
            f"set dropout to 0, or {_without(fused[0])}",
        )
    if profile.tied_embeddings and any(target.role == HEAD for target in chosen.targets):
        return Support.no(
            f"the head of {profile.model_type} shares its matrix with the embeddings: an update of one could not be merged",
            "leave `head` out of target; `modules_to_save: [embed]` trains both",
        )
    return Support.yes()


def _without(target: Target) -> str:
    return f"leave {target.role} out of target"


def _check_patterns(profile: ArchitectureProfile, options: LowRankOptions, chosen: Selection) -> Support:
    for name, values in (("rank_pattern", options.rank_pattern), ("alpha_pattern", options.alpha_pattern)):
        _, unmatched = per_target(values, chosen.targets)
        if unmatched:
            return Support.no(
                f"{name}: {unmatched[0]!r} means none of the modules that are adapted",
                f"correct it, or take it out of {name}",
            )
    return Support.yes()


def _check_whole(profile: ArchitectureProfile, options: LowRankOptions, chosen: Selection) -> Support:
    candidates = every_target(profile)
    for word in options.modules_to_save:
        found = matching(word, candidates)
        if not found:
            support = check_selection(profile, Selection(targets=(), unmatched=(word,)))
            return Support.no(f"modules_to_save: {support.reason}", support.fix)
        odd = [one for one in found if one.group.kind not in WHOLE_KINDS]
        if odd:
            reason = f"modules_to_save: {odd[0].group.pattern} is a {odd[0].group.kind}, not a module that could be copied"
            return Support.no(reason, "adapter: freeze trains such parameters in place")
    whole = whole_modules(profile, options)
    both = sorted({target.name for target in whole} & set(chosen.names))
    if both:
        return Support.no(f"{both[0]} would train in whole and get an update as well", "name it in one of the two")
    if profile.tied_embeddings and any(target.role == HEAD and target.group.bias for target in whole):
        return Support.no(f"the head of {profile.model_type} is tied but has a bias of its own", "leave it out")
    return Support.yes()


def _check_biases(profile: ArchitectureProfile, options: LowRankOptions) -> Support:
    if options.bias == "none" or biases(profile, options):
        return Support.yes()
    of = profile.model_type if options.bias == "all" else f"what is adapted in {profile.model_type}"
    return Support.no(f"bias: {of} has no biases", "leave bias out")


def _check_rows(profile: ArchitectureProfile, options: LowRankOptions, chosen: Selection) -> Support:
    rows = row_modules(profile, options)
    if not rows:
        return Support.yes()
    if sum(target.role == EMBED for target in rows) != 1:
        return Support.no(f"trainable_tokens: {profile.model_type} has no single matrix of token embeddings")
    if {target.name for target in whole_modules(profile, options)} & {target.name for target in rows}:
        return Support.no(
            "the embeddings or the head would train in whole and by single rows", "give modules_to_save or trainable_tokens"
        )
    if {target.name for target in rows} & set(chosen.names):
        return Support.no("the head would get an update and train single rows", "leave head out of target")
    heads = [one for one in every_target(profile) if one.role == HEAD]
    if any(head.group.bias for head in heads):
        return Support.no(
            f"trainable_tokens: the head of {profile.model_type} has a bias, which PEFT's token rows leave out",
            "train them in whole: modules_to_save: [embed, head]",
        )
    return Support.yes()


# ---- memory


def terms(
    profile: ArchitectureProfile,
    options: LowRankOptions,
    *,
    magnitudes: bool = False,
    constant: int = 0,
    activation_scale: float = 1.0,
) -> MemoryTerms:
    """The share of the prediction: float32 parameters, exactly counted, and the inputs that are cast to float32.

    `magnitudes` counts DoRA's one number for each output of an adapted module. Rows of `new_tokens` are unknown until the
    patches ran, and not counted. Matrices that PEFT forms anew in each forward pass are part of `constant`: an expert weight
    with its update added, an embedding with its rows put in.
    """
    counts: dict[tuple[str, tuple[int, ...]], int] = {}
    added = 0
    for role, shape, is_new in _trained(profile, options, magnitudes):
        counts[role, shape] = counts.get((role, shape), 0) + 1
        added += math.prod(shape) if is_new else 0
    matrices = tuple(Matrix(role=role, shape=shape, count=count) for (role, shape), count in counts.items())
    made = planned_updates(profile, options)
    formed = [update.target.group.parameters for update in made if update.is_fused]
    total = sum(matrix.size * matrix.count for matrix in matrices)
    own = STORED_BYTES.get(profile.dtype or "", 4)
    of_the_base = total - added  # biases, in the format of the model
    rows = row_modules(profile, options)
    formed += [target.group.parameters * (2 if profile.tied_embeddings else 1) for target in rows]
    return MemoryTerms(
        trainable=total,
        added=added,
        trainable_bytes=(4 * added + own * of_the_base) / total if of_the_base else 4,
        matrices=matrices,
        cast_inputs=sum(update.target.group.in_features or 0 for update in made if not update.is_fused),
        activation_scale=activation_scale,
        constant=constant + sum(formed) * own,
    )


def _trained(
    profile: ArchitectureProfile, options: LowRankOptions, magnitudes: bool
) -> Iterator[tuple[str, tuple[int, ...], bool]]:
    """(role, shape, whether it is new beside the model's own) of every tensor that trains."""
    for update in planned_updates(profile, options):
        yield from ((update.target.role, shape, True) for shape in update.shapes)
        if magnitudes:
            yield update.target.role, (update.target.group.out_features or 0,), True
    whole = whole_modules(profile, options)
    shared = profile.tied_embeddings and any(target.role == EMBED for target in whole)
    for target in whole:
        if (target.role == HEAD and shared) or not target.group.shape:
            continue
        yield target.role, target.group.shape, True
        if target.group.bias:
            yield target.role, (target.group.out_features or target.group.shape[0],), True
    for target in biases(profile, options):
        yield target.role, (target.group.out_features or target.group.shape[0],), False
    tokens = len(set(options.trainable_tokens))
    for target in row_modules(profile, options):
        if tokens:
            yield target.role, (tokens, target.group.shape[1]), True
