"""A better and a worse answer to the same prompt, in the ways that public data sets write it.

    preference    {"prompt": "Which rock?", "chosen": "Basalt.", "rejected": "Oak."}     TRL, explicit prompt
                  {"chosen": [...messages...], "rejected": [...messages...]}             TRL, implicit prompt
    ranking       {"conversations": [...], "chosen": {"from": "gpt", ...}, ...}          LLaMA-Factory, ShareGPT style
                  {"instruction": ..., "input": ..., "chosen": "...", "rejected": "..."} LLaMA-Factory, Alpaca style
    hh_rlhf       {"chosen": "\\n\\nHuman: Hi\\n\\nAssistant: Hello!", "rejected": ...}  Anthropic HH-RLHF
    comparison    {"prompt": ..., "response_0": ..., "response_1": ..., "better_response_id": 1}  PKU-SafeRLHF

Scores become the margin, chosen less rejected. Follows https://huggingface.co/docs/trl/dataset_formats and the data README
of LLaMA-Factory.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from luthier.core.extensions import DataFormat, Row
from luthier.core.hookspecs import hookimpl
from luthier.core.tagged import Tags
from luthier.plugins.preference import comparison, hh_rlhf, pairs, ranking

PRIORITY: Final = 30  # before messages and instructions, which such rows often have as well


def detect(row: Row) -> bool:
    return "chosen" in row and "rejected" in row and not ranking.detect(row) and not hh_rlhf.detect(row)


@hookimpl
def luthier_data_formats() -> Iterable[DataFormat]:
    yield DataFormat(
        name="preference",
        summary="A better and a worse answer: to a given prompt, or two conversations with the same beginning.",
        kind="preference",
        columns=(
            "chosen and rejected; optional prompt, question, query or input, system, tools, and the scores: margin, or "
            "score_chosen and score_rejected"
        ),
        detect=detect,
        convert=pairs.convert,
        priority=PRIORITY,
    )
    yield DataFormat(
        name="ranking",
        summary="LLaMA-Factory's ranking: Alpaca or ShareGPT rows with a better and a worse answer.",
        kind="preference",
        columns=(
            "chosen and rejected, and conversations or messages, or instruction with optional input and history; or output, "
            "a list of the better and the worse answer; optional system, tools"
        ),
        detect=ranking.detect,
        convert=ranking.convert,
        config=Tags,
        priority=PRIORITY,
    )
    yield DataFormat(
        name="hh_rlhf",
        summary="Two texts with Human: and Assistant: before their turns, which differ at the end.",
        kind="preference",
        columns="chosen and rejected, texts beginning with Human:; optional prompt",
        detect=hh_rlhf.detect,
        convert=hh_rlhf.convert,
        priority=PRIORITY,
    )
    yield DataFormat(
        name="comparison",
        summary="Two answers, and which of them is better.",
        kind="preference",
        columns=(
            "prompt, response_0, response_1 and better_response_id; conversation_a, conversation_b and winner; history, "
            "human_ref_A, human_ref_B and labels"
        ),
        detect=comparison.detect,
        convert=comparison.convert,
        config=comparison.ComparisonConfig,
        priority=PRIORITY,
    )
