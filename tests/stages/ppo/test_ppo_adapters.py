"""With each kind of adapter: who trains, who stays, what the reference is, and what is saved."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

CASES: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora, value adapter": {"stage": {"value_adapter": True}},
    "lora, whole modules, value adapter": {
        "adapter": {"use": "lora", "rank": 4, "modules_to_save": ["head"]},
        "stage": {"value_adapter": True},
    },
    "bf16, whole embeddings, value adapter": {
        "precision": "bf16",
        "adapter": {"use": "lora", "rank": 4, "modules_to_save": ["embed"]},
        "stage": {"value_adapter": True},
    },
    "lora from singular vectors": {"adapter": {"use": "lora", "rank": 4, "init": "pissa"}},
    "dora": {"adapter": {"use": "dora", "rank": 4}},
    "full": {"adapter": "full", "optimizer": {"use": "adamw", "lr": 1e-4}},
    "freeze": {"adapter": {"use": "freeze", "layers": 1}},
    "nf4": {"patches": ["nf4"]},
    "nf4, value adapter, recomputed": {"patches": ["nf4", "checkpointing"], "stage": {"value_adapter": True}},
    "lora_fa": {"optimizer": {"use": "lora_fa", "lr": 0.003}},
    "lora_plus, value adapter": {"optimizer": {"use": "lora_plus", "lr": 0.001}, "stage": {"value_adapter": True}},
    "8 bits of state": {"optimizer": {"use": "adamw_8bit", "lr": 0.003}},
    "bf16": {"precision": "bf16"},
    "mixed": {"precision": "mixed", "adapter": "full", "optimizer": {"use": "adamw", "lr": 1e-4}},
}
REFERENCES = {
    "lora from singular vectors": "copied",
    "full": "model",
    "freeze": "model",
    "mixed": "model",
}


@pytest.mark.parametrize("name", CASES)
def test_a_short_run(name: str, run_of: Any) -> None:
    case = {"train": {"max_steps": 2}} | CASES[name]
    results = run_of(**case)
    start = run_of.told("start")[0]
    assert start["reference"] == REFERENCES.get(name, "disabled")
    first, second = run_of.told("step")
    # At the start policy and reference are one; after an update they are not.
    loose = 0.05 if "bf16" in name or name == "mixed" else 2e-3
    assert first["kl"] == pytest.approx(0, abs=loose)
    assert second["kl"] != first["kl"]
    assert second["kl_coef"] == pytest.approx(0.05 * 0.98)
    assert all(step["grad_norm"] > 0 for step in (first, second))
    folder = Path(results["output"])
    for file in folder.glob("*.safetensors"):
        wrong = [key for key in load_file(file) if "critic" in key or "value" in key or "reference" in key]
        assert not wrong


def test_frozen_parameters_stay_frozen(model: Any) -> None:
    """Reference and values switch what the forward pass reads; which parameters train is never touched."""
    from luthier.plugins.ppo.roles import Roles

    one = model(adapter={})
    frozen = [parameter for name, parameter in one.named_parameters() if ".lora_A." in name and "layers.0" in name]
    for parameter in frozen:
        parameter.requires_grad_(False)
    roles = Roles(one, reference="copied", value_adapter=True, hidden_size=64)
    expected = {
        name: (".default." in name or ".critic." in name)
        and ".lora_" in name
        and not (".lora_A." in name and "layers.0" in name)
        for name, _ in one.named_parameters()
    }

    def found() -> dict[str, bool]:
        return {name: parameter.requires_grad for name, parameter in one.named_parameters()}

    assert found() == expected
    with roles.reference():
        assert found() == expected
    with roles.values():
        assert found() == expected
    assert found() == expected
    assert not any(parameter.requires_grad for parameter in frozen)


def test_the_value_adapter_of_a_model_that_has_a_module_called_value() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import BertConfig, BertLMHeadModel

    from luthier.plugins.ppo.roles import Roles

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    base: Any = BertLMHeadModel(BertConfig(vocab_size=60, is_decoder=True, **sizes))
    one = get_peft_model(base, LoraConfig(r=2, target_modules=["query", "value"], task_type="CAUSAL_LM"))
    Roles(one, reference="copied", value_adapter=True, hidden_size=16)
    trained = [name for name, parameter in one.named_parameters() if parameter.requires_grad]
    # Two modules, A and B of each, of the policy and of the values.
    assert len(trained) == 8
    assert sum(".self.value." in name for name in trained) == 4
    assert not any(".reference." in name for name in trained)


@pytest.mark.parametrize("how", ["disabled", "copied", "model"])
def test_the_reference_is_the_start_whatever_trains(how: str, model: Any, filled: Any) -> None:
    from luthier.plugins.ppo.roles import Roles

    one = model(adapter={"modules_to_save": ["lm_head"]})
    if how == "disabled":
        for name, parameter in one.named_parameters():
            if ".lora_B." in name:
                parameter.data.zero_()
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        expected = copy.deepcopy(one).eval()(input_ids=ids).logits
        roles = Roles(one, reference=how, value_adapter=True, hidden_size=64)  # type: ignore[arg-type]
        filled(one, 7, only=".default.")
        for parameter in one.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)
        one.eval()
        with roles.reference() as frozen:
            torch.testing.assert_close(frozen(input_ids=ids).logits, expected, rtol=1e-5, atol=1e-5)
        assert (one(input_ids=ids).logits - expected).abs().max() > 0.01


def test_the_value_head_trains_with_every_kind_of_optimizer(run_of: Any) -> None:
    """A vector, which is no one's matrix; before anything was learned every value is 0."""
    for number, (adapter, optimizer) in enumerate(
        [
            ("full", {"use": "muon", "lr": 1e-3}),
            ("full", {"use": "galore", "rank": 4, "lr": 1e-3}),
            ("full", {"use": "badam", "lr": 1e-3, "switch_every": 1}),
            ({"use": "lora", "rank": 4}, {"use": "lion", "lr": 1e-3}),
        ]
    ):
        output = run_of.folder / f"run-{number}"
        run_of(adapter=adapter, optimizer=optimizer, output=str(output), train={"max_steps": 3, "save_every": 3}, patches=[])
        head = load_file(output / "checkpoint-3" / "ppo.safetensors")
        weights = [value for key, value in head.items() if key.endswith("value_head.weight")]
        assert weights[0].abs().max() > 0, optimizer


def test_the_value_adapter_is_wanted_twice(run_of: Any) -> None:
    """Trained parameters: the adapter, its copy for the values, and the head."""
    alone = run_of(train={"max_steps": 1}, output=str(run_of.folder / "alone"))
    both = run_of(train={"max_steps": 1}, stage={"value_adapter": True})
    head = 64 + 1
    assert both["trained_parameters"] - head == 2 * (alone["trained_parameters"] - head)
