"""Which modules a method is about: roles, role groups, names, exclusions and layers, resolved against a profile.

    target: [attn, mlp.down]        roles or role groups
    target: [q_proj, "*.mlp.*"]     the end of a module's name, or a pattern for the whole of it
    exclude: [attn.o]               in the same words
    layers: [0, 1, -1]              decoder layers, negative ones counted from the end

Resolved while the run is planned, so that a word which means nothing in this model is a problem of the plan.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Final, TypeVar

from luthier.core.contracts import Matrix, Support
from luthier.core.profile import ROLE_GROUPS, ROLES, ArchitectureProfile, RoleGroup

V = TypeVar("V")

ALL: Final = "all"
PROJECTIONS: Final = ("attn", "mlp", "mixer")
LINEAR_KINDS: Final = ("linear", "conv1d")
ROLE_WORDS: Final = {"attn": "attention projections", "mlp": "MLP projections", "experts": "expert weights"}


@dataclass(frozen=True, kw_only=True)
class Target:
    """One module of the model: its full name, what it is for, the decoder layer it stands in, and its size."""

    name: str
    role: str
    layer: int | None
    group: RoleGroup

    @property
    def is_linear(self) -> bool:
        return self.group.kind in LINEAR_KINDS

    @property
    def matrix(self) -> Matrix:
        """Its weight, as an optimizer's memory formula asks for it."""
        return Matrix(role=self.role, shape=self.group.shape)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of its weight and of its bias, where it has them."""
        group = self.group
        if not group.shape:
            return ()
        if not group.bias:
            return (group.shape,)
        out = group.out_features or group.shape[0]
        return group.shape, (group.experts, out) if group.kind == "parameter" and group.experts else (out,)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The modules that were meant, each once, and the words that meant none of this model."""

    targets: tuple[Target, ...]
    unmatched: tuple[str, ...] = ()
    outside: tuple[int, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(target.name for target in self.targets)

    def kinds(self, *kinds: str) -> tuple[Target, ...]:
        """Those whose module is of one of these kinds ("linear", "conv1d", "parameter", ...)."""
        return tuple(target for target in self.targets if target.group.kind in kinds)


@lru_cache(maxsize=16)
def every_target(profile: ArchitectureProfile) -> tuple[Target, ...]:
    """Every module with a role, in role order; one that plays two roles (a tied head) stands under the first."""
    found: dict[str, Target] = {}
    for role, groups in profile.roles.items():
        for group in groups:
            for layer, name in group.places:
                found.setdefault(name, Target(name=name, role=role, layer=layer, group=group))
    return tuple(found.values())


def select(
    profile: ArchitectureProfile,
    target: Sequence[str],
    *,
    exclude: Sequence[str] = (),
    layers: Sequence[int] | None = None,
) -> Selection:
    """Resolve the words of a configuration against a model.

    `all` is every linear projection of the decoder layers, routed experts excepted. With `layers`, modules outside the
    decoder layers are left out, unless a word of `target` names them and nothing inside the layers.
    """
    candidates = every_target(profile)
    inside = None if layers is None else {layer + profile.layers if layer < 0 else layer for layer in layers}
    wanted: dict[str, Target] = {}
    unmatched = []
    for word in target:
        matched = matching(word, candidates)
        if not matched:
            unmatched.append(word)
        kept = matched
        if inside is not None and any(one.layer is not None for one in matched):
            kept = [one for one in matched if one.layer in inside]
        wanted.update((one.name, one) for one in kept)
    dropped: set[str] = set()
    for word in exclude:
        matched = matching(word, candidates)
        if not matched:
            unmatched.append(word)
        dropped.update(one.name for one in matched)
    outside = tuple(sorted(layer for layer in layers or () if not -profile.layers <= layer < profile.layers))
    targets = tuple(one for one in candidates if one.name in wanted and one.name not in dropped)
    return Selection(targets=targets, unmatched=tuple(unmatched), outside=outside)


def matching(word: str, candidates: Iterable[Target]) -> list[Target]:
    """The modules that a word means: `all`, a role, a role group, the end of a name, or a pattern for the whole name."""
    if word == ALL:
        roles = {role for group in PROJECTIONS for role in ROLE_GROUPS.get(group, (group,))}
        return [one for one in candidates if one.role in roles and one.is_linear]
    if word in ROLES or word in ROLE_GROUPS:
        roles = set(ROLE_GROUPS.get(word, (word,)))
        return [one for one in candidates if one.role in roles]
    return [one for one in candidates if one.name == word or one.name.endswith(f".{word}") or fnmatchcase(one.name, word)]


def check(profile: ArchitectureProfile, selection: Selection, *, linear_only: bool = True) -> Support:
    """No, with the word or module that cannot be taken, else yes."""
    if selection.unmatched:
        return Support.no(*_unmatched(profile, selection.unmatched))
    if selection.outside:
        numbers = ", ".join(map(str, selection.outside))
        return Support.no(
            f"{profile.model_type} has no layers {numbers}", f"layers go from 0 to {profile.layers - 1}, or back from -1"
        )
    if not selection.targets:
        return Support.no(f"nothing in {profile.model_type} is left to train", "widen target, exclude or layers")
    odd = [target for target in selection.targets if not target.is_linear]
    if linear_only and odd:
        reason = f"{odd[0].group.pattern} is a {odd[0].group.kind} of {profile.model_type}, not a linear layer"
        return Support.no(reason, f"leave {odd[0].role} out of target")
    return Support.yes()


def _unmatched(profile: ArchitectureProfile, words: Sequence[str]) -> tuple[str, str]:
    known = [word for word in words if word in ROLES or word in ROLE_GROUPS or word == ALL]
    has = ", ".join(role for role, found in profile.roles.items() if any(group.kind in LINEAR_KINDS for group in found))
    if known:
        names = ", ".join(f"{word} ({ROLE_WORDS.get(word, ROLES.get(word, 'role'))})" for word in known)
        return f"{profile.model_type} has no modules of role {names}", f"take target from: {has}"
    word = words[0]
    near = difflib.get_close_matches(word, [*ROLES, *ROLE_GROUPS, ALL, *_leaves(profile)], n=1, cutoff=0.5)
    fix = f"did you mean `{near[0]}`?" if near else f"take target from: {has}"
    return f"no module of {profile.model_type} is called {word!r}, and there is no such role", fix


def _leaves(profile: ArchitectureProfile) -> set[str]:
    return {group.pattern.rpartition(".")[2] for groups in profile.roles.values() for group in groups}


def per_target(values: Mapping[str, V], targets: Collection[Target]) -> tuple[dict[str, V], tuple[str, ...]]:
    """Values given by role, role group or name, as one value by full module name; and the words that meant no target.

    Where several words mean the same module, the one that means the fewest modules decides.
    """
    matched = {word: matching(word, targets) for word in values}
    result: dict[str, V] = {}
    for word in sorted(matched, key=lambda word: -len(matched[word])):
        result.update((one.name, values[word]) for one in matched[word])
    return result, tuple(word for word, found in matched.items() if not found)


def holds_vocabulary(profile: ArchitectureProfile, targets: Iterable[Target]) -> bool:
    """Whether these modules have every row of the vocabulary: the embeddings, and the head where it is another matrix."""
    roles = {target.role for target in targets}
    if profile.tied_embeddings or not profile.has("head"):
        return bool(roles & {"embed", "head"})
    return {"embed", "head"} <= roles


def matrices(targets: Iterable[Target]) -> tuple[Matrix, ...]:
    """The weights of these modules by role and shape, counted."""
    counts: dict[tuple[str, tuple[int, ...]], int] = {}
    for target in targets:
        key = (target.role, target.group.shape)
        counts[key] = counts.get(key, 0) + 1
    return tuple(Matrix(role=role, shape=shape, count=count) for (role, shape), count in counts.items())


def whole(profile: ArchitectureProfile, targets: Iterable[Target], *, layers: int = 0) -> tuple[Matrix, ...]:
    """Every tensor of these modules by role and shape, counted: weights and biases, a tied matrix once.

    `layers` says how many decoder layers are meant as a whole: then their share of what has no role comes with them.
    Detection knows such vectors (gains, sinks) and modules in sum only; each layer is given the same number.
    """
    counts: dict[tuple[str, tuple[int, ...]], int] = {}
    tied = False
    for target in targets:
        if profile.tied_embeddings and target.role in ("embed", "head"):
            if tied:
                continue
            tied = True
        for shape in target.shapes:
            counts[target.role, shape] = counts.get((target.role, shape), 0) + 1
    found = [Matrix(role=role, shape=shape, count=count) for (role, shape), count in counts.items()]
    roleless = sum(profile.role_parameters.get(role, 0) for role in ("other", "unclassified"))
    share = roleless * layers // profile.layers if profile.layers else 0
    return (*found, Matrix(role="other", shape=(share,))) if share else tuple(found)


def every_matrix(profile: ArchitectureProfile) -> tuple[Matrix, ...]:
    """Every parameter of the model by role and shape; those that detection knows in sum only stand as one vector."""
    found = whole(profile, every_target(profile), layers=profile.layers)
    rest = profile.parameters - sum(matrix.size * matrix.count for matrix in found)
    return (*found, Matrix(role="other", shape=(rest,))) if rest > 0 else found
