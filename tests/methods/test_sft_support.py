"""`sft` refuses models whose own loss is not that of the next token; which those are is told by the loss itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from luthier.core.environment import Environment
from luthier.core.language_modeling import predicts_next_token as supports
from luthier.core.options import NoOptions
from luthier.registry.detect import detect

MACHINE = Environment(python="3.11", platform="", cpu="", cores=1, memory=0)
DECODER = {"d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32}
COMMON = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
    "gpt2": {"n_embd": 32, "n_layer": 1, "n_head": 2},
    "bloom": {"hidden_size": 32, "n_layer": 1, "n_head": 2},
    "bart": DECODER,
    "pegasus": DECODER,
    "xlnet": {"d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 32},
    "xlm": {"emb_dim": 32, "n_layers": 1, "n_heads": 2},
}


@pytest.mark.parametrize("model_type", MODELS)
def test_supported_is_what_learns_the_next_token(model_type: str) -> None:
    config = AutoConfig.for_model(model_type, **COMMON | MODELS[model_type])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    ids = torch.randint(5, 64, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = model(input_ids=ids, labels=ids, num_items_in_batch=torch.tensor(2))
    wanted = cross_entropy(outputs.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum") / 2
    right = abs(float(outputs.loss - wanted)) < 1e-3
    support = supports(detect(config), MACHINE, NoOptions())
    assert bool(support) == right
    assert right or type(model).__name__ in support.reason
