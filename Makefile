# Everything runs in VENV, which the interpreter PYTHON creates on first use. TORCH is the build of PyTorch: cpu, or cuda
# (the usual build, which on Linux brings CUDA: 5.6 GB instead of 0.9).
PYTHON ?= python3
TORCH ?= cpu
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --no-compile
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python
CORE := $(VENV)/core
READY := $(VENV)/installed
RUFF := $(BIN)/ruff
SAMPLES := data/samples
PYTHONS ?= 3.10 3.11 3.12 3.13
# One worker more than there are cores, as many tests wait for processes that they start.
WORKERS ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores < 8 ? cores + 1 : 8)))
QUICK := tests/test_start.py $(addprefix tests/,layers model processors files index embed)

# Wheels in a folder that pip is configured to search come before the index of CPU builds. Without either, the package
# itself requires the usual build.
PYTORCH_cpu = $(PIP) --no-index --no-deps torch torchvision 2>/dev/null || \
	$(PIP) --retries 1 torch torchvision --index-url https://download.pytorch.org/whl/cpu 2>/dev/null || \
	echo "PyTorch's CPU builds cannot be reached: installing its usual build, which on Linux brings CUDA (5.6 GB)"
PYTORCH_cuda = true

# Let Python write its compiled files even where the environment forbids it: programs then start twice as fast.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help install demo gpu dist test test-all test-core pythons lint format types docs bench readme clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 11

install: $(READY)  ## make .venv with the package (editable) and all that tests and checks need

$(CORE): setup.cfg pyproject.toml
	@echo "installing in $(VENV), with PyTorch for $(TORCH): about a minute, and the download"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PYTORCH_$(TORCH))
	@$(PIP) uv
	@$(UV) --editable .
	@touch $@

$(READY): $(CORE)
	@echo "installing what the tests need in $(VENV)"
	@$(UV) --editable '.[test]'
	@touch $@

demo: $(CORE)  ## search the sample files by words, a picture, a sound and a mix; the last also as demo.html
	$(BIN)/onepeace search $(SAMPLES) "a bird" --top 5
	$(BIN)/onepeace search $(SAMPLES) --image $(SAMPLES)/images/IMG_0428.jpg --top 1 # a dog, which finds its barking
	$(BIN)/onepeace search $(SAMPLES) --audio $(SAMPLES)/sounds/REC_0007.ogg --only pictures --top 1 # and the other way round
	$(BIN)/onepeace search $(SAMPLES) --image $(SAMPLES)/images/IMG_0458.jpg --text "waves" --top 2 --html demo.html
	@echo
	@echo "That worked; demo.html shows the last answer as a page. What to type next:"
	@echo "  . $(BIN)/activate                                        # so that the shell finds onepeace"
	@echo "  onepeace search ~/Pictures 'waves on a beach'             # pictures and sounds of your own"
	@echo "  pip install 'onepeace[web]' && onepeace serve $(SAMPLES) # the same in a browser"
	@echo "  onepeace --help                                           # all it can do; README.md has the rest"

test: $(READY)  ## run the tests
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-core: $(CORE)  ## run the tests that need nothing but the core
	@$(UV) pytest hypothesis pytest-xdist
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile $(QUICK)

pythons:  ## install the core, and run the demo and those tests, under each of PYTHONS
	@for version in $(PYTHONS); do \
		begun=$$(date +%s); \
		$(MAKE) --no-print-directory demo PYTHON=python$$version VENV=build/python$$version || exit 1; \
		demo=$$(($$(date +%s) - begun)); \
		$(MAKE) --no-print-directory test-core VENV=build/python$$version || exit 1; \
		echo "python $$version: demo $$demo s, $$(du -sh build/python$$version | cut -f1)"; \
	done

test-all: $(READY)  ## run all tests, the slow ones too
	$(BIN)/python -m pytest -q -m ""

lint: $(READY)  ## check style and formatting
	$(RUFF) check --config .ci/ruff.toml .
	$(RUFF) format --config .ci/ruff.toml --check .

format: $(READY)  ## mend style and formatting
	$(RUFF) check --config .ci/ruff.toml --fix .
	$(RUFF) format --config .ci/ruff.toml .

types: $(READY)  ## check the types, also of the Python code in README.md and docs/
	$(BIN)/mypy
	@rm -rf build/snippets
	PYTHONPATH=tests $(BIN)/python -m support.snippets build/snippets
	$(BIN)/mypy build/snippets/*.py
	$(BIN)/basedpyright --project .ci/pyright.json --pythonpath $(BIN)/python

docs: $(CORE)  ## build the documentation in build/site; a warning, such as a broken link, is an error
	@$(UV) --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

dist:  ## build wheel and sdist in dist/, check them, and search by the wheel alone in a new environment
	@rm -rf dist build/dist
	$(PYTHON) -m venv build/dist
	build/dist/bin/python -m pip install --quiet build twine
	build/dist/bin/python -m build
	build/dist/bin/python -m twine check --strict dist/*
	@$(MAKE) --no-print-directory PIP="build/dist/bin/python -m pip install --quiet" VENV=build/dist dist-search

dist-search:
	@$(PYTORCH_$(TORCH))
	@$(PIP) dist/*.whl
	cd build && ONEPEACE_CACHE=dist/cache dist/bin/onepeace search $(abspath $(SAMPLES)) --text "a cat" --top 2

# A table for each measurement, to paste into an issue; tests that need several GPUs say so and skip.
gpu: $(READY)  ## on a machine with GPUs: golden numbers, every recipe's step, processes, compile, resume, speed
	nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv
	$(BIN)/python -m pytest -q tests/gpu tests/train/test_processes.py tests/train/test_recipes.py tests/recipes
	$(BIN)/python docs/results/bench.py encode --device cuda
	$(BIN)/python docs/results/bench.py train recipes/pretrain/small_image_text.yaml --device cuda
	$(BIN)/python docs/results/bench.py train recipes/pretrain/base_audio_text.yaml run.batch_size=64 --device cuda

bench: $(READY)  ## measure the encoders on this machine
	$(BIN)/python docs/results/bench.py encode

readme: $(READY)  ## write what commands print into README.md and docs/, and pages of docs/reference; with chromium, draw pictures
	PYTHONPATH=tests $(BIN)/python -m support.command_reference
	PYTHONPATH=tests $(BIN)/python -m support.endings_reference
	PYTHONPATH=tests $(BIN)/python -m support.readme
	PYTHONPATH=tests $(BIN)/python -m support.pictures

clean:  ## remove .venv, and everything else that can be made again
	rm -rf .venv build dist demo.html *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
