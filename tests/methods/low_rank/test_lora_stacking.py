"""Going on from a saved adapter, and training on top of saved ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.plugins import lora
from luthier.plugins.lora import LoraConfig


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() <= 3e-5 * other.abs().max())


def saved(kit: Any, kind: str, folder: Path, name: str = "lora", **options: Any) -> tuple[Path, torch.Tensor]:
    """(folder of a trained adapter, its logits)"""
    model, _, _ = kit.attach(kind, name, **options)
    kit.train(model)
    return kit.save(model, folder, name), kit.logits(model)


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        ("llama", "lora", {"rank": 4}),
        ("llama", "dora", {"rank": 4, "alpha": 6.0, "rslora": True}),
        ("gpt2", "lora", {"rank": 4, "bias": "all", "rank_pattern": {"attn.o": 2}}),
        ("gemma2", "lora", {"rank": 4, "modules_to_save": ("embed",)}),
        ("phi3", "lora", {"rank": 4, "trainable_tokens": (3, 4)}),
        ("mixtral", "lora", {"rank": 4, "target": ("attn", "experts"), "rank_pattern": {"experts": 2}}),
    ],
)
def test_continuing_starts_where_the_saved_one_ended(
    kit: Any, kind: str, name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    folder, ended = saved(kit, kind, tmp_path / "first", name, **options)
    model, profile, config = kit.attach(kind, name, **options, continue_from=str(folder))
    assert close(kit.logits(model), ended)
    declared = kit.adapter(name).declaration(profile, config)
    assert "reference.by_disabling" not in declared.provides
    fresh, _, _ = kit.attach(kind, name, **options)
    assert set(kit.trained(model)) == set(kit.trained(fresh))
    kit.train(model)
    again = kit.save(model, tmp_path / "second", name)
    assert close(kit.logits(kit.plain_peft(kind, again)), kit.logits(model))


def test_continuing_a_pissa_run_takes_twice_its_rank(kit: Any, tmp_path: Path) -> None:
    folder, ended = saved(kit, "llama", tmp_path / "first", rank=4, init="pissa")
    assert "set rank to 8" in kit.refusal("llama", rank=4, continue_from=str(folder))
    model, _, _ = kit.attach("llama", rank=8, continue_from=str(folder))
    assert close(kit.logits(model), ended)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rank": 8}, "has rank 4 on model.layers.0.self_attn.q_proj, and this run 8; set rank to 4"),
        ({"alpha": 4.0}, "scales the update of model.layers.0.self_attn.q_proj by 2, and this run by 1; set alpha to 8"),
        ({"target": ("attn", "mlp")}, "does not adapt model.layers.0.mlp.gate_proj, which this run does"),
        ({"target": ("attn.q",)}, "which this run does not"),
        ({"modules_to_save": ("norm",)}, "has no modules_to_save, unlike this run"),
        ({"trainable_tokens": (3,)}, "has no trainable_tokens, unlike this run"),
    ],
)
def test_what_does_not_agree_is_said_while_planning(kit: Any, options: dict[str, Any], says: str, tmp_path: Path) -> None:
    folder, _ = saved(kit, "llama", tmp_path / "first", rank=4, target=("attn",))
    assert says in kit.refusal("llama", **{"rank": 4, "target": ("attn",), "continue_from": str(folder), **options})


def test_what_is_no_lora_is_said_while_planning(kit: Any, tmp_path: Path) -> None:
    assert "no saved adapter is here" in kit.refusal("llama", continue_from=str(tmp_path))
    folder, _ = saved(kit, "llama", tmp_path / "dora", "dora", rank=4)
    assert "take adapter: dora" in kit.refusal("llama", rank=4, continue_from=str(folder))
    plain, _ = saved(kit, "llama", tmp_path / "plain", rank=4)
    assert "take adapter: lora" in kit.refusal("llama", "dora", rank=4, continue_from=str(plain))
    path = plain / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": "pissa_niter_4"}))
    assert "base weights that pissa_niter_4 had changed" in kit.refusal("llama", rank=4, continue_from=str(plain))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"peft_type": "OFT"}))
    assert "an adapter of kind OFT" in kit.refusal("llama", rank=4, stack_on=(str(plain),))


@pytest.mark.parametrize(
    ("kind", "below", "options"),
    [
        ("llama", {"rank": 3, "alpha": 4.5, "target": ("attn", "mlp.down")}, {"rank": 4}),
        ("gpt2", {"rank": 3, "target": ("mlp",)}, {"rank": 4, "target": ("attn",)}),
        ("gemma2", {"rank": 3}, {"rank": 4, "init": "pissa", "modules_to_save": ("embed",)}),
        ("mixtral", {"rank": 3, "target": ("experts",)}, {"rank": 4, "target": ("attn", "experts")}),
    ],
)
def test_the_stack_stays_below(kit: Any, kind: str, below: dict[str, Any], options: dict[str, Any], tmp_path: Path) -> None:
    """It starts as the saved adapter ended, only the new one moves, and the whole is saved as one plain LoRA."""
    first, ended = saved(kit, kind, tmp_path / "first", **below)
    model, profile, config = kit.attach(kind, **options, stack_on=(str(first),))
    assert close(kit.logits(model), ended)
    alone, _, _ = kit.attach(kind, **options)
    assert set(kit.trained(model)) == set(kit.trained(alone))
    frozen = {name: parameter.clone() for name, parameter in model.named_parameters() if not parameter.requires_grad}
    kit.train(model)
    for name, parameter in model.named_parameters():
        assert name not in frozen or torch.equal(parameter, frozen[name]), name
    trained = kit.logits(model)
    assert not close(trained, ended)
    folder = kit.save(model, tmp_path / "second")
    assert close(kit.logits(kit.plain_peft(kind, folder)), trained)
    again, _, _ = kit.attach(kind, **options, stack_on=(str(first),))
    assert close(kit.logits(kit.reload(again, folder)), trained)
    assert set(kit.trained(again)) == set(kit.trained(model))
    for name, parameter in kit.trained(again).items():
        assert torch.equal(parameter, kit.trained(model)[name]), name
    assert close(kit.logits(lora.merge(model)), trained)
    declared = kit.adapter("lora").declaration(profile, config)
    assert "reference.by_disabling" not in declared.provides


def test_two_below(kit: Any, tmp_path: Path) -> None:
    """Their updates add up: checked against the sum of the merged differences."""
    original, _ = kit.load("llama")
    folders, total = [], torch.zeros(64, 64)
    name = "model.layers.0.self_attn.q_proj.weight"
    for number, target in enumerate((("attn",), ("attn.q", "mlp"))):
        model, _, _ = kit.attach("llama", rank=3 + number, target=target)
        kit.train(model, steps=2 + number)
        folders.append(str(kit.save(model, tmp_path / str(number))))
        total += lora.merge(model).get_parameter(name) - original.get_parameter(name)
    model, _, _ = kit.attach("llama", rank=2, target=("attn.v",), stack_on=tuple(folders))
    saved_all = kit.save(model, tmp_path / "all")
    merged = lora.merge(model)
    assert torch.allclose(merged.get_parameter(name) - original.get_parameter(name), total, atol=1e-6)
    again = kit.reload(kit.load("llama")[0], saved_all)
    assert torch.allclose(lora.merge(again).get_parameter(name) - original.get_parameter(name), total, atol=1e-6)


def test_what_cannot_lie_below(kit: Any, tmp_path: Path) -> None:
    folder, _ = saved(kit, "llama", tmp_path / "whole", rank=2, modules_to_save=("norm",))
    assert "holds more than low-rank updates" in kit.refusal("llama", stack_on=(str(folder),))
    other, _ = saved(kit, "gpt2", tmp_path / "gpt2", rank=2)
    assert "is of another model: llama has no transformer.h.0" in kit.refusal("llama", stack_on=(str(other),))
    dora, _ = saved(kit, "llama", tmp_path / "dora", "dora", rank=2)
    assert "is a DoRA adapter" in kit.refusal("llama", stack_on=(str(dora),))
    assert "named twice" in kit.refusal("llama", stack_on=(str(other), str(other)))


def test_an_adapter_below_that_changed_since_is_noticed(kit: Any, tmp_path: Path) -> None:
    from luthier.core.errors import ModelError

    first, _ = saved(kit, "llama", tmp_path / "first", rank=2)
    model, _, _ = kit.attach("llama", rank=2, stack_on=(str(first),))
    checkpoint = kit.save(model, tmp_path / "checkpoint")
    again, _, _ = kit.attach("llama", rank=2)
    kit.save(kit.train(again, steps=5), first)
    resumed, _, _ = kit.attach("llama", rank=2, stack_on=(str(first),))
    with pytest.raises(ModelError, match="has changed since"):
        kit.reload(resumed, checkpoint)


def test_options_name_what_they_stand_on() -> None:
    config = LoraConfig(stack_on=("a", "b"))
    assert not config.starts_at_the_base
    assert LoraConfig().starts_at_the_base
