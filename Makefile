# Everything runs in .venv, made on first use. PYTHON chooses the interpreter it is made with.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/installed
RUFF := $(BIN)/ruff
SAMPLES := data/samples

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint format types bench readme clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 10

install: $(READY)  ## make .venv with the package (editable) and what its tests need

$(READY): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

demo: $(READY)  ## search the sample files by words, a picture, a sound and a mix; the last also as demo.html
	$(BIN)/onepeace search $(SAMPLES) --text "a cat looking at the camera" --top 3
	$(BIN)/onepeace search $(SAMPLES) --image $(SAMPLES)/images/bus.jpg --top 3
	$(BIN)/onepeace search $(SAMPLES) --audio $(SAMPLES)/sounds/dog.ogg --only pictures --top 3
	$(BIN)/onepeace search $(SAMPLES) --image $(SAMPLES)/images/horses.jpg --text "waves on the beach" --top 3 --html demo.html
	@echo "The page: $(BIN)/onepeace serve data/samples, then open http://127.0.0.1:7860 in a browser"

test: $(READY)  ## run the tests
	$(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist loadfile

test-all: $(READY)  ## run the slow tests too
	$(BIN)/python -m pytest -q -m ""

lint: $(READY)  ## check style and formatting
	$(RUFF) check --config .ci/ruff.toml .
	$(RUFF) format --config .ci/ruff.toml --check .

format: $(READY)  ## mend style and formatting
	$(RUFF) check --config .ci/ruff.toml --fix .
	$(RUFF) format --config .ci/ruff.toml .

types: $(READY)  ## check the types
	$(BIN)/mypy

bench: $(READY)  ## measure the encoders on this machine
	$(BIN)/python -m onepeace.bench encode

readme: $(READY)  ## write what README.md's commands print into it, and draw its pictures (needs chromium)
	PYTHONPATH=tests $(BIN)/python -m support.readme
	PYTHONPATH=tests $(BIN)/python -m support.screenshots
	PYTHONPATH=tests $(BIN)/python -m support.drawings

clean:  ## remove .venv and everything that can be made again
	rm -rf .venv build dist demo.html *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
