"""The options of a tuner as a dataclass of ours, typed from PEFT's own configuration class: checked while planning."""

from __future__ import annotations

import dataclasses
import enum
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, Final, Literal

import peft
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from luthier.core.config.types import branches, is_union
from luthier.core.config.validate import parse_options
from luthier.core.errors import PlanRefused
from luthier.core.options import option

# What this plugin sets, or has an option of its own for.
OURS: Final = {
    "target_modules": "target",
    "exclude_modules": "exclude",
    "layers_to_transform": "layers",
    "layers_pattern": "layers",
    "feedforward_modules": "target",
    "fan_in_fan_out": "",
    "num_layers": "",
    "token_dim": "",
    "num_attention_heads": "",
    "num_transformer_submodules": "",
}
# They would make something train that is neither counted nor switched off with the adapter.
NOT_OFFERED: Final = {"modules_to_save": "", "bias": "none"}


def config_class(tuner: str) -> Any:
    """PEFT's configuration class of a tuner; None where the installed PEFT has none of this name."""
    try:
        return PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(tuner.upper())]
    except (KeyError, ValueError):
        return None


@cache
def option_class(tuner: str) -> type:
    """A frozen dataclass of the options that may be given, with PEFT's defaults, types and sentences."""
    cls = config_class(tuner)
    inherited = {field.name for field in dataclasses.fields(peft.PeftConfig)}
    hints = typing.get_type_hints(cls)
    offered = []
    for field in dataclasses.fields(cls):
        if field.name in inherited or field.name in OURS or field.name in NOT_OFFERED:
            continue
        described = option(field.default, field.metadata.get("help", ""), factory=field.default_factory)
        offered.append((field.name, _plain(hints[field.name]), described))
    made = dataclasses.make_dataclass(f"{cls.__name__}Options", offered, frozen=True, kw_only=True)
    made.__doc__ = f"Options of PEFT's {tuner}."
    return made


def _plain(hint: Any) -> Any:
    """PEFT takes a member of an enumeration or its text: of the two only the texts it knows."""
    if not is_union(hint):
        return hint
    members = [branch for branch in branches(hint) if isinstance(branch, type) and issubclass(branch, enum.Enum)]
    return Literal[tuple(str(member.value) for member in members[0])] if members else hint


def wrong(tuner: str, options: Mapping[str, Any]) -> tuple[str, str]:
    """(what is wrong with these options, how to mend it); empty texts where PEFT would take them."""
    for key in options:
        if key in OURS:
            own = f"write `{OURS[key]}` beside `options`" if OURS[key] else "leave it out: it follows from the model"
            return f"options.{key}: is not given here", own
        if key in NOT_OFFERED:
            return f"options.{key}: weights of the base model would train beside the tuner's", "leave it out"
    try:
        parse_options(option_class(tuner), options, where="options")
    except PlanRefused as refused:
        first = refused.problems[0]
        return "; ".join(f"{problem.where}: {problem.reason}" for problem in refused.problems), first.fix
    return "", ""
