"""Tokens and labels of conversations, against a computation byte by byte and against the template at inference."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.core.data.encode import Encoded, Encoder
from luthier.core.errors import DataError, ExitCode

Chat = Callable[..., dict[str, Any]]
Encode = Callable[..., list[Encoded]]
MARKS = re.compile(r"\{% (end)?generation %\}")
# Numbered from the end, so that every later turn changes the earlier ones.
NUMBERED = "{% for m in messages %}<|{{ m.role }}|>{{ loop.revindex }}:{{ m.content }}<eos>{% endfor %}"
NUMBERED += "{% if add_generation_prompt %}<|assistant|>1:{% endif %}"
# As reasoning models' templates do: an earlier answer loses its thinking, the last one keeps it.
STRIPPED = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' and not loop.last %}{% generation %}"
    "{{ m.content.split('</think>')[-1] }}<eos>{% endgeneration %}{% elif m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}<eos>{% endgeneration %}{% else %}{{ m.content }}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def unmarked(template: str) -> str:
    return MARKS.sub("", template)


def ids_of(encoded: Encoded) -> list[int]:
    (piece,) = encoded.pieces
    return list(piece.ids)


def trained(encoded: Encoded) -> list[int]:
    (piece,) = encoded.pieces
    return list(piece.trained)


def byte_ids() -> list[int]:
    """Token of each byte: GPT-2's byte-to-character table, whose sorted characters are numbered from 0."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    shifted = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(shifted)}
    alphabet = sorted(characters.values())
    return [alphabet.index(characters[byte]) for byte in range(256)]


def expected(tokenizer: Any, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    """Ids and marks of the tiny template, written out: header, content, <eos>, newline; content and <eos> are learned."""
    table, ids, marks = byte_ids(), [], []
    for message in messages:
        content = [table[byte] for byte in message["content"].encode()] + [tokenizer.convert_tokens_to_ids("<eos>")]
        ids += [tokenizer.convert_tokens_to_ids(f"<|{message['role']}|>"), *content, table[ord("\n")]]
        marks += [0, *[int(message["role"] == "assistant")] * len(content), 0]
    return ids, marks


@pytest.fixture(params=["marked", "prefix"])
def styled(request: pytest.FixtureRequest, tiny_tokenizer: Any, encoder: Callable[..., Encoder]) -> Any:
    """The tiny tokenizer with its template's generation marks, and without them."""
    if request.param == "prefix":
        tiny_tokenizer.chat_template = unmarked(tiny_tokenizer.chat_template)
    labels = {"marked": "the template's generation marks", "prefix": "prefix comparison"}
    assert encoder(tiny_tokenizer).labels_from == labels[request.param]
    return tiny_tokenizer


def test_labels_byte_by_byte(styled: Any, chat: Chat, encode: Encode) -> None:
    last = {"role": "assistant", "content": "two"}
    rows = [
        chat("Hi", "Hello you"),
        chat("a\n", " b \n", "ç 漢", "d\n\n", "trailing question", system="Be brief."),
        {"messages": [*chat("q", "call")["messages"], {"role": "tool", "content": "12"}, last]},
        {"messages": [*chat("q", "one")["messages"], last]},
    ]
    for row, got in zip(rows, encode(styled, *rows), strict=True):
        ids, marks = expected(styled, row["messages"])
        assert ids_of(got) == ids
        assert trained(got) == marks
        answers = sum(message["role"] == "assistant" for message in row["messages"])
        assert (got.turns, got.marked, got.unclosed) == (answers, answers, 0)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
answers = texts.filter(str.strip)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(st.tuples(texts, answers), min_size=1, max_size=4), system=texts)
def test_what_is_trained_is_what_inference_asks_for(
    styled: Any, chat: Chat, turns: list[tuple[str, str]], system: str, encode: Encode
) -> None:
    messages = chat(*[text for turn in turns for text in turn], system=system)["messages"]
    (got,) = encode(styled, {"messages": messages})
    assert (ids_of(got), trained(got)) == expected(styled, messages)
    begins = np.flatnonzero(np.diff(trained(got), prepend=0) == 1).tolist()
    prompts = [messages[:at] for at, message in enumerate(messages) if message["role"] == "assistant"]
    for begin, prompt in zip(begins, prompts, strict=True):
        assert ids_of(got)[:begin] == styled.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]


