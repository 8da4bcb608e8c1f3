"""The chat templates that have a name: what each family writes, as facts; how it writes it stands in NAME.jinja.

A template is the guards made from its facts, then its file. The guards refuse what the family has no place for (tools,
reasoning, a second system message, two questions in a row), so that nothing is left out without a word; they are saved with
the model like the rest. `{% generation %}` stands around what the model itself writes: the answer and its end-of-turn token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal

SystemMessages = Literal["first", "in the first question", "none"]


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """A chat template and what is known of it.

    text        Jinja, as `tokenizer.chat_template` takes it
    texts       the model's own only: several templates by name, as its tokenizer has them
    tokens      the special tokens that it spells out itself; beside them it may write the tokenizer's own bos and eos
    stop        the token that ends an answer; "" where it is the tokenizer's own eos
    system      where a system message goes
    alternates  whether questions and answers have to alternate
    bos         whether it begins with the tokenizer's own bos
    options     the variables of `data.template_options` that it reads
    """

    name: str
    text: str
    summary: str = ""
    texts: Mapping[str, str] | None = None
    tokens: tuple[str, ...] = ()
    stop: str = ""
    bos: bool = False
    system: SystemMessages = "first"
    tools: bool = False
    thinking: bool = False
    alternates: bool = False
    options: tuple[str, ...] = ()

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """`tokens`, and `stop` where it is one of its own."""
        return tuple(dict.fromkeys([*self.tokens, *filter(None, [self.stop])]))


@dataclass(frozen=True, kw_only=True)
class _Facts:
    summary: str
    tokens: tuple[str, ...] = ()
    stop: str = ""
    bos: bool = False
    system: SystemMessages = "first"
    tools: bool = False
    thinking: bool = False
    alternates: bool = False
    options: tuple[str, ...] = ()


_CHATML: Final = ("<|im_start|>", "<|im_end|>")
_LLAMA3: Final = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_MERGED: Final[SystemMessages] = "in the first question"
_TURNS: Final = ("<start_of_turn>", "<end_of_turn>")
_MISTRAL: Final = (
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_CALLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
)
_PHI: Final = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
_DEEPSEEK: Final = ("<｜User｜>", "<｜Assistant｜>")
_GLM: Final = ("<|system|>", "<|user|>", "<|assistant|>")
_COMMAND: Final = tuple(
    f"<|{word}_TOKEN|>" for word in ("START_OF_TURN", "SYSTEM", "USER", "CHATBOT", "END_OF_TURN")
)  # fmt: skip

_FACTS: Final[dict[str, _Facts]] = {
    "alpaca": _Facts(summary="Stanford Alpaca: headings in plain text, for models without special tokens.", bos=True),
    "baichuan2": _Facts(
        summary="Baichuan 2 Chat. An eos closes every answer, earlier ones too.", tokens=("<reserved_106>", "<reserved_107>")
    ),
    "chatglm3": _Facts(
        summary="ChatGLM3.", tokens=("[gMASK]", "sop", *_GLM), stop="<|user|>", alternates=True
    ),
    "chatml": _Facts(summary="ChatML: Yi, Hermes, Dolphin, SmolLM, many others.", tokens=_CHATML, stop="<|im_end|>"),
    "command-r": _Facts(
        summary="Cohere Command R and R+, Aya 23.", tokens=_COMMAND, stop=_COMMAND[-1], bos=True, alternates=True
    ),
    "deepseek-r1": _Facts(
        summary="DeepSeek R1 and its distilled models; earlier answers lose their thinking unless preserve_thinking.",
        tokens=_DEEPSEEK, bos=True, thinking=True, options=("preserve_thinking",),
    ),
    "deepseek-v2": _Facts(summary="DeepSeek LLM Chat and V2 Chat: plain text roles.", bos=True),
    "deepseek-v3": _Facts(summary="DeepSeek V2.5 and V3.", tokens=_DEEPSEEK, bos=True),
    "exaone": _Facts(
        summary="EXAONE 3 and 3.5.",
        tokens=("[|system|]", "[|user|]", "[|assistant|]", "[|endofturn|]"), stop="[|endofturn|]",
    ),
    "falcon": _Facts(summary="Falcon 180B Chat: plain text roles; an eos closes every answer."),
    "falcon3": _Facts(summary="Falcon 3 Instruct."),
    "gemma": _Facts(
        summary="Gemma and Gemma 2: no system message.",
        tokens=_TURNS, stop="<end_of_turn>", bos=True, system="none", alternates=True,
    ),
    "gemma3": _Facts(
        summary="Gemma 3.", tokens=_TURNS, stop="<end_of_turn>", bos=True, system=_MERGED, alternates=True
    ),
    "glm4": _Facts(
        summary="GLM-4 9B Chat and GLM-4-0414.", tokens=("[gMASK]", "<sop>", *_GLM), stop="<|user|>", alternates=True
    ),
    "granite": _Facts(
        summary="IBM Granite 3.0.",
        tokens=("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"), stop="<|end_of_text|>",
    ),
    "internlm2": _Facts(summary="InternLM 2, 2.5 and 3.", tokens=_CHATML, stop="<|im_end|>", bos=True),
    "llama2": _Facts(summary="Llama 2 Chat, Code Llama Instruct.", bos=True, system=_MERGED, alternates=True),
    "llama3": _Facts(summary="Llama 3 Instruct.", tokens=_LLAMA3, stop="<|eot_id|>", bos=True),
    "llama3.1": _Facts(
        summary="Llama 3.1 to 3.3 Instruct, with tools; a system turn with dates always stands first.",
        tokens=_LLAMA3, stop="<|eot_id|>", bos=True, tools=True, options=("date_string",),
    ),
    "llama4": _Facts(
        summary="Llama 4.", tokens=("<|header_start|>", "<|header_end|>", "<|eot|>"), stop="<|eot|>", bos=True
    ),
    "mistral": _Facts(summary="Mistral 7B v0.1 and v0.2, Mixtral.", bos=True, system=_MERGED, alternates=True),
    "mistral-nemo": _Facts(
        summary="Mistral Nemo (v3-tekken), with tools; tools and system message stand at the first question.",
        tokens=_MISTRAL, bos=True, system=_MERGED, tools=True,
    ),
    "mistral-small": _Facts(
        summary="Mistral Small 3 (v7-tekken): a system prompt of its own.",
        tokens=("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]"), bos=True, alternates=True,
    ),
    "mistral-v3": _Facts(
        summary="Mistral 7B v0.3 and Large 2407, with tools; tools and system message stand at the first question.",
        tokens=_MISTRAL, bos=True, system=_MERGED, tools=True,
    ),
    "olmo2": _Facts(summary="OLMo 2.", bos=True),
    "openchat": _Facts(summary="OpenChat 3.5, Starling.", tokens=("<|end_of_turn|>",), stop="<|end_of_turn|>", bos=True),
    "phi3": _Facts(summary="Phi 3 and 3.5.", tokens=_PHI, stop="<|end|>"),
    "phi4": _Facts(
        summary="Phi 4 (14B).", tokens=("<|im_start|>", "<|im_sep|>", "<|im_end|>"), stop="<|im_end|>"
    ),
    "phi4-mini": _Facts(summary="Phi 4 mini.", tokens=_PHI, stop="<|end|>"),
    "qwen2.5": _Facts(
        summary="Qwen 2.5, with tools; its own system message where there is none.",
        tokens=_CHATML, stop="<|im_end|>", tools=True,
    ),
    "qwen3": _Facts(
        summary="Qwen 3 with tools and thinking; earlier answers lose their thinking unless preserve_thinking.",
        tokens=_CHATML, stop="<|im_end|>", tools=True, thinking=True, options=("enable_thinking", "preserve_thinking"),
    ),
    "qwen3-instruct": _Facts(
        summary="Qwen 3 Instruct 2507: with tools, without thinking.", tokens=_CHATML, stop="<|im_end|>", tools=True
    ),
    "smollm2": _Facts(
        summary="SmolLM 2; its own system message where there is none.", tokens=_CHATML, stop="<|im_end|>"
    ),
    "solar": _Facts(summary="SOLAR 10.7B Instruct: headings in plain text.", bos=True),
    "starchat": _Facts(summary="StarChat.", tokens=_PHI, stop="<|end|>"),
    "tulu": _Facts(summary="Tulu 2 and 3."),
    "vicuna": _Facts(summary="Vicuna 1.1 and 1.5: plain text roles; its own system text where there is none.", bos=True),
    "zephyr": _Facts(summary="Zephyr, TinyLlama Chat: the roles are plain text."),
}  # fmt: skip


@cache
def named_templates() -> Mapping[str, ChatTemplate]:
    """Every template that `data.template` may name."""
    folder = Path(__file__).parent
    found = {}
    for name, facts in _FACTS.items():
        body = (folder / f"{name}.jinja").read_text(encoding="utf-8")
        values = {field: getattr(facts, field) for field in _Facts.__dataclass_fields__}
        found[name] = ChatTemplate(name=name, text=_guards(name, facts) + body, **values)
    return found


def _guards(name: str, facts: _Facts) -> str:
    """Jinja that writes nothing, and refuses the conversations that the family has no place for."""
    roles = ["user", "assistant", *(["system"] if facts.system != "none" else []), *(["tool"] if facts.tools else [])]
    checks = [
        (f"message.role not in {roles}", f"'{name} has no place for messages of the role ' ~ message.role"),
        ("message.role == 'system' and not loop.first", f"'{name} has a system message at the start only'"),
    ]
    if facts.tools or facts.system == _MERGED:
        # What belongs to the first question would be left out with it.
        first = "message.role not in ['system', 'user'] and (loop.first or loop.previtem.role == 'system')"
        checks.append((first, f"'{name} begins with a message of the user'"))
    if not facts.tools:
        checks.append(("message.tool_calls", f"'{name} has no place for tool calls'"))
    if not facts.thinking:
        checks.append(("message.reasoning_content", f"'{name} has no place for reasoning'"))
    lines = [] if facts.tools else [_raise("tools", f"'{name} has no place for tools'")]
    lines += ["{%- for message in messages -%}", *(_raise(*check) for check in checks), "{%- endfor -%}"]
    if facts.alternates:
        lines += [
            "{%- for message in messages | rejectattr('role', 'equalto', 'system') -%}",
            _raise("(message.role == 'user') != (loop.index0 % 2 == 0)", f"'{name} wants user and assistant to take turns'"),
            "{%- endfor -%}",
        ]
    return "\n".join(lines) + "\n"


def _raise(condition: str, message: str) -> str:
    return f"{{%- if {condition} -%}}{{{{ raise_exception({message}) }}}}{{%- endif -%}}"
