PYTHON ?= python3
BIN := .venv/bin
# Two processes of tests, each with a compiler at work, keep two cores busy; more take more memory.
PYTEST := $(BIN)/python -m pytest -n $${TEST_PROCESSES:-2} --dist worksteal
SIMULATED := tests/backends/cuda/simulated

.PHONY: test test-all bench fuzz mutants versions demo docs install lint types clean

test: install lint types
	$(PYTEST)
	NUMBA_ENABLE_CUDASIM=1 $(PYTEST) $(SIMULATED)

# What test leaves out: whole products of cases, all PTX, soak, the fuzz at depth.
test-all: install
	RNNJIT_FUZZ_EXAMPLES=$${RNNJIT_FUZZ_EXAMPLES:-200} $(PYTEST) -m "full or fuzz"
	NUMBA_ENABLE_CUDASIM=1 $(PYTEST) -m full $(SIMULATED)

# Minutes; alone on the machine.
bench: install
	$(BIN)/python -m pytest benchmarks/suites --benchmark-enable --benchmark-only \
		--benchmark-group-by=group --benchmark-sort=mean --benchmark-columns=min,median,iqr,rounds \
		--benchmark-json=benchmarks/results/$$($(BIN)/python benchmarks/suites/host.py).json

fuzz: install
	RNNJIT_FUZZ_ANEW=1 RNNJIT_FUZZ_EXAMPLES=$${RNNJIT_FUZZ_EXAMPLES:-5000} $(BIN)/python -m pytest -m fuzz --hypothesis-show-statistics

# Breaks one line after another and shows which test notices.
mutants: install
	$(BIN)/python tests/mutants/run.py

# Environments of exact versions, one a file, whose first line names its Python: PyPI's PyTorch takes
# several GB in each. `make version-oldest` runs one of them.
versions: $(patsubst versions/%.txt,version-%,$(wildcard versions/*.txt))

# Tests that need no other package.
VERSION_TESTS := tests/backends/numba tests/backends/tvm tests/backends/inductor \
	tests/backends/test_conformance.py tests/backends/test_values.py \
	tests/bad_input tests/dispatch tests/execution tests/frontend tests/runtime \
	tests/tools/test_autotune.py tests/tools/test_explain.py tests/tools/test_gradient_flow.py \
	tests/test_lstm_gru_reference.py tests/test_reference.py tests/test_spec.py

version-%: versions/%.txt
	test -x build/$*/bin/python || $$(sed -n '1s/# Python /python/p' $<) -m venv build/$*
	build/$*/bin/python -m pip install --quiet -c $< -e '.[tvm]' \
		expecttest hypothesis pytest pytest-benchmark pytest-xdist
	build/$*/bin/python -m pytest -n $${TEST_PROCESSES:-2} --dist worksteal $(VERSION_TESTS)

demo: .venv/.installed-examples
	$(BIN)/python examples/digits.py
	$(BIN)/rnnjit compare --model examples/output/digits.pt

docs: install
	$(BIN)/mkdocs build --strict

# dev has all that examples has.
install: .venv/.installed-dev
	touch .venv/.installed-examples

.venv/.installed-%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$*]'
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

clean:
	rm -rf .venv build .mypy_cache .pytest_cache .ruff_cache .hypothesis
