"""One source's tokens: from the cache, or made by this process or several, and then in the cache."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from luthier.core.data.cache import Entry, Notice, entry
from luthier.core.data.formats import OpenSource
from luthier.core.data.report import SourceReport
from luthier.core.data.sources import SourceRow
from luthier.core.data.store import Chunk, write_store
from luthier.core.data.tally import Tally
from luthier.core.data.tokenise import Convert, Pairs, Tokenised, batches, convert_rows, encode_rows
from luthier.core.data.workers import WorkerPool, packed, spread
from luthier.core.errors import DataError
from luthier.core.frozen import canonical_json
from luthier.core.serial import to_plain

if TYPE_CHECKING:
    from luthier.core.config.schema import DataConfig
    from luthier.core.contracts import DataKind
    from luthier.core.data.encode import Encoder

# Of the layout of stores and of meta.json.
VERSION: Final = 2
# Which make the tokens: conversations are written by the last two.
LIBRARIES: Final = ("tokenizers", "transformers", "jinja2")
# (source, rows done, of how many where it is known): heard after each batch.
Progress: TypeAlias = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Encoding:
    """What a worker needs besides the rows. Called with a batch of rows, or of converted ones where `convert` is None."""

    tokenizer: Any
    data: DataConfig
    kind: DataKind
    convert: Convert | None

    def __call__(self, batch: Any) -> Tokenised:
        pairs, tally = (
            batch if self.convert is None else convert_rows(batch, self.convert, drop_bad=self.data.bad_rows == "drop")
        )
        return encode_rows(pairs, tally, self.encoder, self.data.max_length)

    @cached_property
    def encoder(self) -> Encoder:
        """Made where it is used: the tokenizer goes to another process, the encoder does not."""
        from luthier.core.data.encode import make_encoder

        return make_encoder(self.tokenizer, self.data, self.kind)


@dataclass(frozen=True)
class SourceTokens:
    """A source's tokens and what became of its rows."""

    source: OpenSource
    entry: Entry

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def tally(self) -> Tally:
        """A new one each time."""
        return Tally.from_plain(self.entry.meta["tally"])

    def report(self, role: Literal["train", "eval"]) -> SourceReport:
        tally = self.tally
        return SourceReport(
            name=self.name,
            role=role,
            format=self.source.format.value.name,
            rows=tally.rows,
            kept=tally.kept,
            dropped=tally.dropped.total(),
            cut=tally.cut_rows,
            cached=not self.entry.made,
        )


