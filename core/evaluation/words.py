"""A text's words, for metrics that count common words: letters with their marks, digits, Chinese segmented by jieba.

"I bought a 2nd café, 我爱北京。"  ->  i bought a 2nd café 我 爱 北京

On text in plain ASCII these are exactly the words of rouge-score's own tokenizer, which drops every other letter. Scripts
that write no spaces besides Chinese (kana, Thai, ...) are not segmented: a run of them is one word. The vowel signs of Hindi
or Thai are marks on letters, which Python's `\\w` does not count: without them different words would be the same.
https://github.com/fxsjy/jieba
"""

from __future__ import annotations

import logging
import re
import unicodedata
import warnings
from functools import cache
from importlib.util import find_spec
from typing import Any, Final

from luthier.core.errors import MissingEnvironmentError
from luthier.core.requirements import install_command

PACKAGES: Final = ("rouge-score>=0.1.2", "sacrebleu>=2.5", "jieba>=0.42")
MODULES: Final = ("rouge_score", "sacrebleu", "jieba")
# Unified ideographs with extension A, the compatibility block, and the planes of the rarer ones.
HAN: Final = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+")
# Of the general categories of Unicode: letters, numbers, and what combines with them.
WORD: Final = frozenset("LNM")


def words(text: str) -> list[str]:
    """The words in lower case and composed form (NFC); punctuation is none."""
    text = segmented(unicodedata.normalize("NFC", text.lower()))
    return "".join(sign if unicodedata.category(sign)[0] in WORD else " " for sign in text).split()


def segmented(text: str) -> str:
    """The text with a space on both sides of every Chinese word; text without Chinese is returned as it is."""
    if not HAN.search(text):
        return text
    return HAN.sub(lambda match: f" {' '.join(_segmenter().lcut(match[0]))} ", text)


@cache
def _segmenter() -> Any:
    """jieba's tokenizer with its own dictionary, read without a word on the terminal and without its cache file.

    The cache would go into the system's temporary folder, where anybody may put one, and is read by `marshal`.
    """
    with warnings.catch_warnings():
        # Escape sequences that Python 3.12 minds, and pkg_resources.
        warnings.simplefilter("ignore")
        import jieba
    logging.getLogger("jieba").setLevel(logging.WARNING)
    segmenter = jieba.Tokenizer()
    segmenter.FREQ, segmenter.total = segmenter.gen_pfdict(segmenter.get_dict_file())
    segmenter.initialized = True
    return segmenter


def require_packages() -> None:
    """That everything is installed which ROUGE and BLEU need; else MissingEnvironmentError with what to install."""
    missing = [module for module in MODULES if find_spec(module) is None]
    if missing:
        raise MissingEnvironmentError(
            f"ROUGE and BLEU need packages that are not installed: {', '.join(missing)}",
            where="metrics",
            fix=install_command(PACKAGES),
        )
