"""Streaming a file that is larger than the memory: how fast, in how much memory, and whether a killed reader goes on right.

    python -m luthier.benchmarks.data_stream                    # 5 GB, most of an hour on two cores, 6 GB of disk
    python -m luthier.benchmarks.data_stream --size 50MB        # a minute

1. A JSONL file of conversations is made in a temporary folder: words of the tokenizer's own vocabulary, as unequal in
   frequency as those of a language, one in fifty made up; rows from a sentence to a thousand words.
2. One process streams all of it, as training does: read, convert, tokenise, pack. It notes a digest of every micro-batch.
3. Another one does the same, saves its place now and then, and is killed at a random point.
4. A third goes on from the place that was saved last; its micro-batches must be those of the straight pass from there on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from luthier.benchmarks.machine import describe_machine

RESULT: Final = Path(__file__).parent / "results" / "data_stream.json"
UNITS: Final = {"kB": 10**3, "MB": 10**6, "GB": 10**9}
TOKENS: Final = 2048
SAVE_EVERY: Final = 200
COMPARED: Final = 2000
DIGEST: Final = 8
FOREVER: Final = 10**12
MARK: Final = "RESULT "


def write_rows(target: Path, size: int, words: list[str]) -> int:
    """Write rows until the file has `size` bytes; the same ones each time. Returns their number."""
    draw = random.Random(0)  # noqa: S311
    draw.shuffle(words)
    # Zipf's law, flattened for the most frequent.
    weights = list(accumulate(1 / (rank + 3) for rank in range(len(words))))
    sentences = []
    for _ in range(20_000):
        chosen = draw.choices(words, cum_weights=weights, k=draw.randint(4, 30))
        sentences.append(" ".join(chosen).capitalize() + draw.choice(".....?!"))
    rows = written = 0
    with target.open("w", encoding="utf-8") as file:
        while written < size:
            rare = "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(5, 12)))
            question = draw.choices(sentences, k=draw.randint(1, 3))
            answer = draw.choices(sentences, k=max(1, min(60, round(math.exp(draw.gauss(1.9, 0.8))))))
            turns = [("user", " ".join([*question, rare])), ("assistant", " ".join([*answer, f"{rare} {rows}."]))]
            messages = [{"role": role, "content": text} for role, text in turns]
            written += file.write(json.dumps({"messages": messages}) + "\n")
            rows += 1
    return rows


def open_rows(job: dict[str, Any]) -> Any:
    """The stream over the job's file, as a run over it would open it."""
    from luthier.core.config import parse_config
    from luthier.core.data.stream_open import open_stream
    from luthier.core.loading import load_tokenizer
    from luthier.registry.catalog import discover
    from luthier.registry.models import resolve_model

    data = {
        "train": [job["rows"]],
        "max_length": TOKENS,
        "too_long": "truncate_right",
        "packing": True,
        "streaming": True,
        "window": job["window"],
        "workers": job["workers"],
    }
    config = parse_config({"model": job["model"], "data": data, "train": {"max_steps": FOREVER, "batch_tokens": TOKENS}})
    tokenizer = load_tokenizer(resolve_model(job["model"]), print)
    return open_stream(config, discover().formats, tokenizer, kind="conversation")


def digests(stream: Any) -> Iterator[bytes]:
    """One for each micro-batch, over its tokens and labels."""
    for batch in stream:
        digest = hashlib.blake2b(digest_size=DIGEST)
        for example in batch:
            digest.update(example["input_ids"].tobytes())
            digest.update(example["labels"].tobytes())
        yield digest.digest()


def one_pass(job: dict[str, Any]) -> dict[str, Any]:
    """Stream to the end of the first pass; `digests` gets those of all micro-batches, `state` the place now and then."""
    stream = open_rows(job)
    begin, begin_cpu = time.perf_counter(), time.process_time()
    with Path(job["digests"]).open("wb") as file:
        for digest in digests(stream):
            state = stream.state()
            if state["place"]["epoch"]:
                break
            file.write(digest)
            if "state" in job and stream.given % SAVE_EVERY == 0:
                file.flush()
                beside = Path(job["state"]).with_suffix(".new")
                beside.write_text(json.dumps(state), encoding="utf-8")
                os.replace(beside, job["state"])
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - begin_cpu
    # The account as it was before the first window of the second pass.
    account = state["account"]
    rows = sum(tally["rows"] for tally in account["tallies"])
    dropped = sum(sum(tally["dropped"].values()) for tally in account["tallies"])
    cut = sum(sum(tally["cut"].values()) for tally in account["tallies"])
    batches = stream.given - 1
    stream.close()
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "rows": rows,
        "dropped": dropped,
        "cut": cut,
        "tokens": account["tokens"],
        "trained_tokens": account["trained_tokens"],
        "micro_batches": batches,
        "windows": account["windows"],
        "packing_efficiency": account["tokens"] / (batches * TOKENS),
        "peak_resident_bytes": peak_resident(),
    }


