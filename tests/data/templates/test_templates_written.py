"""What each named template writes, against literals: model cards, the vendors' documentation, the expectations of llama.cpp.

All but a few are one conversation, that of llama.cpp's tests/test-chat-template.cpp (its vendors' templates run on it), with
the white space around one answer taken out. `{s}` and `{/s}` stand for the tokenizer's bos and eos.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from luthier.core.data.templates import named_templates

SYSTEM = "You are a helpful assistant"
TALK = ("Hello", "Hi there", "Who are you", "I am an assistant", "Another question")
CHATML = (
    "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    "Hi there<|im_end|>\n<|im_start|>user\nWho are you<|im_end|>\n<|im_start|>assistant\nI am an assistant<|im_end|>\n"
    "<|im_start|>user\nAnother question<|im_end|>\n<|im_start|>assistant\n"
)
ROLES_ON_LINES = (  # the cards of Tulu 2, Tulu 3, OLMo 2 and Falcon 3
    "<|system|>\nYou are a helpful assistant\n<|user|>\nHello\n<|assistant|>\nHi there{/s}\n<|user|>\nWho are you\n"
    "<|assistant|>\nI am an assistant{/s}\n<|user|>\nAnother question\n<|assistant|>\n"
)
EXPECTED: dict[str, str] = {
    # tatsu-lab/stanford_alpaca, README: the prompt for an instruction without an input; the system message in its place
    "alpaca": "{s}You are a helpful assistant\n\n### Instruction:\nHello\n\n### Response:\nHi there{"
    "/s}\n\n### Instruction:\n"
    "Who are you\n\n### Response:\nI am an assistant{/s}\n\n### Instruction:\nAnother question\n\n### Response:\n",
    # Baichuan2, generation_utils.py: tokens 195 and 196 before the turns
    "baichuan2": "You are a helpful assistant<reserved_106>Hello<reserved_107>Hi there{/s}<reserved_106>Who are you"
    "<reserved_107>I am an assistant{/s}<reserved_106>Another question<reserved_107>",
    # llama.cpp: ChatGLM3
    "chatglm3": "[gMASK]sop<|system|>\n You are a helpful assistant<|user|>\n Hello<|assistant|>\n Hi there<|user|>\n "
    "Who are you<|assistant|>\n I am an assistant<|user|>\n Another question<|assistant|>",
    "chatml": CHATML,  # llama.cpp: teknium/OpenHermes-2.5-Mistral-7B
    # llama.cpp: CohereForAI/c4ai-command-r-plus
    "command-r": "{s}<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>You are a helpful assistant<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hello<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Hi there"
    "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Who are you<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|>"
    "<|CHATBOT_TOKEN|>I am an assistant<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Another question"
    "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    # the card of DeepSeek-R1: "<think>\n" begins every answer; earlier thinking is left out
    "deepseek-r1": "{s}You are a helpful assistant<｜User｜>Hello<｜Assistant｜>Hi there{/s}<｜User｜>Who "
    "are you<｜Assistant｜>"
    "I am an assistant{/s}<｜User｜>Another question<｜Assistant｜><think>\n",
    # llama.cpp: DeepSeek-V2
    "deepseek-v2": "{s}You are a helpful assistant\n\nUser: Hello\n\nAssistant: Hi there{/s}User: Who are you\n\nAssistant: "
    "I am an assistant{/s}User: Another question\n\nAssistant:",
    # llama.cpp: DeepSeek-V2.5
    "deepseek-v3": "{s}You are a helpful assistant<｜User｜>Hello<｜Assistant｜>Hi there{/s}<｜User｜>Who "
    "are you<｜Assistant｜>"
    "I am an assistant{/s}<｜User｜>Another question<｜Assistant｜>",
    # the card of EXAONE-3.5-7.8B-Instruct
    "exaone": "[|system|]You are a helpful assistant[|endofturn|]\n[|user|]Hello\n[|assistant|]Hi there[|endofturn|]\n"
    "[|user|]Who are you\n[|assistant|]I am an assistant[|endofturn|]\n[|user|]Another question\n[|assistant|]",
    # the card of falcon-180B-chat
    "falcon": "System: You are a helpful assistant\nUser: Hello\nFalcon: Hi there{/s}\nUser: Who are you\nFalcon: "
    "I am an assistant{/s}\nUser: Another question\nFalcon:",
    "falcon3": ROLES_ON_LINES,
    # llama.cpp: google/gemma-7b-it; without a system message, which it refuses
    "gemma": "{s}<start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\nHi there<end_of_turn>\n<start_of_turn>user\n"
    "Who are you<end_of_turn>\n<start_of_turn>model\nI am an assistant<end_of_turn>\n<start_of_turn>user\nAnother question"
    "<end_of_turn>\n<start_of_turn>model\n",
    # llama.cpp's own Gemma writer, which is that of Gemma 3
    "gemma3": "{s}<start_of_turn>user\nYou are a helpful assistant\n\nHello<end_of_turn>\n<start_of_turn>model\nHi there"
    "<end_of_turn>\n<start_of_turn>user\nWho are you<end_of_turn>\n<start_of_turn>model\nI am an assistant<end_of_turn>\n"
    "<start_of_turn>user\nAnother question<end_of_turn>\n<start_of_turn>model\n",
    # llama.cpp: GLMEdge, which is ChatGLM4 without the line break that it adds to the prompt
    "glm4": "[gMASK]<sop><|system|>\nYou are a helpful assistant<|user|>\nHello<|assistant|>\nHi there<|user|>\nWho are you"
    "<|assistant|>\nI am an assistant<|user|>\nAnother question<|assistant|>",
    # llama.cpp: ibm-granite/granite-3.0-8b-instruct
    "granite": "<|start_of_role|>system<|end_of_role|>You are a helpful assistant<|end_of_text|>\n<|start_of_role|>user"
    "<|end_of_role|>Hello<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>Hi there<|end_of_"
    "text|>\n<|start_of_role|>"
    "user<|end_of_role|>Who are you<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>I am an"
    " assistant<|end_of_text|>"
    "\n<|start_of_role|>user<|end_of_role|>Another question<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
    "internlm2": "{s}" + CHATML,  # the InternLM repository, chat/chat_format.md
    # llama.cpp: TheBloke/FusionNet_34Bx2_MoE-AWQ, as its Jinja writes it
    "llama2": "{s}[INST] <<SYS>>\nYou are a helpful assistant\n<</SYS>>\n\nHello [/INST] Hi there {/s}{s}[INST] Who are you "
    "[/INST] I am an assistant {/s}{s}[INST] Another question [/INST]",
    # llama.cpp: Llama-3
    "llama3": "{s}<|start_header_id|>system<|end_header_id|>\n\nYou are a helpful assistant<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nHello<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHi there<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nWho are you<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    "I am an assistant<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nAnother question<|eot_id|><|start_header_id|>"
    "assistant<|end_header_id|>\n\n",
    # Meta's llama-models, models/llama3_1/prompt_format.md
    "llama3.1": "{s}<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\nYou are a helpful assistant<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHello"
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHi there<|eot_id|><|start_header_id|"
    ">user<|end_header_id|>\n\n"
    "Who are you<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nI am an assistant<|eot_id"
    "|><|start_header_id|>user"
    "<|end_header_id|>\n\nAnother question<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    # llama.cpp: Llama-4
    "llama4": "{s}<|header_start|>system<|header_end|>\n\nYou are a helpful assistant<|eot|><|header"
    "_start|>user<|header_end|>"
    "\n\nHello<|eot|><|header_start|>assistant<|header_end|>\n\nHi there<|eot|><|header_start|>user<|header_end|>\n\n"
    "Who are you<|eot|><|header_start|>assistant<|header_end|>\n\nI am an assistant<|eot|><|header_start|>user<|header_end|>"
    "\n\nAnother question<|eot|><|header_start|>assistant<|header_end|>\n\n",
    # transformers' docs, chat_templating: Mistral-7B-Instruct-v0.1; the system message as llama.cpp's "v1" puts it
    "mistral": "{s}[INST] You are a helpful assistant\n\nHello [/INST]Hi there{/s} [INST] Who are you [/INST]"
    "I am an assistant{/s} [INST] Another question [/INST]",
    # llama.cpp: Mistral-Nemo-Instruct-2407, "modified to have system prompt at start"
    "mistral-nemo": "{s}[INST]You are a helpful assistant\n\nHello[/INST]Hi there{/s}[INST]Who are you[/INST]"
    "I am an assistant{/s}[INST]Another question[/INST]",
    # the card of Mistral-Small-24B-Instruct-2501, "Basic Instruct Template (V7-Tekken)"
    "mistral-small": "{s}[SYSTEM_PROMPT]You are a helpful assistant[/SYSTEM_PROMPT][INST]Hello[/INST]Hi there{/s}[INST]"
    "Who are you[/INST]I am an assistant{/s}[INST]Another question[/INST]",
    # llama.cpp: Mistral-Large-Instruct-2407, "modified to have system prompt at start"
    "mistral-v3": "{s}[INST] You are a helpful assistant\n\nHello[/INST] Hi there{/s}[INST] Who are you[/INST] "
    "I am an assistant{/s}[INST] Another question[/INST]",
    "olmo2": "{s}" + ROLES_ON_LINES,
    # llama.cpp: openchat/openchat-3.5-0106, as its Jinja writes it
    "openchat": "{s}GPT4 Correct System: You are a helpful assistant<|end_of_turn|>GPT4 Correct User: Hello<|end_of_turn|>"
    "GPT4 Correct Assistant: Hi there<|end_of_turn|>GPT4 Correct User: Who are you<|end_of_turn|>GPT4 Correct Assistant: "
    "I am an assistant<|end_of_turn|>GPT4 Correct User: Another question<|end_of_turn|>GPT4 Correct Assistant:",
    # llama.cpp: Phi-3-small
    "phi3": "<|system|>\nYou are a helpful assistant<|end|>\n<|user|>\nHello<|end|>\n<|assistant|>\n"
    "Hi there<|end|>\n<|user|>"
    "\nWho are you<|end|>\n<|assistant|>\nI am an assistant<|end|>\n<|user|>\nAnother question<|end|>\n<|assistant|>\n",
    # the card of phi-4
    "phi4": "<|im_start|>system<|im_sep|>You are a helpful assistant<|im_end|><|im_start|>user<|im_sep|>Hello<|im_end|>"
    "<|im_start|>assistant<|im_sep|>Hi there<|im_end|><|im_start|>user<|im_sep|>Who are you<|im_end|><|im_start|>assistant"
    "<|im_sep|>I am an assistant<|im_end|><|im_start|>user<|im_sep|>Another question<|im_end|><|im_s"
    "tart|>assistant<|im_sep|>",
    # the card of Phi-4-mini-instruct
    "phi4-mini": "<|system|>You are a helpful assistant<|end|><|user|>Hello<|end|><|assistant|>Hi there<|end|><|user|>"
    "Who are you<|end|><|assistant|>I am an assistant<|end|><|user|>Another question<|end|><|assistant|>",
    "qwen2.5": CHATML,
    "qwen3": CHATML,
    "qwen3-instruct": CHATML,
    "smollm2": CHATML,
    # the card of SOLAR-10.7B-Instruct-v1.0, which has one turn
    "solar": "{s}### System:\nYou are a helpful assistant\n\n### User:\nHello\n\n### Assistant:\nHi there{/s}\n\n### User:\n"
    "Who are you\n\n### Assistant:\nI am an assistant{/s}\n\n### User:\nAnother question\n\n### Assistant:\n",
    # the card of starchat-beta: "<|system|>\n<|end|>\n<|user|>\n{query}<|end|>\n<|assistant|>"
    "starchat": "<|system|>\nYou are a helpful assistant<|end|>\n<|user|>\nHello<|end|>\n<|assistant|>\nHi there<|end|>\n"
    "<|user|>\nWho are you<|end|>\n<|assistant|>\nI am an assistant<|end|>\n<|user|>\nAnother questi"
    "on<|end|>\n<|assistant|>",
    "tulu": ROLES_ON_LINES,
    # FastChat, docs/vicuna_weights_version.md
    "vicuna": "{s}You are a helpful assistant USER: Hello ASSISTANT: Hi there{/s}USER: Who are you ASSISTANT: "
    "I am an assistant{/s}USER: Another question ASSISTANT:",
    # transformers' docs, chat_templating: HuggingFaceH4/zephyr-7b-beta
    "zephyr": "<|system|>\nYou are a helpful assistant{/s}\n<|user|>\nHello{/s}\n<|assistant|>\nHi there{/s}\n<|user|>\n"
    "Who are you{/s}\n<|assistant|>\nI am an assistant{/s}\n<|user|>\nAnother question{/s}\n<|assistant|>\n",
}
# What stands first where the conversation has no system message of its own.
DEFAULTS = {
    "alpaca": "{s}Below is an instruction that describes a task. Write a response that appropriately"
    " completes the request.\n\n"
    "### Instruction:\nHello",
    "exaone": "[|system|][|endofturn|]\n[|user|]Hello",
    "llama3.1": "{s}<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHello",
    "qwen2.5": "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\nHello",
    "smollm2": "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nHello",
    "starchat": "<|system|>\n<|end|>\n<|user|>\nHello",
    "vicuna": "{s}A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions. USER: Hello",
    "chatml": "<|im_start|>user\nHello",
    "qwen3": "<|im_start|>user\nHello",
    "llama2": "{s}[INST] Hello",
    "mistral-v3": "{s}[INST] Hello",
}


def filled(text: str) -> str:
    return text.replace("{s}", "<s>").replace("{/s}", "</s>")


def test_every_template_has_an_expected_text() -> None:
    assert set(EXPECTED) == set(named_templates())
    assert len(EXPECTED) >= 24


@pytest.mark.parametrize("name", EXPECTED)
def test_a_conversation(name: str, family: Callable[..., Any], turns: Callable[..., Any]) -> None:
    messages = turns(*TALK, system=None if name == "gemma" else SYSTEM)
    written = family(name).apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert written == filled(EXPECTED[name])


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_stands_before_a_conversation_without_system_message(name: str, family: Callable[..., Any]) -> None:
    written = family(name).apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False)
    assert written.startswith(filled(DEFAULTS[name]))