def test_batches_equal_single_rows(styled: Any, chat: Chat, encode: Encode) -> None:
    rows = [chat(*["x" * (n + at) for at in range(2 * n)]) for n in range(1, 5)]
    assert encode(styled, *rows) == [encode(styled, row)[0] for row in rows]


def test_all_tokens(styled: Any, chat: Chat, encode: Encode) -> None:
    row = chat("Hi", "Hello", "more")
    (got,) = encode(styled, row, train_on="all")
    assert ids_of(got) == expected(styled, row["messages"])[0]
    assert trained(got) == [0] + [1] * (len(ids_of(got)) - 1)


def test_a_row_too_long_is_dropped(styled: Any, chat: Chat, encode: Encode) -> None:
    short, long = encode(styled, chat("a", "b"), chat("a", "b" * 50), max_length=20)
    assert any(trained(short))
    assert long == Encoded(dropped="longer than 20 tokens", length=len(expected(styled, chat("a", "b" * 50)["messages"])[0]))


@pytest.mark.parametrize("template", [NUMBERED, unmarked(STRIPPED)], ids=["numbered", "thinking"])
def test_without_the_prefix_property_row_and_turn_are_named(
    tiny_tokenizer: Any, chat: Chat, template: str, encode: Encode
) -> None:
    tiny_tokenizer.chat_template = template
    fine = chat("q", "<think>a</think>b")
    bad = chat("q", "<think>a</think>b", "r", "s", system="s")
    with pytest.raises(DataError, match=r"prefix property: assistant turn 1 \(messages\[2\]\)") as caught:
        encode(tiny_tokenizer, fine, bad) if template != NUMBERED else encode(tiny_tokenizer, bad)
    assert caught.value.where == ("rows.jsonl:1" if template == NUMBERED else "rows.jsonl:2")
    assert "data.train_on: all" in caught.value.fix
    assert encode(tiny_tokenizer, bad, train_on="all")


def test_marks_do_not_excuse_another_prompt_than_inference_gives(tiny_tokenizer: Any, chat: Chat, encode: Encode) -> None:
    tiny_tokenizer.chat_template = NUMBERED.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}")
    with pytest.raises(DataError, match=r"assistant turn 1 \(messages\[1\]\)"):
        encode(tiny_tokenizer, chat("q", "a", "r", "s"))


def test_marks_allow_a_rewritten_answer_when_every_prompt_is_right(tiny_tokenizer: Any, chat: Chat, encode: Encode) -> None:
    tiny_tokenizer.chat_template = STRIPPED
    (got,) = encode(tiny_tokenizer, chat("q", "<think>a</think>b", "r", "<think>c</think>d"))
    learned = tiny_tokenizer.decode([token for token, mark in zip(ids_of(got), trained(got), strict=True) if mark])
    assert learned == "b<eos><think>c</think>d<eos>"


