"""Token stores and views over them: files that numpy reads, the same in memory and on disk, nothing copied."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from luthier.core.data.examples import Examples
from luthier.core.data.store import Chunk, TokenStore, write_store

# Two rows of one sequence, then one of two tokens: lengths 3, 1, 2, with 2, 0, 1 tokens learned.
FIRST = Chunk.of([5, 6, 7, 8], b"\0\1\1\0", [3, 1], [11, 12], [None, 1.0])
SECOND = Chunk.of([9, 10], b"\0\1", [2], [2**64 - 1], [0.5])


@pytest.fixture(params=["memory", "files"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> TokenStore:
    return make([FIRST, SECOND], tmp_path / "store" if request.param == "files" else None)


def make(chunks: list[Chunk], folder: Path | None = None, per_row: int = 1) -> TokenStore:
    if folder is None:
        return TokenStore.in_memory(chunks, per_row)
    folder.mkdir()
    digest, sizes = write_store(folder, chunks)
    assert sizes == {path.stem: path.stat().st_size for path in folder.iterdir()}
    return TokenStore.open(folder, digest, per_row)


def test_the_arrays(store: TokenStore) -> None:
    assert store.ids.tolist() == [5, 6, 7, 8, 9, 10]
    assert store.trained.tolist() == [False, True, True, False, False, True]
    assert store.ends.tolist() == [3, 4, 6]
    assert store.learned.tolist() == [2, 0, 1]
    assert store.keys.tolist() == [11, 12, 2**64 - 1]
    assert np.array_equal(store.values, np.array([np.nan, 1.0, 0.5], np.float32), equal_nan=True)
    dtypes = [store.ids.dtype, store.trained.dtype, store.ends.dtype, store.learned.dtype, store.keys.dtype]
    assert dtypes == [np.int32, np.bool_, np.int64, np.int32, np.uint64]
    assert (len(store), store.lengths.tolist()) == (3, [3, 1, 2])


def test_numpy_reads_the_files_by_itself(tmp_path: Path) -> None:
    make([FIRST, SECOND], tmp_path / "store")
    ids = np.load(tmp_path / "store" / "ids.npy", allow_pickle=False)
    assert (ids.tolist(), ids.dtype) == ([5, 6, 7, 8, 9, 10], np.int32)
    assert np.load(tmp_path / "store" / "trained.npy", mmap_mode="r", allow_pickle=False).shape == (6,)


def test_what_rows_have_beside_their_tokens(tmp_path: Path) -> None:
    first = Chunk.of([1, 2, 3], bytes(3), [1, 2], [1, 2], [None, None], [b"", "ü".encode()])
    second = Chunk.of([4], bytes(1), [1], [3], [None], [b"abc"])
    for folder in (None, tmp_path / "files"):
        store = make([first, second], folder)
        assert [store.beside_of(row) for row in range(3)] == [b"", "ü".encode(), b"abc"]
        assert store.beside_ends.tolist() == [0, 2, 5]
    assert make([FIRST, SECOND]).beside_of(2) == b""
    other = Chunk.of([4], bytes(1), [1], [3], [None], [b"abd"])
    assert make([first, other]).digest != make([first, second]).digest
    with pytest.raises(ValueError, match="2 rows, 1 of them"):
        Chunk.of([1, 2], bytes(2), [1, 1], [1, 2], [None, None], [b"a"])


def test_a_digest_is_over_the_content_and_not_over_the_chunks(tmp_path: Path) -> None:
    together = Chunk.of([5, 6, 7, 8, 9, 10], b"\0\1\1\0\0\1", [3, 1, 2], [11, 12, 2**64 - 1], [None, 1.0, 0.5])
    same = [make([FIRST, SECOND]), make([FIRST, SECOND], tmp_path / "files"), make([together])]
    assert len({store.digest for store in same}) == 1
    others = [
        [Chunk.of([5, 6, 7, 0], b"\0\1\1\0", [3, 1], [11, 12], [None, 1.0]), SECOND],
        [Chunk.of([5, 6, 7, 8], b"\0\1\0\0", [3, 1], [11, 12], [None, 1.0]), SECOND],
        [Chunk.of([5, 6, 7, 8], b"\0\1\1\0", [2, 2], [11, 12], [None, 1.0]), SECOND],
        [Chunk.of([5, 6, 7, 8], b"\0\1\1\0", [3, 1], [11, 13], [None, 1.0]), SECOND],
        [Chunk.of([5, 6, 7, 8], b"\0\1\1\0", [3, 1], [11, 12], [None, 0.0]), SECOND],
    ]
    assert len({same[0].digest, *(make(chunks).digest for chunks in others)}) == 6


def test_marks_for_every_token() -> None:
    with pytest.raises(ValueError, match="2 tokens, 1 marks"):
        Chunk.of([1, 2], b"\1", [2], [0], [None])


def test_no_rows_at_all(tmp_path: Path) -> None:
    for store in (make([]), make([], tmp_path / "empty")):
        assert (len(store), len(store.ids)) == (0, 0)
        examples = Examples([store])
        assert (len(examples), examples.tokens, list(examples)) == (0, 0, [])
    assert len(Examples([])) == 0
    assert Examples([]).lengths.tolist() == []


def test_a_row_is_ids_and_labels(store: TokenStore) -> None:
    examples = Examples([store])
    assert [example["input_ids"].tolist() for example in examples] == [[5, 6, 7], [8], [9, 10]]
    assert [example["labels"].tolist() for example in examples] == [[-100, 6, 7], [-100], [-100, 10]]
    assert {example[key].dtype for example in examples for key in ("input_ids", "labels")} == {np.dtype(np.int64)}
    assert examples[-1]["input_ids"].tolist() == [9, 10]
    for index in (3, -4):
        with pytest.raises(IndexError, match=f"sequence {index} of 3"):
            examples[index]


def test_an_order_over_several_stores(store: TokenStore) -> None:
    other = make([Chunk.of([1, 2, 3], b"\1\1\1", [1, 2], [21, 22], [7.0, 8.0])])
    # Rows 0 to 2 are those of `store`, 3 and 4 those of `other`.
    examples = Examples([store, other], np.array([4, 0, 4, 3], dtype=np.int64))
    assert [example["input_ids"].tolist() for example in examples] == [[2, 3], [5, 6, 7], [2, 3], [1]]
    assert (examples.lengths.tolist(), examples.tokens, examples.trained_tokens) == ([2, 3, 2, 1], 8, 2 + 2 + 2 + 1)
    assert (examples.keys.tolist(), examples.values.tolist()[2:]) == ([22, 11, 22, 21], [8.0, 7.0])
    fewer = examples.where(np.array([True, False, False, True]))
    assert [example["input_ids"].tolist() for example in fewer] == [[2, 3], [1]]
    assert np.shares_memory(fewer.stores[1].ids, other.ids)


def test_two_sequences_a_row() -> None:
    store = make([Chunk.of([1, 2, 3, 4, 5, 6, 7], b"\0\1\0\1\1\0\1", [2, 1, 3, 1], [31, 32], [0.1, 0.2])], per_row=2)
    examples = Examples([store], np.array([1, 0], dtype=np.int64))
    assert (len(examples), examples.rows, len(store)) == (4, 2, 2)
    assert [example["input_ids"].tolist() for example in examples] == [[4, 5, 6], [7], [1, 2], [3]]
    assert (examples.lengths.tolist(), examples.trained_tokens) == ([3, 1, 2, 1], 2 + 1 + 1 + 0)
    assert examples.keys.tolist() == [32, 31]
    assert [example["input_ids"].tolist() for example in examples.where(np.array([False, True]))] == [[1, 2], [3]]
    with pytest.raises(ValueError, match="cannot be mixed"):
        Examples([store, make([FIRST])])


def test_the_digest_of_examples_follows_the_order(store: TokenStore) -> None:
    whole = Examples([store])
    assert whole.digest == Examples([make([FIRST, SECOND])], np.arange(3)).digest
    assert whole.digest != Examples([store], np.array([1, 0, 2])).digest
    assert whole.digest != Examples([make([FIRST])]).digest


def test_files_are_mapped_and_not_read(tmp_path: Path) -> None:
    chunk = Chunk.of(range(1_000_000), b"\0" + b"\1" * 999_999, [1000] * 1000, range(1000), [None] * 1000)
    store = make([chunk], tmp_path / "store")
    mapped = store.ids
    while mapped.base is not None and not isinstance(mapped, np.memmap):
        mapped = mapped.base
    assert isinstance(mapped, np.memmap)
    assert type(store.ids) is np.ndarray
    assert Examples([store])[999]["input_ids"].tolist() == list(range(999_000, 1_000_000))


def test_writing_holds_one_chunk_at_a_time(tmp_path: Path) -> None:
    """60 chunks of a megabyte each: what is held at once is one, and what it is made of."""

    def chunks() -> Iterator[Chunk]:
        for number in range(60):
            yield Chunk.of(range(number, 200_000 + number), bytes(200_000), [200_000], [number], [None])

    tracemalloc.start()
    try:
        _, sizes = write_store(tmp_path, chunks())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(sizes.values()) > 60 * 1_000_000
    assert peak < 15 * 1_000_000
    assert np.load(tmp_path / "ids.npy", mmap_mode="r", allow_pickle=False)[-1] == 200_058
