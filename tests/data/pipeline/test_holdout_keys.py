"""Which rows are held out: by content and seed, as many as asked for, copies together."""

from __future__ import annotations

import json
from hashlib import blake2b

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.data.holdout import content_key, hold_out, mix_keys, rows_to_hold_out

WORD = 2**64 - 1


def splitmix(key: int, seed: int) -> int:
    """splitmix64's finalizer in Python's own integers (Steele et al., https://doi.org/10.1145/2714064.2660195)."""
    value = (key + (2 * seed + 1) * 0x9E3779B97F4A7C15) & WORD
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & WORD
    return value ^ (value >> 31)


def test_a_key_is_over_the_content_alone() -> None:
    row = {"messages": [{"role": "user", "content": "ä"}], "tools": None}
    text = json.dumps(row, sort_keys=True)
    expected = int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")
    assert content_key(row) == expected == content_key({"tools": None, "messages": [{"content": "ä", "role": "user"}]})
    assert content_key(row) != content_key({"messages": [{"role": "user", "content": "a"}], "tools": None})


@settings(deadline=None)
@given(st.lists(st.integers(0, WORD), min_size=1, max_size=20), st.integers(0, 2**63))
def test_the_seed_is_mixed_in_as_in_whole_numbers(keys: list[int], seed: int) -> None:
    assert mix_keys(np.array(keys, dtype=np.uint64), seed).tolist() == [splitmix(key, seed) for key in keys]


def test_another_seed_holds_out_other_rows_and_all_are_as_likely() -> None:
    keys = np.array([content_key({"text": str(number)}) for number in range(2000)], dtype=np.uint64)
    times = sum(hold_out(mix_keys(keys, seed), 500).astype(int) for seed in range(64))
    # Each of 2000 rows is drawn 64 times with 1/4: a mean of 16, a variance of 12, known to 12 * sqrt(2 / 2000) = 0.4.
    assert times.sum() == 64 * 500
    assert abs(times.var() - 12) < 2.5


def test_the_smallest_keys_whole_groups_only() -> None:
    keys = np.array([9, 2, 5, 2, 7, 5, 5, 8], dtype=np.uint64)
    assert np.flatnonzero(hold_out(keys, 2)).tolist() == [1, 3]
    assert np.flatnonzero(hold_out(keys, 3)).tolist() == [1, 3, 4]  # the three 5 do not fit, the 7 does
    assert np.flatnonzero(hold_out(keys, 5)).tolist() == [1, 2, 3, 5, 6]
    assert np.flatnonzero(hold_out(keys, 4)).tolist() == [1, 3, 4, 7]
    assert not hold_out(keys, 0).any()
    assert not hold_out(np.array([1, 1, 1], dtype=np.uint64), 2).any()


@settings(deadline=None)
@given(st.lists(st.integers(0, 12), max_size=40), st.integers(0, 40))
def test_as_a_loop_over_sorted_groups_would_do_it(keys: list[int], wanted: int) -> None:
    chosen: set[int] = set()
    left = wanted
    for key in sorted(set(keys)):
        if keys.count(key) <= left:
            chosen.add(key)
            left -= keys.count(key)
    assert hold_out(np.array(keys, dtype=np.uint64), wanted).tolist() == [key in chosen for key in keys]


def test_a_part_or_a_number() -> None:
    assert [rows_to_hold_out(part, 40) for part in (0.25, 7, 0, 0.0, 0.001)] == [10, 7, 0, 0, 1]
