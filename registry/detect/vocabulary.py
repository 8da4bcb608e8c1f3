"""The names that architectures use, by context: a secondary clue, read only once structure has told the context.

A name alone never decides: `gate` is a router beside experts, a gate inside attention, and half of a gated MLP elsewhere.
"""

from __future__ import annotations

import re
from typing import Final

ATTENTION_ROLES: Final[dict[str, tuple[str, ...]]] = {
    "q": ("q_proj", "q", "wq", "query", "query_proj", "q_lin", "project_q", "c_q", "to_q", "input_linear"),
    "k": ("k_proj", "k", "wk", "key", "key_proj", "k_lin", "project_k", "c_k", "to_k"),
    "v": (
        "v_proj", "v", "wv", "value", "value_proj", "v_lin", "project_v", "c_v", "to_v", "v_proj_current", "v_proj_delayed",
    ),
    "qkv": ("qkv", "qkv_proj", "query_key_value", "c_attn", "wqkv", "w_pack"),
    "qk": ("query_key",),
    "kv": ("kv_proj", "wkv", "key_value", "kv"),
    "q_down": ("q_a_proj", "wq_a", "q_down_proj"),
    "q_up": ("q_b_proj", "wq_b", "q_up_proj", "q_gate_proj"),
    "kv_down": ("kv_a_proj_with_mqa", "kv_a_proj", "wkv_a", "kv_down_proj"),
    "kv_up": ("kv_b_proj", "wkv_b", "kv_up_proj"),
    "o_down": ("o_a_proj",),
    "o": (
        "o_proj", "o", "wo", "out_proj", "out_lin", "c_proj", "attention_out", "attn_out", "dense", "output", "o_b_proj",
        "to_out", "proj", "resid_proj", "output_linear",
    ),
    "gate": ("gate_proj", "g_proj", "output_gate", "gate", "o_gate", "g_a_proj", "g_b_proj"),
    "index": ("dt_proj",),
    "position": (
        "r_proj", "rel_logits_proj", "relative_pos_embeddings", "r", "r_r_bias", "r_s_bias", "r_w_bias", "seg_embed",
        "relative_attention_bias",
    ),
    "sink": ("sink_proj",),
}  # fmt: skip
"""Parts of attention to names; "q_up" is `attn.q` whose input is a compressed query."""

MLP_ROLES: Final[dict[str, tuple[str, ...]]] = {
    "gate": ("gate_proj", "w1", "gate", "wi_0", "w_0", "proj_up_gate", "linear_1", "gate_linear"),
    "up": (
        "up_proj", "w3", "wi_1", "w_1", "proj_up", "fc1", "c_fc", "dense_h_to_4h", "fc_in", "lin1", "intermediate",
        "layer_1", "dense", "wi", "fc", "linear_v", "v1", "0",
    ),
    "gate_up": ("gate_up_proj", "gate_and_up_proj", "w12", "input_linear", "gate_up"),
    "down": (
        "down_proj", "w2", "fc2", "c_proj", "dense_4h_to_h", "fc_out", "lin2", "output", "output_linear", "wo", "w_out",
        "layer_2", "proj_down", "proj", "2",
    ),
}  # fmt: skip
"""Parts of an MLP to names; shapes then tell a first matrix that holds gate and up from one that does not."""

LAYER_MLP: Final[dict[str, str]] = {
    "fc1": "up", "lin1": "up", "intermediate": "up", "fc2": "down", "lin2": "down", "output": "down",
}  # fmt: skip
"""MLP matrices that lie in the decoder layer itself, without a module around them."""

LAYER_RESIDUAL: Final = frozenset({"per_layer_input_gate", "per_layer_projection"})
SHARED_GATE: Final = frozenset({"shared_expert_gate", "shared_experts_gate"})
ROUTER_LEAVES: Final = frozenset({"gate", "router", "wg"})
WRAPPERS: Final = frozenset({"dense", "linear", "layer", "weight", "conv1d", "proj"})
"""Names that say nothing by themselves: the module around them carries the name (`output.dense`, `q_proj.linear`)."""

CROSS_ATTENTION: Final = re.compile(r"(?i)^(encoder_att(n|ention)?|cross_?att(n|ention)?|crossattention)$|CrossAttention$")
ATTENTION_NAME: Final = re.compile(r"(?i)^(\w+_)?(attn|attention|att|mha)$|^attentions?$")
ATTENTION_CLASS: Final = re.compile(r"(Attention|Attn)(V?\d+)?$|MoA$")
MIXER_CLASS: Final = re.compile(
    r"(Mamba\d?(Mixer|Layer)?|Mixer2?|GatedDeltaNet|DeltaNet|DeltaAttention|LightningAttention|LinearAttention|ShortConv"
    r"|mLSTM\w*|RetNet|Retention|RecurrentBlock|Rglru)$"
)
MLP_NAME: Final = re.compile(r"(?i)^(\w+_)?(mlps?|ffns?|ff|feed_?forward|moe)(_\w+)?$|^shared_experts?$|^block_sparse_moe$")
MLP_CLASS: Final = re.compile(r"(MLP|FFN|FeedForward\w*|MoE|Moe|SparseMoeBlock|SharedExperts?)$")
EXPERTS_NAME: Final = re.compile(r"(?i)^(\w+_)?experts$")
SHARED_NAME: Final = re.compile(r"(?i)shared")
ROUTER_CLASS: Final = re.compile(r"(?i)(router|top_?k_?gat(e|ing))")
NORM_CLASS: Final = re.compile(r"(?i)norm(?!al\b)|l2clip")
INDEX: Final = re.compile(r"(?i)^(indexer|compressor)$|(Indexer|Compressor)$")
RESIDUAL: Final = re.compile(r"(?i)hyper_?connection|^(\w+_)?hc(_\w+)?$|hyperhead|altup|laurel")
ADAPTER: Final = re.compile(r"(?i)adapter")
POSITION: Final = re.compile(r"(?i)posit|^wpe$|relative_attention_bias|(^|_)pos(_|$)")
PROJECT: Final = re.compile(
    r"(?i)^(embeddings?_project|project_(in|out)|embedding_hidden_mapping_in|per_layer_model_projection|map_inputs_layer)$"
)
OTHER_PART: Final = re.compile(
    r"(?i)vision|visual|image|img|audio|speech|codec|video|multi_?modal|mm_projector|projector|pooler|patcher"
)

RECURRENCE: Final = frozenset(
    {
        "A_log", "dt_bias", "time_decay", "time_first", "time_mix_key", "slope_rate", "recurrent_param",
        "recurrent_gate_weight", "igate_preact", "fgate_preact",
    }
)  # fmt: skip
"""Parameters, buffers and gates that only a layer with a state along the sequence has."""

CHECKED_HEADS: Final = ("num_attention_heads", "n_head", "n_heads", "num_heads")
EXPERTS_PER_TOKEN: Final = (
    "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "top_k_experts", "moe_k", "top_k",
    "router_topk",
)  # fmt: skip
CONTEXT_LENGTH: Final = (
    "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "context_length", "seq_length",
    "max_target_positions",
)  # fmt: skip


def _invert(table: dict[str, tuple[str, ...]]) -> dict[str, str]:
    return {name: role for role, names in table.items() for name in names}


ATTENTION_NAMES: Final = _invert(ATTENTION_ROLES)
MLP_NAMES: Final = _invert(MLP_ROLES)
