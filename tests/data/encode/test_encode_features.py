"""Tools, tool calls, reasoning, names: written by the template, or refused; never left out in silence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from luthier.core.data.encode import Encoded, Encoder
from luthier.core.errors import DataError

Encode = Callable[..., list[Encoded]]
Learned = Callable[[Any, Encoded], list[str]]
TOOL = {"type": "function", "function": {"name": "clock", "description": "Tells the time.", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}
ASKED = [{"role": "user", "content": "Late?"}]
CALLING = [*ASKED, {"role": "assistant", "content": "", "tool_calls": [CALL]}]
ANSWERED = [*CALLING, {"role": "tool", "content": "23:00"}, {"role": "assistant", "content": "Yes."}]
FULL = (
    "{% if tools %}<|system|>{% for tool in tools %}{{ tool.function.name }} {% endfor %}<eos>{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.name }}({{ call.function.arguments | tojson }}){% endfor %}<eos>"
    "{% endgeneration %}{% else %}{{ m.content }}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PLAIN = (
    "{% for m in messages if m.role in ('user', 'assistant') %}<|{{ m.role }}|>{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_tools_and_calls_as_the_template_writes_them(tiny_tokenizer: Any, encode: Encode, learned: Learned) -> None:
    tiny_tokenizer.chat_template = FULL
    rows = [{"messages": ANSWERED, "tools": [TOOL]}, {"messages": ASKED + ANSWERED[3:]}, {"messages": ANSWERED, "tools": []}]
    called = 'clock({"zone": "UTC"})<eos>'
    with_tools, without, empty = encode(tiny_tokenizer, *rows)
    assert learned(tiny_tokenizer, with_tools) == [called, "Yes.<eos>"]
    assert tiny_tokenizer.decode(with_tools.pieces[0].ids).startswith("<|system|>clock <eos><|user|>Late?<eos>")
    assert learned(tiny_tokenizer, without) == ["Yes.<eos>"]
    assert learned(tiny_tokenizer, empty) == [called, "Yes.<eos>"]
    assert tiny_tokenizer.decode(empty.pieces[0].ids).startswith("<|user|>")


def test_each_row_has_its_own_tools(tiny_tokenizer: Any, encode: Encode) -> None:
    tiny_tokenizer.chat_template = FULL
    other = {"type": "function", "function": {"name": "radio", "parameters": {}}}
    talk = [*ASKED, {"role": "assistant", "content": "No."}]
    rows = [{"messages": talk, "tools": tools} for tools in ([TOOL], [other], [TOOL, other], [TOOL])]
    expected = [
        tiny_tokenizer.apply_chat_template(row["messages"], tools=row["tools"], tokenize=True)["input_ids"] for row in rows
    ]
    assert [list(got.pieces[0].ids) for got in encode(tiny_tokenizer, *rows)] == expected


@pytest.mark.parametrize(
    ("row", "feature"),
    [
        ({"messages": [*ASKED, {"role": "assistant", "content": "Yes."}], "tools": [TOOL]}, "tools"),
        ({"messages": CALLING}, "tool_calls"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}]}, "reasoning_content"),
        (
            {"messages": [{"role": "system", "content": "s"}, *ASKED, {"role": "assistant", "content": "a"}]},
            "system messages",
        ),
        ({"messages": [*ASKED, ANSWERED[3], ANSWERED[2], ANSWERED[3]]}, "tool messages"),
    ],
)
def test_what_the_template_leaves_out_is_refused(
    tiny_tokenizer: Any, encode: Encode, row: dict[str, Any], feature: str
) -> None:
    tiny_tokenizer.chat_template = PLAIN
    fine = {"messages": [*ASKED, {"role": "assistant", "content": "a"}]}
    with pytest.raises(DataError, match=f"has {feature}, and the chat template leaves that out") as caught:
        encode(tiny_tokenizer, fine, row)
    assert caught.value.where == "rows.jsonl:2"
    assert "data.template" in caught.value.fix


def test_only_some_of_it_left_out_is_refused_too(tiny_tokenizer: Any, encode: Encode) -> None:
    one = "{{ m.tool_calls[0].function.name if m.tool_calls else m.content }}"
    tiny_tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>" + one + "<eos>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    assert encode(tiny_tokenizer, {"messages": CALLING})
    several = [*ASKED, {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]}]
    with pytest.raises(DataError, match="several tool_calls in one message"):
        encode(tiny_tokenizer, {"messages": several})
    beside = [*ASKED, {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]}]
    with pytest.raises(DataError, match="content beside tool_calls"):
        encode(tiny_tokenizer, {"messages": beside})


def test_names_left_out_are_counted(tiny_tokenizer: Any, encode: Encode) -> None:
    named = [{"role": "user", "content": "Late?", "name": "Ada"}, {"role": "assistant", "content": "Yes."}]
    with_name, without = encode(tiny_tokenizer, {"messages": named}, {"messages": ANSWERED[:1] + ANSWERED[3:]})
    assert with_name.notes == ("the chat template leaves out the name of a message",)
    assert without.notes == ()
    tiny_tokenizer.chat_template = FULL.replace(
        "{{ m.content }}<eos>{% endif %}", "{{ m.name }}{{ m.content }}<eos>{% endif %}"
    )
    assert encode(tiny_tokenizer, {"messages": named})[0].notes == ()


def test_reasoning_that_an_earlier_turn_loses(tiny_tokenizer: Any, encode: Encode, learned: Learned) -> None:
    tiny_tokenizer.chat_template = FULL.replace("{% if m.reasoning_content %}", "{% if m.reasoning_content and loop.last %}")
    thinking = [*ASKED, {"role": "assistant", "content": "Yes.", "reasoning_content": "It is 23:00."}]
    (one,) = encode(tiny_tokenizer, {"messages": thinking})
    assert learned(tiny_tokenizer, one) == ["<think>It is 23:00.</think>Yes.<eos>"]
    with pytest.raises(DataError, match=r"leaves out the reasoning of assistant turn 1 \(messages\[1\]\)") as caught:
        encode(tiny_tokenizer, {"messages": thinking + thinking})
    assert "data.train_on: last" in caught.value.fix
    (last,) = encode(tiny_tokenizer, {"messages": thinking + thinking}, train_on="last")
    assert learned(tiny_tokenizer, last) == ["<think>It is 23:00.</think>Yes.<eos>"]


def test_template_options(tiny_tokenizer: Any, encode: Encode, encoder: Callable[..., Encoder]) -> None:
    tiny_tokenizer.chat_template = FULL.replace(
        "<|assistant|>{% endif %}", "<|assistant|>{{ opening or '' }}{% endif %}"
    ).replace("{% generation %}", "{{ opening or '' }}{% generation %}")
    row = {"messages": [*ASKED, {"role": "assistant", "content": "Yes."}]}
    (got,) = encode(tiny_tokenizer, row, template_options={"opening": "+"})
    assert tiny_tokenizer.decode(got.pieces[0].ids) == "<|user|>Late?<eos><|assistant|>+Yes.<eos>"
    assert sum(got.pieces[0].trained) == len("Yes.") + 1
    with pytest.raises(DataError, match="reads no such variable") as caught:
        encoder(tiny_tokenizer, template_options={"enable_thinking": False})
    assert caught.value.where == "data.template_options.enable_thinking"
    with pytest.raises(DataError, match="gets from the rows"):
        encoder(tiny_tokenizer, template_options={"tools": []})


def test_a_template_for_tools_of_its_own(tiny_tokenizer: Any, encode: Encode) -> None:
    tiny_tokenizer.chat_template = {"default": PLAIN, "tool_use": FULL}
    talk = [*ASKED, {"role": "assistant", "content": "Yes."}]
    plain, tools = encode(tiny_tokenizer, {"messages": talk}, {"messages": talk, "tools": [TOOL]})
    assert tiny_tokenizer.decode(plain.pieces[0].ids) == "<|user|>Late?<eos><|assistant|>Yes.<eos>"
    assert tiny_tokenizer.decode(tools.pieces[0].ids) == "<|system|>clock <eos><|user|>Late?<eos><|assistant|>Yes.<eos>"
