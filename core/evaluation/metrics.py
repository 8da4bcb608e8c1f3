"""Text metrics of answers against their references.

exact_match   1 where both are the same after `normalise`, from 0 to 1
rouge1, rouge2, rougeL   F1 of common words, pairs of words, and the longest common subsequence (Lin 2004), from 0 to 1,
              by rouge-score, without stemming, over the words of words.py
bleu          BLEU-4 by sacrebleu, from 0 to 100: of the whole corpus, not the mean of its rows; words are those of
              sacrebleu's "13a" tokenizer, after Chinese was segmented (its own "zh" counts single characters)

https://github.com/google-research/google-research/tree/master/rouge, https://github.com/mjpost/sacrebleu
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from luthier.core.evaluation.words import require_packages, segmented, words

# What a user asks for, and the names of the numbers that come of it.
TEXT_METRICS: Final[dict[str, tuple[str, ...]]] = {
    "exact_match": ("exact_match",),
    "rouge": ("rouge1", "rouge2", "rougeL"),
    "bleu": ("bleu",),
}


def normalise(text: str) -> str:
    """What exact match compares: Unicode in composed form (NFC), runs of white space as one space, none at the ends.

    Case, punctuation and everything else count.
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


class TextMetrics:
    """The metrics in `wanted` (keys of TEXT_METRICS). Raises MissingEnvironmentError where their package is not there.

    `row(prediction, reference)` are the numbers of one answer, `total` those of all: means, and the BLEU of the corpus.
    """

    def __init__(self, wanted: Iterable[str]) -> None:
        self.wanted = tuple(wanted)
        self.names = tuple(name for metric in self.wanted for name in TEXT_METRICS[metric])
        if set(self.wanted) - {"exact_match"}:
            require_packages()
        self._rouge = _rouge_scorer() if "rouge" in self.wanted else None
        self._bleu = _sacrebleu() if "bleu" in self.wanted else None

    def row(self, prediction: str, reference: str) -> dict[str, float]:
        """One answer's numbers; its BLEU counts only the n-gram orders that it is long enough for."""
        found: dict[str, float] = {}
        if "exact_match" in self.wanted:
            found["exact_match"] = float(normalise(prediction) == normalise(reference))
        if self._rouge is not None:
            # The names are ours in this order: (target, prediction).
            found |= {name: float(score.fmeasure) for name, score in self._rouge.score(reference, prediction).items()}
        if self._bleu is not None:
            found["bleu"] = float(self._bleu.sentence_bleu(segmented(prediction), [segmented(reference)]).score)
        return {name: found[name] for name in self.names}

    def total(
        self, rows: Sequence[Mapping[str, float]], predictions: Sequence[str], references: Sequence[str]
    ) -> dict[str, float]:
        """Over all rows, whose numbers `row` gave; nothing where there are none."""
        if not rows:
            return {}
        totals = {name: sum(row[name] for row in rows) / len(rows) for name in self.names}
        if self._bleu is not None:
            predicted, wanted = [segmented(text) for text in predictions], [segmented(text) for text in references]
            totals["bleu"] = float(self._bleu.corpus_bleu(predicted, [wanted]).score)
        return totals


class _Words:
    """What rouge-score asks of a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def _rouge_scorer() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from rouge_score.rouge_scorer import RougeScorer
    return RougeScorer(list(TEXT_METRICS["rouge"]), use_stemmer=False, tokenizer=_Words())


def _sacrebleu() -> Any:
    import sacrebleu

    return sacrebleu
