"""What the plan says of the data's tokens: the first rows of each source, converted and tokenised before anything runs.

So a template that does not fit, a row that cannot be used and a `max_length` that drops half of the rows are known
when the plan is read. The whole account is that of a run, or of `luthier data inspect`.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from luthier.core.config.schema import RunConfig
from luthier.core.contracts import DataKind
from luthier.core.data.holdout import rows_to_hold_out
from luthier.core.data.report import frozen, nothing_left, tally_warnings
from luthier.core.data.tally import Tally
from luthier.core.plan import DataLook

if TYPE_CHECKING:
    from luthier.core.data.formats import Formats

FIRST_ROWS: Final = 1000
AT_ONCE: Final = 100
ENOUGH_TOKENS: Final = 500_000


def look(config: RunConfig, formats: Formats, tokenizer: Any, *, kind: DataKind) -> DataLook:
    """Tokenise up to 1,000 rows of each training source, fewer where they are long.

    `tokenizer` has the chat template already. Raises DataError, naming file, row and column, as the preparation would;
    and, if these were all rows, when nothing is left to learn from or everything would be held out.
    """
    from luthier.core.data.encode import make_encoder
    from luthier.core.data.prepare import open_of_kind
    from luthier.core.data.tokenise import batches, convert_rows, encode_rows

    data = config.data
    encoder = make_encoder(tokenizer, data, kind)
    total, tokens, trained = Tally(), 0, 0
    whole, names = True, []
    for source in data.train:
        opened = open_of_kind(source, data, formats, kind, streaming=data.streaming)
        rows = opened.rows.rows()
        names.append(opened.name)
        here = 0
        for batch in batches(islice(rows, FIRST_ROWS), AT_ONCE):
            pairs, tally = convert_rows(batch, opened.convert, drop_bad=data.bad_rows == "drop")
            made = encode_rows(pairs, tally, encoder, data.max_length)
            total += made.tally
            here += len(made.chunk.ids)
            trained += int(made.chunk.trained.sum())
            if here >= ENOUGH_TOKENS:
                break
        tokens += here
        whole = whole and next(rows, None) is None
    if whole and not (total.kept if kind == "prompt" else trained):
        raise nothing_left(names, total, encoder.labels_from)
    if whole and not isinstance(data.eval, tuple) and all(source.sample is None for source in data.train):
        rows_to_hold_out(data.eval, total.kept)
    return DataLook(
        rows=total.rows,
        whole=whole,
        kept=total.kept,
        dropped=frozen(total.dropped),
        cut=frozen(total.cut),
        added=frozen(total.added),
        notes=frozen(total.notes),
        tokens=tokens,
        trained_tokens=trained,
        labels_from=encoder.labels_from,
        template=encoder.template,
        warnings=tuple(tally_warnings(total)),
    )
