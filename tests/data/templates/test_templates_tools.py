"""Tools, tool calls and their results, as the families that know them write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from jinja2 import TemplateError

from luthier.core.data.templates import named_templates

Messages = list[dict[str, Any]]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
ASK = {"role": "user", "content": "What is the weather?"}
CALL = {
    "role": "assistant",
    "tool_calls": [
        {"id": "abcdefghi", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich"}}}
    ],
}
RESULT = {"role": "tool", "content": "sunny", "tool_call_id": "abcdefghi"}
SAY = {"role": "assistant", "content": "It is sunny."}
JSON = (
    '{"type": "function", "function": {"name": "get_weather", "description": "Get weather", "parameters": {"type": '
    '"object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}'
)
# llama.cpp models/templates/Qwen-Qwen2.5-7B-Instruct.jinja and Qwen-Qwen3-0.6B.jinja, trl/chat_templates/qwen2_5.jinja,
# qwen3.jinja and qwen3_instruct_2507.jinja: equal, also with several calls, with content beside them and with thinking.
QWEN_TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function "
    "signatures within <tools></tools> XML tags:\n<tools>\n" + JSON + "\n</tools>\n\nFor each function call, return a json "
    'object with function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n{"name": '
    '<function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
)
QWEN_TALK = (
    '<|im_start|>user\nWhat is the weather?<|im_end|>\n<|im_start|>assistant\n<tool_call>\n{"name": "get_weather", '
    '"arguments": {"city": "Zürich"}}\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\nsunny\n</tool_response>'
    "<|im_end|>\n<|im_start|>assistant\n"
)
EXPECTED = {
    "qwen2.5": "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.\n\n"
    + QWEN_TOOLS
    + QWEN_TALK
    + "It is sunny.<|im_end|>\n",
    "qwen3": "<|im_start|>system\n" + QWEN_TOOLS + QWEN_TALK + "<think>\n\n</think>\n\nIt is sunny.<|im_end|>\n",
    "qwen3-instruct": "<|im_start|>system\n" + QWEN_TOOLS + QWEN_TALK + "It is sunny.<|im_end|>\n",
    # axolotl mistral_v2v3.jinja, llama.cpp models/templates/mistralai-Mistral-Nemo-Instruct-2407.jinja: equal for one
    # question. The result stands unquoted as there; mistral-common writes plain text as a JSON string.
    "mistral-v3": "<s>[AVAILABLE_TOOLS] [" + JSON + "][/AVAILABLE_TOOLS][INST] What is the weather?[/INST][TOOL_CALLS] "
    '[{"name": "get_weather", "arguments": {"city": "Zürich"}, "id": "abcdefghi"}]</s>[TOOL_RESULTS] {"content": sunny, '
    '"call_id": "abcdefghi"}[/TOOL_RESULTS] It is sunny.</s>',
    "mistral-nemo": "<s>[AVAILABLE_TOOLS][" + JSON + "][/AVAILABLE_TOOLS][INST]What is the weather?[/INST][TOOL_CALLS]"
    '[{"name": "get_weather", "arguments": {"city": "Zürich"}, "id": "abcdefghi"}]</s>[TOOL_RESULTS]{"content": sunny, '
    '"call_id": "abcdefghi"}[/TOOL_RESULTS]It is sunny.</s>',
    # llama.cpp models/templates/meta-llama-Llama-3.1-8B-Instruct.jinja, trl/chat_templates/llama3_1.jinja: equal
    "llama3.1": "<s><|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\nCutting Knowledge Date: "
    "December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n"
    "\nGiven the following functions, please "
    "respond with a JSON for a function call with its proper arguments that best answers the given prompt.\n\nRespond in "
    'the format {"name": function name, "parameters": dictionary of argument name and its value}.Do '
    "not use variables.\n\n{\n"
    '    "type": "function",\n    "function": {\n        "name": "get_weather",\n        "description": "Get weather",\n'
    '        "parameters": {\n            "type": "object",\n            "properties": {\n                "city": {\n'
    '                    "type": "string"\n                }\n            },\n            "required": [\n'
    '                "city"\n            ]\n        }\n    }\n}\n\nWhat is the weather?<|eot_id|><|start_header_id|>'
    'assistant<|end_header_id|>\n\n{"name": "get_weather", "parameters": {"city": "Zürich"}}<|eot_id'
    "|><|start_header_id|>ipython"
    '<|end_header_id|>\n\n"sunny"<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nIt is sunny.<|eot_id|>',
}


def test_every_template_with_tools_has_an_expected_text() -> None:
    assert set(EXPECTED) == {name for name, template in named_templates().items() if template.tools}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_call_and_its_result(name: str, family: Callable[..., Any]) -> None:
    messages = [ASK, CALL, RESULT, SAY]
    tokenizer = family(name)
    whole = tokenizer.apply_chat_template(messages, tools=TOOLS, tokenize=False)
    assert whole == EXPECTED[name]
    encoded = tokenizer.apply_chat_template(messages, tools=TOOLS, return_dict=True, return_assistant_tokens_mask=True)
    pairs = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    marked = tokenizer.decode([token for token, mark in pairs if mark])
    stop = named_templates()[name].stop or "</s>"
    assert marked.count(stop) == 2
    assert marked.endswith(f"It is sunny.{stop}")
    assert "Zürich" in marked
    assert "weather?" not in marked
    for at in (1, 3):
        prompt = tokenizer.apply_chat_template(messages[:at], tools=TOOLS, tokenize=False, add_generation_prompt=True)
        assert whole.startswith(prompt)


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "qwen3-instruct"])
def test_qwen_writes_several_calls_and_content_beside_them(name: str, family: Callable[..., Any]) -> None:
    calls = [{"type": "function", "function": {"name": word, "arguments": {"n": at}}} for at, word in enumerate("fg")]
    messages = [
        ASK,
        {"role": "assistant", "content": "Let me see.", "tool_calls": calls},
        {"role": "tool", "content": "one"},
        {"role": "tool", "content": "two"},
        SAY,
    ]
    written = family(name).apply_chat_template(messages, tools=TOOLS, tokenize=False)
    assert (
        '<|im_start|>assistant\nLet me see.\n<tool_call>\n{"name": "f", "arguments": {"n": 0}}\n</tool_call>\n<tool_call>\n'
        '{"name": "g", "arguments": {"n": 1}}\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\none\n'
        "</tool_response>\n<tool_response>\ntwo\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    ) in written


@pytest.mark.parametrize("name", ["mistral-v3", "mistral-nemo", "llama3.1"])
def test_content_beside_calls_is_refused_where_there_is_no_place_for_it(name: str, family: Callable[..., Any]) -> None:
    with pytest.raises(TemplateError, match="content"):
        family(name).apply_chat_template([ASK, CALL | {"content": "Let me see."}], tools=TOOLS, tokenize=False)


def test_llama_has_one_call_in_an_answer(family: Callable[..., Any]) -> None:
    with pytest.raises(TemplateError, match="one tool call"):
        family("llama3.1").apply_chat_template([ASK, CALL | {"tool_calls": CALL["tool_calls"] * 2}], tokenize=False)


def test_the_tools_stand_at_the_first_question_of_many(family: Callable[..., Any]) -> None:
    messages = [ASK, SAY, ASK, SAY]
    for name in ("mistral-v3", "mistral-nemo", "llama3.1"):
        written = family(name).apply_chat_template(messages, tools=TOOLS, tokenize=False)
        assert written.count("get_weather") == 1
        assert written.index("get_weather") < written.index("What is the weather?")
