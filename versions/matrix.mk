# Environments of exact versions, one a file, whose first line names its Python. Not a part of test:
# PyPI's PyTorch takes several GB in each.
VERSIONS := $(basename $(notdir $(wildcard versions/*.txt)))
# Those that need no other package.
VERSION_TESTS := tests/backends/numba tests/backends/tvm tests/backends/inductor \
	tests/backends/test_conformance.py tests/backends/test_values.py \
	tests/bad_input tests/dispatch tests/execution tests/frontend tests/runtime \
	tests/tools/test_autotune.py tests/tools/test_explain.py tests/tools/test_gradient_flow.py \
	tests/test_lstm_gru_reference.py tests/test_reference.py tests/test_spec.py

versions: $(VERSIONS:%=version-%)

# One of them: make version-oldest
version-%: versions/%.txt
	test -x build/$*/bin/python || $$(sed -n '1s/# Python /python/p' $<) -m venv build/$*
	build/$*/bin/python -m pip install --quiet -c $< -e '.[tvm]' \
		expecttest hypothesis pytest pytest-benchmark pytest-xdist
	build/$*/bin/python -m pytest -p no:cacheprovider -n $${TEST_PROCESSES:-2} --dist worksteal $(VERSION_TESTS)