def go_on(job: dict[str, Any]) -> dict[str, Any]:
    """Restore the saved place and compare what follows with the straight pass."""
    expected = Path(job["digests"]).read_bytes()
    state = json.loads(Path(job["state"]).read_text(encoding="utf-8"))
    stream = open_rows(job)
    begin = time.perf_counter()
    stream.restore(state)
    seconds = time.perf_counter() - begin
    compared = equal = 0
    for digest in digests(stream):
        at = (stream.given - 1) * DIGEST
        if compared == COMPARED or at >= len(expected):
            break
        compared += 1
        equal += digest == expected[at : at + DIGEST]
    stream.close()
    return {
        "went_on_after": state["given"],
        "seconds_to_the_window": seconds,
        "compared": compared,
        "equal": equal,
        "peak_resident_bytes": peak_resident(),
    }


def peak_resident() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(name: str, job: dict[str, Any]) -> dict[str, Any]:
    """The result that a process of its own prints."""
    done = subprocess.run(command(name, job), stdout=subprocess.PIPE, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith(MARK))
    result: dict[str, Any] = json.loads(line.removeprefix(MARK))
    return result


def command(name: str, job: dict[str, Any]) -> list[str]:
    return [sys.executable, "-m", "luthier.benchmarks.data_stream", "--job", json.dumps({"run": name, **job})]


def kill_at_random(job: dict[str, Any], batches: int) -> int:
    """Start a pass and kill it somewhere in its first third, at any moment; returns the micro-batches it had noted."""
    draw = random.SystemRandom()
    wanted = draw.uniform(SAVE_EVERY + 1, max(SAVE_EVERY + 2, batches / 3))
    noted = Path(job["digests"])
    reader = subprocess.Popen(command("one_pass", job))
    while reader.poll() is None:
        time.sleep(0.05)
        if Path(job["state"]).exists() and noted.stat().st_size / DIGEST >= wanted:
            break
    time.sleep(draw.uniform(0, 0.2))
    reader.send_signal(signal.SIGKILL)
    if reader.wait() != -signal.SIGKILL:
        raise SystemExit("the process to be killed had ended before: give a larger --size")
    return noted.stat().st_size // DIGEST


def in_bytes(text: str) -> int:
    """`5GB`, `50MB`: decimal units."""
    return int(float(text[:-2]) * UNITS[text[-2:]])


def vocabulary(model: str) -> list[str]:
    """Words of letters that the model's tokenizer has as one token."""
    from luthier.core.loading import load_tokenizer
    from luthier.registry.models import resolve_model

    found = (token[1:] for token in load_tokenizer(resolve_model(model), print).get_vocab() if token.startswith("Ġ"))
    return sorted(word for word in found if word.isascii() and word.isalpha()) or ["one", "two", "three", "four", "five"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--size", default="5GB", help="of the file: 5GB, 50MB")
    parser.add_argument("--window", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--folder", type=Path, help="where the file is made, instead of the system's temporary folder")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.job:
        job = json.loads(asked.job)
        result = {"one_pass": one_pass, "go_on": go_on}[job.pop("run")](job)
        print(MARK + json.dumps(result), flush=True)
        return
    machine = describe_machine()
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name)
        rows = folder / "rows.jsonl"
        job = {"rows": str(rows), "model": asked.model, "window": asked.window, "workers": asked.workers}
        made = write_rows(rows, in_bytes(asked.size), vocabulary(asked.model))
        size = rows.stat().st_size
        print(f"{made:,} rows, {size / 1e9:.2f} GB", flush=True)
        straight = run("one_pass", {**job, "digests": str(folder / "straight")})
        print(f"straight pass: {straight}", flush=True)
        place = str(folder / "state.json")
        noted = kill_at_random({**job, "digests": str(folder / "killed"), "state": place}, straight["micro_batches"])
        print(f"killed after {noted:,} micro-batches", flush=True)
        resumed = run("go_on", {**job, "digests": str(folder / "straight"), "state": place})
        print(f"went on: {resumed}", flush=True)
    result = {
        "machine": machine,
        "file": {"bytes": size, "rows": made},
        "window": asked.window,
        "workers": asked.workers,
        "sequence_tokens": TOKENS,
        "straight": straight,
        "rows_per_second": straight["rows"] / straight["seconds"],
        "megabytes_per_second": size / 1e6 / straight["seconds"],
        # What it costs where other processes take their share of the cores.
        "megabytes_per_cpu_second": size / 1e6 / straight["cpu_seconds"],
        "peak_resident_gib": straight["peak_resident_bytes"] / 1024**3,
        "every_row_once": straight["rows"] == made,
        "killed_after": noted,
        "resumed": resumed,
        "resumed_exactly": resumed["compared"] == resumed["equal"] > 0,
    }
    asked.result.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{result['megabytes_per_second']:.1f} MB/s in {result['peak_resident_gib']:.2f} GiB; written to {asked.result}")


if __name__ == "__main__":
    main()
