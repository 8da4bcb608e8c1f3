"""Counts done by hand, names filled in, and the parts that lie beside the decoder's own projections."""

from __future__ import annotations

from transformers import LlamaConfig

from luthier.registry.detect import detect

LLAMA = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 128,
}


def test_counts_of_a_llama_by_hand() -> None:
    """Two layers: q and o 64x64, k and v 64x32, three MLP matrices 64x96, two norms of 64; 128x64 at both ends."""
    profile = detect(LlamaConfig(**LLAMA))
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96 + 2 * 64
    assert profile.parameters == 2 * layer + 64 + 2 * 128 * 64
    assert profile.role_parameters["attn.k"] == 2 * 64 * 32
    tied = detect(LlamaConfig(**LLAMA, tie_word_embeddings=True))
    assert tied.parameters == profile.parameters - 128 * 64
    assert tied.tied_embeddings
    assert "head" in tied.roles
    assert "head" not in tied.role_parameters


def test_names_fill_the_layers_in() -> None:
    profile = detect(LlamaConfig(**LLAMA))
    assert profile.modules("attn.q") == ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj")
    assert len(profile.modules("attn")) == 8
    assert len(profile.modules(("attn", "mlp"))) == 14


def test_towers_beside_the_text_decoder_are_named_and_counted() -> None:
    from transformers import Gemma3Config

    config = Gemma3Config(text_config=LLAMA | {"head_dim": 16})
    profile = detect(config)
    assert profile.decoder == "model.language_model.layers"
    assert profile.unclassified == ()
    assert {tower.module for tower in profile.towers} == {"model.vision_tower", "model.multi_modal_projector"}
    assert profile.role_parameters["towers"] == sum(tower.parameters for tower in profile.towers)
    assert not any("vision" in name for role in profile.roles for name in profile.modules(role))


def test_cross_attention_has_roles_of_its_own() -> None:
    from transformers import BartConfig

    profile = detect(BartConfig(d_model=64, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=96, vocab_size=128))
    assert profile.groups("attn.q")[0].pattern == "model.decoder.layers.*.self_attn.q_proj"
    assert [group.pattern for group in profile.groups("cross")] == [
        f"model.decoder.layers.*.encoder_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj")
    ]
    assert profile.unclassified == ()


def test_a_model_of_full_size_needs_no_memory() -> None:
    """70 billion parameters: on any device but meta this would take 130 GiB."""
    config = LlamaConfig(hidden_size=8192, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8)
    config.intermediate_size, config.vocab_size = 28672, 128256
    profile = detect(config)
    assert profile.layers == 80
    assert profile.parameters == 70_553_706_496  # what Meta's Llama 3 70B has
