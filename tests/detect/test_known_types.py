"""Hand-written truth: which modules play which role in well-known architectures, with sizes chosen here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from luthier.core.profile import ArchitectureProfile
from luthier.registry.detect import detect

MHA = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128}
GQA = MHA | {"num_key_value_heads": 2, "intermediate_size": 96}
LAYER = "model.layers.*"
NORMS = (f"{LAYER}.input_layernorm", f"{LAYER}.post_attention_layernorm", "model.norm")


def separate(o: str = "o_proj", attention: str = f"{LAYER}.self_attn") -> dict[str, str]:
    return {f"attn.{part}": f"{attention}.{part}_proj" for part in "qkv"} | {"attn.o": f"{attention}.{o}"}


def gated(block: str = f"{LAYER}.mlp") -> dict[str, str]:
    return {f"mlp.{part}": f"{block}.{part}_proj" for part in ("gate", "up", "down")}


def fused_experts(block: str = f"{LAYER}.mlp") -> dict[str, str]:
    return {
        "mlp.experts.gate_up": f"{block}.experts.gate_up_proj",
        "mlp.experts.down": f"{block}.experts.down_proj",
    }


@dataclass(frozen=True)
class Truth:
    """What must come out: each role's patterns; attention as (kind, heads, key-value heads, head size, value size)."""

    config: Mapping[str, Any]
    roles: Mapping[str, str | tuple[str, ...]]
    attention: tuple[tuple[str, int, int, int, int], ...]
    ends: tuple[str, str] = ("model.embed_tokens", "lm_head")
    norms: tuple[str, ...] = NORMS
    traits: frozenset[str] = frozenset({"model.attention"})
    more: Mapping[str, Any] = field(default_factory=dict)


ATTENTION, MOE = frozenset({"model.attention"}), frozenset({"model.attention", "model.moe"})
TIED = frozenset({"model.attention", "model.tied_embeddings"})
QK_NORMS = (f"{LAYER}.self_attn.q_norm", f"{LAYER}.self_attn.k_norm")
H = "transformer.h.*"

