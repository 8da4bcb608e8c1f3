"""What a step of GaLore costs: ours, ours layerwise, galore-torch and torch's fused AdamW, on weights of SmolLM2's shapes.

    python -m luthier.benchmarks.galore_step            # about three minutes
    python -m luthier.benchmarks.galore_step --layers 2 --steps 5

Each variant runs in a process of its own on one thread, with the same gradients. A step that computes new projectors is
timed apart from the others. In the layerwise mode the projection, which its hooks do in the backward pass, counts as part of
the step. Reported is CPU time, which other processes on the machine disturb least; `hidden` is memory that slices in the
state keep alive.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from luthier.benchmarks.machine import describe_machine

RESULT: Final = Path(__file__).parent / "results" / "galore_step.json"
# One decoder layer of SmolLM2-135M, as (rows, columns), and its two norms.
LAYER: Final = ((576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536), (576,), (576,))
RANKS: Final = (64, 144)
SKIP: Final = 2  # the first steps of a process are slower than the rest
VARIANTS: Final = ("adamw", "galore-torch", "ours", "ours-layerwise", "ours-randomized")


def optimizer_of(variant: str, weights: list[Any], rank: int, refresh: int) -> Any:
    import torch

    matrices, vectors = [one for one in weights if one.ndim == 2], [one for one in weights if one.ndim == 1]
    if variant == "adamw":
        return torch.optim.AdamW(weights, lr=1e-4, fused=True)
    projection: dict[str, Any] = {"rank": rank, "scale": 0.25, "proj_type": "std"}
    if variant == "galore-torch":
        from galore_torch import GaLoreAdamW as Library

        groups = [{"params": matrices, **projection, "update_proj_gap": refresh}, {"params": vectors}]
        return Library(groups, lr=1e-4, no_deprecation_warning=True)
    from luthier.plugins.galore.layerwise import LayerwiseGaLoreAdamW
    from luthier.plugins.galore.low_rank_adam import GaLoreAdamW

    svd = "randomized" if variant == "ours-randomized" else "exact"
    kind = LayerwiseGaLoreAdamW if variant == "ours-layerwise" else GaLoreAdamW
    return kind([{"params": matrices, **projection, "refresh": refresh, "svd": svd}, {"params": vectors}], lr=1e-4)


def measure(variant: str, rank: int, layers: int, steps: int) -> dict[str, Any]:
    """Milliseconds of CPU per step of one variant in this process; the first step and one more compute projectors."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(0.02 * torch.randn(shape)) for _ in range(layers) for shape in LAYER]
    gradients = [torch.randn_like(weight) for weight in weights]
    refresh = SKIP + steps + 1
    optimizer = optimizer_of(variant, weights, rank, refresh)
    marks: list[float] = []
    for _ in range(refresh + 1):
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient.clone()
        begun = time.process_time()
        optimizer.step()
        marks.append(1000 * (time.process_time() - begun))
        optimizer.zero_grad()
    tensors = [one for state in optimizer.state.values() for one in _tensors(state)]
    held = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
    used = sum(one.nbytes for one in tensors)
    return {"step": marks[1 + SKIP : -1], "refresh": marks[-1], "state": used, "hidden": sum(held.values()) - used}


def _tensors(state: dict[str, Any]) -> list[Any]:
    import torch

    values = [value.ortho_matrix if hasattr(value, "ortho_matrix") else value for value in state.values()]
    return [value for value in values if isinstance(value, torch.Tensor) and value.ndim]


def in_process(variant: str, rank: int, layers: int, steps: int) -> dict[str, Any]:
    """`measure` in a fresh process on one thread."""
    command = [sys.executable, "-m", "luthier.benchmarks.galore_step", "--variant", variant]
    command += ["--rank", str(rank), "--layers", str(layers), "--steps", str(steps)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{variant} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(rank: int, layers: int, steps: int) -> dict[str, Any]:
    """Every variant at one rank; milliseconds are medians, bytes exact."""
    found = {}
    for variant in VARIANTS:
        run = in_process(variant, rank, layers, steps)
        found[variant] = {
            "step_ms": round(statistics.median(run["step"]), 2),
            "refresh_step_ms": round(run["refresh"], 1),
            "state_bytes": run["state"],
            "hidden_bytes": run["hidden"],
        }
        print(rank, variant, found[variant], file=sys.stderr)
    theirs, ours = found["galore-torch"]["step_ms"], found["ours"]["step_ms"]
    return {"variants": found, "ours_over_galore_torch": round(ours / theirs, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--rank", type=int, default=RANKS[0])
    parser.add_argument("--variant", choices=VARIANTS)
    arguments = parser.parse_args()
    if arguments.variant:
        print(json.dumps(measure(arguments.variant, arguments.rank, arguments.layers, arguments.steps)))
        return
    started = round(os.getloadavg()[0], 2)
    results = {f"rank-{rank}": compare(rank, arguments.layers, arguments.steps) for rank in RANKS}
    report = {
        "benchmark": "galore_step",
        "status": "measured",
        "what": "CPU milliseconds of an optimizer step over the decoder layers, float32, and bytes of its state",
        "layers": arguments.layers,
        "parameters": arguments.layers * sum(rows * columns[0] if columns else rows for rows, *columns in LAYER),
        "steps": arguments.steps,
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