def test_prefix_of_text_is_not_enough(encode: Encode) -> None:
    # "A: " ends in a space of its own at inference, and in training the space belongs to the token " h".
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*alphabet, "Ġh"])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("Ġ", "h")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<eos>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    row = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "yes"}]}
    assert encode(tokenizer, row)[0].marked == 1
    bad = {"messages": [row["messages"][0], {"role": "assistant", "content": "hello"}]}
    with pytest.raises(DataError, match=r"reaches over the edge of an answer, assistant turn 1 \(messages\[1\]\)") as caught:
        encode(tokenizer, row, bad)
    assert caught.value.where == "rows.jsonl:2"
    # The row's fault and not the template's: such rows can be left out.
    marked = tokenizer.chat_template.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}")
    for template in (tokenizer.chat_template, marked):
        tokenizer.chat_template = template
        kept, dropped = encode(tokenizer, row, bad, bad_rows="drop")
        assert (kept.marked, kept.dropped) == (1, "")
        assert (dropped.pieces, dropped.dropped) == ([], "a token reaches over the edge of an answer")
    pair = {"messages": row["messages"][:1], "chosen": row["messages"][1:], "rejected": bad["messages"][1:]}
    (one,) = encode(tokenizer, pair, kind="preference", bad_rows="drop")
    assert (one.pieces, one.dropped) == ([], "a token reaches over the edge of an answer")
    tokenizer.chat_template = NUMBERED
    with pytest.raises(DataError, match="prefix property"):
        encode(tokenizer, {"messages": [*row["messages"], *row["messages"]]}, bad_rows="drop")


def test_answers_without_end_of_turn_are_counted_and_keep_their_last_newline(
    tiny_tokenizer: Any, chat: Chat, encode: Encode
) -> None:
    tiny_tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tiny_tokenizer.chat_template += "{% if add_generation_prompt %}assistant: {% endif %}"
    (got,) = encode(tiny_tokenizer, chat("a", "b", "c", "d"))
    assert (got.marked, got.unclosed) == (2, 2)
    learned = [token for token, mark in zip(ids_of(got), trained(got), strict=True) if mark]
    assert tiny_tokenizer.decode(learned) == "b\nd\n"


def test_marks_that_leave_an_answer_out_are_counted(tiny_tokenizer: Any, chat: Chat, encode: Encode) -> None:
    tiny_tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{% if loop.last %}{% generation %}{{ m.content }}<eos>{% endgeneration %}"
        "{% else %}{{ m.content }}<eos>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    (got,) = encode(tiny_tokenizer, chat("a", "b", "c", "d"))
    assert (got.turns, got.marked, sum(trained(got))) == (2, 1, 2)


def test_the_first_token_is_never_learned(tiny_tokenizer: Any, chat: Chat, encode: Encode) -> None:
    tiny_tokenizer.chat_template = (
        "{% for m in messages %}{% generation %}{{ m.content }}<eos>{% endgeneration %}{% endfor %}"
    )
    (got,) = encode(tiny_tokenizer, chat("ab", "c"))
    assert trained(got) == [0, 1, 1, 1, 1]


def test_no_chat_template(tiny_tokenizer: Any, encoder: Callable[..., Encoder]) -> None:
    tiny_tokenizer.chat_template = None
    with pytest.raises(DataError, match="no chat template") as caught:
        encoder(tiny_tokenizer)
    assert "data.template: " in caught.value.fix
    assert caught.value.exit_code == ExitCode.DATA


def test_a_row_that_the_template_refuses_is_named(styled: Any, chat: Chat, encode: Encode) -> None:
    styled.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + styled.chat_template
    )
    with pytest.raises(DataError, match=r"\(system, user, assistant\): System role not supported") as caught:
        encode(styled, chat("a", "b"), chat("a", "b", system="s"))
    assert caught.value.where == "rows.jsonl:2"


def test_a_class_that_writes_conversations_in_its_own_way(tiny_tokenizer: Any, chat: Chat, encode: Encode) -> None:
    class Own(type(tiny_tokenizer)):  # type: ignore[misc]
        def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
            return super().apply_chat_template(
                conversation, **options | {"chat_template": NUMBERED.replace("revindex", "index")}
            )

    own = Own(tokenizer_object=tiny_tokenizer.backend_tokenizer, eos_token="<eos>")
    own.chat_template = tiny_tokenizer.chat_template
    (got,) = encode(own, chat("q", "a"), train_on="all")
    assert own.decode(ids_of(got)) == "<|user|>1:q<eos><|assistant|>2:a<eos>"
