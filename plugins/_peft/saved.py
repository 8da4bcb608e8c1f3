"""A saved adapter, looked at without loading it: its configuration, and the names and shapes of its tensors.

A safetensors file begins with the length of its header (8 bytes, little-endian) and the header as JSON
(https://huggingface.co/docs/safetensors): names and shapes are known while a run is planned. Standard library only.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from luthier.core.contracts import Support
from luthier.core.errors import ModelError
from luthier.core.profile import ArchitectureProfile
from luthier.core.saving import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from luthier.core.scoring import score_targets
from luthier.core.targets import every_target
from luthier.plugins._peft.lora_layout import Update, planned_updates
from luthier.plugins._peft.lora_options import LowRankOptions

PREFIX: Final = "base_model.model."
FACTOR_A, FACTOR_B = ".lora_A.weight", ".lora_B.weight"
LARGEST_HEADER: Final = 100_000_000
MERGE_FIRST: Final = "merge it into the model first, where it can be folded: `model: {name: RUN, adapters: merge}`"
CHANGED_BASE: Final = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, kw_only=True)
class SavedAdapter:
    """`shapes` by tensor name as in the file, without the prefix that PEFT puts before the base model's names."""

    folder: Path
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def modules(self) -> tuple[str, ...]:
        """The adapted modules, as the file names them."""
        return tuple(name.removesuffix(FACTOR_A) for name in self.shapes if name.endswith(FACTOR_A))

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def more(self) -> tuple[str, ...]:
        """Tensors that are no factors of an update."""
        return tuple(name for name in self.shapes if not name.endswith((FACTOR_A, FACTOR_B)))

    def scale(self, parameter: str) -> float:
        """What the update of a module (or, for fused experts, of the parameter) is multiplied by."""
        rank = _by_pattern(self.config.get("rank_pattern") or {}, parameter, self.config.get("r", 8))
        alpha = _by_pattern(self.config.get("alpha_pattern") or {}, parameter, self.config.get("lora_alpha", 8))
        return float(alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank))


def _by_pattern(pattern: Mapping[str, Any], name: str, default: Any) -> Any:
    """PEFT's rule: the first key that is the name, or the end of it after a dot, as a regular expression."""
    import re

    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", name)), default)


