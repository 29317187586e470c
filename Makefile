# Two commands for a newcomer: `make run` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_OFFLINE ?= 1

.PHONY: run test nightly evidence bench docs lint generate clean

.venv/.run: pyproject.toml constraints.txt
	@test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q torch==2.13.0 -c constraints.txt
	$(BIN)/pip install -q -e . -c constraints.txt
	@touch $@

.venv/.test: .venv/.run
	$(BIN)/pip install -q -e ".[test]" -c constraints.txt
	@touch $@

.venv/.dev: .venv/.test
	$(BIN)/pip install -q -e ".[test,dev,docs]" -c constraints.txt
	@touch $@

run: .venv/.run  ## a whole life of a small model on real text, at most six minutes
	$(BIN)/trainlore run recipes/first_life.yaml $(if $(OUT),--out $(OUT))

test: .venv/.test  ## the laws, the formulas, the quick claims
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

nightly: .venv/.test  ## what is too slow for every change: more kills, all pairs, the laws in other precisions and compiled
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow $(ARGS)
	$(BIN)/python -m pytest -n 2 --dist worksteal tests/test_laws.py -k test_pair --all-pairs $(ARGS)

evidence: .venv/.test  ## every claim at full seeds, resumable; writes results/
	$(BIN)/python tools/evidence.py $(ARGS)

bench: .venv/.test  ## speed and memory as ratios in one run
	$(BIN)/python benchmarks/all.py

docs: .venv/.dev  ## the site; warnings are errors
	$(BIN)/python tools/generate.py
	$(BIN)/mkdocs build --strict -q

lint: .venv/.dev  ## what pre-commit runs
	$(BIN)/ruff format --check src tests tools benchmarks
	$(BIN)/ruff check src tests tools benchmarks
	$(BIN)/mypy
	$(BIN)/python tools/generate.py --check

generate: .venv/.run  ## the index and the pages, from the method files
	$(BIN)/python tools/generate.py

clean:
	rm -rf .venv runs site build
