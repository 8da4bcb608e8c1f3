"""`luthier demo`: a small model learns to turn requests into JSON commands, and shows what changed.

It goes the way of any run, with what every other verb uses: write the data and a configuration, plan, train, save. Around
that it measures how many of 100 held-out requests are answered exactly, before and after, the second time with the adapter
as it was saved.
"""

from __future__ import annotations

import gc
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from luthier.cli.text import duration, message_console, output_console, print_json, size
from luthier.cli.train import train_with_progress
from luthier.core.errors import OutputError
from luthier.demo.task import HELD_OUT_ROWS, Example, examples, write_task

if TYPE_CHECKING:
    from luthier.core.plan import Plan
    from luthier.demo.score import Score

CONFIG: Final = Path(__file__).parents[1] / "demo" / "demo.yaml"
SHOWN: Final = 5


def run(*, output: Path, as_json: bool) -> int:
    """Write, plan, score, train, score again; the report goes to standard output, progress to standard error."""
    import luthier
    from luthier.cli.plan import show_plan

    started = time.monotonic()
    console = message_console()
    config = write_demo(output)
    console.print(f"wrote {config.parent}/: 800 rows to train on, {HELD_OUT_ROWS} to hold out, and demo.yaml")
    earlier = is_earlier_demo(output)
    if not earlier and output.is_dir() and any(output.iterdir()):
        fix = "give another folder with --output"
        raise OutputError("the folder holds something that is no earlier run of the demo", where=str(output), fix=fix)
    plan = luthier.plan(luthier.load_config(config))
    show_plan(plan, console)

    held_out = examples("held_out", HELD_OUT_ROWS)
    console.print(f"\nanswering {HELD_OUT_ROWS} held-out requests before training")
    before = score_model(plan, held_out)
    console.print(f"exact before training: {before.rate:.0%}\n")
    results = train_with_progress(plan, overwrite=earlier)
    console.print(f"\nanswering the same {HELD_OUT_ROWS} requests with the adapter that was saved")
    after = score_model(plan, held_out, adapter=output)

    report = describe(held_out, before, after, results, config) | {"seconds": round(time.monotonic() - started, 1)}
    if as_json:
        print_json(report | {"plan": plan.to_plain(), "results": results})
    else:
        show(report, results)
    return 0


def write_demo(output: Path) -> Path:
    """Write the rows and a configuration that `luthier train` takes as well into `<output>-data/`; returns the latter."""
    folder = data_folder(output)
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    path = folder / "demo.yaml"
    try:
        train, _ = write_task(folder)
        # Absolute, so that the configuration runs from any folder.
        config["data"]["train"][0]["path"] = str(train.resolve())
        config["output"] = str(output)
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    except OSError as error:
        message = f"the demo's data cannot be written: {error.strerror or error}"
        raise OutputError(message, where=str(folder), fix="give another folder with --output") from error
    return path


def is_earlier_demo(output: Path) -> bool:
    """Whether what lies in `output` is a run on the demo's rows, which a new one may replace; any other is left alone."""
    try:
        earlier = json.loads((output / "plan.json").read_text(encoding="utf-8"))
        (source,) = earlier["config"]["data"]["train"]
        return Path(source["path"]) == (data_folder(output) / "train.jsonl").resolve()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def data_folder(output: Path) -> Path:
    """Beside the run, because the run's own folder has to be empty when it starts."""
    return output.with_name(f"{output.name}-data")


def score_model(plan: Plan, held_out: Sequence[Example], adapter: Path | None = None) -> Score:
    """Load the plan's model, with a saved adapter where one is given, score it, and let go of it."""
    from luthier.core.loading import load_model, load_tokenizer
    from luthier.demo.score import score

    tokenizer = load_tokenizer(plan.model)
    model: Any = load_model(plan)
    if adapter is not None:
        from peft import PeftModel

        with warnings.catch_warnings():
            # PEFT still asks transformers by a name that 5.23 renamed; nothing that a user could change.
            warnings.simplefilter("ignore", FutureWarning)
            model = PeftModel.from_pretrained(model, str(adapter))
    scored = score(model, tokenizer, held_out)
    # The training that follows measures its memory: this model must not count.
    del model
    gc.collect()
    return scored


def describe(
    held_out: Sequence[Example], before: Score, after: Score, results: Mapping[str, Any], config: Path
) -> dict[str, Any]:
    """The demo's own report, JSON-shaped: exact match as a part of 1, five answers, and where to go on."""
    folder = Path(results["output"])
    return {
        "exact_match": {"before": before.rate, "after": after.rate, "rows": len(held_out)},
        "answers": [
            {
                "request": held_out[row].request,
                "wanted": held_out[row].command,
                "before": before.answers[row],
                "after": after.answers[row],
                "exact": after.exact[row],
            }
            for row in shown_rows(held_out)
        ],
        "tokens_per_second": results["tokens_per_second"],
        "peak_memory": results["memory"]["measured_peak"],
        "train_seconds": results["seconds"],
        "loss_plot": str(folder / "training_loss.png"),
        "next": [
            f"luthier plan {config} adapter=full",
            f"luthier train {config} adapter.rank=4 output={folder.with_name(folder.name + '-rank-4')}",
            "luthier explain lora",
            "luthier methods",
        ],
    }


def shown_rows(held_out: Sequence[Example], count: int = SHOWN) -> list[int]:
    """The first rows of different intents: chosen before anything is known about the answers."""
    first: dict[str, int] = {}
    for row, example in enumerate(held_out):
        first.setdefault(example.intent, row)
    return sorted(first.values())[:count]


def show(report: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """The report as a person reads it, on standard output."""
    from rich.text import Text

    console = output_console()
    console.print()
    for entry in report["answers"]:
        console.print(Text(entry["request"], style="bold"))
        console.print(Text.assemble(("  before  ", "dim"), _one_line(entry["before"])))
        style = "green" if entry["exact"] else "yellow"
        console.print(Text.assemble(("  after   ", "dim"), (_one_line(entry["after"]), style)))
        if not entry["exact"]:
            console.print(Text.assemble(("  wanted  ", "dim"), entry["wanted"]))
    match = report["exact_match"]
    lines = [
        (
            "exact",
            f"{match['before']:.0%} -> {match['after']:.0%} of {match['rows']} requests, phrasings and values never seen",
        ),
        ("loss", f"{results['train_loss']:.4f}, plotted in {report['loss_plot']}"),
        ("speed", f"{report['tokens_per_second']:.0f} tokens/s"),
        ("memory", f"peak {size(report['peak_memory'])}"),
        ("time", f"{duration(report['seconds'])}, of these {duration(report['train_seconds'])} training"),
    ]
    console.print()
    for label, text in lines:
        console.print(Text.assemble((f"{label:<8}", "bold"), text))
    console.print(Text("\nNext:", style="bold"))
    for command in report["next"]:
        console.print(Text(f"  {command}"), soft_wrap=True)


def _one_line(answer: str, width: int = 110) -> str:
    line = " ".join(answer.split())
    return line if len(line) <= width else line[: width - 3] + "..."
