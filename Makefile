PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

OLDEST ?= python3.10
# Those that need no package beside pytest's.
OLDEST_TESTS := conformance autograd autotune cache_failures compile compiled_cell double_backward dropin \
	explain fast_path gradient_flow inductor_backend inductor_chunks lstm_gru_reference object_cache \
	private_names registry stream subclasses tracing transforms values

.PHONY: test bench fuzz oldest demo docs install lint types clean

test: install lint types
	$(BIN)/python -m pytest
	NUMBA_ENABLE_CUDASIM=1 $(BIN)/python -m pytest tests/backends/cuda/simulated

# Minutes; alone on the machine.
bench: install
	$(BIN)/python -m pytest benchmarks/suites --benchmark-enable --benchmark-only \
		--benchmark-group-by=group --benchmark-sort=mean --benchmark-columns=min,median,iqr,rounds \
		--benchmark-json=benchmarks/results/$$($(BIN)/python benchmarks/suites/host.py).json

fuzz: install
	RNNJIT_FUZZ_EXAMPLES=$${RNNJIT_FUZZ_EXAMPLES:-5000} $(BIN)/python -m pytest -m fuzz --hypothesis-show-statistics

# The oldest versions that pyproject.toml admits; PyPI's PyTorch takes several GB. Not a part of test.
oldest:
	test -x build/oldest/bin/python || $(OLDEST) -m venv build/oldest
	build/oldest/bin/python -m pip install --quiet -c oldest.txt -e . pytest hypothesis expecttest pytest-benchmark
	build/oldest/bin/python -m pytest -p no:cacheprovider $(OLDEST_TESTS:%=tests/test_%.py) tests/bad_input

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
