"""From a configuration to its stream, and to the rows to evaluate on, which are prepared beforehand."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.data.examples import Examples
from luthier.core.data.prepare import PreparedData, open_of_kind, prepare, use_template
from luthier.core.data.stream import StreamSchedule
from luthier.core.data.stream_windows import WindowMaker

if TYPE_CHECKING:
    from luthier.core.config.schema import RunConfig
    from luthier.core.contracts import DataKind
    from luthier.core.data.formats import Formats
    from luthier.core.data.making import Progress


def open_stream(
    config: RunConfig,
    formats: Formats,
    tokenizer: Any,
    *,
    kind: DataKind,
    base: Path | None = None,
    notice: Callable[[str], None] = lambda text: None,
) -> StreamSchedule:
    """The stream over `config.data.train`, for a stage that learns from `kind`; close it in the end.

    `tokenizer` gets the chat template that `data.template` names, where it has not got it. Opening reads the first rows of
    each source, to know its format; nothing else is read before it is asked for. Raises DataError for a source that is not
    there or whose rows do not fit.
    """
    sources = [open_of_kind(source, config.data, formats, kind, base, streaming=True) for source in config.data.train]
    for warning in use_template(tokenizer, config.data, kind, base):
        notice(warning)
    # A tokenizer of its own: the thread that makes windows uses it while this one saves the other beside a checkpoint.
    maker = WindowMaker(sources, copy.deepcopy(tokenizer), config, kind, notice)
    return StreamSchedule(maker, config)


def prepare_beside(
    stream: StreamSchedule,
    config: RunConfig,
    formats: Formats,
    tokenizer: Any,
    *,
    kind: DataKind,
    base: Path | None = None,
    notice: Callable[[str], None] = lambda text: None,
    progress: Progress = lambda source, done, total: None,
) -> PreparedData:
    """The rows of `data.eval`, prepared and cached as ever, and the report of the stream's first window and of them.

    Reads the first window, so that what is wrong there is known before the model is loaded. Raises DataError as `prepare`.
    """
    nothing = Examples([])
    if not isinstance(config.data.eval, tuple) or not config.data.eval:
        return PreparedData(nothing, nothing, stream.report())
    data = dataclasses.replace(
        config.data, train=config.data.eval, eval=0.0, streaming=False, mix="concatenate", packing=False
    )
    held_out = prepare(
        dataclasses.replace(config, data=data), formats, tokenizer, kind=kind, base=base, notice=notice, progress=progress
    )
    stream.held_out = held_out.report
    return PreparedData(nothing, held_out.train, stream.report())
