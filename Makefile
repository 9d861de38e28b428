# Everything runs in .venv, which is made on first use and again when the requirements change.
PYTHON ?= python3
BIN := .venv/bin
# What accelerate would take anyway; said here, it does not remark on each of them.
LAUNCH := $(BIN)/accelerate launch --quiet --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no

.PHONY: help pretrain chat test lint format clean

help:
	@grep -E '^[a-z]+: .*##' Makefile | sed -E 's/: .*## /\t/'

pretrain: .venv/core ## a small GPT of your own from the bundled text, in five minutes
	$(LAUNCH) recipes/pretrain_gpt.py

chat: .venv/core ## a tutor of your own that answers questions, from nothing, in eight minutes; then talk with it
	$(LAUNCH) recipes/train_tokenizer.py --config recipes/configs/tutor_tokenizer.yaml
	$(LAUNCH) recipes/pretrain_gpt.py --config recipes/configs/tutor_gpt.yaml
	$(LAUNCH) recipes/finetune_instruct.py --config recipes/configs/tutor.yaml
	$(BIN)/llmkit chat runs/tutor

test: .venv/dev ## the whole test suite
	$(BIN)/python -m pytest

lint: .venv/dev ## style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/dev ## bring the code into the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the virtual environment
	rm -rf .venv

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "error: $(PYTHON) is Python %d.%d and llmkit needs 3.11 or newer; make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv

# A stamp per set of extras; a change of the requirements installs again.
.venv/core: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/dev: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@ .venv/core
