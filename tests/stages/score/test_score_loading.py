"""Loading a model with a score head: what is new, what is kept, what is refused."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from luthier.core.errors import ModelError, PlanRefused
from luthier.core.frozen import FrozenDict
from luthier.core.loading import load_model
from luthier.core.plan import ModelReference, Plan, Precision
from luthier.core.score_head import INITIAL_STD
from luthier.core.scoring import profile_for, scores
from luthier.core.testing.models import KINDS, tiny_model
from luthier.core.testing.surroundings import installed, installed_catalog

Load = Callable[..., Any]
UNTIED = {"tie_word_embeddings": False}


def profile_of(kind: str) -> Any:
    return installed().profile(tiny_model(kind).config, installed_catalog())


@pytest.mark.parametrize("kind", KINDS)
def test_the_profile_is_that_of_the_model_that_is_loaded(kind: str, load: Load) -> None:
    """Against transformers' own class: every module by name, every parameter counted, and the same decoder layers."""
    tiny = tiny_model(kind)
    causal, profile = profile_of(kind), profile_for(profile_of(kind), "score")
    model = load(tiny)
    assert type(model).__name__ == profile.architecture
    assert profile.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert profile.parameters == sum(profile.role_parameters.values())
    assert model.get_submodule(profile.decoder)
    assert profile.decoder == causal.decoder
    names = {name for name, _ in model.named_modules()} | {name for name, _ in model.named_parameters()}
    assert {name for role in profile.roles for name in profile.modules(role)} <= names
    inside = {role: groups for role, groups in causal.roles.items() if role != "head"}
    assert {role: groups for role, groups in profile.roles.items() if role != "score"} == inside
    assert profile.modules("score") == ("score",)
    assert model.score.weight.shape == (1, profile.hidden_size)
    assert not profile.tied_embeddings
    assert "model.tied_embeddings" not in profile.traits


def test_the_profile_of_a_language_model_stays() -> None:
    profile = profile_of("llama")
    assert profile_for(profile, "causal") == profile
    assert profile_for(profile_for(profile, "score"), "score") == profile_for(profile, "score")


def test_a_new_head_is_small_drawn_by_the_seed_and_told_of(load: Load) -> None:
    tiny, notices = tiny_model("llama"), list[str]()
    first = load(tiny, notices=notices, seed=1).score.weight.detach()
    torch.manual_seed(99)
    again, other = load(tiny, seed=1).score.weight, load(tiny, seed=2).score.weight
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    # 64 draws: their deviation has a standard error of 1/sqrt(128) of itself.
    assert abs(float(first.std()) / INITIAL_STD - 1) < 4 / math.sqrt(128)
    assert len(notices) == 1
    assert "the score head is new: 64 weights" in notices[0]


@pytest.mark.parametrize(("kind", "changes"), [("llama", UNTIED), ("llama", {"tie_word_embeddings": True}), ("gpt2", {})])
def test_the_decoder_is_the_language_models(kind: str, changes: dict[str, Any], load: Load) -> None:
    """Tied or not: hidden states are those of the causal model, and the number is their product with the head."""
    tiny, notices = tiny_model(kind, changes), list[str]()
    model, causal = load(tiny, notices=notices), tiny.load()
    ids = torch.arange(12).reshape(1, 12)
    with torch.no_grad():
        hidden = causal(ids, output_hidden_states=True).hidden_states[-1]
        found = model(ids).logits
    expected = hidden[:, -1].double() @ model.score.weight.double().T
    assert torch.allclose(found.double(), expected, atol=1e-6)
    assert len(notices) == 1  # of a head that the file has and the model has not, there is nothing to say


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_head_computes_in_float32(dtype: str, load: Load) -> None:
    model = load(tiny_model("llama"), dtype=dtype)
    ids = torch.arange(12).reshape(1, 12)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(ids).last_hidden_state
        found = model(ids).logits
    expected = hidden[:, -1].double() @ model.score.weight.double().T
    assert found.dtype == torch.float32
    assert model.score.weight.dtype == torch.float32
    assert torch.allclose(found.double(), expected, atol=1e-6)


def test_a_head_that_the_checkpoint_has_is_kept(load: Load, tmp_path: Path) -> None:
    tiny, notices = tiny_model("llama"), list[str]()
    saved = AutoModelForSequenceClassification.from_pretrained(str(tiny.folder), num_labels=1)
    torch.nn.init.normal_(saved.score.weight)
    saved.save_pretrained(tmp_path)
    assert torch.equal(load(tiny, tmp_path, notices=notices).score.weight, saved.score.weight)
    assert notices == []


