"""The data worker: sources of rows to batches of token ids, with every row accounted for.

sources/         files, folders, URLs, hub data sets -> rows, each with its place
formats.py       which format a source has; rows converted          columns.py: columns under other names
conversation.py  the canonical form of a row, checked               calls.py: of tool calls; kinds.py: one kind as another
survey.py        the sources, for the plan                          look.py: what becomes of their first rows
templates/       chat templates by name                             encode/: canonical rows -> token ids and labels
prepare.py       all of it: tokenised, sampled, held out, mixed     report.py: the account
  making.py        one source's tokens, from the cache or made      tokenise.py: a batch of rows; tally.py: its counts
  cache.py         entries on disk                                  store.py: the arrays in them
  workers.py       several processes                                worker.py: one of them
  mixing.py        samples and interleaving                         holdout.py: which rows are held out
examples.py      tokenised rows as a data set
batches.py       the run's micro-batches, decided beforehand        packing.py: several rows in one sequence
collate.py       examples -> tensors, padded or packed
stream.py        all of it while training                           stream_*.py: its rows, windows, report, opening
inspect/         what the model will see
"""

from luthier.core.data.batches import BatchSchedule
from luthier.core.data.collate import collate
from luthier.core.data.examples import Example, Examples
from luthier.core.data.prepare import PreparedData, prepare
from luthier.core.data.report import DataReport
from luthier.core.data.survey import survey

__all__ = ["BatchSchedule", "DataReport", "Example", "Examples", "PreparedData", "collate", "prepare", "survey"]
