"""PEFT's LoRA, with or without DoRA's magnitudes, on exactly what the options mean for the model.

What trains beside the updates comes along: modules in whole, biases, rows of the embeddings. PEFT keeps the trained copy of
a module beside the original, which is why disabling the adapter gives the base model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import peft
import torch
from torch import nn

from luthier.core.context import BuildContext
from luthier.core.contracts import NothingPatched
from luthier.core.errors import ConfigError
from luthier.core.profile import ArchitectureProfile
from luthier.core.saving import load_peft
from luthier.core.scoring import SCORE
from luthier.plugins._peft.layers import shortest_targets, task_type, wrap
from luthier.plugins._peft.lora_layout import Update, planned_updates, row_modules, whole_modules
from luthier.plugins._peft.lora_options import LowRankOptions
from luthier.plugins._peft.whole import prepare_whole_modules, restore_whole_modules

V = TypeVar("V")


def adapt(
    model: nn.Module,
    profile: ArchitectureProfile,
    options: LowRankOptions,
    context: BuildContext | None,
    *,
    method: str,
    init: bool | str = True,
    use_dora: bool = False,
) -> Any:
    """The model wrapped by PEFT, base frozen, all that the options name trainable, the updates in float32.

    Raises NothingPatched where the loaded model lacks what its profile names, ConfigError for a token that is not in the
    vocabulary, ModelError where `continue_from` does not fit.
    """
    made = planned_updates(profile, options)
    wanted = [update.target.name for update in made if not update.is_fused]
    parameters = [update.target.name for update in made if update.is_fused]
    config = peft_config(model, profile, options, made, init=init, use_dora=use_dora)
    rows = row_modules(profile, options)
    if rows:
        ids = token_ids(model, options, context, method=method)
        config.trainable_token_indices = {target.name: ids for target in rows}
    adapted = wrap(model, config, wanted, method=method, parameters=parameters)
    prepare_whole_modules(adapted, method=method)
    if options.continue_from is not None:
        load_peft(adapted, Path(options.continue_from).expanduser(), trainable=True)
    return adapted


def peft_config(
    model: nn.Module,
    profile: ArchitectureProfile,
    options: LowRankOptions,
    made: Sequence[Update],
    *,
    init: bool | str = True,
    use_dora: bool = False,
) -> peft.LoraConfig:
    """The options in PEFT's words, with the shortest names that mean the same modules."""
    names = {name for name, _ in model.named_modules()}
    wanted = [update.target.name for update in made if not update.is_fused]
    everywhere = [update.target.name for update in made]
    alpha = options.alpha if options.alpha is not None else 2.0 * options.rank
    ranks = {update.target.name: update.rank for update in made if update.rank != options.rank}
    alphas = {update.target.name: update.alpha for update in made if update.alpha != alpha}
    # PEFT adds the score head itself, by its task_type.
    whole = [target.name for target in whole_modules(profile, options) if target.role != SCORE]
    return peft.LoraConfig(
        r=options.rank,
        lora_alpha=alpha,
        lora_dropout=options.dropout,
        target_modules=shortest_targets(wanted, names) if wanted else [],
        target_parameters=[update.target.name for update in made if update.is_fused] or None,
        rank_pattern=shortest_pattern(ranks, everywhere),
        alpha_pattern=shortest_pattern(alphas, everywhere),
        use_rslora=options.rslora,
        use_dora=use_dora,
        bias=options.bias,
        modules_to_save=whole or None,
        init_lora_weights=init,
        fan_in_fan_out=any(update.target.group.kind == "conv1d" for update in made),
        task_type=task_type(profile),
    )


def shortest_pattern(values: Mapping[str, V], names: Iterable[str]) -> dict[str, V]:
    """By last name component, where all of `names` that end in it have the same value, else by full name."""
    by_leaf: dict[str, set[V | None]] = {}
    for name in names:
        by_leaf.setdefault(name.rpartition(".")[2], set()).add(values.get(name))
    pattern: dict[str, V] = {}
    for name, value in values.items():
        leaf = name.rpartition(".")[2]
        pattern[leaf if by_leaf[leaf] == {value} else name] = value
    return pattern


# ---- what trains beside the updates


def token_ids(model: Any, options: LowRankOptions, context: BuildContext | None, *, method: str) -> list[int]:
    """The ids of `trainable_tokens` and of `new_tokens`, sorted. Raises ConfigError for a token that is not there."""
    tokenizer = context.tokenizer if context is not None else None
    ids = {one for one in options.trainable_tokens if isinstance(one, int)}
    words = [one for one in options.trainable_tokens if isinstance(one, str)]
    if (words or options.new_tokens) and tokenizer is None:
        raise ConfigError("tokens given as text need the run's tokenizer", where="adapter.trainable_tokens", fix="give ids")
    if words:
        assert tokenizer is not None
        vocabulary = tokenizer.get_vocab()
        lost = [word for word in words if word not in vocabulary]
        if lost:
            raise ConfigError(
                f"{lost[0]!r} is no token of this model",
                where="adapter.trainable_tokens",
                fix="add it to the vocabulary with patches: [{use: new_tokens, ...}], or write it as the tokenizer does",
            )
        ids |= {vocabulary[word] for word in words}
    if options.new_tokens:
        assert context is not None
        assert tokenizer is not None
        assert context.original_tokenizer is not None
        added = set(tokenizer.get_vocab().values()) - set(context.original_tokenizer.get_vocab().values())
        if not added:
            raise NothingPatched(f"{method}: new_tokens is set, but no patch of this run added a token to the vocabulary")
        ids |= added
    rows = model.get_input_embeddings().weight.shape[0]
    beyond = sorted(one for one in ids if not 0 <= one < rows)
    if beyond:
        raise ConfigError(
            f"token {beyond[0]} is beyond the {rows} rows of the embeddings",
            where="adapter.trainable_tokens",
            fix="correct it",
        )
    return sorted(ids)


def fold(model: Any) -> nn.Module:
    """The base model with every update added to its weight, and what trained in whole in its place."""
    restore_whole_modules(model)
    merged: nn.Module = model.merge_and_unload()
    return merged


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """PEFT's layers that hold an update, by their name in the wrapped model; experts' wrappers too."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def each_linear(model: nn.Module, made: Sequence[Update]) -> dict[str, Any]:
    """The same by the module's name in the base model, linear layers only."""
    linear = {update.target.name for update in made if not update.is_fused}
    layers = {name.removeprefix("base_model.model."): layer for name, layer in lora_layers(model).items()}
    return {name: layer for name, layer in layers.items() if name in linear}


def base_weight(layer: Any) -> torch.Tensor:
    """(out, in) float32 weight below an update."""
    return weight_of(layer.get_base_layer())


def weight_of(module: Any) -> torch.Tensor:
    """(out, in) float32 weight of a linear layer; a quantised one dequantised, a Conv1D's turned round."""
    from peft.utils.integrations import dequantize_module_weight
    from transformers.pytorch_utils import Conv1D

    weight: torch.Tensor = dequantize_module_weight(module).detach().float()
    return weight.T if isinstance(module, Conv1D) else weight
