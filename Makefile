PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: test fuzz demo docs install lint types clean

test: install lint types
	$(BIN)/python -m pytest
	NUMBA_ENABLE_CUDASIM=1 $(BIN)/python -m pytest tests/simulated

fuzz: install
	RNNJIT_FUZZ_EXAMPLES=$${RNNJIT_FUZZ_EXAMPLES:-5000} $(BIN)/python -m pytest -m fuzz --hypothesis-show-statistics

demo: install
	$(BIN)/python examples/digits.py
	$(BIN)/rnnjit compare --model examples/output/digits.pt

docs: install
	$(BIN)/mkdocs build --strict

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(STAMP)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
