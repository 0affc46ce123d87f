# Every target works from a fresh clone: the tools live in .venv, made on first use.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# `TORCH=cpu` takes PyTorch's CPU build. Left out, pip chooses, which on Linux brings the CUDA libraries.
TORCH ?= default
CPU_INDEX := https://download.pytorch.org/whl/cpu
SIZE := $(if $(filter cpu,$(TORCH)),2.3 GB,5.1 GB on Linux (2.3 GB with TORCH=cpu: enough without an NVIDIA GPU))
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check
# What drives a browser in the tests of the page; a demo needs none of it.
DRIVER := .venv/.driver
# Two processes of pytest; a file stays in one of them, with the models that it has loaded.
SIDE_BY_SIDE := -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup browser shots types-ui demo test quick check lint attack verify bench performance gpu-report nano evaluate wheel clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Runs again only when the declared or the pinned dependencies change.
$(STAMP): pyproject.toml constraints.txt
	@case "$(TORCH)" in default|cpu) ;; *) echo "TORCH=$(TORCH) is not known; use TORCH=cpu, or leave it out" >&2; exit 1; esac
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Installing into .venv: $(SIZE), 1 to 4 minutes. pip shows its progress below."
	$(PYTHON) -m venv .venv
	$(if $(filter cpu,$(TORCH)),$(INSTALL) "$$(grep ^torch== constraints.txt)" --index-url $(CPU_INDEX))
	$(INSTALL) -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(STAMP)  ## install into .venv with the tested versions; TORCH=cpu for a small install

$(DRIVER): $(STAMP)
	$(INSTALL) -c constraints.txt -e '.[browser]'
	@touch $@

browser:  ## install a browser with fonts for the tests of the page, on Debian and its kin; 191 MB
	@command -v apt-get >/dev/null || { echo "install Chromium, or name one in DGEMMA_CHROMIUM" >&2; exit 1; }
	apt-get update -q && apt-get install -y --no-install-recommends chromium fonts-noto-core fonts-noto-cjk fonts-noto-color-emoji

shots: $(DRIVER)  ## pictures of the page in light, dark, on a phone, to look at; into runs/ui
	$(BIN)/python -m tests.ui.shots

types-ui:  ## check the types of the page's modules, for those who have node
	npx --yes --package typescript@5.9 tsc --noEmit --allowJs --checkJs --strict --target es2022 \
		--module esnext --moduleResolution bundler --lib es2022,dom,dom.iterable $(wildcard dgemma/ui/*.js)

demo: $(STAMP)  ## a Sudoku solved live by the bundled model, then a chat answer
	$(BIN)/dgemma demo

test: lint $(DRIVER)  ## lint, types, then the whole suite with its long parts sampled
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

quick: $(STAMP)  ## only the unit tests: no processes, no text by nano; under a minute
	$(BIN)/python -m pytest --quick $(SIDE_BY_SIDE)

check: lint  ## lint, types and the layout rules; seconds
	$(BIN)/python -m pytest -q tests/test_layout.py

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

attack: $(STAMP)  ## abuse a server on this machine and print what its other users notice; some 6 minutes
	$(BIN)/python -m tests.attack

verify: $(STAMP)  ## the suite at full count; writes docs/verification.md
	$(BIN)/python -m tests.verify

# Another model: make bench MODEL=DIRECTORY
MODEL ?= nano
bench: $(STAMP)  ## measure speed on this machine: a step, answers, transformers beside it
	$(BIN)/dgemma bench step $(MODEL)
	$(BIN)/dgemma bench generate $(MODEL)
	$(BIN)/dgemma bench compare $(MODEL)

# Random weights at the sizes of the released model, three layers of thirty: 6.4 GB on the disk.
REAL := runs/real-layers-3
MINI := runs/mini
$(REAL)/config.json: | $(STAMP)
	$(BIN)/dgemma bench --make real-layers:3 $(REAL)
$(MINI)/config.json: | $(STAMP)
	$(BIN)/dgemma bench --make mini $(MINI)
performance: $(STAMP) $(REAL)/config.json $(MINI)/config.json  ## measure at real sizes; writes docs/performance.md
	set -e; new=$$(mktemp); trap 'rm -f "$$new"' EXIT; exec > "$$new"; \
	printf '# Performance\n\nWritten by `make performance`, which ran the commands named below. [gpu.md](gpu.md) has what can be said of GPUs without one.\n\n'; \
	for prompt in 64 1024; do $(BIN)/dgemma bench compare $(REAL) --prompt $$prompt --steps 4; done; \
	$(BIN)/dgemma bench compare $(MINI) --dtype bfloat16; \
	for prompt in 64 1024; do $(BIN)/dgemma bench step $(REAL) --prompt $$prompt; done; \
	$(BIN)/python -m bench.scale $(REAL) --prompts 64,512,1024,1536,2048,4096,8192,16384,32768; \
	$(BIN)/dgemma bench generate nano; \
	$(BIN)/python -m bench.offline nano; \
	$(BIN)/python -m bench.serving nano; \
	cp "$$new" docs/performance.md

gpu-report: $(STAMP)  ## compile the GPU kernels for six GPUs that need not be there; writes docs/gpu.md
	set -e; new=$$(mktemp); trap 'rm -f "$$new"' EXIT; exec > "$$new"; \
	printf '# GPUs\n\nWritten by `make gpu-report`. [performance.md](performance.md) has what was measured, on CPUs.\n\n'; \
	$(BIN)/dgemma bench gpu; \
	cp "$$new" docs/gpu.md

nano: $(STAMP)  ## train the bundled model from scratch into runs/nano; stop and go on at will
	$(BIN)/python -m recipes.nano

evaluate: $(STAMP)  ## score the bundled model on held-out examples
	$(BIN)/dgemma evaluate nano

# The script is checked against the wheel, then against this environment, which is editable.
wheel: $(STAMP)  ## build the wheel; away from here check a user's script and run the demo
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps -w dist .
	set -e; away=$$(mktemp -d); trap 'rm -rf "$$away"' EXIT; \
	$(PYTHON) -m venv "$$away/env"; \
	"$$away/env/bin/python" -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt dist/*.whl; \
	cp tests/support/user_script.py "$$away"; cd "$$away"; \
	"$(CURDIR)/$(BIN)/mypy" --strict --python-executable env/bin/python user_script.py; \
	"$(CURDIR)/$(BIN)/mypy" --strict user_script.py; \
	env/bin/python -m dgemma demo

clean:  ## remove the environment and everything built; runs/ stays
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find dgemma bench recipes tests -name __pycache__ -type d -prune -exec rm -rf {} +
