"""What each named template writes, against literals: what the vendor's own template writes, where it could be had.

Beside each literal stands its source: the vendor's code, or a copy of its Jinja (ggml-org/llama.cpp models/templates/NAME
and tests/test-chat-template.cpp; huggingface/trl trl/chat_templates/NAME; axolotl utils/chat_templates/templates/NAME;
unsloth/chat_templates.py; huggingface.js packages/jinja/test/e2e.test.js). "Equal": on 2026-11-25 both wrote the same for
one and two questions, with and without system message, generation prompt and white space around the contents, and with
tools where ours has them. The differences are those that docs/data/templates.md lists.

All but a few are one conversation, that of llama.cpp's tests/test-chat-template.cpp, with the white space around one answer
taken out. `{s}` and `{/s}` stand for the tokenizer's bos and eos.
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
ROLES_ON_LINES = (
    "<|system|>\nYou are a helpful assistant\n<|user|>\nHello\n<|assistant|>\nHi there{/s}\n<|user|>\nWho are you\n"
    "<|assistant|>\nI am an assistant{/s}\n<|user|>\nAnother question\n<|assistant|>\n"
)
EXPECTED: dict[str, str] = {
    # tatsu-lab/stanford_alpaca, README, the system message in place of its first sentences; several turns as in
    # unsloth/chat_templates.py, alpaca (equal). Stanford's train.py has no line break after the last heading
    "alpaca": "{s}You are a helpful assistant\n\n### Instruction:\nHello\n\n### Response:\nHi there{"
    "/s}\n\n### Instruction:\n"
    "Who are you\n\n### Response:\nI am an assistant{/s}\n\n### Instruction:\nAnother question\n\n### Response:\n",
    # Baichuan2, generation_utils.py build_chat_input: tokens 195 and 196 before the turns (copied in many repositories);
    # vllm examples/template_baichuan.jinja and FastChat conversation.py baichuan2-chat: equal but for the eos
    "baichuan2": "You are a helpful assistant<reserved_106>Hello<reserved_107>Hi there{/s}<reserved_106>Who are you"
    "<reserved_107>I am an assistant{/s}<reserved_106>Another question<reserved_107>",
    # llama.cpp test, ChatGLM3: equal but for the <|user|> that ends the last answer
    "chatglm3": "[gMASK]sop<|system|>\n You are a helpful assistant<|user|>\n Hello<|assistant|>\n Hi there<|user|>\n "
    "Who are you<|assistant|>\n I am an assistant<|user|>\n Another question<|assistant|>",
    "chatml": CHATML,  # llama.cpp test, teknium/OpenHermes-2.5-Mistral-7B, and unsloth/chat_templates.py, Yi: equal
    # llama.cpp test, CohereForAI/c4ai-command-r-plus, and trl cohere.jinja (aya-expanse-8b): equal
    "command-r": "{s}<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>You are a helpful assistant<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hello<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Hi there"
    "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Who are you<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|>"
    "<|CHATBOT_TOKEN|>I am an assistant<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Another question"
    "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    # llama.cpp deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja, trl deepseek_r1_distill.jinja: prompts equal; the last answer
    # is written there without its thinking, here with it
    "deepseek-r1": "{s}You are a helpful assistant<｜User｜>Hello<｜Assistant｜>Hi there{/s}<｜User｜>Who "
    "are you<｜Assistant｜>"
    "I am an assistant{/s}<｜User｜>Another question<｜Assistant｜><think>\n",
    # llama.cpp test, DeepSeek-V2, and huggingface.js, deepseek-ai/deepseek-llm-7b-chat: equal
    "deepseek-v2": "{s}You are a helpful assistant\n\nUser: Hello\n\nAssistant: Hi there{/s}User: Who are you\n\nAssistant: "
    "I am an assistant{/s}User: Another question\n\nAssistant:",
    # axolotl deepseek_v3.jinja: equal, with "<｜end▁of▁sentence｜>" as eos
    "deepseek-v3": "{s}You are a helpful assistant<｜User｜>Hello<｜Assistant｜>Hi there{/s}<｜User｜>Who "
    "are you<｜Assistant｜>"
    "I am an assistant{/s}<｜User｜>Another question<｜Assistant｜>",
    # axolotl exaone.jinja (EXAONE 3.5): equal
    "exaone": "[|system|]You are a helpful assistant[|endofturn|]\n[|user|]Hello\n[|assistant|]Hi there[|endofturn|]\n"
    "[|user|]Who are you\n[|assistant|]I am an assistant[|endofturn|]\n[|user|]Another question\n[|assistant|]",
    # vllm examples/template_falcon_180b.jinja, FastChat conversation.py falcon-chat: equal but for bos and eos
    "falcon": "System: You are a helpful assistant\nUser: Hello\nFalcon: Hi there{/s}\nUser: Who are you\nFalcon: "
    "I am an assistant{/s}\nUser: Another question\nFalcon:",
    # llama.cpp src/llama-chat.cpp, LLM_CHAT_TEMPLATE_FALCON_3: the roles and their lines; Falcon's Jinja could not be had
    "falcon3": ROLES_ON_LINES,
    # llama.cpp google-gemma-2-2b-it.jinja, trl gemma.jinja: equal; without a system message, which they refuse
    "gemma": "{s}<start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\nHi there<end_of_turn>\n<start_of_turn>user\n"
    "Who are you<end_of_turn>\n<start_of_turn>model\nI am an assistant<end_of_turn>\n<start_of_turn>user\nAnother question"
    "<end_of_turn>\n<start_of_turn>model\n",
    # trl gemma3.jinja: equal
    "gemma3": "{s}<start_of_turn>user\nYou are a helpful assistant\n\nHello<end_of_turn>\n<start_of_turn>model\nHi there"
    "<end_of_turn>\n<start_of_turn>user\nWho are you<end_of_turn>\n<start_of_turn>model\nI am an assistant<end_of_turn>\n"
    "<start_of_turn>user\nAnother question<end_of_turn>\n<start_of_turn>model\n",
    # THUDM/glm-4-9b-chat, quoted in llama.cpp's test: equal but for the <|user|> that ends the last answer;
    # zai-org/GLM-Z1-9B-0414, chat_template.jinja: the same roles, the contents stripped of white space
    "glm4": "[gMASK]<sop><|system|>\nYou are a helpful assistant<|user|>\nHello<|assistant|>\nHi there<|user|>\nWho are you"
    "<|assistant|>\nI am an assistant<|user|>\nAnother question<|assistant|>",
    # llama.cpp test, ibm-granite/granite-3.0-8b-instruct: equal
    "granite": "<|start_of_role|>system<|end_of_role|>You are a helpful assistant<|end_of_text|>\n<|start_of_role|>user"
    "<|end_of_role|>Hello<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>Hi there<|end_of_"
    "text|>\n<|start_of_role|>"
    "user<|end_of_role|>Who are you<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>I am an"
    " assistant<|end_of_text|>"
    "\n<|start_of_role|>user<|end_of_role|>Another question<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
    # huggingface.js, internlm/internlm2-chat-7b: equal but for the eos after a last answer
    "internlm2": "{s}" + CHATML,
    # huggingface.js, llama (transformers' default for Llama 2): equal
    "llama2": "{s}[INST] <<SYS>>\nYou are a helpful assistant\n<</SYS>>\n\nHello [/INST] Hi there {/s}{s}[INST] Who are you "
    "[/INST] I am an assistant {/s}{s}[INST] Another question [/INST]",
    # trl llama3.jinja, axolotl llama3.jinja: equal
    "llama3": "{s}<|start_header_id|>system<|end_header_id|>\n\nYou are a helpful assistant<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nHello<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHi there<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nWho are you<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    "I am an assistant<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nAnother question<|eot_id|><|start_header_id|>"
    "assistant<|end_header_id|>\n\n",
    # llama.cpp meta-llama-Llama-3.1-8B-Instruct.jinja, meta-llama-Llama-3.3-70B-Instruct.jinja, trl llama3_1.jinja: equal;
    # trl llama3_2.jinja: equal where both are given the same date_string
    "llama3.1": "{s}<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\nYou are a helpful assistant<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHello"
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHi there<|eot_id|><|start_header_id|"
    ">user<|end_header_id|>\n\n"
    "Who are you<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nI am an assistant<|eot_id"
    "|><|start_header_id|>user"
    "<|end_header_id|>\n\nAnother question<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    # axolotl llama4.jinja: equal without tools
    "llama4": "{s}<|header_start|>system<|header_end|>\n\nYou are a helpful assistant<|eot|><|header"
    "_start|>user<|header_end|>"
    "\n\nHello<|eot|><|header_start|>assistant<|header_end|>\n\nHi there<|eot|><|header_start|>user<|header_end|>\n\n"
    "Who are you<|eot|><|header_start|>assistant<|header_end|>\n\nI am an assistant<|eot|><|header_start|>user<|header_end|>"
    "\n\nAnother question<|eot|><|header_start|>assistant<|header_end|>\n\n",
    # mistral-common, tokenizer v1 (Mistral 7B v0.1 and v0.2, Mixtral), and axolotl mistral_v1.jinja: equal
    "mistral": "{s} [INST] You are a helpful assistant\n\nHello [/INST] Hi there{/s} [INST] Who are you [/INST] "
    "I am an assistant{/s} [INST] Another question [/INST]",
    # llama.cpp mistralai-Mistral-Nemo-Instruct-2407.jinja, mistral-common's v3-tekken: equal but for the place of the system
    # message and of the tools
    "mistral-nemo": "{s}[INST]You are a helpful assistant\n\nHello[/INST]Hi there{/s}[INST]Who are you[/INST]"
    "I am an assistant{/s}[INST]Another question[/INST]",
    # axolotl mistral_v7_tekken.jinja (Mistral-Small-24B-Instruct-2501): equal with a system message; it has one of its own
    "mistral-small": "{s}[SYSTEM_PROMPT]You are a helpful assistant[/SYSTEM_PROMPT][INST]Hello[/INST]Hi there{/s}[INST]"
    "Who are you[/INST]I am an assistant{/s}[INST]Another question[/INST]",
    # axolotl mistral_v2v3.jinja, mistral-common's v3: equal but for the place of the system message and of the tools
    "mistral-v3": "{s}[INST] You are a helpful assistant\n\nHello[/INST] Hi there{/s}[INST] Who are you[/INST] "
    "I am an assistant{/s}[INST] Another question[/INST]",
    # allenai/OLMo-2-1124-7B-SFT, tokenizer_config.json: equal
    "olmo2": "{s}" + ROLES_ON_LINES,
    # huggingface.js, openchat/openchat-3.5-0106, and unsloth/chat_templates.py, Starling: equal
    "openchat": "{s}GPT4 Correct System: You are a helpful assistant<|end_of_turn|>GPT4 Correct User: Hello<|end_of_turn|>"
    "GPT4 Correct Assistant: Hi there<|end_of_turn|>GPT4 Correct User: Who are you<|end_of_turn|>GPT4 Correct Assistant: "
    "I am an assistant<|end_of_turn|>GPT4 Correct User: Another question<|end_of_turn|>GPT4 Correct Assistant:",
    # llama.cpp microsoft-Phi-3.5-mini-instruct.jinja, trl phi3.jinja: equal but for the eos at the very end
    "phi3": "<|system|>\nYou are a helpful assistant<|end|>\n<|user|>\nHello<|end|>\n<|assistant|>\n"
    "Hi there<|end|>\n<|user|>"
    "\nWho are you<|end|>\n<|assistant|>\nI am an assistant<|end|>\n<|user|>\nAnother question<|end|>\n<|assistant|>\n",
    # unsloth/chat_templates.py, phi-4: equal; llama.cpp test, phi-4: the prompt is part of the question there
    "phi4": "<|im_start|>system<|im_sep|>You are a helpful assistant<|im_end|><|im_start|>user<|im_sep|>Hello<|im_end|>"
    "<|im_start|>assistant<|im_sep|>Hi there<|im_end|><|im_start|>user<|im_sep|>Who are you<|im_end|><|im_start|>assistant"
    "<|im_sep|>I am an assistant<|im_end|><|im_start|>user<|im_sep|>Another question<|im_end|><|im_s"
    "tart|>assistant<|im_sep|>",
    # microsoft/Phi-4-mini-instruct, tokenizer_config.json: equal but for the eos at the very end
    "phi4-mini": "<|system|>You are a helpful assistant<|end|><|user|>Hello<|end|><|assistant|>Hi there<|end|><|user|>"
    "Who are you<|end|><|assistant|>I am an assistant<|end|><|user|>Another question<|end|><|assistant|>",
    "qwen2.5": CHATML,  # llama.cpp Qwen-Qwen2.5-7B-Instruct.jinja, trl qwen2_5.jinja: equal
    "qwen3": CHATML,  # llama.cpp Qwen-Qwen3-0.6B.jinja, trl qwen3.jinja: equal
    "qwen3-instruct": CHATML,  # trl qwen3_instruct_2507.jinja: equal
    "smollm2": CHATML,  # HuggingFaceTB/SmolLM2-360M-Instruct, tokenizer_config.json: equal
    # huggingface.js, upstage/SOLAR-10.7B-Instruct-v1.0: equal but for bos, and for eos and line breaks after an answer
    "solar": "{s}### System:\nYou are a helpful assistant\n\n### User:\nHello\n\n### Assistant:\nHi there{/s}\n\n### User:\n"
    "Who are you\n\n### Assistant:\nI am an assistant{/s}\n\n### User:\nAnother question\n\n### Assistant:\n",
    # bigcode-project/starcoder, chat/dialogues.py DialogueTemplate: equal
    "starchat": "<|system|>\nYou are a helpful assistant<|end|>\n<|user|>\nHello<|end|>\n<|assistant|>\nHi there<|end|>\n"
    "<|user|>\nWho are you<|end|>\n<|assistant|>\nI am an assistant<|end|>\n<|user|>\nAnother questi"
    "on<|end|>\n<|assistant|>",
    "tulu": ROLES_ON_LINES,  # allenai/open-instruct, open_instruct/dataset_transformation.py CHAT_TEMPLATES["tulu"]: equal
    # FastChat, conversation.py vicuna_v1.1: equal
    "vicuna": "{s}You are a helpful assistant USER: Hello ASSISTANT: Hi there{/s}USER: Who are you ASSISTANT: "
    "I am an assistant{/s}USER: Another question ASSISTANT:",
    # huggingface.js, HuggingFaceH4/zephyr-7b-beta: equal
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
    "mistral": "{s} [INST] Hello",
    "mistral-v3": "{s}[INST] Hello",
}
# Where white space around the contents is kept, from the same sources: " RULE ", " ASK " and " SAY " as written.
SPACES = {
    "chatml": (" RULE ", " ASK ", " SAY "),
    "command-r": (" RULE ", "ASK", "SAY"),
    "gemma3": (" RULE ", "ASK", "SAY"),
    "llama2": (" RULE ", " ASK", "SAY"),  # the two are stripped as one
    "llama3": ("RULE", "ASK", "SAY"),
    "llama3.1": ("RULE", "ASK", "SAY"),
    "llama4": ("RULE", " ASK ", " SAY "),
    "mistral": (" RULE ", " ASK ", " SAY "),
    "mistral-nemo": (" RULE ", " ASK ", " SAY "),
    "mistral-v3": (" RULE ", " ASK ", "SAY"),
    "qwen2.5": (" RULE ", " ASK ", " SAY "),
}
# How a conversation ends that ends with the answer "Hi".
ENDINGS = {
    "chatml": "assistant\nHi<|im_end|>\n",
    "llama2": "[/INST] Hi {/s}",
    "llama3": "assistant<|end_header_id|>\n\nHi<|eot_id|>",
    "mistral": "[/INST] Hi{/s}",
    "mistral-nemo": "[/INST]Hi{/s}",
    "olmo2": "<|assistant|>\nHi{/s}",
    "qwen3": "assistant\n<think>\n\n</think>\n\nHi<|im_end|>\n",
    "starchat": "<|assistant|>\nHi<|end|>\n",
    "tulu": "<|assistant|>\nHi{/s}",
    "zephyr": "<|assistant|>\nHi{/s}\n",
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


@pytest.mark.parametrize("name", SPACES)
def test_white_space_around_contents_is_stripped_where_the_vendor_strips_it(
    name: str, family: Callable[..., Any], turns: Callable[..., Any]
) -> None:
    plain = family(name).apply_chat_template(turns("ASK", "SAY", system="RULE"), tokenize=False)
    spaced = family(name).apply_chat_template(turns(" ASK ", " SAY ", system=" RULE "), tokenize=False)
    expected = plain
    for word, written in zip(("RULE", "ASK", "SAY"), SPACES[name], strict=True):
        assert expected.count(word) == 1
        expected = expected.replace(word, written)
    assert spaced == expected


@pytest.mark.parametrize("name", ENDINGS)
def test_how_a_conversation_ends(name: str, family: Callable[..., Any], turns: Callable[..., Any]) -> None:
    assert family(name).apply_chat_template(turns("Hello", "Hi"), tokenize=False).endswith(filled(ENDINGS[name]))
