# `make run` and `make test` do everything on a fresh machine with Python 3.11 or 3.12.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do $$p -c \
  'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin

.PHONY: run test lint unit e2e bench-grpo clean

run: .venv/ready  ## set up, then curate and train the toy
	$(BIN)/saerl run

test: .venv/ready lint unit e2e  ## everything that CI runs

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/pyright

unit: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not e2e" -n 2 --dist loadfile  # two files at a time, a core each

e2e: .venv/ready  ## real Ray, real verl
	$(BIN)/pytest -m e2e

bench-grpo: .venv/ready  ## does curation help? hours; what is done is not done again
	$(BIN)/python -m benchmarks.grpo

# torch first and pinned: an unpinned torch, or one that a dependency chooses, brings gigabytes of CUDA to a laptop.
# On a GPU box install your CUDA build of torch into .venv before `make`, and it stays.
.venv/ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "SAERL needs Python 3.11 or 3.12 (set PYTHON=...)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e ".[verl,dev]"
	touch $@

clean:
	rm -rf .venv saerl-out build *.egg-info
