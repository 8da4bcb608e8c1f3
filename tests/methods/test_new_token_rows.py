"""`new_tokens`: rows that start as means of old ones, train, are saved, resumed, and loaded by plain libraries."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.context import BuildContext
from luthier.core.contracts import NothingPatched
from luthier.core.errors import PlanRefused
from luthier.core.plan import Precision
from luthier.plugins import new_tokens
from luthier.plugins.new_tokens import NewTokensConfig

from .conftest import SMALL
from .running import configuration, resumed_equals_straight, train, weights
from .vocabularies import LINES, extended, ids_of, sentencepiece_model, write_corpus

Load = Callable[[str], tuple[Any, Any]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def context_of(original: Any, tokenizer: Any, said: list[str] | None = None) -> BuildContext:
    precision = Precision(name="fp32", weights="float32", compute="float32", why="")
    return BuildContext(
        precision=precision,
        tokenizer=tokenizer,
        original_tokenizer=original,
        notice=(said if said is not None else []).append,
    )


@pytest.mark.parametrize("tied", [False, True])
def test_new_rows_are_means_of_old_ones(tied: bool, kind: str, tiny_folder: Callable[..., Path], corpus: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from luthier.registry.detect import detect

    folder = tiny_folder(kind, **SMALL.get(kind, {}), tie_word_embeddings=tied)
    original = AutoTokenizer.from_pretrained(folder)
    options = {"tokens": ("<|note|>", " hello"), "vocabulary": str(sentencepiece_model(corpus, "bpe"))}
    tokenizer, _ = extended(original, **options)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    old = [embeddings.weight.detach().clone(), head.weight.detach().clone()]
    ids = torch.randint(0, 250, (2, 12))
    with torch.no_grad():
        plain = model.eval()(input_ids=ids).logits
    said: list[str] = []
    undo = new_tokens.apply(model, detect(folder), NewTokensConfig(**options), context_of(original, tokenizer, said))
    assert (head.weight is embeddings.weight) == tied
    assert model.config.vocab_size == len(embeddings.weight) == len(head.weight) == len(tokenizer)
    assert f"{len(original)} rows became {len(tokenizer)}" in said[0]
    for values, before in zip((embeddings.weight, head.weight), old, strict=True):
        assert torch.equal(values[: len(original)], before)
        for token, text in (("<|note|>", "<|note|>"), (" hello", " hello"), ("Ġder", " der"), ("schaft", "schaft")):
            row = values[tokenizer.convert_tokens_to_ids(token)]
            assert torch.allclose(row, before[ids_of(original, text)].double().mean(dim=0).float(), atol=1e-7)
    with torch.no_grad():
        assert (model(input_ids=ids).logits[..., : len(original)] - plain).abs().max() < 1e-5
    undo()
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, plain)
    assert model.config.vocab_size == len(original)


def test_spare_rows_padding_and_random_ones(tiny_folder: Callable[..., Path], tiny_tokenizer: Any) -> None:
    """A matrix with more rows than tokens is filled before it grows; rows beyond the last token are the mean of all."""
    from transformers import AutoModelForCausalLM

    from luthier.registry.detect import detect

    folder = tiny_folder("llama", vocab_size=265)
    words = ("<a>", "<b>", "<c>")
    tokenizer, _ = extended(tiny_tokenizer, tokens=words)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weight = model.model.embed_tokens.weight.detach().clone()
    options = NewTokensConfig(tokens=words, pad_to_multiple_of=64)
    undo = new_tokens.apply(model, detect(folder), options, context_of(tiny_tokenizer, tokenizer))
    rows = model.model.embed_tokens.weight
    assert len(rows) == len(model.lm_head.weight) == 320
    assert torch.allclose(rows[263], weight[ids_of(tiny_tokenizer, "<a>")].mean(dim=0), atol=1e-7)
    assert torch.allclose(rows[266:], weight[:263].mean(dim=0).expand(54, -1), atol=1e-7)
    undo()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    two = NewTokensConfig(tokens=words[:2], init="random")
    tokenizer, _ = extended(tiny_tokenizer, tokens=words[:2])
    new_tokens.apply(model, detect(folder), two, context_of(tiny_tokenizer, tokenizer))
    rows = model.model.embed_tokens.weight
    assert len(rows) == 265
    noise = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    expected = weight[:263].mean(dim=0) + noise * weight[:263].std(dim=0, correction=0)
    assert torch.allclose(rows[263:], expected, atol=1e-6)


def test_nothing_new_stops_the_run(load: Load, tiny_tokenizer: Any) -> None:
    model, profile = load("llama")
    with pytest.raises(NothingPatched, match="no token"):
        new_tokens.apply(model, profile, NewTokensConfig(tokens=("<a>",)), context_of(tiny_tokenizer, tiny_tokenizer))


def test_the_prediction_counts_the_rows(kind: str, load: Load, tmp_path: Path) -> None:
    (tmp_path / "tokens.txt").write_text("<a>\n<b>\n")
    _, profile = load(kind)
    terms = new_tokens.memory(profile, NewTokensConfig(tokens=("<c>",), file=str(tmp_path / "tokens.txt")))
    assert terms.added == terms.trainable == 3 * 64 * (1 if profile.tied_embeddings else 2)
    assert sum(matrix.size * matrix.count for matrix in terms.matrices) == terms.trainable


# ---- runs

PATCH = {"use": "new_tokens", "tokens": ["<|note|>", " hello"], "pad_to_multiple_of": 8}
ADAPTERS: dict[str, Any] = {
    "full": "full",
    "freeze": {"use": "freeze", "layers": 1, "embeddings": True, "extra": ["head"]},
    "rows": {"use": "lora", "rank": 4, "new_tokens": True},
    "whole": {"use": "lora", "rank": 4, "modules_to_save": ["embed", "head"]},
}


def test_rows_that_nothing_trains_are_refused(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    import luthier

    with pytest.raises(PlanRefused) as caught:
        luthier.plan(luthier.load_config(configuration(tiny_folder("llama"), tmp_path, [PATCH])))
    text = str(caught.value)
    assert "embeddings.trained" in text
    assert "new_tokens: true" in text
    assert "full" in text
    alone = configuration(tiny_folder("llama"), tmp_path, [], adapter={"use": "lora", "new_tokens": True})
    with pytest.raises(PlanRefused, match="new_tokens"):
        luthier.plan(luthier.load_config(alone))
    half = {"use": "freeze", "layers": 1, "embeddings": True}
    with pytest.raises(PlanRefused, match=r"embeddings\.trained"):
        luthier.plan(luthier.load_config(configuration(tiny_folder("llama"), tmp_path, [PATCH], adapter=half)))
    tied = tiny_folder("llama", tie_word_embeddings=True)
    assert luthier.plan(luthier.load_config(configuration(tied, tmp_path, [PATCH], adapter=half)))


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("model_type", ["llama", "tied llama", "gemma2", "gpt2", "mixtral"])
def test_a_run_trains_them_and_plain_libraries_load_them(
    model_type: str, name: str, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Whole models by themselves; adapters on a base that was resized, as the notice says; and merged."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import luthier

    changes = {"tie_word_embeddings": True} if model_type == "tied llama" else {}
    folder = tiny_folder(model_type.split()[-1], **SMALL.get(model_type, {}), **changes)
    _, said = train(configuration(folder, tmp_path, [PATCH], adapter=ADAPTERS[name]))
    assert any("2 of 2 tokens added" in text for text in said)
    assert any("263 rows became 272" in text for text in said)
    run = tmp_path / "run"
    tokenizer = AutoTokenizer.from_pretrained(run)
    note, hello = tokenizer.convert_tokens_to_ids(["<|note|>", " hello"])
    assert (note, hello) == (263, 264)
    assert ids_of(tokenizer, "say hello<|note|>")[-2:] == [hello, note]
    if name in ("full", "freeze"):
        model = AutoModelForCausalLM.from_pretrained(run, dtype=torch.float32).eval()
    else:
        card = (run / "README.md").read_text()
        assert "luthier merge" in card
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        base.resize_token_embeddings(272)
        model = PeftModel.from_pretrained(base, run).eval()
    luthier.merge(run, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    ids = torch.tensor([ids_of(tokenizer, "say hello hello<|note|> 1 2 3")])
    with torch.no_grad():
        logits, other = model(input_ids=ids).logits, merged(input_ids=ids).logits
    assert logits.shape[-1] == 272
    tokens = slice(0, 265)  # the rows after that are no tokens, and a base that is resized elsewhere has others
    assert (logits[..., tokens] - other[..., tokens]).abs().max() < 1e-4
    # Learned: every answer ends with the note, after a hello.
    start = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    original = AutoTokenizer.from_pretrained(folder)
    first = start.get_input_embeddings().weight[ids_of(original, "<|note|>")].mean(dim=0)
    assert (merged.get_input_embeddings().weight[note] - first).abs().max() > 1e-3


def test_on_a_quantised_base(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Embeddings and head are not quantised, so that they grow as on any other."""
    pytest.importorskip("bitsandbytes")
    folder = tiny_folder("llama", hidden_size=128)
    results, said = train(configuration(folder, tmp_path, ["nf4", PATCH], adapter=ADAPTERS["rows"]))
    assert any("263 rows became 272" in text for text in said)
    assert results["train_loss"] == results["train_loss"]
    assert weights(tmp_path / "run")


