"""A LoRA that stands on more than its base: saved as one plain LoRA of the original model, and read back into its parts.

    trained     s  B A
    started at  s  B0 A0     taken out of the base weights at attach (starts.py)
    below       s1 B1 A1     adapters that stay as they were (`stack_on`)

    file:  A = [A; A0; A1]    B = [B, -B0, (s1/s) B1]    rank r + r + r1, alpha such that the scale is s

The base model with the file on it computes what was trained: W x + s (B A - B0 A0) x + s1 B1 A1 x. Fused experts hold one
such pair for each expert.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from luthier.core.references import TRAINED
from luthier.core.saving import ADAPTER_WEIGHTS, adapter_state, load_peft, misfit, read_weights, require_keys, save_peft
from luthier.plugins._peft.low_rank import lora_layers, shortest_pattern
from luthier.plugins._peft.whole import tie_whole_modules
from luthier.plugins.lora.starts import START_A, START_B, add_to_base


@dataclass(frozen=True)
class Part:
    """One pair of factors of a layer: A (experts, rank, in), B (out, rank, experts), its scale, and what it is."""

    kind: str
    a: Tensor
    b: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[1]


def save(model: Any, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors: a plain LoRA of the original base model."""
    layers = {name: parts for name, layer in lora_layers(model).items() if (parts := parts_of(layer))}
    if all([part.kind for part in parts] == [TRAINED] for parts in layers.values()):
        save_peft(model, folder)
        return
    state = adapter_state(model)
    ranks, alphas = {}, {}
    for name, parts in layers.items():
        a, b, scale = joined(parts)
        state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"] = a, b
        key = parameter_name(name, model.get_submodule(name))
        ranks[key] = sum(part.rank for part in parts)
        alphas[key] = scale * ranks[key]
    config = copy.deepcopy(model.peft_config[TRAINED])
    config.r, config.lora_alpha = max(ranks.values()), alphas[max(ranks, key=lambda key: ranks[key])]
    config.rank_pattern = shortest_pattern({key: rank for key, rank in ranks.items() if rank != config.r}, ranks)
    config.alpha_pattern = shortest_pattern({key: one for key, one in alphas.items() if one != config.lora_alpha}, alphas)
    config.use_rslora = False  # the scale is in alpha
    fused = {key for name, key in zip(layers, ranks, strict=True) if is_wrapper(model.get_submodule(name))}
    config.target_modules = sorted(set(ranks) - fused)
    config.target_parameters = sorted(fused) or None
    config.init_lora_weights = True
    config.inference_mode = True
    save_file({name: _plain(tensor) for name, tensor in state.items()}, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def _plain(tensor: Tensor) -> Tensor:
    """A copy: tied matrices lie in one storage, and safetensors refuses that."""
    return tensor.detach().cpu().clone().contiguous()


def load(model: Any, folder: Path, trainable: bool) -> nn.Module:
    """Fill an attached model from what `save` wrote, or attach it to a plain one.

    What a run started from and stands on is in the file: where an initialisation came out differently this time, the base
    weights are corrected. Raises ModelError where the file is of other options or of another model.
    """
    from peft import PeftModel

    layers = {name: layer for name, layer in lora_layers(model).items() if parts_of(layer)}
    if not isinstance(model, PeftModel) or all([p.kind for p in parts_of(one)] == [TRAINED] for one in layers.values()):
        loaded = load_peft(model, folder, trainable)
        tie_whole_modules(loaded)
        return loaded
    path = folder / ADAPTER_WEIGHTS
    weights = read_weights(path)
    own = {key for name in layers for key in (f"{name}.lora_A.weight", f"{name}.lora_B.weight")}
    require_keys(set(weights), set(adapter_state(model)) | own, path)
    with torch.no_grad():
        for name, layer in layers.items():
            _fill(name, layer, weights.pop(f"{name}.lora_A.weight"), weights.pop(f"{name}.lora_B.weight"), path)
        _fill_beside(model, weights)
    if not trainable:
        model.requires_grad_(False)
    return model


def _fill(name: str, layer: Any, a: Tensor, b: Tensor, path: Path) -> None:
    parts = parts_of(layer)
    experts = experts_of(layer)
    rank = sum(part.rank for part in parts)
    if (a.shape[0], b.shape[1]) != (experts * rank, experts * rank) or a.shape[1] != parts[0].a.shape[2]:
        raise misfit(
            path, f"{name} has an update of shapes {list(a.shape)}, {list(b.shape)}, and {experts * rank} rows are needed"
        )
    a, b = a.reshape(experts, rank, -1), b.reshape(-1, rank, experts)
    first = 0
    for part in parts:
        here = slice(first, first + part.rank)
        first += part.rank
        piece_a, piece_b = a[:, here].to(part.a), b[:, here].to(part.b)
        if part.kind == TRAINED:
            layer.lora_A[TRAINED].weight.copy_(piece_a.reshape(layer.lora_A[TRAINED].weight.shape))
            layer.lora_B[TRAINED].weight.copy_(piece_b.reshape(layer.lora_B[TRAINED].weight.shape))
        elif part.kind == START_A:
            _start_again(layer, piece_a[0], -piece_b[..., 0])
        elif not torch.allclose(piece_a, part.a) or not torch.allclose(piece_b * parts[0].scale, part.b * part.scale):
            raise misfit(path, f"the adapter that it was stacked on has changed since ({name}, {part.kind})")


def _start_again(layer: Any, a: Tensor, b: Tensor) -> None:
    if torch.equal(a, layer.start_A) and torch.equal(b, layer.start_B):
        return
    scale = layer.scaling[TRAINED]
    add_to_base(layer, layer.start_A, layer.start_B, scale)
    add_to_base(layer, a, b, -scale)
    layer.start_A.copy_(a)
    layer.start_B.copy_(b)


def _fill_beside(model: Any, weights: dict[str, Tensor]) -> None:
    """What trains beside the updates: modules in whole, biases, rows of the embeddings."""
    from peft.utils.other import AuxiliaryTrainingWrapper

    places = {name: name for name in weights}
    for name, module in model.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            inside = module.adapter_state_dict_load_map(TRAINED)
            places |= {f"{name}.{key}": f"{name}.{place}" for key, place in inside.items()}
    state = model.state_dict(keep_vars=True)
    for name, tensor in weights.items():
        state[places[name]].copy_(tensor)


# ---- the parts of a layer


def parts_of(layer: Any) -> list[Part]:
    """What a layer adds to its weight, in the order of the file; what is kept beside it and is not active, as a
    frozen copy of it or the adapter of another role, adds nothing."""
    experts = experts_of(layer)
    parts = []
    for name in sorted(set(layer.lora_A) & set(layer.active_adapters), key=lambda name: (name != TRAINED, name)):
        a, b = layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach()
        rank = layer.r[name]
        parts.append(Part(name, a.reshape(experts, rank, -1), b.reshape(-1, rank, experts), layer.scaling[name]))
        if name == TRAINED and hasattr(layer, START_A):
            a, b = getattr(layer, START_A), getattr(layer, START_B)
            parts.append(Part(START_A, a[None], -b[..., None], layer.scaling[name]))
    return parts


def joined(parts: Sequence[Part]) -> tuple[Tensor, Tensor, float]:
    """A and B of the sum as PEFT lays them out, and the scale of the sum, which is that of the first."""
    scale = parts[0].scale
    a = torch.cat([part.a for part in parts], dim=1)
    b = torch.cat([part.b if part.scale == scale else part.b * (part.scale / scale) for part in parts], dim=1)
    return a.reshape(-1, a.shape[-1]), b.reshape(b.shape[0], -1), scale


def is_wrapper(layer: Any) -> bool:
    """Whether the layer wraps a bare parameter."""
    return hasattr(layer, "parameter_name")


def experts_of(layer: Any) -> int:
    return int(layer.num_experts) if is_wrapper(layer) else 1


def parameter_name(name: str, layer: Any) -> str:
    """The name in the base model of what is adapted: a module, or a parameter of fused experts."""
    name = name.removeprefix("base_model.model.")
    return f"{name.replace('.base_layer', '')}.{layer.parameter_name}" if is_wrapper(layer) else name
