# `make demo`, `make rlhf` and `make test` each set everything up on a bare machine and do what they say.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PYTEST := $(BIN)/python -m pytest
CODE   := luthier core registry plugins benchmarks tests docs/gen

export HF_HUB_DISABLE_TELEMETRY ?= 1
export NO_MKDOCS_2_WARNING ?= 1

.PHONY: setup demo rlhf test test-all test-gpu check typing format docs bench clean

setup: $(READY)

# torch comes first and pinned: what depends on it would otherwise bring the newest build with gigabytes of CUDA packages.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[dev]"
	@touch $(READY)

demo: setup
	$(BIN)/luthier demo

# SFT, reward model, PPO and DPO, each from the one before: under 40 minutes on two cores.
rlhf: setup
	$(BIN)/python -m luthier.cli.chain

# The fast tests and a short run of the real model. Two workers share the cores: threads that spin while they wait would
# take them from each other, a hundredfold slower (a run alone is faster with spinning, which is the default elsewhere).
test: setup
	OMP_WAIT_POLICY=passive $(PYTEST) -m "not slow and not gpu" -n 2 --dist worksteal

# Everything; tests marked gpu skip themselves where there is no CUDA device.
test-all: setup
	$(PYTEST)

test-gpu: setup
	$(PYTEST) -m gpu

check: setup typing
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy build/typing/luthier
	$(BIN)/mkdocs build --quiet --strict --site-dir build/site

# mypy does not follow setuptools' editable finder: it reads a folder of links that looks like the installed package.
typing:
	@rm -rf build/typing && mkdir -p build/typing/luthier
	@for part in luthier/*; do case $$part in *__pycache__) ;; *) ln -s ../../../$$part build/typing/luthier/;; esac; done
	@for part in core registry plugins benchmarks; do ln -s ../../../$$part build/typing/luthier/$$part; done

format: setup
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

# The generated pages: configuration reference, table of methods, table of architectures.
docs: setup
	$(BIN)/python docs/gen/reference.py
	$(BIN)/python docs/gen/architectures.py
	$(BIN)/mkdocs build --strict --site-dir build/site

bench: setup
	$(BIN)/python -m luthier.benchmarks.startup
	$(BIN)/python -m luthier.benchmarks.trainer_overhead

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