def read_saved(folder: str) -> SavedAdapter:
    """Raises ModelError, naming the file, where the folder is no saved adapter or cannot be read."""
    place = Path(folder).expanduser()
    config = _read_json(place / ADAPTER_CONFIG)
    path = place / ADAPTER_WEIGHTS
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > LARGEST_HEADER:
                raise ValueError("it is no safetensors file")
            header = json.loads(file.read(length))
        shapes = {
            name.removeprefix(PREFIX): tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ModelError(f"the weights of the adapter cannot be read: {error}", where=str(path)) from error
    return SavedAdapter(folder=place, config=config, shapes=shapes)


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        fix = "give a run's output folder, or a folder that PEFT saved"
        raise ModelError(f"no saved adapter is here: {error.strerror}", where=str(path), fix=fix) from error
    except ValueError as error:
        raise ModelError(f"the configuration of the adapter cannot be read: {error}", where=str(path)) from error
    if not isinstance(config, dict):
        raise ModelError("the configuration of the adapter is no JSON object", where=str(path))
    return config


def check_continued(profile: ArchitectureProfile, options: LowRankOptions, *, dora: bool = False) -> Support:
    """Whether the adapter in `continue_from` has exactly the updates that this run trains; else no, with what differs."""
    if options.continue_from is None:
        return Support.yes()
    where = f"continue_from: {options.continue_from}"
    try:
        saved = read_saved(options.continue_from)
    except ModelError as error:
        return Support.no(f"continue_from: {error.message} ({error.where})", error.fix)
    support = _check_kind(saved, where, dora=dora)
    if not support:
        return support
    wanted = {update.target.name: update for update in planned_updates(profile, options)}
    names = file_names(list(wanted.values()))
    missing = [name for name in wanted if f"{names[name]}{FACTOR_A}" not in saved.shapes]
    extra = sorted(set(saved.modules) - set(names.values()))
    if missing or extra:
        what = (
            f"does not adapt {missing[0]}, which this run does" if missing else f"adapts {extra[0]}, which this run does not"
        )
        return Support.no(f"{where} {what}", "set target, exclude and layers to what the saved adapter has")
    for name, update in wanted.items():
        shapes = tuple(saved.shapes.get(names[name] + suffix, ()) for suffix in (FACTOR_A, FACTOR_B))
        if shapes != update.shapes:
            return _misfit(where, update, shapes)
        scale = saved.scale(name)
        if not math.isclose(scale, update.scale, rel_tol=1e-6):
            alpha = scale * update.alpha / update.scale
            return Support.no(
                f"{where} scales the update of {name} by {scale:g}, and this run by {update.scale:g}",
                f"set alpha to {alpha:g}",
            )
    return _check_beside(saved, options, where, scores=bool(score_targets(profile)))


def _misfit(where: str, update: Update, shapes: Sequence[tuple[int, ...]]) -> Support:
    name = update.target.name
    experts = update.stacked_rank // update.rank
    rank, rest = divmod(shapes[0][0], experts)
    if len(shapes[0]) == len(shapes[1]) == 2 and not rest and rank != update.rank:
        return Support.no(f"{where} has rank {rank} on {name}, and this run {update.rank}", f"set rank to {rank}")
    return Support.no(
        f"{where} is of another model: its update of {name} has shapes {list(shapes)}", "take the base it was made for"
    )


def _check_kind(saved: SavedAdapter, where: str, *, dora: bool) -> Support:
    kind = saved.config.get("peft_type")
    if kind != "LORA":
        return Support.no(f"{where} is an adapter of kind {kind}, not a LoRA", "")
    if bool(saved.config.get("use_dora")) != dora:
        has, other = ("is", "dora") if saved.config.get("use_dora") else ("is not", "lora")
        return Support.no(f"{where} {has} a DoRA adapter", f"take adapter: {other}")
    start = saved.config.get("init_lora_weights", True)
    if isinstance(start, str) and start.startswith(CHANGED_BASE):
        return Support.no(
            f"{where} was saved beside base weights that {start} had changed: it does not fit the original ones",
            "save it again as a plain LoRA (PEFT: path_initial_model_for_weight_conversion); Luthier's runs are saved so",
        )
    return Support.yes()


def _check_beside(saved: SavedAdapter, options: LowRankOptions, where: str, *, scores: bool) -> Support:
    """What trains beside the updates; names of modules are compared when it is loaded."""
    if scores != (saved.config.get("task_type") == "SEQ_CLS"):
        has = "has no score head: it was trained on a language model" if scores else "is a reward model's, with a score head"
        ways = (
            "start from that run (`model: FOLDER`), or name it in stack_on"
            if scores
            else "take an adapter of a language model"
        )
        return Support.no(f"{where} {has}", ways)
    pairs = (
        ("bias", saved.config.get("bias", "none"), options.bias),
        ("modules_to_save", bool(saved.config.get("modules_to_save")), bool(options.modules_to_save) or scores),
        (
            "trainable_tokens",
            bool(saved.config.get("trainable_token_indices")),
            bool(options.trainable_tokens) or options.new_tokens,
        ),
    )
    for name, theirs, ours in pairs:
        if theirs != ours:
            words = {True: "has", False: "has no"}
            what = f"was trained with {name}: {theirs}" if name == "bias" else f"{words[bool(theirs)]} {name}"
            return Support.no(f"{where} {what}, unlike this run", f"set {name} to what the saved adapter has")
    return Support.yes()


def check_stacked(profile: ArchitectureProfile, options: LowRankOptions, folders: Sequence[str]) -> Support:
    """Whether the adapters in these folders can stay, frozen, below the one that trains."""
    if len({Path(folder).expanduser().resolve() for folder in folders}) != len(folders):
        return Support.no("stack_on: a folder is named twice", "name each once")
    made = planned_updates(profile, options)
    own_experts = {update.target.name for update in made if update.is_fused}
    known = {target.name: target for target in every_target(profile)}
    for folder in folders:
        where = f"stack_on: {folder}"
        try:
            saved = read_saved(folder)
        except ModelError as error:
            return Support.no(f"stack_on: {error.message} ({error.where})", error.fix)
        support = _check_kind(saved, where, dora=False)
        if not support:
            return Support.no(support.reason, MERGE_FIRST)
        if saved.more:
            return Support.no(
                f"{where} holds more than low-rank updates ({saved.more[0]}): two of those cannot be added up", MERGE_FIRST
            )
        experts = set(saved.config.get("target_parameters") or ())
        foreign = [name for name in saved.modules if not experts and name not in known]
        if foreign:
            return Support.no(f"{where} is of another model: {profile.model_type} has no {foreign[0]}")
        for name in saved.modules if not experts else ():
            group = known[name].group
            shapes = saved.shapes[name + FACTOR_A], saved.shapes.get(name + FACTOR_B, ())
            if (shapes[0][-1:], shapes[1][:1]) != ((group.in_features,), (group.out_features,)):
                return Support.no(f"{where} is of another model: its update of {name} has shapes {list(shapes)}")
        ends = {name for name in own_experts if any(name == one or name.endswith(f".{one}") for one in experts)}
        if experts and ends != own_experts:
            return Support.no(
                f"{where} adapts expert weights, and PEFT needs all adapters of a model to adapt the same ones",
                "target the same experts",
            )
    return Support.yes()


def file_names(made: Sequence[Update]) -> dict[str, str]:
    """Module names as the file of an adapter has them, by target name.

    PEFT wraps the module of fused experts once for each of its parameters, the last one outermost.
    """
    names = {update.target.name: update.target.name for update in made if not update.is_fused}
    owners: dict[str, list[str]] = {}
    for update in made:
        if update.is_fused:
            owners.setdefault(update.target.name.rpartition(".")[0], []).append(update.target.name)
    return names | {
        name: owner + ".base_layer" * depth
        for owner, inside in owners.items()
        for depth, name in enumerate(reversed(inside))
    }
