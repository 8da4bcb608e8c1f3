"""`role_finder`: what a parameter is for, by its name in the loaded model, wrapped or not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from luthier.core.optimizing import role_finder
from luthier.plugins import lora
from luthier.plugins.lora import LoraConfig

Load = Callable[[str], tuple[Any, Any]]


def test_every_parameter_has_the_role_that_the_profile_gives_it(kind: str, load: Load) -> None:
    model, profile = load(kind)
    find = role_finder(profile)
    for name, parameter in model.named_parameters():
        place = find(name, parameter.shape)
        assert place is not None, name
        role, group = place
        assert name in group.names or name.rpartition(".")[0] in group.names
        if parameter.ndim > 1:
            assert group.shape == parameter.shape
            assert name.removesuffix(".weight") in profile.modules(role) or name in profile.modules(role)


def test_under_pefts_wrapping(load: Load) -> None:
    model, profile = load("llama")
    model = lora.attach(model, profile, LoraConfig(rank=4, modules_to_save=("head",)))
    find = role_finder(profile)
    found = {}
    for name, parameter in model.named_parameters():
        place = find(name, parameter.shape)
        found[name] = place[0] if place else None
    assert found["base_model.model.model.layers.1.self_attn.q_proj.base_layer.weight"] == "attn.q"
    assert found["base_model.model.lm_head.modules_to_save.default.weight"] == "head"
    factors = {name: role for name, role in found.items() if ".lora_" in name}
    assert factors
    assert set(factors.values()) == {None}


def test_a_layer_that_was_added_counts_like_the_others(load: Load) -> None:
    model, profile = load("mixtral")
    model.model.layers.append(copy.deepcopy(model.model.layers[0]))
    find = role_finder(profile)
    place = find("model.layers.2.mlp.experts.down_proj", model.model.layers[2].mlp.experts.down_proj.shape)
    assert place is not None
    assert place[0] == "mlp.experts.down"
