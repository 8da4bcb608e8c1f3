"""Exact match, ROUGE and BLEU: values worked out by hand, and those of the libraries called plainly."""

from __future__ import annotations

import builtins
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import ExitCode, MissingEnvironmentError
from luthier.core.evaluation import words as words_module
from luthier.core.evaluation.metrics import TextMetrics, normalise
from luthier.core.evaluation.words import segmented, words

PREDICTIONS = ["The cat sat on the mat.", "It's 10:45, not_a_word - isn't it?", "a b c d e f", ""]
REFERENCES = ["The cat lay on the mat!", "It is 10:45; not a word, is it?", "a b c d e f", "nothing was said"]


def test_normalise_forgives_white_space_and_unicode_forms_only() -> None:
    assert normalise("  a\n\tb  c ") == "a b c"
    assert normalise("cafe\u0301") == normalise("caf\u00e9")
    assert normalise("Paris.") != normalise("paris.")
    assert normalise("Paris.") != normalise("Paris")


def test_exact_match_is_the_part_of_equal_rows() -> None:
    metrics = TextMetrics(["exact_match"])
    rows = [metrics.row(*pair) for pair in (("x", "x"), (" x ", "x"), ("X", "x"), ("y", "x"))]
    assert [row["exact_match"] for row in rows] == [1.0, 1.0, 0.0, 0.0]
    assert metrics.total(rows, [], []) == {"exact_match": 0.5}


def test_rouge_by_hand() -> None:
    """5 of 6 words in common: the cat _ on the mat; pairs in common: the-cat, on-the, the-mat, 3 of 5."""
    row = TextMetrics(["rouge"]).row(PREDICTIONS[0], REFERENCES[0])
    assert row == {"rouge1": pytest.approx(5 / 6), "rouge2": pytest.approx(3 / 5), "rougeL": pytest.approx(5 / 6)}


def test_rouge_is_f1_of_precision_and_recall() -> None:
    """2 words against 4, both found: precision 1, recall 1/2, F1 2/3; the one pair of three: F1 2 * 1 * 1/3 / (4/3)."""
    row = TextMetrics(["rouge"]).row("red blue", "red blue green black")
    assert row == {"rouge1": pytest.approx(2 / 3), "rouge2": pytest.approx(1 / 2), "rougeL": pytest.approx(2 / 3)}


@pytest.mark.parametrize(("prediction", "reference"), list(zip(PREDICTIONS, REFERENCES, strict=True)))
def test_rouge_of_ascii_is_that_of_rouge_score_alone(prediction: str, reference: str) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    plain = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False).score(reference, prediction)
    assert TextMetrics(["rouge"]).row(prediction, reference) == {name: one.fmeasure for name, one in plain.items()}


def test_bleu_is_that_of_sacrebleu_alone() -> None:
    import sacrebleu

    metrics = TextMetrics(["bleu"])
    rows = [metrics.row(*pair) for pair in zip(PREDICTIONS, REFERENCES, strict=True)]
    total = metrics.total(rows, PREDICTIONS, REFERENCES)
    assert total == {"bleu": pytest.approx(sacrebleu.corpus_bleu(PREDICTIONS, [REFERENCES]).score)}
    assert rows[0]["bleu"] == pytest.approx(sacrebleu.sentence_bleu(PREDICTIONS[0], [REFERENCES[0]]).score)
    assert rows[2]["bleu"] == pytest.approx(100)
    # Of the corpus, not the mean of its rows.
    assert total["bleu"] != pytest.approx(sum(row["bleu"] for row in rows) / len(rows), rel=0.01)


def test_bleu_by_hand() -> None:
    """Of 5 words 4 are right: 4/5 words, 3/4 pairs, 2/3 triples, 1/2 fours, no brevity penalty."""
    total = TextMetrics(["bleu"]).total([{"bleu": 0.0}], ["a b c d x"], ["a b c d y"])
    assert total["bleu"] == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)


def test_chinese_is_segmented_and_other_scripts_are_not() -> None:
    assert words("我爱北京天安门。") == ["我", "爱", "北京", "天安门"]
    assert words("Ein Café, 2 Bäume; 我爱北京!") == ["ein", "café", "2", "bäume", "我", "爱", "北京"]
    assert words("テスト") == ["テスト"]
    assert words("ภาษาไทยที่ดี") == ["ภาษาไทยที่ดี"]
    assert segmented("plain, as it is  ") == "plain, as it is  "
    assert segmented("去北京吗?yes").split() == ["去", "北京", "吗", "?yes"]


def test_marks_belong_to_their_letters() -> None:
    """The vowel signs of Hindi are marks of their own: "ki" and "ka" differ in nothing else."""
    assert words("नमस्ते, दुनिया।") == ["नमस्ते", "दुनिया"]
    assert words("Cafe\u0301") == words("caf\u00e9") == ["caf\u00e9"]
    assert TextMetrics(["rouge"]).row("\u0915\u093f", "\u0915\u093e")["rouge1"] == 0


def test_rouge_and_bleu_of_chinese_by_hand() -> None:
    """我 爱 北京 天安门 against 我 爱 上海 天安门: 3 of 4 words, one of 3 pairs."""
    metrics = TextMetrics(["rouge", "bleu"])
    row = metrics.row("我爱北京天安门", "我爱上海天安门")
    assert row["rouge1"] == pytest.approx(3 / 4)
    assert row["rouge2"] == pytest.approx(1 / 3)
    assert row["rougeL"] == pytest.approx(3 / 4)
    import sacrebleu

    plain = sacrebleu.sentence_bleu("我 爱 北京 天安门", ["我 爱 上海 天安门"], tokenize="none").score
    assert row["bleu"] == pytest.approx(plain)
    # The library alone sees one word on each side, and finds nothing.
    from rouge_score.rouge_scorer import RougeScorer

    assert RougeScorer(["rouge1"]).score("我爱北京天安门", "我爱北京天安门")["rouge1"].fmeasure == 0
    assert metrics.row("我爱北京天安门", "我爱北京天安门")["rouge1"] == 1


def test_no_rows_have_no_metrics() -> None:
    assert TextMetrics(["exact_match", "rouge", "bleu"]).total([], [], []) == {}


def test_a_missing_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(words_module, "find_spec", lambda name: None if name == "sacrebleu" else real(name))
    with pytest.raises(MissingEnvironmentError, match="not installed: sacrebleu") as caught:
        TextMetrics(["bleu"])
    assert "luthier[metrics]" in caught.value.fix
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


def test_exact_match_needs_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **options: Any) -> Any:
        assert name.partition(".")[0] not in ("sacrebleu", "rouge_score", "jieba"), name
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert TextMetrics(["exact_match"]).row("a", "a") == {"exact_match": 1.0}


def test_segmenting_prints_and_writes_nothing(tmp_path: Path) -> None:
    """jieba by itself talks on standard error and leaves a cache in the temporary folder."""
    importing = "from luthier.core.evaluation.metrics import TextMetrics"
    script = f"{importing}; print(TextMetrics(['rouge', 'bleu']).row('我爱北京', '我爱北京'))"
    folders = {name: tmp_path / name for name in ("tmp", "home", "here")}
    for folder in folders.values():
        folder.mkdir()
    environment = os.environ | {"TMPDIR": str(folders["tmp"]), "HOME": str(folders["home"]), "XDG_CACHE_HOME": ""}
    command = [sys.executable, "-W", "error::UserWarning", "-c", script]
    done = subprocess.run(command, cwd=folders["here"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "'rouge1': 1.0" in done.stdout
    assert not [path for folder in folders.values() for path in folder.rglob("*") if path.is_file()]
