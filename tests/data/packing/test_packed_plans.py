"""Which of the built-in methods and of the models combine with packing, and what a refusal says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from transformers import AutoConfig

from luthier import testing
from luthier.core.errors import PlanRefused
from luthier.core.testing.surroundings import installed_catalog

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}
# The reason for which packing is refused, by a model type of each sort.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    # A state-space model, one of linear attention, and short convolutions beside attention.
    "mamba": ({"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64}, "model.recurrent"),
    "rwkv": ({"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64}, "model.recurrent"),
    "lfm2": (SMALL | {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]}, "model.recurrent"),
    "opt": (SMALL, "transformers' OPTForCausalLM makes its attention mask without position_ids"),  # positions from the mask
    "bloom": (SMALL, "BloomForCausalLM takes no position_ids"),  # ALiBi
    "falcon": (SMALL, "FalconForCausalLM makes its attention mask without position_ids"),
    "openai-gpt": ({"n_embd": 32, "n_layer": 2, "n_head": 2}, "does not make its mask with transformers' own functions"),
    "bert": (SMALL | {"is_decoder": True}, "makes its attention mask without position_ids"),
}


def refused(plan: Callable[..., Any], **options: Any) -> str:
    with pytest.raises(PlanRefused) as caught:
        plan(**options)
    return str(caught.value)


@pytest.mark.parametrize("model_type", REFUSED)
def test_a_model_that_mixes_documents_is_refused_with_the_reason(plan: Callable[..., Any], model_type: str) -> None:
    sizes, reason = REFUSED[model_type]
    of = testing.profile(AutoConfig.for_model(model_type, **sizes), installed_catalog())
    text = refused(plan, kind=model_type, of=of, attention="eager")
    assert "data.packing" in text
    assert reason in text
    assert "leave out data.packing" in text


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "phi3", "gemma2", "mixtral"])
def test_the_models_of_the_kit_pack(plan: Callable[..., Any], kind: str) -> None:
    made = plan(kind, attention="auto", adapter="lora")
    assert {"batches.packed", "attention.packed", "stage.packs"} <= set(made.traits)
    assert made.step("attention").method == ("eager" if kind == "gemma2" else "sdpa")


@pytest.mark.parametrize("tuner", ["prompt_tuning", "prefix_tuning"])
def test_tuners_that_put_tokens_before_each_row_are_refused(plan: Callable[..., Any], tuner: str) -> None:
    adapter = {"use": "peft", "options": {"tuner": tuner, "options": {"num_virtual_tokens": 4}}}
    text = refused(plan, adapter=adapter)
    assert f"{tuner} puts its tokens before a row, and a packed row holds several texts" in text
    assert "leave out data.packing" in text
    assert plan(adapter=adapter, packing=False).step("adapter").method == "peft"
