"""Every adapter trains the score head, counts it, saves it where other libraries find it, and folds it in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, PeftModelForSequenceClassification
from transformers import AutoModelForSequenceClassification

from luthier.core.errors import LuthierError
from luthier.core.optimizing import trained_parameters
from luthier.core.saving import ADAPTER_CONFIG, load_trained, quiet, save_trained
from luthier.core.score_head import require_trained_head
from luthier.core.testing import measuring
from luthier.core.testing.models import TinyModel, tiny_model, token_batch
from luthier.plugins.peft import tuners
from tests.methods.peft_tuners import OPTIONS
from tests.stages.score.conftest import score_profile

Attach = Callable[..., tuple[Any, Any, Any]]
IA3 = {"tuner": "ia3"}
CASES: list[tuple[str, str, dict[str, Any]]] = [
    *((kind, "full", {}) for kind in ("llama", "gpt2", "mixtral")),
    *((kind, "freeze", {"layers": 1}) for kind in ("llama", "gemma2")),
    ("llama", "freeze", {"layers": 0, "extra": ["score"]}),
    *((kind, "lora", {"rank": 4}) for kind in ("llama", "qwen3", "gpt2", "phi3", "gemma2", "mixtral")),
    ("gemma2", "lora", {"rank": 4, "modules_to_save": ["embed"]}),
    ("llama", "lora", {"rank": 4, "modules_to_save": ["score"]}),
    ("llama", "lora", {"rank": 4, "init": "pissa"}),
    ("mixtral", "lora", {"rank": 2, "target": ["attn", "experts"]}),
    *((kind, "dora", {"rank": 4}) for kind in ("llama", "gpt2")),
    ("llama", "oft", {"block_size": 16}),
    *((kind, "llama_pro", {}) for kind in ("llama", "gpt2")),
    ("llama", "peft", IA3),
    ("llama", "peft", {"tuner": "vera", "options": {"r": 8}}),
    ("gpt2", "peft", {"tuner": "ln_tuning"}),
]
case = pytest.mark.parametrize(("kind", "name", "options"), CASES, ids=[f"{k}-{n}-{o}" for k, n, o in CASES])


def scores(model: Any) -> torch.Tensor:
    batch = token_batch(rows=3)
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
    return found


def heads(model: Any) -> list[str]:
    return [name for name in trained_parameters(model) if "score" in name.split(".")]


def loaded_by_others(folder: Path, tiny: TinyModel) -> list[Any]:
    """What was saved, as transformers and PEFT load it without Luthier; every way there is."""
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
    auto = AutoModelForSequenceClassification
    with quiet():
        if not (folder / ADAPTER_CONFIG).is_file():
            return [auto.from_pretrained(str(folder), **options).eval()]
        base = auto.from_pretrained(str(tiny.folder), num_labels=1, **options)
        beside = PeftModelForSequenceClassification.from_pretrained(base, str(folder))
        return [
            beside.eval(),
            AutoPeftModelForSequenceClassification.from_pretrained(str(folder), num_labels=1, **options).eval(),
        ]


@case
def test_the_head_trains_and_is_counted(kind: str, name: str, options: Mapping[str, Any], attach: Attach) -> None:
    tiny = tiny_model(kind)
    adapter, config, model = attach(tiny, name, options)
    require_trained_head(model, name)
    assert len(heads(model)) == 1
    trained = trained_parameters(model)
    terms = adapter.memory(score_profile(tiny), config)
    assert terms.trainable == sum(parameter.numel() for parameter in trained.values())
    assert terms.trainable == sum(matrix.size * matrix.count for matrix in terms.matrices)
    model.train()
    measuring.shake(model)
    batch = token_batch(rows=3)
    model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.sum().backward()
    assert trained[heads(model)[0]].grad.any()


@case
def test_saved_it_is_the_same_everywhere(
    kind: str, name: str, options: Mapping[str, Any], attach: Attach, load: Callable[..., Any], tmp_path: Path
) -> None:
    """In a resumed run, beside a freshly loaded base, in transformers and in PEFT: the scores that it had."""
    tiny = tiny_model(kind)
    adapter, _, model = attach(tiny, name, options)
    measuring.shake(model)
    expected = scores(model)
    save_trained(model, tmp_path, adapter)
    _, _, fresh = attach(tiny, name, options)
    resumed = load_trained(fresh, tmp_path, adapter, trainable=True).eval()
    assert set(trained_parameters(resumed)) == set(trained_parameters(model))
    others = loaded_by_others(tmp_path, tiny)
    if (tmp_path / ADAPTER_CONFIG).is_file():
        others.append(load_trained(load(tiny), tmp_path, adapter, trainable=False).eval())
    for other in (resumed, *others):
        assert torch.allclose(scores(other), expected, atol=1e-5)


@case
def test_folded_in_it_is_the_same(kind: str, name: str, options: Mapping[str, Any], attach: Attach) -> None:
    adapter, _, model = attach(tiny_model(kind), name, options)
    measuring.shake(model)
    expected = scores(model)
    merged = adapter.merge(model).eval()
    assert type(merged).__name__.endswith("ForSequenceClassification")
    assert not [module for module in merged.modules() if type(module).__module__.startswith("peft.")]
    assert torch.allclose(scores(merged), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["full", "lora"])
def test_beside_bfloat16_the_head_is_kept_in_float32(name: str, attach: Attach, tmp_path: Path) -> None:
    """... and comes back from a checkpoint to the last bit, for experts too, whose file has to be converted."""
    tiny = tiny_model("mixtral")
    adapter, _, model = attach(tiny, name, dtype="bfloat16")
    (head,) = heads(model)
    weight = trained_parameters(model)[head]
    assert weight.dtype == torch.float32
    with torch.no_grad():
        weight += torch.pi / 1000
    save_trained(model, tmp_path, adapter)
    _, _, fresh = attach(tiny, name, dtype="bfloat16")
    resumed = trained_parameters(load_trained(fresh, tmp_path, adapter, trainable=True))
    assert torch.equal(resumed[head], weight)
    assert torch.equal(scores(fresh), scores(model))


@pytest.mark.slow
@pytest.mark.parametrize("tuner", [name for name, one in tuners.TUNERS.items() if one.kind != "prompt"])
def test_every_tuner_of_peft(tuner: str, attach: Attach, tmp_path: Path) -> None:
    """Beside the base model, and folded into it where that can be done."""
    tiny = tiny_model("llama")
    adapter, _, model = attach(tiny, "peft", {"tuner": tuner, "options": OPTIONS.get(tuner, {})})
    assert len(heads(model)) == 1
    measuring.shake(model)
    save_trained(model, tmp_path, adapter)
    expected = scores(model)
    for other in loaded_by_others(tmp_path, tiny):
        assert torch.allclose(scores(other), expected, atol=1e-5)
    if tuners.TUNERS[tuner].mergeable:
        merged = adapter.merge(model).eval()
        assert not [module for module in merged.modules() if type(module).__module__.startswith("peft.")]
        assert torch.allclose(scores(merged), expected, atol=1e-5)


# ---- refused


@pytest.mark.parametrize("tuner", ["prompt_tuning", "prefix_tuning"])
def test_learned_tokens_are_refused_by_a_trait(tuner: str) -> None:
    declared = tuners.declaration(tuner, {"num_virtual_tokens": 4}, None)
    assert "neither trains nor saves a head" in declared.reasons["model.score_head"]
    assert "model.score_head" in declared.conflicts


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"modules_to_save": ["head"]}, "llama has no modules of role head"),
        ({"target": ["attn", "head"]}, "llama has no modules of role head"),
        ({"target": ["all", "score"]}, "score would train in whole and get an update as well"),
    ],
)
def test_the_language_model_head_is_not_there(options: Mapping[str, Any], reason: str, attach: Attach) -> None:
    with pytest.raises(AssertionError, match=reason):
        attach(tiny_model("llama"), "lora", options)


def test_badam_gives_the_head_its_turn(attach: Attach) -> None:
    """`embeddings: false` freezes the matrices outside the layers, and not the head, which is new."""
    from luthier.plugins.badam.blocks import cut

    tiny = tiny_model("llama")
    _, _, model = attach(tiny, "full")
    blocks = cut(model, "model.layers", layers=1, outside=False, heads=["score"])
    assert any(parameter is model.score.weight for block in blocks for parameter in block)
    assert not model.model.embed_tokens.weight.requires_grad


def test_an_adapter_that_forgets_the_head_is_stopped(load: Callable[..., Any]) -> None:
    model = load(tiny_model("llama"))
    model.score.requires_grad_(False)
    with pytest.raises(LuthierError, match="adapter: mine does not train the score head"):
        require_trained_head(model, "mine")


def test_a_language_models_adapter_is_not_continued_as_a_reward_models(attach: Attach, tmp_path: Path) -> None:
    """It has no head to go on with; and a reward model's is none for a language model."""
    from luthier.core.testing.surroundings import installed, installed_catalog
    from luthier.plugins._peft.saved import check_continued
    from luthier.plugins.lora import LoraConfig

    tiny = tiny_model("llama")
    adapter, _, model = attach(tiny, "lora", {"rank": 4})
    save_trained(model, tmp_path, adapter)
    options = LoraConfig(rank=4, continue_from=str(tmp_path))
    assert check_continued(score_profile(tiny), options)
    causal = installed().profile(tiny.config, installed_catalog())
    assert "is a reward model's, with a score head" in check_continued(causal, options).reason
    config = tmp_path / ADAPTER_CONFIG
    config.write_text(config.read_text().replace("SEQ_CLS", "CAUSAL_LM"))
    assert "has no score head" in check_continued(score_profile(tiny), options).reason
