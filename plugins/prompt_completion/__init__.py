"""A prompt and its completion, each a text or messages, under the names that public data sets have for them.

    {"prompt": "Name a dark volcanic rock.", "completion": "Basalt."}
    {"prompt": [{"role": "user", "content": "Name one."}], "completion": [{"role": "assistant", "content": "Basalt."}]}
    {"system_prompt": "Be brief.", "question": "What is basalt?", "response": "A rock."}        OpenOrca

The answers inside a given prompt are context: `data.train_on: completion` learns the completion alone. A column of reasoning
becomes the answer's `reasoning_content`. Follows TRL's prompt-completion type, https://huggingface.co/docs/trl/dataset_formats.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from luthier.core.extensions import DataFormat, Row, RowError
from luthier.core.hookspecs import hookimpl
from luthier.core.rows import answer_turns, first_of, optional_text, pair_of, prompt_turns, tools_of, with_system
from luthier.plugins.prompt_completion import calls, turns

# The first pair that a row has; each with a data set that has it.
PAIRS: Final = (
    ("prompt", "completion"),  # TRL
    ("prompt", "response"),  # OpenO1-SFT, nectar, HelpSteer
    ("query", "response"),  # MetaMathQA
    ("question", "response"),  # OpenOrca
    ("Question", "Response"),  # medical-o1-reasoning-SFT
    ("problem", "solution"),  # NuminaMath, Magicoder-OSS-Instruct
    ("problem", "generated_solution"),  # OpenMathInstruct-2
    ("inputs", "targets"),  # FLAN, xP3, Aya
    ("input", "target"),  # Firefly
    ("input", "output"),  # LongForm, WebQA
)
REASONING: Final = ("reasoning_content", "thinking", "Complex_CoT")
# With these a row says more than the pair does, and another format reads it.
OTHERS: Final = ("instruction", "definition", "label", "kto_tag", "chosen", "rejected")


def detect(row: Row) -> bool:
    return pair_of(row, PAIRS) is not None and first_of(row, OTHERS) is None


def convert(row: Row) -> Row:
    """{"messages": prompt, "completion": ...}; raises RowError naming the column that is missing, empty or no text."""
    prompt, completion = pair_of(row, PAIRS) or PAIRS[0]
    messages, answer = with_system(prompt_turns(row, prompt), row), answer_turns(row, completion)
    reasoning = first_of(row, REASONING)
    thought = optional_text(row, reasoning)
    if thought.strip():
        if answer[0]["role"] != "assistant":
            raise RowError("belongs to an answer, and the completion does not begin with one", column=str(reasoning))
        answer[0] = {**answer[0], "reasoning_content": thought}
    return {"messages": messages, "completion": answer, **tools_of(row)}


@hookimpl
def luthier_data_formats() -> Iterable[DataFormat]:
    yield DataFormat(
        name="prompt_completion",
        summary="A prompt and its completion, as texts or as messages.",
        kind="conversation",
        columns=(
            "prompt and completion or response; query or question and response; problem and solution; inputs and targets; "
            "input and target or output; optional system or system_prompt, reasoning_content, tools"
        ),
        detect=detect,
        convert=convert,
        priority=-10,
    )
    yield DataFormat(
        name="function_calls",
        summary="A request, the tools there are, and the calls that answer it.",
        kind="conversation",
        columns="query, tools, answers; optional system",
        detect=calls.detect,
        convert=calls.convert,
        priority=-5,
    )
    yield DataFormat(
        name="turns",
        summary="A list of texts, the user's and the assistant's in turn.",
        kind="conversation",
        columns="conversations, data, dialogue or turns: a list of texts; optional system",
        detect=turns.detect,
        convert=turns.convert,
        priority=10,
    )
