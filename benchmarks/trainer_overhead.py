"""What Luthier's Trainer costs per step, against a plain transformers Trainer on the same batches.

    python -m luthier.benchmarks.trainer_overhead            # all, about five minutes on a calm machine
    python -m luthier.benchmarks.trainer_overhead --rounds 2

Runs A (plain) and B (ours) take turns, A B B A ..., each in a process of its own on one thread; both log every step, clip,
and use the same fused AdamW and schedule. Reported is CPU time per optimizer step, which other processes on the machine
disturb least, and wall time beside it. Plain prints its logs through PrinterCallback by default: that is taken away.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from luthier.benchmarks.machine import describe_machine

RESULT: Final = Path(__file__).parent / "results" / "trainer_overhead.json"
SKIP: Final = 3  # the first steps of a process are slower than the rest
LIMIT: Final = 1.03

# SmolLM2's shape (grouped-query attention with heads of 64, gated MLP of 8/3, tied embeddings), made smaller.
# name: hidden size, intermediate size, layers, heads, vocabulary, optimizer steps
MODELS: Final = {
    "tiny": (64, 128, 2, 2, 512, 150),
    "smol-11m": (256, 684, 10, 4, 16384, 28),
    "smol-26m": (384, 1024, 12, 6, 16384, 15),
}
BATCH_TOKENS: Final = 256
ACCUMULATION: Final = 2


def build(name: str) -> tuple[Any, Any, Any]:
    """(model, rows, schedule), the same in every process."""
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from luthier.core.data import BatchSchedule, Examples
    from luthier.core.data.store import Chunk, TokenStore

    hidden, intermediate, layers, heads, vocabulary, steps = MODELS[name]
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        vocab_size=vocabulary,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        attn_implementation="sdpa",
    )
    random = np.random.RandomState(0)
    lengths = random.randint(16, 128, size=400)
    ids = random.randint(3, vocabulary, size=int(lengths.sum())).astype(np.int32)
    trained = (random.rand(len(ids)) < 0.6).tobytes()
    chunk = Chunk.of(ids.tolist(), trained, lengths.tolist(), range(len(lengths)), [None] * len(lengths))
    rows = Examples([TokenStore.in_memory([chunk])])
    schedule = BatchSchedule(rows.lengths, batch_tokens=BATCH_TOKENS, accumulation=ACCUMULATION, max_steps=steps)
    return LlamaForCausalLM(config), rows, schedule


def plain_trainer(name: str, folder: Path) -> Any:
    """transformers' own loop; only the data loader is replaced, so that the batches are the same."""
    from torch.utils.data import DataLoader
    from transformers import PrinterCallback, Trainer, TrainingArguments

    from luthier.core.data import collate
    from luthier.core.schedule import build_schedule
    from luthier.plugins.adamw import AdamWConfig
    from luthier.plugins.adamw import build as build_adamw

    model, rows, schedule = build(name)

    class Plain(Trainer):
        def get_train_dataloader(self) -> Any:
            return DataLoader(rows, batch_sampler=schedule, collate_fn=partial(collate, pad_token_id=0))

    options = AdamWConfig()
    optimizer, _ = build_adamw(model, options)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=schedule.steps,
        gradient_accumulation_steps=ACCUMULATION,
        max_grad_norm=options.max_grad_norm,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        report_to=[],
        use_cpu=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    optimizers = (optimizer, build_schedule(optimizer, options, schedule.steps))
    trainer = Plain(model=model, args=arguments, train_dataset=rows, optimizers=optimizers)
    trainer.remove_callback(PrinterCallback)
    return trainer


def our_trainer(name: str, folder: Path) -> Any:
    """The Trainer of a run, with everything a run has but the front door."""
    from luthier.core.catalog import Catalog, Offer, Provider
    from luthier.core.config.schema import DataConfig, ModelConfig, RunConfig, TrainConfig
    from luthier.core.data import collate
    from luthier.core.frozen import FrozenDict
    from luthier.core.meter import MemoryMeter
    from luthier.core.output import OutputFolder
    from luthier.core.plan import ModelReference, Plan, Precision, Step
    from luthier.core.profile import ArchitectureProfile
    from luthier.core.runtime import Runtime
    from luthier.core.trainer import RunTrainer
    from luthier.plugins.adamw import luthier_optimizers
    from luthier.plugins.full import luthier_adapters

    model, rows, schedule = build(name)
    (optimizer,), (adapter,) = luthier_optimizers(), luthier_adapters()
    methods: dict[str, dict[str, Offer[Any]]] = {
        method.slot: {method.name: Offer(value=method, provider=Provider(plugin="x"))} for method in (optimizer, adapter)
    }
    plan = Plan(
        model=ModelReference(name=name, path=name, kind="folder"),
        profile=ArchitectureProfile(
            model_type="llama", architecture="", decoder="", layers=0, layer_classes=(), hidden_size=0, vocab_size=0
        ),
        steps=tuple(Step(slot=method.slot, method=method.name, provider="x") for method in (optimizer, adapter)),
        precision=Precision(name="fp32", weights="float32", compute="float32", why=""),
        config=FrozenDict(),
    )
    train = TrainConfig(accumulation=ACCUMULATION, batch_tokens=BATCH_TOKENS)
    data: Any = SimpleNamespace(train=rows, eval=())
    events: list[Any] = []
    runtime = Runtime(
        plan=plan,
        config=RunConfig(model=ModelConfig(name=name), data=DataConfig(train=()), train=train),
        catalog=Catalog(methods=methods),
        output=OutputFolder.claim(folder / "run"),
        emit_to=events.append,
        meter=MemoryMeter("cpu"),
        stop=threading.Event(),
        model=model,
        data=data,
    )
    runtime.meter.start()
    return RunTrainer(runtime=runtime, schedule=schedule, data_collator=partial(collate, pad_token_id=0))


