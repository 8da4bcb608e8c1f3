"""A look at the rows as they will be trained: rendered, counted, measured.

measure.py   what there is to say, as values            picture.py   the lengths as a picture (PNG)
page.py      all of it as one page that opens offline
"""

from luthier.core.data.inspect.measure import Inspection, Run, ShownRow, ShownSequence, inspect_data

__all__ = ["Inspection", "Run", "ShownRow", "ShownSequence", "inspect_data"]
