"""Which weights GaLore projects: told from the profile for the plan, found in the model for the run.

galore: 14 weights are projected to rank 16; 4 with a side of at most 16 are not, they move by AdamW as the rest does
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from luthier.core.contracts import NothingPatched, Support
from luthier.core.optimizing import role_finder, trained_parameters
from luthier.core.profile import ArchitectureProfile
from luthier.core.targets import ALL, LINEAR_KINDS, Selection, Target, check, select
from luthier.plugins.galore.shapes import fits

if TYPE_CHECKING:
    from torch import nn

    from luthier.plugins.galore import GaloreConfig

# What has a weight of two dimensions, or a stack of them.
MATRIX_KINDS: Final = (*LINEAR_KINDS, "embedding", "parameter")
DEFAULT_SHARE: Final = 4


def rank_of(profile: ArchitectureProfile, config: GaloreConfig) -> int:
    """The rank of the options; null is a quarter of the hidden size, as in the paper's table 2 for 350M to 7B parameters."""
    return config.rank if config.rank is not None else max(1, profile.hidden_size // DEFAULT_SHARE)


def selected(profile: ArchitectureProfile, config: GaloreConfig) -> Selection:
    """The modules that the options mean; null means every projection of the decoder layers, and routed experts."""
    if config.roles is not None:
        return select(profile, config.roles)
    found = select(profile, [word for word in (ALL, "experts") if word == ALL or profile.has(word)])
    return Selection(targets=tuple(target for target in found.targets if _is_matrix(target)))


def _is_matrix(target: Target) -> bool:
    return target.group.kind in MATRIX_KINDS and len(target.group.shape) in (2, 3)


def weight_name(target: Target) -> str:
    """The name of the parameter: a module's weight, or a bare parameter itself."""
    return target.name if target.group.kind == "parameter" else f"{target.name}.weight"


def check_weights(profile: ArchitectureProfile, config: GaloreConfig) -> Support:
    """No where a word means nothing here or what has no matrix, and where the rank leaves nothing to project."""
    selection, rank = selected(profile, config), rank_of(profile, config)
    answer = check(profile, selection, linear_only=False)
    if not answer:
        fix = answer.fix.replace("take target from", "take roles from").replace(
            "widen target, exclude or layers", "widen roles"
        )
        return Support.no(answer.reason.replace("is left to train", "is a projection of the decoder layers"), fix)
    odd = [target for target in selection.targets if not _is_matrix(target)]
    if odd:
        group = odd[0].group
        reason = f"{group.pattern} is a {group.kind} of shape {list(group.shape)}, not a matrix or a stack of matrices"
        return Support.no(reason, f"leave {odd[0].role} out of roles")
    sides = [min(target.group.shape[-2:]) for target in selection.targets]
    if max(sides) <= rank:
        reason = f"at rank {rank} nothing in {profile.model_type} is left to project: the longest short side is {max(sides)}"
        return Support.no(reason, f"take a rank below {max(sides)}")
    return Support.yes()


@dataclass(frozen=True, kw_only=True)
class Split:
    """The parameters that train, by name: projected, and moved by AdamW. `too_small` of the latter were meant."""

    projected: dict[str, nn.Parameter]
    others: dict[str, nn.Parameter]
    too_small: int
    rank: int

    def __str__(self) -> str:
        text = f"galore: {len(self.projected)} weights are projected to rank {self.rank}"
        if self.too_small:
            text += f"; {self.too_small} with a side of at most {self.rank} are not, they move by AdamW as the rest does"
        return text


def split(model: nn.Module, profile: ArchitectureProfile, config: GaloreConfig) -> Split:
    """What trains, told apart. Raises NothingPatched where none of it can be projected."""
    selection, rank = selected(profile, config), rank_of(profile, config)
    names = {weight_name(target) for target in selection.targets}
    counts = Counter(target.group for target in selection.targets)
    # Of what is selected whole, also those in layers that an adapter added: the profile does not know their names.
    whole = {group for group, count in counts.items() if count == group.count}
    place = role_finder(profile)

    def is_meant(name: str, weight: nn.Parameter) -> bool:
        found = place(name, weight.shape)
        return name in names or (found is not None and found[1] in whole and found[1].shape == tuple(weight.shape))

    # A tied weight has two names, and is meant when either is.
    meant = {id(weight) for name, weight in model.named_parameters(remove_duplicate=False) if is_meant(name, weight)}
    trained = trained_parameters(model)
    projected = {name: p for name, p in trained.items() if id(p) in meant and fits(tuple(p.shape), rank)}
    others = {name: p for name, p in trained.items() if name not in projected}
    if not projected:
        raise NothingPatched(
            f"galore: of the {len(trained)} parameters that train, none can be projected to rank {rank}",
            where="optimizer: galore",
            fix="let the adapter train projections that `optimizer.roles` names, with both sides above the rank",
        )
    too_small = sum(id(p) in meant for p in others.values())
    return Split(projected=projected, others=others, too_small=too_small, rank=rank)
