"""The verbs and their options. A verb's work is in the module of its name, imported when it runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from luthier.core.extensions import BUILT_IN_VERBS

VERBS: Final = BUILT_IN_VERBS

Config = Annotated[Path, typer.Argument(help="Configuration file (YAML).", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Keys set on top of it: adapter.rank=8", show_default=False),
]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON document on standard output, everything else on standard error.")
]
MergeBase = Literal["original", "dequantized"]
MergeDtype = Literal["float32", "bfloat16", "float16"]
RemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")]


HELP: Final = "Fine-tunes language models out of composable methods, planned before it runs."


def build_app(plugin_verbs: Mapping[str, Any]) -> typer.Typer:
    """The command line with the built-in verbs and, for the help page, those of plugins."""
    app = typer.Typer(
        name="luthier",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog="Any verb takes --debug, which shows tracebacks. Exit codes: 0 done, 2 refused, 3 environment, 4 data, "
        "5 over the memory budget, 6 out of memory, 130 interrupted.",
    )
    app.callback(help=HELP)(root)
    for verb in (demo, plan, train, evaluate, merge, methods, explain, profile, doctor):
        app.command()(verb)
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at the data of runs, and after it.")
    group.command("inspect")(data_inspect)
    group.command("clean")(data_clean)
    app.add_typer(group, name="data")
    for name, offer in sorted(plugin_verbs.items()):
        app.command(name, help=f"{offer.value.summary} (from {offer.provider})")(lambda: None)
    return app


def show_version(asked: bool) -> None:
    if asked:
        import luthier

        typer.echo(f"luthier {luthier.__version__}")
        raise typer.Exit


def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """The options before the verb."""


def demo(
    output: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
    as_json: Json = False,
) -> int:
    """Fine-tune SmolLM2-135M to turn requests into JSON commands, and show what changed."""
    from luthier.cli import demo as verb

    return verb.run(output=output, as_json=as_json)


def plan(config: Config, overrides: Overrides = None, as_json: Json = False) -> int:
    """Say what a run would do and why, or every reason why it cannot; loads no weights."""
    from luthier.cli import plan as verb

    return verb.run(config, overrides or [], as_json=as_json)


def train(
    config: Config,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest checkpoint in the output folder.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is in the output folder.")] = False,
    as_json: Json = False,
) -> int:
    """Plan and run. Ctrl-C saves a checkpoint; a second Ctrl-C stops at once."""
    from luthier.cli import train as verb

    return verb.run(config, overrides or [], resume=resume, overwrite=overwrite, as_json=as_json)


def evaluate(
    run: Annotated[
        str, typer.Argument(help="Output folder of a run, one of its checkpoints, or a model.", show_default=False)
    ],
    data: Annotated[
        list[str], typer.Option(metavar="FILE", help="Rows to evaluate on; may be given again.", show_default=False)
    ],
    metrics: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="loss, perplexity, exact_match, rouge, bleu; for preferences accuracy, margin, longer. With commas between "
            "them; by default all that the rows allow.",
            show_default=False,
        ),
    ] = "",
    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Evaluate this one too: another run, a model, or base for what the run began with."
        ),
    ] = None,
    format_name: Annotated[str, typer.Option("--format", metavar="NAME", help="Format of the rows.")] = "auto",
    max_rows: Annotated[int | None, typer.Option(min=1, help="Only the first rows.", show_default=False)] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 256,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write what each row gave, one JSON object a line.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> int:
    """Measure a run or a model on rows that it has not seen, alone or against another."""
    from luthier.cli import evaluate as verb

    names = [name.strip() for name in metrics.split(",") if name.strip()]
    return verb.run(
        run,
        data,
        metrics=names,
        against=against,
        format_name=format_name,
        max_rows=max_rows,
        max_new_tokens=max_new_tokens,
        output=output,
        as_json=as_json,
    )


def merge(
    run: Annotated[Path, typer.Argument(help="Output folder of a run, or one of its checkpoints.", show_default=False)],
    into: Annotated[
        Path | None, typer.Option(help="New folder for the merged model; by default RUN-merged.", show_default=False)
    ] = None,
    base: Annotated[
        MergeBase | None,
        typer.Option(help="After training on quantised weights: which weights to fold into.", show_default=False),
    ] = None,
    dtype: Annotated[
        MergeDtype | None,
        typer.Option(help="Format of the merged weights; by default that of the run's.", show_default=False),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(min=0.0, help="Greatest difference of logits, as a part of the greatest logit.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> int:
    """Fold what a run trained into plain weights that transformers loads by itself."""
    from luthier.cli import merge as verb

    return verb.run(run, into, base=base, dtype=dtype, tolerance=tolerance, as_json=as_json)


def methods(
    slot: Annotated[str | None, typer.Option(help="Only this slot: patches, adapter, optimizer, attention, stage.")] = None,
    matrix: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Every adapter x quantisation x optimizer on this model: does it combine, why not."
        ),
    ] = None,
    trust_remote_code: RemoteCode = False,
    as_json: Json = False,
) -> int:
    """List what is installed: methods by slot, data formats, presets, and plugins that are broken."""
    if matrix is not None:
        if slot is not None:
            raise typer.BadParameter("give --slot or --matrix, not both")
        from luthier.cli import matrix as table

        return table.run(matrix, as_json=as_json, trust_remote_code=trust_remote_code)
    if trust_remote_code:
        raise typer.BadParameter("--trust-remote-code goes with --matrix")
    from luthier.cli import methods as verb

    return verb.run(as_json=as_json, slot=slot)


def explain(
    topic: Annotated[
        str, typer.Argument(help="A configuration key, a method, METHOD.OPTION, or a trait.", show_default=False)
    ],
    as_json: Json = False,
) -> int:
    """Print the documented fields, defaults, traits and an example of a key or a method."""
    from luthier.cli import explain as verb

    return verb.run(topic, as_json=as_json)


def profile(
    model: Annotated[str, typer.Argument(help="Hub id, folder, .gguf file or alias.", show_default=False)],
    trust_remote_code: RemoteCode = False,
    as_json: Json = False,
) -> int:
    """Show a model's architecture by role, read from its configuration alone."""
    from luthier.cli import profile as verb

    return verb.run(model, as_json=as_json, trust_remote_code=trust_remote_code)


def data_inspect(
    config: Config,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=0, help="How many rows to render.")] = 3,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page that opens offline.", show_default=False)
    ] = None,
    png: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the lengths as a picture.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> int:
    """Show the rows as they will be trained, and what became of the others."""
    from luthier.cli import data_inspect as verb

    return verb.run(config, overrides or [], rows=rows, html=html, png=png, as_json=as_json)


def data_clean(
    older_than: Annotated[
        float | None, typer.Option(metavar="DAYS", min=0.0, help="Only what was not used for so long.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")] = False,
    as_json: Json = False,
) -> int:
    """Remove tokenised data from the cache, except what a run is using."""
    from luthier.cli import data as verb

    return verb.run_clean(older_than=older_than, dry_run=dry_run, as_json=as_json)


def doctor(as_json: Json = False) -> int:
    """Report the machine, the dtype probe, versions, and what each plugin lacks."""
    from luthier.cli import doctor as verb

    return verb.run(as_json=as_json)