TRUTH: dict[str, Truth] = {
    "llama": Truth(GQA, separate() | gated(), (("gqa", 4, 2, 16, 16),), more={"intermediate_size": 96, "rope": "default"}),
    "qwen2": Truth(GQA, separate() | gated(), (("gqa", 4, 2, 16, 16),)),
    "qwen3": Truth(GQA | {"head_dim": 32}, separate() | gated(), (("gqa", 4, 2, 32, 32),), norms=(*QK_NORMS, *NORMS)),
    "mistral": Truth(GQA | {"sliding_window": 8}, separate() | gated(), (("gqa", 4, 2, 16, 16),)),
    "granite": Truth(GQA, separate() | gated(), (("gqa", 4, 2, 16, 16),)),
    "stablelm": Truth(GQA, separate() | gated(), (("gqa", 4, 2, 16, 16),)),
    "olmo2": Truth(
        GQA,
        separate() | gated(),
        (("gqa", 4, 2, 16, 16),),
        norms=(*QK_NORMS, f"{LAYER}.post_attention_layernorm", f"{LAYER}.post_feedforward_layernorm", "model.norm"),
    ),
    "gemma2": Truth(
        GQA | {"head_dim": 32, "sliding_window": 8, "attn_logit_softcapping": 40.0, "final_logit_softcapping": 20.0},
        separate() | gated(),
        (("gqa", 4, 2, 32, 32), ("gqa", 4, 2, 32, 32)),
        norms=(*NORMS, f"{LAYER}.pre_feedforward_layernorm", f"{LAYER}.post_feedforward_layernorm"),
        traits=TIED,
        more={"final_softcap": 20.0},
    ),
    "gemma3_text": Truth(
        GQA | {"num_hidden_layers": 6, "head_dim": 32, "num_key_value_heads": 1, "sliding_window": 8},
        separate() | gated(),
        (("mqa", 4, 1, 32, 32), ("mqa", 4, 1, 32, 32)),
        norms=(*NORMS, *QK_NORMS, f"{LAYER}.pre_feedforward_layernorm", f"{LAYER}.post_feedforward_layernorm"),
        traits=TIED,
    ),
    "starcoder2": Truth(
        GQA,
        separate() | {"mlp.up": f"{LAYER}.mlp.c_fc", "mlp.down": f"{LAYER}.mlp.c_proj"},
        (("gqa", 4, 2, 16, 16),),
        traits=TIED,
    ),
    "phi3": Truth(
        GQA | {"pad_token_id": 0},
        {
            "attn.qkv": f"{LAYER}.self_attn.qkv_proj",
            "attn.o": f"{LAYER}.self_attn.o_proj",
            "mlp.gate_up": f"{LAYER}.mlp.gate_up_proj",
            "mlp.down": f"{LAYER}.mlp.down_proj",
        },
        (("gqa", 4, 2, 16, 16),),
    ),
    "phi": Truth(
        MHA | {"intermediate_size": 96},
        separate("dense") | {"mlp.up": f"{LAYER}.mlp.fc1", "mlp.down": f"{LAYER}.mlp.fc2"},
        (("mha", 4, 4, 16, 16),),
        norms=(f"{LAYER}.input_layernorm", "model.final_layernorm"),
    ),
    "gpt2": Truth(
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 32},
        {
            "attn.qkv": f"{H}.attn.c_attn",
            "attn.o": f"{H}.attn.c_proj",
            "mlp.up": f"{H}.mlp.c_fc",
            "mlp.down": f"{H}.mlp.c_proj",
            "embed.position": "transformer.wpe",
        },
        (("mha", 4, 4, 16, 16),),
        ends=("transformer.wte", "lm_head"),
        norms=(f"{H}.ln_1", f"{H}.ln_2", "transformer.ln_f"),
        traits=TIED | {"model.conv1d"},
        more={"intermediate_size": 256, "context_length": 32, "rope": None, "hidden_size": 64},
    ),
    "gptj": Truth(
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128, "rotary_dim": 8},
        separate("out_proj", f"{H}.attn") | {"mlp.up": f"{H}.mlp.fc_in", "mlp.down": f"{H}.mlp.fc_out"},
        (("mha", 4, 4, 16, 16),),
        ends=("transformer.wte", "lm_head"),
        norms=(f"{H}.ln_1", "transformer.ln_f"),
    ),
    "gpt_neox": Truth(
        MHA | {"intermediate_size": 96},
        {
            "attn.qkv": "gpt_neox.layers.*.attention.query_key_value",
            "attn.o": "gpt_neox.layers.*.attention.dense",
            "mlp.up": "gpt_neox.layers.*.mlp.dense_h_to_4h",
            "mlp.down": "gpt_neox.layers.*.mlp.dense_4h_to_h",
        },
        (("mha", 4, 4, 16, 16),),
        ends=("gpt_neox.embed_in", "lm_head"),
        norms=(
            "gpt_neox.layers.*.input_layernorm",
            "gpt_neox.layers.*.post_attention_layernorm",
            "gpt_neox.final_layer_norm",
        ),
    ),
    "falcon": Truth(
        MHA | {"multi_query": True, "new_decoder_architecture": False},
        {
            "attn.qkv": f"{H}.self_attention.query_key_value",
            "attn.o": f"{H}.self_attention.dense",
            "mlp.up": f"{H}.mlp.dense_h_to_4h",
            "mlp.down": f"{H}.mlp.dense_4h_to_h",
        },
        (("mqa", 4, 1, 16, 16),),
        ends=("transformer.word_embeddings", "lm_head"),
        norms=(f"{H}.input_layernorm", "transformer.ln_f"),
        traits=TIED,
    ),
    "bloom": Truth(
        {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128},
        {
            "attn.qkv": f"{H}.self_attention.query_key_value",
            "attn.o": f"{H}.self_attention.dense",
            "mlp.up": f"{H}.mlp.dense_h_to_4h",
            "mlp.down": f"{H}.mlp.dense_4h_to_h",
        },
        (("mha", 4, 4, 16, 16),),
        ends=("transformer.word_embeddings", "lm_head"),
        norms=(
            f"{H}.input_layernorm",
            f"{H}.post_attention_layernorm",
            "transformer.word_embeddings_layernorm",
            "transformer.ln_f",
        ),
        traits=TIED,
    ),
    "mpt": Truth(
        {"d_model": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 128, "max_seq_len": 48},
        {
            "attn.qkv": "transformer.blocks.*.attn.Wqkv",
            "attn.o": "transformer.blocks.*.attn.out_proj",
            "mlp.up": "transformer.blocks.*.ffn.up_proj",
            "mlp.down": "transformer.blocks.*.ffn.down_proj",
        },
        (("mha", 4, 4, 16, 16),),
        ends=("transformer.wte", "lm_head"),
        norms=("transformer.blocks.*.norm_1", "transformer.blocks.*.norm_2", "transformer.norm_f"),
        traits=TIED,
        more={"context_length": 48, "rope": None},
    ),
    "opt": Truth(
        MHA | {"ffn_dim": 96, "word_embed_proj_dim": 32},
        separate("out_proj", "model.decoder.layers.*.self_attn")
        | {
            "mlp.up": "model.decoder.layers.*.fc1",
            "mlp.down": "model.decoder.layers.*.fc2",
            "embed.position": "model.decoder.embed_positions",
            "embed.project": ("model.decoder.project_out", "model.decoder.project_in"),
        },
        (("mha", 4, 4, 16, 16),),
        ends=("model.decoder.embed_tokens", "lm_head"),
        norms=(
            "model.decoder.final_layer_norm",
            "model.decoder.layers.*.self_attn_layer_norm",
            "model.decoder.layers.*.final_layer_norm",
        ),
        traits=TIED,
    ),
    "mixtral": Truth(
        GQA | {"num_local_experts": 6, "num_experts_per_tok": 3},
        separate() | fused_experts() | {"mlp.router": f"{LAYER}.mlp.gate.weight"},
        (("gqa", 4, 2, 16, 16),),
        traits=MOE,
        more={"experts": 6, "experts_per_token": 3},
    ),
    "qwen3_moe": Truth(
        GQA | {"head_dim": 32, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
        separate() | fused_experts() | {"mlp.router": f"{LAYER}.mlp.gate.weight"},
        (("gqa", 4, 2, 32, 32),),
        norms=(*QK_NORMS, *NORMS),
        traits=MOE,
        more={"experts": 6, "experts_per_token": 2, "intermediate_size": 24},
    ),
    "gpt_oss": Truth(
        GQA
        | {"head_dim": 16, "num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 64, "sliding_window": 8},
        separate() | fused_experts() | {"mlp.router": f"{LAYER}.mlp.router.weight"},
        (("gqa", 4, 2, 16, 16), ("gqa", 4, 2, 16, 16)),
        traits=MOE,
        more={"rope": "yarn"},
    ),
    "llama4_text": Truth(
        GQA
        | {
            "head_dim": 16,
            "num_local_experts": 4,
            "intermediate_size": 32,
            "intermediate_size_mlp": 96,
            "attention_chunk_size": 8,
        }
        | {"num_hidden_layers": 4},
        separate()
        | fused_experts(f"{LAYER}.feed_forward")
        | gated(f"{LAYER}.feed_forward.shared_expert")
        | {"mlp.router": f"{LAYER}.feed_forward.router"},
        (("gqa", 4, 2, 16, 16), ("gqa", 4, 2, 16, 16)),
        norms=(f"{LAYER}.self_attn.qk_norm", *NORMS),  # an L2 norm without a weight
        traits=MOE,
    ),
    "deepseek_v3": Truth(
        MHA
        | {"num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 20, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8}
        | {"v_head_dim": 12, "intermediate_size": 96, "moe_intermediate_size": 24, "n_routed_experts": 8, "n_group": 2}
        | {"topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
        {
            "attn.q_down": f"{LAYER}.self_attn.q_a_proj",
            "attn.q": f"{LAYER}.self_attn.q_b_proj",
            "attn.kv_down": f"{LAYER}.self_attn.kv_a_proj_with_mqa",
            "attn.kv_up": f"{LAYER}.self_attn.kv_b_proj",
            "attn.o": f"{LAYER}.self_attn.o_proj",
            "mlp.router": f"{LAYER}.mlp.gate.weight",
        }
        | fused_experts()
        | {
            f"mlp.{part}": (f"{LAYER}.mlp.{part}_proj", f"{LAYER}.mlp.shared_experts.{part}_proj")
            for part in ("gate", "up", "down")
        },
        (("mla", 4, 4, 24, 12),),
        norms=(f"{LAYER}.self_attn.q_a_layernorm", f"{LAYER}.self_attn.kv_a_layernorm", *NORMS),
        traits=MOE,
        more={"experts": 8, "experts_per_token": 2, "intermediate_size": 96},
    ),
    "mamba": Truth(
        {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 128},
        {
            "mixer": tuple(
                f"backbone.layers.*.mixer.{part}" for part in ("A_log", "conv1d", "in_proj", "x_proj", "dt_proj", "out_proj")
            )
        },
        (("none", 0, 0, 0, 0),),
        ends=("backbone.embeddings", "lm_head"),
        norms=("backbone.layers.*.norm", "backbone.norm_f"),
        traits=frozenset({"model.recurrent", "model.tied_embeddings"}),
        more={"rope": None},
    ),
    "jamba": Truth(
        GQA
        | {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2}
        | {"expert_layer_offset": 1, "num_experts": 4, "num_experts_per_tok": 2, "mamba_dt_rank": 8},
        separate()
        | gated(f"{LAYER}.feed_forward")
        | fused_experts(f"{LAYER}.feed_forward")
        | {
            "mlp.router": f"{LAYER}.feed_forward.router.weight",
            "mixer": tuple(
                f"{LAYER}.mamba.{part}" for part in ("A_log", "conv1d", "in_proj", "x_proj", "dt_proj", "out_proj")
            ),
        },
        (("none", 0, 0, 0, 0), ("gqa", 4, 2, 16, 16)),
        norms=(
            *(f"{LAYER}.mamba.{part}_layernorm" for part in ("dt", "b", "c")),
            f"{LAYER}.input_layernorm",
            f"{LAYER}.pre_ff_layernorm",
            "model.final_layernorm",
        ),
        traits=MOE | {"model.recurrent"},
        more={"rope": None},
    ),
}


def profile_of(model_type: str, config: Mapping[str, Any]) -> ArchitectureProfile:
    from transformers import AutoConfig

    return detect(AutoConfig.for_model(model_type, **config))


@pytest.mark.parametrize("model_type", TRUTH)
def test_roles_are_those_of_the_architecture(model_type: str) -> None:
    truth = TRUTH[model_type]
    profile = profile_of(model_type, truth.config)
    assert profile.unclassified == ()
    expected = dict(truth.roles) | {"embed": truth.ends[0], "head": truth.ends[1], "norm": truth.norms}
    found = {role: {group.pattern for group in groups} for role, groups in profile.roles.items()}
    assert found == {role: {names} if isinstance(names, str) else set(names) for role, names in expected.items()}
    attention = [(g.kind, g.heads, g.kv_heads, g.head_dim, g.value_dim) for g in profile.attention]
    assert attention == list(truth.attention)
    assert profile.traits == truth.traits
    assert profile.vocab_size == 128
    for name, value in truth.more.items():
        assert getattr(profile, name) == value, name


def test_layers_of_a_hybrid_are_told_apart() -> None:
    profile = profile_of("jamba", TRUTH["jamba"].config)
    layers = {group.kind: group.layers for group in profile.attention}
    assert layers == {"none": (0, 2), "gqa": (1, 3)}
    assert profile.groups("attn.q")[0].layers == (1, 3)
    assert {group.layers for group in profile.groups("mixer")} == {(0, 2)}
    assert {group.layers for group in profile.groups("mlp.gate")} == {(0, 2)}
    assert profile.groups("mlp.experts.down")[0].layers == (1, 3)


def test_windows_chunks_and_caps_by_layer() -> None:
    gemma = profile_of("gemma2", TRUTH["gemma2"].config)
    assert [(g.layers, g.sliding_window, g.softcap) for g in gemma.attention] == [((0,), 8, 40.0), ((1,), None, 40.0)]
    small = profile_of("gemma3_text", TRUTH["gemma3_text"].config)  # five local layers, then a global one
    assert [(g.layers, g.sliding_window) for g in small.attention] == [((0, 1, 2, 3, 4), 8), ((5,), None)]
    llama4 = profile_of("llama4_text", TRUTH["llama4_text"].config)  # three chunked layers, then one without positions
    assert [(g.layers, g.chunk_size) for g in llama4.attention] == [((0, 1, 2), 8), ((3,), None)]
    mistral = profile_of("mistral", TRUTH["mistral"].config)
    assert [g.sliding_window for g in mistral.attention] == [8]
    exaone = profile_of("exaone4", GQA | {"num_hidden_layers": 4, "sliding_window": 8, "sliding_window_pattern": 4})
    assert [(g.layers, g.sliding_window) for g in exaone.attention] == [((0, 1, 2), 8), ((3,), None)]


def test_sizes_follow_the_mathematics_whichever_way_the_weight_lies() -> None:
    gpt2 = profile_of("gpt2", TRUTH["gpt2"].config).groups("attn.qkv")[0]
    assert (gpt2.kind, gpt2.shape, gpt2.in_features, gpt2.out_features) == ("conv1d", (64, 192), 64, 192)
    llama = profile_of("llama", TRUTH["llama"].config).groups("attn.k")[0]
    assert (llama.kind, llama.shape, llama.in_features, llama.out_features) == ("linear", (32, 64), 64, 32)
    # gpt_oss stores (experts, in, out), mixtral (experts, out, in); with hidden = intermediate only gate_up tells which
    oss = profile_of("gpt_oss", TRUTH["gpt_oss"].config)
    assert (oss.groups("mlp.experts.gate_up")[0].shape, oss.groups("mlp.experts.gate_up")[0].out_features) == (
        (6, 64, 128),
        128,
    )
    assert oss.groups("mlp.experts.gate_up")[0].parameters == 6 * 64 * 128 + 6 * 128
    mixtral = profile_of("mixtral", TRUTH["mixtral"].config | {"intermediate_size": 64})
    assert [(g.shape, g.in_features, g.out_features) for g in mixtral.groups("experts")] == [
        ((6, 128, 64), 64, 128),
        ((6, 64, 64), 64, 64),
    ]
