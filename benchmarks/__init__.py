"""The benchmark harness, its matrices, and the committed results."""

if __name__ == "benchmarks":
    raise ImportError(
        "this folder is the package luthier.benchmarks: import luthier.benchmarks (a module must not load twice)"
    )