class Maker:
    """Gives the tokens of one source after the other; `encoder` and the workers are shared by all."""

    def __init__(
        self, tokenizer: Any, data: DataConfig, kind: DataKind, pool: WorkerPool, notice: Notice, progress: Progress
    ) -> None:
        # Without the sources: rows in the configuration itself would go to every worker.
        encoding = Encoding(tokenizer, dataclasses.replace(data, train=(), eval=0.0), kind, None)
        self.encoder = encoding.encoder
        self._encoding = Encoding(tokenizer, encoding.data, kind, None)
        self._pool, self._notice, self._progress = pool, notice, progress
        self._told: set[str] = set()

    def tokens(self, source: OpenSource) -> SourceTokens:
        """From the cache, or made. Raises DataError for a bad row, OutputError where the cache cannot be used."""
        rows = source.rows.fingerprint()
        return SourceTokens(
            source, entry(self._key(source, rows), lambda folder: self._make(source, rows, folder), self._notice)
        )

    def _key(self, source: OpenSource, rows: str) -> str:
        offer, config = source.format, source.config
        decisive = {
            "version": [VERSION, own_code(), *(f"{name} {version(name)}" for name in LIBRARIES)],
            "rows": rows,
            "format": [offer.value.name, str(offer.provider), offer.provider.target, code_of(offer.value.convert)],
            "options": [to_plain(source.options), dict(config.columns), config.kind, source.kind],
            "encoder": self.encoder.fingerprint(),
            "bad_rows": self._encoding.data.bad_rows,
            "max_length": self._encoding.data.max_length,
        }
        return hashlib.sha256(canonical_json(decisive).encode()).hexdigest()[:32]

    def _make(self, source: OpenSource, rows: str, folder: Path) -> Mapping[str, Any]:
        tally = Tally()
        total = source.rows.count()
        digest, sizes = write_store(folder, self._chunks(source, total, tally))
        if source.rows.fingerprint() != rows:
            # Kept under the key of the former content, it would be found again where that comes back.
            raise DataError("was changed while it was tokenised", where=source.name, fix="run again when it is complete")
        return {
            "version": VERSION,
            "source": source.name,
            "digest": digest,
            "per_row": self.encoder.per_row,
            "files": sizes,
            "tally": tally.to_plain(),
        }

    def _chunks(self, source: OpenSource, total: int | None, tally: Tally) -> Iterator[Chunk]:
        try:
            for made in self._tokenised(source, total):
                tally += made.tally
                self._progress(source.name, tally.rows, total)
                yield made.chunk
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror or error}", where=source.name) from error

    def _tokenised(self, source: OpenSource, total: int | None) -> Iterator[Tokenised]:
        data = self._encoding.data
        rows, count = spread(source.rows.rows(), data.workers, total)
        if count > 1:
            made = self._by_workers(source, rows, count)
            if made is not None:
                return made
        drop_bad = data.bad_rows == "drop"
        converted = (convert_rows(batch, source.convert, drop_bad=drop_bad) for batch in batches(rows))
        return (encode_rows(pairs, tally, self.encoder, data.max_length) for pairs, tally in converted)

    def _by_workers(self, source: OpenSource, rows: Iterator[SourceRow], count: int) -> Iterator[Tokenised] | None:
        convert = movable(source)
        setup = packed(dataclasses.replace(self._encoding, convert=convert))
        if setup is None:
            self._tell("the tokenizer cannot be handed to other processes, so this one tokenises alone")
            return None
        if convert is not None:
            return self._pool.run(setup, batches(rows), count)
        self._tell(f"rows of the format {source.format.value.name} are converted by one process: its `convert` has no name")
        drop_bad = self._encoding.data.bad_rows == "drop"
        converted: Iterator[tuple[Pairs, Tally]] = (
            convert_rows(batch, source.convert, drop_bad=drop_bad) for batch in batches(rows)
        )
        return self._pool.run(setup, converted, count)

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._notice(text)


def movable(source: OpenSource) -> Convert | None:
    """The source's `convert` for another process, without its rows; None where the format's own function cannot go there."""
    method = source.format.value
    function = method.convert
    if getattr(function, "__module__", "__main__") == "__main__" or packed(function) is None:
        return None
    # Only `convert` is called there: a `detect` without a name need not go.
    value = dataclasses.replace(method, detect=bool)
    offer = dataclasses.replace(source.format, value=value)
    convert: Convert = dataclasses.replace(source, rows=_NO_ROWS, format=offer).convert
    return convert if packed(convert) is not None else None


_NO_ROWS: Final[Any] = None


@cache
def own_code() -> str:
    """Hex over the code that makes tokens: an entry never outlives the code that made it."""
    here = Path(__file__).parent
    files = sorted([*here.rglob("*.py"), here.parent / "rows.py", here.parent / "tagged.py"])
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def code_of(function: Callable[..., Any]) -> str:
    """Hex over the package that a function comes from, or its one file: a format that is being written has new code, and no
    new version, and what it imports beside it counts as well."""
    while isinstance(function, partial):
        function = function.func
    module = sys.modules.get(getattr(inspect.unwrap(function), "__module__", ""))
    digest = hashlib.sha256()
    files = _files_of(module) if module is not None else []
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16] if files else ""


def _files_of(module: ModuleType) -> list[Path]:
    """Of our own packages the innermost, which is the plugin; of others the outermost."""
    package, ours = module.__package__ or "", __name__.partition(".")[0]
    outermost = package.partition(".")[0]
    folder = getattr(sys.modules.get(package if outermost == ours else outermost), "__file__", None)
    if folder:
        return sorted(Path(folder).parent.rglob("*.py"))
    path = getattr(module, "__file__", None)
    return [Path(path)] if path and Path(path).is_file() else []