def measure(side: str, name: str) -> dict[str, Any]:
    """Seconds per optimizer step, wall and CPU, of one run in this process."""
    import torch
    from transformers import TrainerCallback
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    marks: list[tuple[float, float]] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            marks.append((time.perf_counter(), time.process_time()))

    with tempfile.TemporaryDirectory() as folder:
        trainer = (plain_trainer if side == "plain" else our_trainer)(name, Path(folder))
        trainer.add_callback(Clock())
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    wall, cpu = ([after[i] - before[i] for before, after in pairwise(marks)][SKIP:] for i in (0, 1))
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    return {"wall": wall, "cpu": cpu, "losses": losses, "parameters": parameters}


def in_process(side: str, name: str) -> dict[str, Any]:
    """`measure` in a fresh process on one thread."""
    command = [sys.executable, "-m", "luthier.benchmarks.trainer_overhead", "--side", side, "--model", name]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{side} {name} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(name: str, rounds: int) -> dict[str, Any]:
    """Both sides of one model, in turns; ratios are of the medians over the steps of all its runs."""
    runs: dict[str, list[dict[str, Any]]] = {"plain": [], "luthier": []}
    for number in range(rounds):
        for side in ("plain", "luthier") if number % 2 == 0 else ("luthier", "plain"):
            runs[side].append(in_process(side, name))
            print(name, side, f"{1000 * statistics.median(runs[side][-1]['cpu']):.2f} ms CPU a step", file=sys.stderr)
    if runs["plain"][0]["losses"] != runs["luthier"][0]["losses"]:
        largest = max(abs(a - b) for a, b in zip(runs["plain"][0]["losses"], runs["luthier"][0]["losses"], strict=True))
    else:
        largest = 0.0
    steps = {side: {kind: [x for run in many for x in run[kind]] for kind in ("cpu", "wall")} for side, many in runs.items()}
    medians = {side: {kind: statistics.median(values) for kind, values in kinds.items()} for side, kinds in steps.items()}
    paired = [
        statistics.median(ours["cpu"]) / statistics.median(plain["cpu"])
        for plain, ours in zip(runs["plain"], runs["luthier"], strict=True)
    ]
    return {
        "parameters": runs["plain"][0]["parameters"],
        "steps_measured": {side: len(kinds["cpu"]) for side, kinds in steps.items()},
        "milliseconds_per_step": {
            side: {kind: round(1000 * value, 3) for kind, value in kinds.items()} for side, kinds in medians.items()
        },
        "ratio_cpu": round(medians["luthier"]["cpu"] / medians["plain"]["cpu"], 4),
        "ratio_wall": round(medians["luthier"]["wall"] / medians["plain"]["wall"], 4),
        "ratio_cpu_by_round": [round(value, 4) for value in paired],
        "largest_loss_difference": largest,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--side", choices=["plain", "luthier"])
    parser.add_argument("--model", choices=list(MODELS))
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments.side, arguments.model)))
        return
    started = round(os.getloadavg()[0], 2)
    results = {name: compare(name, arguments.rounds) for name in ([arguments.model] if arguments.model else MODELS)}
    report = {
        "benchmark": "trainer_overhead",
        "status": "within" if all(result["ratio_cpu"] <= LIMIT for result in results.values()) else "over",
        "limit": LIMIT,
        "what": "time per optimizer step, ours / plain transformers Trainer; same batches, same losses, logging every step",
        "batch_tokens": BATCH_TOKENS,
        "accumulation": ACCUMULATION,
        "rounds": arguments.rounds,
        "results": results,
        "machine": describe_machine() | {"load": started, "threads_used": 1},
        "date": time.strftime("%Y-%m-%d"),
    }
    text = json.dumps(report, indent=2)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