@pytest.mark.parametrize("name", ["full", "rows", "whole"])
def test_it_resumes_to_the_same_bits(name: str, tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny_folder("llama", num_hidden_layers=1)
    assert resumed_equals_straight(configuration(folder, tmp_path, [PATCH], adapter=ADAPTERS[name]))


def test_a_merged_vocabulary_in_a_run(tiny_folder: Callable[..., Path], tmp_path: Path, corpus: Path) -> None:
    """The same rows in fewer tokens."""
    vocabulary = str(sentencepiece_model(corpus, "bpe"))
    counts = {}
    for name, patches in (("plain", []), ("more", [{"use": "new_tokens", "vocabulary": vocabulary}])):
        data = tmp_path / "german.jsonl"
        turns = [
            {"messages": [{"role": "user", "content": LINES[n]}, {"role": "assistant", "content": LINES[n + 1]}]}
            for n in range(8)
        ]
        data.write_text("".join(json.dumps(turn) + "\n" for turn in turns), encoding="utf-8")
        config = configuration(tiny_folder("llama"), tmp_path, patches, adapter="full", output=str(tmp_path / name))
        config["data"] = {"train": [str(data)], "max_length": 500}
        config["train"] = config["train"] | {"batch_tokens": 600}
        results, _ = train(config)
        counts[name] = results["data"]["tokens"]
    assert counts["more"] < 0.6 * counts["plain"]
