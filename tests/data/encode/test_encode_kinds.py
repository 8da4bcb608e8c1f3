"""Preferences, rated answers and prompts; the check of the first rows; what changes the fingerprint."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from luthier.core.config.schema import DataConfig, SourceConfig
from luthier.core.data.encode import Encoded, Encoder
from luthier.core.data.encode.check import FIRST_ROWS, FirstRows
from luthier.core.data.encode.fingerprint import fingerprint
from luthier.core.data.encode.tokens import ChunkTokens
from luthier.core.errors import DataError

Encode = Callable[..., list[Encoded]]
Learned = Callable[[Any, Encoded], list[str]]
PROMPT = [
    {"role": "user", "content": "q1"},
    {"role": "assistant", "content": "a1"},
    {"role": "user", "content": "q2"},
]


def answer(text: str, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text, **more}]


def test_preferences_learn_the_answers_only(tiny_tokenizer: Any, encode: Encode, learned: Learned) -> None:
    rows = [
        {"messages": PROMPT, "chosen": answer("good"), "rejected": answer("bad one"), "margin": 0.5},
        {"messages": PROMPT[:1], "chosen": answer("same"), "rejected": answer("same")},
        {"messages": PROMPT[:1], "chosen": answer("c"), "rejected": answer("r", train=False)},
    ]
    first, same, untrained = encode(tiny_tokenizer, *rows, kind="preference")
    assert learned(tiny_tokenizer, first) == ["good<eos>", "bad one<eos>"]
    for piece, text in zip(first.pieces, ("good", "bad one"), strict=True):
        whole = tiny_tokenizer.apply_chat_template([*PROMPT, *answer(text)])["input_ids"]
        prompt = tiny_tokenizer.apply_chat_template(PROMPT, add_generation_prompt=True)["input_ids"]
        assert list(piece.ids) == whole
        assert list(piece.trained).index(1) == len(prompt)
    assert (first.value, first.turns, first.marked, first.notes) == (0.5, 2, 2, ())
    assert (same.value, same.notes) == (None, ("chosen and rejected are the same tokens",))
    assert (untrained.pieces, untrained.dropped) == ([], "no token to learn")


def test_rated_answers(tiny_tokenizer: Any, encode: Encode, learned: Learned) -> None:
    rows = [{"messages": PROMPT, "completion": answer(text), "label": good} for text, good in (("yes", True), ("no", False))]
    good, bad = encode(tiny_tokenizer, *rows, kind="unpaired")
    assert (learned(tiny_tokenizer, good), good.value) == (["yes<eos>"], 1.0)
    assert (learned(tiny_tokenizer, bad), bad.value) == (["no<eos>"], 0.0)


def test_prompts(tiny_tokenizer: Any, encode: Encode) -> None:
    (got,) = encode(tiny_tokenizer, {"messages": PROMPT, "reference": "42"}, kind="prompt", system="s")
    messages = [{"role": "system", "content": "s"}, *PROMPT]
    assert list(got.pieces[0].ids) == tiny_tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert not any(got.pieces[0].trained)
    assert (got.dropped, got.value, got.turns) == ("", None, 0)
    assert json.loads(got.beside) == {"messages": messages, "reference": "42"}


def test_only_prompts_have_something_beside(tiny_tokenizer: Any, encode: Encode) -> None:
    plain, other = encode(tiny_tokenizer, {"messages": PROMPT}, {"messages": PROMPT, "reference": [4, 2]}, kind="prompt")
    assert json.loads(plain.beside) == {"messages": PROMPT}
    assert json.loads(other.beside)["reference"] == [4, 2]
    assert encode(tiny_tokenizer, {"messages": [*PROMPT, *answer("a")]}, kind="conversation")[0].beside == b""


def test_what_the_report_shows(tiny_tokenizer: Any, encoder: Callable[..., Encoder]) -> None:
    shown = {kind: encoder(tiny_tokenizer, kind) for kind in ("conversation", "text", "preference", "unpaired", "prompt")}
    assert {kind: one.per_row for kind, one in shown.items()} == {kind: 1 + (kind == "preference") for kind in shown}
    assert all(one.kind == kind for kind, one in shown.items())
    assert shown["conversation"].labels_from == shown["unpaired"].labels_from == "the template's generation marks"
    assert (shown["text"].labels_from, shown["text"].template) == ("every token", "")
    assert encoder(tiny_tokenizer, train_on="all").labels_from == "every token"
    assert shown["conversation"].template == "the model's own"
    assert encoder(tiny_tokenizer, template="mine.jinja").template == "mine.jinja"


@pytest.mark.parametrize(
    ("kind", "key", "value", "why"),
    [
        ("text", "train_on", "last", "every token is learned"),
        ("text", "system", "s", "no chat template writes it"),
        ("text", "template", "chatml", "no chat template writes it"),
        ("text", "template_options", {"x": 1}, "no chat template writes it"),
        ("preference", "train_on", "all", "the answers are learned"),
        ("unpaired", "train_on", "last", "the answers are learned"),
        ("prompt", "train_on", "assistant", "nothing is learned from prompts themselves"),
    ],
)
def test_what_has_no_effect_is_refused(
    tiny_tokenizer: Any, encoder: Callable[..., Encoder], kind: str, key: str, value: Any, why: str
) -> None:
    with pytest.raises(DataError, match=f"has no effect on {kind} data: {why}") as caught:
        encoder(tiny_tokenizer, kind, **{key: value})
    assert caught.value.where == f"data.{key}"


def test_first_rows_that_differ_from_inference_stop_everything(
    tiny_tokenizer: Any, encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"messages": [*PROMPT, *answer("a2")]}
    own = ChunkTokens.encode

    def wrong(self: Any, texts: Any) -> Any:
        wholes = own(self, texts)
        for whole in wholes:
            whole.ids[2] ^= 1
        return wholes

    monkeypatch.setattr(ChunkTokens, "encode", wrong)
    with pytest.raises(DataError, match="are not those that the tokenizer gives at inference") as caught:
        encode(tiny_tokenizer, row, train_on="all")
    assert caught.value.where == "rows.jsonl:1"
    for kind, other in (("text", {"text": "abcd"}), ("prompt", {"messages": PROMPT})):
        with pytest.raises(DataError, match="at inference"):
            encode(tiny_tokenizer, other, kind=kind)


def test_only_the_first_rows_are_done_twice(tiny_tokenizer: Any, encode: Encode, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, own = [], FirstRows._inference

    def counting(self: FirstRows, *args: Any, **options: Any) -> list[int]:
        calls.append(options["prompt"])
        return own(self, *args, **options)

    monkeypatch.setattr(FirstRows, "_inference", counting)
    encode(tiny_tokenizer, *[{"messages": [*PROMPT, *answer("a2")]}] * (FIRST_ROWS + 5))
    assert calls == [False, True, True] * FIRST_ROWS


def test_the_fingerprint_changes_with_everything_that_decides(
    tiny_tokenizer: Any, build: Any, encoder: Callable[..., Encoder]
) -> None:
    def changed(change: Callable[[Any], object]) -> Any:
        other = copy.deepcopy(tiny_tokenizer)
        change(other)
        return other

    template = tiny_tokenizer.chat_template
    found = {
        "as it is": encoder(tiny_tokenizer),
        "template": encoder(changed(lambda one: setattr(one, "chat_template", template + " "))),
        "reads x": encoder(changed(lambda one: setattr(one, "chat_template", template + "{{ x }}"))),
        "x": encoder(changed(lambda one: setattr(one, "chat_template", template + "{{ x }}")), template_options={"x": 1}),
        "bos": encoder(changed(lambda one: setattr(one, "bos_token", "<pad>"))),
        "new token": encoder(changed(lambda one: one.add_tokens(["new"]))),
        "special tokens are split": encoder(changed(lambda one: setattr(one, "split_special_tokens", True))),
        "tokenizer": encoder(build.byte_level(template=template)),
        "max_length": encoder(tiny_tokenizer, max_length=9998),
        "too_long": encoder(tiny_tokenizer, too_long="truncate_left"),
        "train_on": encoder(tiny_tokenizer, train_on="last"),
        "system": encoder(tiny_tokenizer, system=""),
        "kind": encoder(tiny_tokenizer, "unpaired"),
        "text": encoder(tiny_tokenizer, "text"),
    }
    prints = {name: one.fingerprint() for name, one in found.items()}
    assert len(set(prints.values())) == len(prints)
    assert all(int(value, 16) >= 0 for value in prints.values())
    assert encoder(copy.deepcopy(tiny_tokenizer)).fingerprint() == prints["as it is"]
    assert encoder(tiny_tokenizer, packing=True, workers=3).fingerprint() == prints["as it is"]


def test_a_tokenizer_without_backend_has_a_fingerprint_of_its_vocabulary() -> None:
    def of(**changes: Any) -> str:
        options = {"vocabulary": {"a": 0}, "added": {1: "<eos>"}, "init_kwargs": {"lower": False}} | changes
        slow = SimpleNamespace(
            special_tokens_map={"eos_token": "<eos>"},
            init_kwargs=options["init_kwargs"],
            added_tokens_decoder=options["added"],
            get_vocab=lambda: options["vocabulary"],
        )
        return fingerprint(slow, "text", DataConfig(train=(SourceConfig(path="x"),)))

    changed = [of(), of(vocabulary={"b": 0}), of(added={2: "<eos>"}), of(init_kwargs={"lower": True})]
    assert len(set(changed)) == len(changed)
    assert of() == of()


def test_nothing_to_encode(tiny_tokenizer: Any, build: Any, encode: Encode) -> None:
    for tokenizer in (tiny_tokenizer, build.unigram()):
        assert [encode(tokenizer, kind=kind) for kind in ("conversation", "text", "preference", "unpaired", "prompt")] == [
            []
        ] * 5


def test_a_template_with_the_date_counts_the_day(
    tiny_tokenizer: Any, encoder: Callable[..., Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    def on(day: str) -> str:
        monkeypatch.setattr("luthier.core.data.encode.fingerprint._today", lambda: day)
        return encoder(tiny_tokenizer).fingerprint()

    assert on("2026-01-01") == on("2026-01-02")
    tiny_tokenizer.chat_template += "{# #}{% set day = strftime_now('%d') %}"
    assert on("2026-01-01") != on("2026-01-02")
