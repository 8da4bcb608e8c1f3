"""The model of a former run, made where it is missing: its adapter folded into plain weights, kept in the cache.

    <cache>/merged/<hash>/    a model folder as transformers saves it, with merge.json; named by what it is made from

Made once and used by every run that starts from the same former run, so that their adapters sit on the same weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from luthier.core import atomic
from luthier.core.caching import publish_folder, workshop
from luthier.core.catalog import Catalog
from luthier.core.errors import LuthierError, OutputError
from luthier.core.former import assert_unchanged
from luthier.core.merging import merge_run
from luthier.core.plan import ModelReference

Notice = Callable[[str], None]


def begin_from(model: ModelReference, catalog: Catalog, notice: Notice = lambda text: None) -> None:
    """For a run that is about to train: `make_ready`; ModelError where its former run is not the planned one any more."""
    make_ready(model, catalog, notice)
    assert_unchanged(model)


def make_ready(model: ModelReference, catalog: Catalog, notice: Notice = lambda text: None) -> None:
    """Make the folder at `model.path` where a former run is to be merged and was not yet; else nothing is done.

    Raises ModelError where that run is gone or was trained anew, OutputError on a full disk, and LuthierError where the
    merged model does not compute what was trained (core/merging.py proves it).
    """
    former = model.former
    if former is None or former.how == "whole":
        return
    if former.how == "stack":
        make_ready(former.base, catalog, notice)
        return
    place = Path(model.path)
    if place.is_dir():
        return
    assert_unchanged(model)
    notice(f"merging {former.folder}: what {former.adapter} trained is folded into the weights of {former.base.name}")
    try:
        with workshop(place.parent) as shop:
            report = merge_run(
                Path(former.folder), shop / place.name, catalog, base="dequantized" if former.quantized else None
            )
            publish_folder(shop / place.name, place)
    except OSError as error:
        what = (
            "the disk is full" if atomic.is_disk_full(error) else f"the folder cannot be written: {error.strerror or error}"
        )
        raise OutputError(
            what, where=str(place.parent), fix="make room there, or set LUTHIER_CACHE to another folder"
        ) from error
    except LuthierError as error:
        fix = (
            f"{error.fix}, or write `adapters: stack` under `model`"
            if error.fix
            else "write `adapters: stack` under `model`"
        )
        raise type(error)(f"the run cannot be merged: {error.message}", where=former.folder, fix=fix) from error
    apart = f"{report.difference:.3g}, {report.relative:.3%} of the greatest"
    notice(f"merged: the logits differ by at most {apart}; kept in {place}")
