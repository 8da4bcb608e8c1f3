"""The evaluation of one model, or of two against each other, on the rows of some files.

text          loss, perplexity                    of every token
conversation  loss, perplexity                    of what the assistant says
              exact_match, rouge, bleu            of generated answers, greedy, to what stands before the last learned turn
preference    accuracy, margin, longer            by log-probability, or by the scores of a reward run (pairs.py)
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from luthier.core import atomic
from luthier.core.contracts import DataKind
from luthier.core.data.examples import IGNORED, Example
from luthier.core.errors import ConfigError, DataError, MissingEnvironmentError, OutputError
from luthier.core.evaluation.answers import answered, questions, totals
from luthier.core.evaluation.losses import token_losses
from luthier.core.evaluation.metrics import TEXT_METRICS, TextMetrics
from luthier.core.evaluation.pairs import longer_answers, pair_values
from luthier.core.evaluation.rows import Rows, in_both, read_rows
from luthier.core.evaluation.subjects import PRECISION, Subject

METRICS: Final[dict[DataKind, tuple[str, ...]]] = {
    "text": ("loss", "perplexity"),
    "conversation": ("loss", "perplexity", *TEXT_METRICS),
    "preference": ("accuracy", "margin", "longer"),
}
EVERY_METRIC: Final = tuple(dict.fromkeys(name for names in METRICS.values() for name in names))
PACKAGED: Final = ("rouge", "bleu")
GIVEN: Final = ("prompt", "reference", "chosen", "rejected")
Notice = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for: `metrics` empty takes those of the data's kind; `predictions` is a file for what each row gave."""

    data: tuple[str, ...]
    metrics: tuple[str, ...] = ()
    format_name: str = "auto"
    max_rows: int | None = None
    max_new_tokens: int = 256
    predictions: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What came of it, JSON-shaped.

    metrics        of the run, by name: rates from 0 to 1, BLEU from 0 to 100, loss and margin in nats (or in scores)
    against        the name of the other model and its metrics; None where there is none
    difference     the run's metrics less the other's
    rows           evaluated; `left_out` counts rows of the files that were not, by reason
    answers        of generated answers: how many, which rows were not asked and why, and the longest allowed
    """

    run: str
    stage: str
    kind: str
    data: tuple[str, ...]
    rows: int
    left_out: dict[str, int]
    cut: dict[str, int]
    metrics: dict[str, float]
    against: dict[str, Any] | None
    difference: dict[str, float] | None
    answers: dict[str, Any] | None
    predictions: str | None
    precision: str
    device: str
    seconds: float


@dataclass
class Measured:
    """One model's metrics, what each row gave, and the account of its answers."""

    metrics: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    answers: dict[str, Any] | None = None


def evaluate(subject: Subject, other: Subject | None, request: Request, formats: Any, notice: Notice) -> Evaluation:
    """Evaluate, one model after the other. Raises the LuthierError of whatever is wrong; then no file is written."""
    began = time.monotonic()
    _check_file(request)
    subjects = [subject] if other is None else [subject, other]
    if len({one.task for one in subjects}) > 1:
        raise ConfigError(
            "a reward model scores answers, any other gives them log-probabilities: the two cannot be compared",
            where="--against",
            fix="compare models of one kind",
        )
    tokenizers = [one.tokenizer() for one in subjects]
    readings = [
        read_rows(
            request.data,
            one.data,
            tokenizer,
            formats,
            format_name=request.format_name,
            max_rows=request.max_rows,
            notice=notice,
        )
        for one, tokenizer in zip(subjects, tokenizers, strict=True)
    ]
    report = readings[0].report
    left_out = dict(report.dropped)
    if other is not None:
        *readings, apart = in_both(readings[0], readings[1])
        left_out |= {f"not kept for {other.name}": apart} if apart else {}
    rows = readings[0]
    if not rows.examples.rows:
        raise DataError(
            "no row is left to evaluate", where=", ".join(request.data), fix="give rows that fit data.max_length"
        )
    wanted = chosen_metrics(request.metrics, rows.kind, subject, notice)
    _compare_tokens(readings, wanted, notice)
    measured = []
    for one, tokenizer, reading in zip(subjects, tokenizers, readings, strict=True):
        notice(f"evaluating {one.name} on {reading.examples.rows:,} rows")
        model = one.open(tokenizer, notice)
        measured.append(measure(one, model, tokenizer, reading, wanted, request.max_new_tokens))
        del model
        gc.collect()
    first, second = measured[0], (measured[1] if other is not None else None)
    if request.predictions is not None:
        write_rows(request.predictions, rows.places, first, second)
    return Evaluation(
        run=subject.name,
        stage=subject.stage,
        kind=rows.kind,
        data=request.data,
        rows=rows.examples.rows,
        left_out=left_out,
        cut=dict(report.cut),
        metrics=first.metrics,
        against={"run": other.name, "metrics": second.metrics} if other is not None and second is not None else None,
        difference=_difference(first.metrics, second.metrics) if second is not None else None,
        answers=first.answers,
        predictions=str(request.predictions) if request.predictions is not None else None,
        precision=PRECISION.name,
        device="cpu",
        seconds=round(time.monotonic() - began, 3),
    )


