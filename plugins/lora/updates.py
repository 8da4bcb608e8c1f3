"""PEFT's LoRA on the modules that play the wanted roles, and on exactly those."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import TYPE_CHECKING

import peft
from torch import nn

from luthier.core.contracts import NothingPatched
from luthier.core.profile import ArchitectureProfile

if TYPE_CHECKING:
    from luthier.plugins.lora import LoraConfig


def attach_lora(model: nn.Module, profile: ArchitectureProfile, config: LoraConfig) -> nn.Module:
    """The model wrapped by PEFT, base frozen, updates in float32; raises NothingPatched when a module is missing."""
    from luthier.plugins.lora import target_groups

    groups = target_groups(profile, config)
    wanted = {name for group in groups for name in group.names}
    names = {name for name, _ in model.named_modules()}
    if not wanted or not wanted <= names:
        lost = sorted(wanted - names)[:3]
        raise NothingPatched(
            f"lora: the loaded model lacks the modules that its profile names: {', '.join(lost) or 'none named'}"
        )
    options = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.scaling_alpha,
        lora_dropout=config.dropout,
        target_modules=shortest_targets(wanted, names),
        init_lora_weights="gaussian" if config.init == "gaussian" else True,
        fan_in_fan_out=any(group.kind == "conv1d" for group in groups),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # PEFT still asks transformers by the names that 5.23 deprecates.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        adapted = peft.get_peft_model(model, options)
    found = set(adapted.base_model.targeted_module_names)
    if found != wanted:
        raise NothingPatched(f"lora: PEFT adapted {len(found)} modules where {len(wanted)} were wanted")
    return adapted


def shortest_targets(wanted: Collection[str], names: Collection[str]) -> list[str]:
    """Last path components (`q_proj`) where they single out exactly the wanted modules, else full names.

    PEFT adapts a module when its name equals a target or ends in "." + target; other tools read the short form best.
    """
    suffixes = {name.rpartition(".")[2] for name in wanted}
    matched = {name for name in names if name.rpartition(".")[2] in suffixes}
    return sorted(suffixes) if matched == set(wanted) else sorted(wanted)
