"""`neftune`: noise of the paper's size on the embeddings, while training only, and nothing left behind."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.contracts import NothingPatched
from luthier.plugins import neftune
from luthier.plugins.neftune import NeftuneConfig
from luthier.plugins.neftune.noise import document_lengths, noise_like

from .conftest import SMALL
from .running import configuration, resumed_equals_straight, train, weights

Load = Callable[[str], tuple[Any, Any]]


def embedded(model: Any, seed: int = 0, **inputs: torch.Tensor) -> torch.Tensor:
    """What the embeddings give to the decoder, of shape (B, T, d)."""
    seen: list[torch.Tensor] = []
    hook = model.get_input_embeddings().register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    torch.manual_seed(seed)
    model(use_cache=False, **inputs)
    hook.remove()
    return seen[0]


def test_the_noise_is_the_papers(kind: str, load: Load, ids: torch.Tensor) -> None:
    """Every number within alpha / sqrt(L d), spread as a uniform one, whose standard deviation is its bound / sqrt(3)."""
    model, profile = load(kind)
    plain = embedded(model.train(), input_ids=ids)
    neftune.apply(model, profile, NeftuneConfig(alpha=7.0))
    noise = embedded(model, input_ids=ids) - plain
    bound = 7.0 / math.sqrt(ids.shape[1] * plain.shape[2])
    assert noise.abs().max() <= bound * (1 + 1e-5)
    assert noise.abs().max() > 0.99 * bound
    assert float(noise.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert abs(float(noise.mean())) < 0.06 * bound
    # Torch's own numbers, drawn in the order of the tensor.
    torch.manual_seed(0)
    expected = torch.empty_like(plain).uniform_(-1, 1) * bound
    assert (noise - expected).abs().max() < 1e-6


def test_padding_is_not_part_of_the_length(load: Load) -> None:
    """The row of four tokens gets the noise of a row of four, whatever stands beside it."""
    model, profile = load("llama")
    ids = torch.randint(0, 250, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    plain = embedded(model.train(), input_ids=ids, attention_mask=mask)
    neftune.apply(model, profile, NeftuneConfig())
    noise = (embedded(model, input_ids=ids, attention_mask=mask) - plain).abs()
    for row, length in ((0, 12), (1, 4)):
        bound = 5.0 / math.sqrt(length * 64)
        assert 0.97 * bound < float(noise[row].max()) <= bound * (1 + 1e-5)


def test_packed_documents_have_their_own_lengths() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]])
    found = document_lengths({"position_ids": positions})
    assert found is not None
    assert found.tolist() == [[3, 3, 3, 2, 2, 1], [6, 6, 6, 6, 6, 6]]
    torch.manual_seed(0)
    noise = noise_like(torch.zeros(2, 6, 500), found, 5.0).abs().amax(dim=-1)
    assert torch.allclose(noise, 5.0 / (found * 500).sqrt(), rtol=0.02)
    assert document_lengths({"attention_mask": None, "position_ids": None}) is None
    assert document_lengths({"attention_mask": torch.zeros(2, 1, 6, 6), "position_ids": positions}) is None


@pytest.mark.parametrize("wrapped", [False, True])
def test_only_while_training(wrapped: bool, kind: str, load: Load, ids: torch.Tensor) -> None:
    """Evaluation, and forwards without gradients (generation, a reference's log-probabilities), are those of the model."""
    from luthier.plugins import lora

    model, profile = load(kind)
    if wrapped:
        model = lora.attach(model, profile, lora.LoraConfig(rank=2)).eval()
    with torch.no_grad():
        plain = model(input_ids=ids).logits
    names = list(model.state_dict())
    undo = neftune.apply(model, profile, NeftuneConfig())
    assert torch.equal(model(input_ids=ids).logits, plain)
    assert list(model.state_dict()) == names
    if kind != "gpt2":  # whose dropout is another in each forward
        with torch.no_grad():
            assert torch.equal(model.train()(input_ids=ids).logits, plain)
        assert (model(input_ids=ids).logits - plain).abs().max() > 1e-3
    undo()
    base = model.get_base_model() if wrapped else model
    for module in (base.get_input_embeddings(), base.get_decoder(), model):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    torch.manual_seed(0)
    first = model.train()(input_ids=ids).logits
    torch.manual_seed(0)
    assert torch.equal(model(input_ids=ids).logits, first)


def test_on_embeddings_that_an_adapter_trains(load: Load, ids: torch.Tensor) -> None:
    """PEFT puts a copy in their place, and the hook is on what then answers for them."""
    import peft

    model, profile = load("llama")
    options = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    model = peft.get_peft_model(model, options).train()
    plain = model(input_ids=ids).logits
    neftune.apply(model, profile, NeftuneConfig())
    assert (model(input_ids=ids).logits - plain).abs().max() > 1e-3


@pytest.mark.parametrize("tuning", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_virtual_tokens_hide_no_length(tuning: str, load: Load) -> None:
    """PEFT looks prompt-tuned rows up before it calls the decoder, and adds virtual tokens to the mask that this gets."""
    import peft

    model, profile = load("llama")
    options = getattr(peft, tuning)(task_type="CAUSAL_LM", num_virtual_tokens=7)
    model = peft.get_peft_model(model, options).train()
    ids = torch.randint(0, 250, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    plain = embedded(model, input_ids=ids, attention_mask=mask)
    undo = neftune.apply(model, profile, NeftuneConfig())
    for _ in range(2):
        noise = (embedded(model, input_ids=ids, attention_mask=mask) - plain).abs()
        for row, length in ((0, 12), (1, 4)):
            bound = 5.0 / math.sqrt(length * 64)
            assert 0.97 * bound < float(noise[row].max()) <= bound * (1 + 1e-5)
    # A batch without a mask has its own length, not that of the one before.
    bare = (embedded(model, input_ids=ids[:, :6]) - torch.nn.functional.embedding(ids[:, :6], weight_of(model))).abs().max()
    assert float(bare) == pytest.approx(5.0 / math.sqrt(6 * 64), rel=0.03)
    undo()
    assert torch.equal(embedded(model, input_ids=ids, attention_mask=mask), plain)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def weight_of(model: Any) -> torch.Tensor:
    return model.get_input_embeddings().weight.detach()


def test_a_length_does_not_outlive_its_batch(load: Load, ids: torch.Tensor) -> None:
    model, profile = load("llama")
    neftune.apply(model.train(), profile, NeftuneConfig())
    with pytest.raises(Exception):  # noqa: B017  # whatever the model raises for a token that is not there
        model(input_ids=ids + 10_000, attention_mask=torch.zeros_like(ids))
    embeddings = model.get_input_embeddings()
    noise = (embeddings(ids) - torch.nn.functional.embedding(ids, embeddings.weight)).detach().abs().max()
    assert float(noise) == pytest.approx(5.0 / math.sqrt(12 * 64), rel=0.01)


def test_a_model_without_embeddings_stops_the_run(load: Load) -> None:
    _, profile = load("llama")
    with pytest.raises(NothingPatched, match="names no input embeddings"):
        neftune.apply(torch.nn.Linear(2, 2), profile, NeftuneConfig())


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2", "mixtral"])
def test_runs_with_it(model_type: str, tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Another result than without it, and the same one twice."""
    folder = tiny_folder(model_type, **SMALL.get(model_type, {}))
    losses: dict[str, float] = {}
    saved: dict[str, dict[str, torch.Tensor]] = {}
    for name, patches in (("plain", []), ("noisy", ["neftune"]), ("again", ["neftune"])):
        config = configuration(folder, tmp_path, patches, output=str(tmp_path / name))
        losses[name] = train(config)[0]["train_loss"]
        saved[name] = weights(tmp_path / name)
    assert saved["noisy"].keys() == saved["plain"].keys()
    assert all(torch.equal(saved["noisy"][name], saved["again"][name]) for name in saved["again"])
    assert losses["noisy"] != losses["plain"]


def test_it_resumes_to_the_same_bits(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    assert resumed_equals_straight(configuration(tiny_folder("llama"), tmp_path, ["neftune"]))
    assert resumed_equals_straight(
        configuration(tiny_folder("llama"), tmp_path, ["neftune"], adapter="full", output=str(tmp_path / "full"))
    )