def chosen_metrics(asked: Sequence[str], kind: DataKind, subject: Subject, notice: Notice) -> tuple[str, ...]:
    """Those asked for, or all that the kind of data has; of these, what needs a missing package is left out and said.

    Raises ConfigError for a metric that this data has not got, DataError for data that the model's head cannot use.
    """
    possible = METRICS[kind]
    if subject.task == "score" and kind != "preference":
        raise DataError(
            f"{subject.name} scores pairs of answers, and these rows hold {kind} data",
            where="--data",
            fix="give preferences: a chosen and a rejected answer in each row",
        )
    wrong = [name for name in asked if name not in possible]
    if wrong:
        known = "is no metric" if wrong[0] not in EVERY_METRIC else f"cannot be measured on {kind} data"
        raise ConfigError(f"{wrong[0]} {known}", where="--metrics", fix=f"here there are: {', '.join(possible)}")
    if asked:
        return tuple(name for name in possible if name in asked)
    wanted = []
    for name in possible:
        try:
            TextMetrics([name] if name in PACKAGED else [])
        except MissingEnvironmentError as error:
            notice(f"{name} is left out, because a package for it is missing: {error.fix}")
        else:
            wanted.append(name)
    return tuple(wanted)


def measure(
    subject: Subject, model: Any, tokenizer: Any, rows: Rows, wanted: Sequence[str], max_new_tokens: int
) -> Measured:
    """One loaded model on rows that it can be evaluated on."""
    found = Measured(rows=[{} for _ in range(rows.examples.rows)])
    sizes = {"batch_tokens": subject.batch_tokens, "pad_token_id": tokenizer.pad_token_id}
    if rows.kind == "preference":
        _pairs(found, subject, model, tokenizer, rows, wanted, sizes)
        return found
    if {"loss", "perplexity"} & set(wanted):
        losses = token_losses(model, rows.examples, **sizes)
        known = {"loss": losses.loss, "perplexity": losses.perplexity}
        found.metrics |= {name: known[name] for name in wanted if name in known} | {"tokens": int(losses.tokens.sum())}
        for number, row in enumerate(found.rows):
            row |= {"loss": losses.of(number), "tokens": int(losses.tokens[number])} if losses.tokens[number] else {}
    text_metrics = [name for name in wanted if name in TEXT_METRICS]
    if text_metrics:
        _answers(found, subject, model, tokenizer, rows, text_metrics, max_new_tokens)
    return found