def damaged(folder: Path, into: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    AutoModelForCausalLM.from_pretrained(str(folder)).save_pretrained(into)
    weights = load_file(into / "model.safetensors")
    change(weights)
    save_file(weights, into / "model.safetensors", metadata={"format": "pt"})
    return into


def test_any_other_weight_that_is_missing_is_an_error(load: Load, tmp_path: Path) -> None:
    tiny = tiny_model("llama", UNTIED)
    folder = damaged(tiny.folder, tmp_path / "m", lambda weights: weights.pop("model.norm.weight"))
    with pytest.raises(ModelError, match=r"lack 1 tensors that the model needs, first model\.norm\.weight"):
        load(tiny, folder)


def test_of_what_is_left_over_only_the_language_model_head_goes_unsaid(load: Load, tmp_path: Path) -> None:
    tiny, notices = tiny_model("llama", UNTIED), list[str]()
    folder = damaged(tiny.folder, tmp_path / "m", lambda weights: weights.update({"lm_head.extra": torch.ones(2)}))
    assert "lm_head.weight" in load_file(folder / "model.safetensors")
    load(tiny, folder, notices=notices)
    assert [text for text in notices if "left out" in text] == [
        "1 tensors of the weight files are not part of the model and were left out, first lm_head.extra"
    ]


def test_a_classifier_of_several_classes_is_refused(load: Load, tmp_path: Path) -> None:
    tiny = tiny_model("llama")
    AutoModelForSequenceClassification.from_pretrained(str(tiny.folder), num_labels=3).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="the checkpoint has a head of 3 numbers, and a score is one"):
        load(tiny, tmp_path)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("olmoe", "transformers has no ...ForSequenceClassification for model type olmoe"),
        ("bert", "BertForSequenceClassification does not read a number off the last token"),
        ("qwen3_5", "Qwen3_5ForSequenceClassification is built around another model than Qwen3_5ForCausalLM is"),
    ],
)
def test_models_without_such_a_class_are_told_apart(kind: str, reason: str) -> None:
    names = {"olmoe": "OlmoeForCausalLM", "bert": "BertLMHeadModel", "qwen3_5": "Qwen3_5ForCausalLM"}
    profile = dataclasses.replace(profile_of("llama"), model_type=kind, architecture=names[kind])
    answer = scores(profile)
    assert not answer
    assert reason in answer.reason
    assert "llama" in answer.fix


def test_code_that_comes_with_a_model_is_refused() -> None:
    answer = scores(dataclasses.replace(profile_of("llama"), remote_code=True))
    assert "code that comes with the model has no" in answer.reason


def test_a_plan_for_a_model_without_the_class_names_it(rm_config: Callable[..., dict[str, Any]]) -> None:
    import luthier

    with pytest.raises(PlanRefused) as refused:
        luthier.plan(rm_config(tiny_model("olmoe").folder))
    (problem,) = refused.value.problems
    assert problem.where == "model"
    assert "model type olmoe" in problem.reason


def write_gguf(path: Path) -> None:
    """A llama of two layers with random weights, as llama.cpp stores it."""
    from gguf import GGUFWriter

    hidden, inner, vocabulary = 32, 64, 48
    writer = GGUFWriter(str(path), "llama")
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(vocabulary)
    shapes = {"token_embd": (vocabulary, hidden), "output_norm": (hidden,), "output": (vocabulary, hidden)}
    for layer in range(2):
        inside = {
            "attn_norm": (hidden,), "ffn_norm": (hidden,), "attn_q": (hidden, hidden), "attn_k": (hidden // 2, hidden),
            "attn_v": (hidden // 2, hidden), "attn_output": (hidden, hidden), "ffn_gate": (inner, hidden),
            "ffn_up": (inner, hidden), "ffn_down": (hidden, inner),
        }  # fmt: skip
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in inside.items()}
    random = np.random.RandomState(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape).astype(np.float32) * 0.1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_from_a_gguf_file(load: Load, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    notices: list[str] = []
    model = load(tiny_model("llama"), tmp_path, notices=notices, gguf_file="m.gguf")
    from transformers import GgufConfig

    options: dict[str, Any] = {"gguf_file": "m.gguf", "quantization_config": GgufConfig(dequantize=True)}
    causal = AutoModelForCausalLM.from_pretrained(str(tmp_path), dtype=torch.float32, **options).eval()
    ids = torch.arange(12).reshape(1, 12)
    with torch.no_grad():
        hidden = causal(ids, output_hidden_states=True).hidden_states[-1]
        found = model(ids).logits
    assert torch.allclose(found.double(), hidden[:, -1].double() @ model.score.weight.double().T, atol=1e-6)
    assert len(notices) == 1
    assert "the score head is new: 32 weights" in notices[0]


@pytest.mark.slow
def test_over_the_whole_mapping_only_the_head_differs() -> None:
    """Of every model type that `scores` admits, built on the meta device: the same parameters but for the heads."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    )

    compared = 0
    for kind in sorted(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES):
        architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
        if not isinstance(architecture, str):
            continue
        if not scores(dataclasses.replace(profile_of("llama"), model_type=kind, architecture=architecture)):
            continue
        try:
            config = AutoConfig.for_model(kind, num_labels=1)
            with torch.device("meta"):
                causal = AutoModelForCausalLM.from_config(config)
        except (TypeError, KeyError, AttributeError, ValueError):
            continue  # no model can be built from the configuration's defaults
        with torch.device("meta"):
            scoring = AutoModelForSequenceClassification.from_config(config)
        own, other = ({name for name, _ in model.named_parameters()} for model in (scoring, causal))
        assert own - other == {"score.weight"}, kind
        assert all(name.startswith("lm_head.") for name in other - own), kind
        compared += 1
    assert compared > 50


@pytest.mark.parametrize("changes", [UNTIED, {"tie_word_embeddings": True}])
def test_a_reward_model_is_no_language_model(changes: dict[str, Any], load: Load, tmp_path: Path) -> None:
    """Tied, transformers would load it without a word: the embeddings are a head, too."""
    tiny = tiny_model("llama", changes)
    load(tiny).save_pretrained(tmp_path)
    plan = Plan(
        model=ModelReference(name="tiny", path=str(tmp_path), kind="folder"),
        profile=profile_of("llama"),
        steps=(),
        precision=Precision(name="fp32", weights="float32", compute="float32", why=""),
        config=FrozenDict(),
    )
    with pytest.raises(ModelError, match="this is a reward model"):
        load_model(plan)
