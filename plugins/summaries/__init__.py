"""A text and what is made of it: its summary, or its translation. The request put before the text is an option.

    {"dialogue": "Ann: Coming?\\nBob: At six.", "summary": "Bob comes at six."}                       SAMSum
    {"translation": {"en": "a volcanic rock", "de": "ein Vulkangestein"}}                            WMT, OPUS

The request stands before the text, with a blank line between; each pair of columns has its own, see PAIRS.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from luthier.core.extensions import DataFormat, Row
from luthier.core.hookspecs import hookimpl
from luthier.core.options import option
from luthier.core.rows import answer_text, assistant, filled_text, joined, missing, user, with_system
from luthier.plugins.summaries import translation

SUMMARIZE: Final = "Summarize the following text."
CONVERSATION: Final = "Summarize the following conversation."

# The first pair that a row has, and what is asked before its text.
PAIRS: Final[dict[tuple[str, str], str]] = {
    ("dialogue", "summary"): CONVERSATION,  # SAMSum, DialogSum
    ("transcript", "summary"): CONVERSATION,  # MeetingBank
    ("article", "highlights"): SUMMARIZE,  # CNN/DailyMail
    ("article", "abstract"): "Write an abstract of the following article.",  # arXiv, PubMed
    ("article", "summary"): SUMMARIZE,
    ("description", "abstract"): "Write an abstract of the following patent description.",  # BigPatent
    ("document", "summary"): SUMMARIZE,  # XSum, Multi-News, Gigaword
    ("report", "summary"): "Summarize the following report.",  # GovReport
    ("chapter", "summary"): SUMMARIZE,  # BookSum, with its column summary_text renamed
    ("text", "summary"): SUMMARIZE,  # BillSum, XL-Sum, MLSUM
    ("email_body", "subject_line"): "Write a subject line for the following e-mail.",  # AESLC
    ("content", "summary"): "",  # AdGen, where the content is the whole request
}


@dataclass(frozen=True, kw_only=True)
class SummariesConfig:
    """What is asked of the model."""

    instruction: str | None = option(
        None, "The request put before the text; unset takes the one that belongs to the row's columns, empty puts none."
    )


def detect(row: Row) -> bool:
    # An instruction of the row's own would be lost.
    return "instruction" not in row and pair_in(row) is not None


def convert(row: Row, options: SummariesConfig) -> Row:
    """The canonical conversation; raises RowError naming the column that is missing, empty or no text."""
    pair = pair_in(row)
    if pair is None:
        raise missing(row, "summary")
    source, summary = pair
    request = PAIRS[pair] if options.instruction is None else options.instruction
    messages = [user(joined(request, filled_text(row, source))), assistant(answer_text(row, summary))]
    return {"messages": with_system(messages, row, ("system",))}


def pair_in(row: Row) -> tuple[str, str] | None:
    """The text's and the summary's column, or None."""
    return next((pair for pair in PAIRS if pair[0] in row and pair[1] in row), None)


@hookimpl
def luthier_data_formats() -> Iterable[DataFormat]:
    yield DataFormat(
        name="summaries",
        summary="A text and its summary, with a request before the text.",
        kind="conversation",
        columns=(
            "dialogue, transcript, article, document, report, chapter, text or content, and summary; article and highlights "
            "or abstract; description and abstract; email_body and subject_line"
        ),
        detect=detect,
        convert=convert,
        config=SummariesConfig,
        priority=-10,
    )
    yield DataFormat(
        name="translation",
        summary="A text in one language and in another.",
        kind="conversation",
        columns="translation: an object of language code and text",
        detect=translation.detect,
        convert=translation.convert,
        config=translation.TranslationConfig,
        priority=-10,
    )
