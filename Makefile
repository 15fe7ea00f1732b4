# make install | demo | test | check | slow: everything happens in .venv, with the versions of requirements.txt.
# For a different Python: make install PYTHON=python3.12
# Without an NVIDIA card: make install CPU=1 takes torch's CPU build: on Linux some gigabytes less.

PYTHON ?= python3
JOBS ?= 2
UV ?= uv
# The version of torch that requirements.txt pins; to upgrade, change it here, run `make lock`, then `make test slow`.
TORCH := 2.13.0

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo check test slow torture gpu pictures notebook wheel-check lock clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' $(MAKEFILE_LIST) | expand -t 20

install: $(INSTALLED) ## .venv with every extra and DTL itself, editable; CPU=1 for torch's CPU build

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
		echo "DTL needs Python 3.11, 3.12 or 3.13, but $(PYTHON) is: $$($(PYTHON) --version 2>&1)" >&2; \
		echo "Name another one: make install PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "On Debian and Ubuntu the module venv is a package of its own: apt install python3-venv" >&2; exit 1; }

$(INSTALLED): requirements.txt pyproject.toml | $(BIN)/python
	$(if $(CPU),$(PIP) torch==$(TORCH) --index-url https://download.pytorch.org/whl/cpu)
	$(PIP) --requirement requirements.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

demo: install ## train experiment=demo, two minutes on two cores, then ask it five questions
	$(BIN)/python -m dtl.train experiment=demo
	$(BIN)/python -m dtl.chat ckpt=latest ask=experiments/experiment/demo.questions.jsonl

check: install ## lint, format and types, in half a minute
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

test: check ## make check and the fast tests
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow and not gpu and not torture"

slow: install ## the slow tests: whole runs, kills, the wheel
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "slow and not gpu"

torture: install ## many kills, damages and hostile inputs; the counts go to outputs/torture.json
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "torture or counted" --figures=outputs/torture.json

gpu: install ## what only an NVIDIA GPU can show: checks, speed and memory, eight minutes; to outputs/gpu.json
	$(BIN)/python tests/gpu/run.py device=cuda

pictures: install ## redraw the README's pictures from real runs
	$(BIN)/python docs/pictures.py

notebook: install ## rewrite experiments/README.md after a change of its texts
	$(BIN)/python -m dtl.notebook

wheel-check: install ## build the wheel, install it outside the checkout, train two steps in another folder
	$(BIN)/python -m pytest tests/test_wheel.py

# torch's CUDA packages are not locked: torch requires them itself where it needs them, and its CPU builds do not.
lock: ## rewrite requirements.txt (needs uv)
	@command -v $(UV) >/dev/null || { echo "make lock needs uv: pip install uv" >&2; exit 1; }
	@pins=$$($(UV) pip compile pyproject.toml --quiet --universal --all-extras --python-version 3.11 \
		--fork-strategy fewest --no-header --no-annotate --upgrade-package torch==$(TORCH)) && { \
		echo "# Every version that DTL is tested with, all extras included; Python 3.11 to 3.13, any system."; \
		echo "# Written by \`make lock\` from pyproject.toml: do not edit."; \
		echo "$$pins" | grep -vE "^(cuda-|nvidia-|triton==)|== 'emscripten'"; } > requirements.txt

clean: ## remove .venv and all files left by tools and builds; outputs/ is kept
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis
	find dtl tests -name __pycache__ -type d -prune -exec rm -rf {} +
