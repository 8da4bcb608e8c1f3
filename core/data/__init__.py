"""The data worker: files of rows to batches of token ids, with every row accounted for.

sources.py       files -> rows, each with its line
formats.py       which format a source has; rows converted          conversation.py: the canonical form, checked
survey.py        the first look, for the plan
chat.py          conversations -> token ids and labels, by the model's chat template
prepare.py       all of it, with the report                         holdout.py: which rows are held out
examples.py      token ids and labels in flat arrays
batches.py       the run's micro-batches, decided beforehand        collate.py: examples -> padded tensors
"""

from luthier.core.data.batches import BatchSchedule
from luthier.core.data.collate import collate
from luthier.core.data.examples import Example, Examples
from luthier.core.data.prepare import DataReport, PreparedData, prepare
from luthier.core.data.survey import survey

__all__ = ["BatchSchedule", "DataReport", "Example", "Examples", "PreparedData", "collate", "prepare", "survey"]