def _answers(
    found: Measured, subject: Subject, model: Any, tokenizer: Any, rows: Rows, wanted: Sequence[str], max_new_tokens: int
) -> None:
    from luthier.core.generation import end_tokens

    metrics = TextMetrics(wanted)
    room = {"max_new_tokens": max_new_tokens, "context": subject.context}
    asked = questions(rows.examples, tokenizer, end_tokens(model, tokenizer), **room)  # type: ignore[arg-type]
    if not asked.asked:
        reasons = "; ".join(f"{reason}: {count}" for reason, count in asked.reasons.items())
        raise DataError(
            f"no row can be answered ({reasons})", where="--data", fix="measure only the loss, or give other rows"
        )
    made = answered(model, tokenizer, asked.asked, metrics, max_new_tokens=max_new_tokens, batch_tokens=subject.batch_tokens)
    found.metrics |= totals(made, metrics)
    found.answers = {"rows": len(made), "left_out": asked.reasons, "max_new_tokens": max_new_tokens}
    for one in made:
        prompt = tokenizer.decode(one.question.prompt, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        texts = {"prompt": prompt, "reference": one.question.reference, "prediction": one.prediction}
        found.rows[one.question.row] |= {**texts, "finished": one.finished, **one.metrics}
    for number, reason in asked.left_out.items():
        found.rows[number]["not_asked"] = reason


def _pairs(
    found: Measured,
    subject: Subject,
    model: Any,
    tokenizer: Any,
    rows: Rows,
    wanted: Sequence[str],
    sizes: Mapping[str, int],
) -> None:
    chosen, rejected = pair_values(model, rows.examples, subject.task, **sizes)
    known = {
        "accuracy": (chosen > rejected).astype(float),
        "margin": chosen - rejected,
        "longer": longer_answers(rows.examples),
    }
    found.metrics = {name: float(known[name].mean()) for name in wanted}
    for number, row in enumerate(found.rows):
        pair = [rows.examples[2 * number + which] for which in (0, 1)]
        (prompt, good), (_, bad) = (_texts(example, tokenizer) for example in pair)
        row |= {"prompt": prompt, "chosen": good, "rejected": bad}
        row |= {"chosen_value": float(chosen[number]), "rejected_value": float(rejected[number])}
        row |= {name: float(known[name][number]) for name in wanted}


def _texts(example: Example, tokenizer: Any) -> tuple[str, str]:
    """What stands before the learned tokens, and they themselves with whatever stands between them."""
    learned = np.flatnonzero(example["labels"] != IGNORED)
    begin, end = (int(learned[0]), int(learned[-1]) + 1) if len(learned) else (len(example["input_ids"]),) * 2
    ids = example["input_ids"].tolist()
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    return tokenizer.decode(ids[:begin], **options), tokenizer.decode(ids[begin:end], **options)


def write_rows(path: Path, places: Sequence[str], first: Measured, second: Measured | None) -> None:
    """One JSON object a line, written whole or not at all: `from` where the row is, what the run made of it, and the other.

    Raises OutputError where the file cannot be written.
    """
    lines = []
    for number, (place, row) in enumerate(zip(places, first.rows, strict=True)):
        beside = {}
        if second is not None and len(second.rows) == len(first.rows):
            # Texts that both were given alike are not said twice.
            other = second.rows[number].items()
            beside = {"against": {key: value for key, value in other if key not in GIVEN or value != row.get(key)}}
        lines.append(json.dumps({"from": place, **row, **beside}, ensure_ascii=False) + "\n")
    try:
        atomic.write_text(path, "".join(lines))
    except OSError as error:
        message = "the disk is full" if atomic.is_disk_full(error) else f"cannot be written: {error.strerror or error}"
        raise OutputError(message, where=str(path), fix="name another file") from error


def _check_file(request: Request) -> None:
    """Before anything takes time."""
    path = request.predictions
    if path is None:
        return
    if path.exists() and any(Path(source).exists() and path.samefile(source) for source in request.data):
        raise OutputError("holds the rows that are evaluated", where=str(path), fix="name another file")
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise OutputError(what, where=str(path), fix="name a file in a folder that is there")


def _compare_tokens(readings: Sequence[Rows], wanted: Sequence[str], notice: Notice) -> None:
    counts = [rows.examples.trained_tokens for rows in readings]
    if len(set(counts)) > 1 and {"loss", "perplexity", "margin"} & set(wanted):
        notice(
            f"the two models read the rows as different tokens ({counts[0]:,} and {counts[1]:,} count): their losses are "
            "means over these, and do not compare token by token"
        )
    if len({rows.examples.rows for rows in readings}) > 1:
        notice("the rows were split differently for the two models: what each row gave is kept for the first alone")


def _difference(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {name: value - other[name] for name, value in one.items() if name in other and name != "tokens"}
