# Everything is installed into .venv, which is created by the first target that needs it.
# `make PYTHON=python3.12 …` uses another interpreter. `make test ARGS="-k redis"` passes arguments to pytest.

PYTHON ?= python3
VENV := .venv
PROTO_VENV := .venv-proto
BIN := $(VENV)/bin

# Stubs do not work with a runtime older than the tools that generated them, so they are generated with the oldest
# supported tools. The versions are exact, because `check-proto` compares byte for byte. If you raise grpcio-tools,
# raise the bounds of grpcio and protobuf in pyproject.toml too. (There are wheels for Python 3.11 to 3.13.)
PROTO_TOOLS := grpcio-tools==1.73.1 mypy-protobuf==3.7.0 protobuf==6.33.6 setuptools==80.9.0

# The number of this library's extensions of protobuf's options. `make proto` writes it into options.proto, and no
# other file has it. It is in the range for use within one organisation. Before the first release, register a number
# (see docs/options.md of protobuf), and replace it here.
EXTENSION_NUMBER := 57231
OPTIONS_PROTO := protos/idem_grpc_pb/v1/options.proto

# The folders of protos and of their stubs, as protos:stubs.
PROTO_ROOTS := protos:generated examples/protos:examples/generated tests/protos:tests/generated

# $(call make-venv,DIRECTORY): without python3-venv, Debian's python3 has no ensurepip, so use its pip instead.
make-venv = $(1)/bin/python -m pip --version >/dev/null 2>&1 \
	|| $(PYTHON) -m venv $(1) >/dev/null 2>&1 \
	|| { $(PYTHON) -m venv --clear --without-pip $(1) \
	     && $(PYTHON) -m pip --quiet --python $(1)/bin/python install pip; } \
	|| { rm -rf $(1); echo "Cannot make a virtual environment with $(PYTHON):" \
	     "on Debian, apt-get install python3-venv." >&2; exit 1; }

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Reinstall when pyproject.toml changes.
$(VENV)/.installed: pyproject.toml
	@$(call make-venv,$(VENV))
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

# The stamp's name contains the versions, so that a change of version reinstalls the tools.
PROTO_STAMP := $(PROTO_VENV)/.installed-$(subst $() ,-,$(PROTO_TOOLS))
$(PROTO_STAMP):
	@$(call make-venv,$(PROTO_VENV))
	$(PROTO_VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(PROTO_TOOLS)
	@touch $@

.PHONY: setup
setup: $(VENV)/.installed ## Install the package and its development tools into .venv

.PHONY: demo
demo: setup ## Run the demonstration, on its own store or on STORE=redis://host/0
	@$(BIN)/python -m examples.checkout.demo $(if $(STORE),--store "$(STORE)")

# Most tests wait for something, so run more of them in parallel than there are cores.
JOBS ?= 4

.PHONY: test
test: setup ## Run the tests, JOBS at a time
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile $(ARGS)

.PHONY: test-eager
test-eager: setup ## Run the asyncio tests with eager tasks, as asyncio.eager_task_factory makes them
	EAGER_TASKS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile -k "aio or async" $(ARGS)

# The oldest versions that pyproject.toml allows.
OLDEST := grpcio==1.73.1 grpcio-health-checking==1.73.1 grpcio-reflection==1.73.1 grpcio-testing==1.73.1 \
	grpcio-tools==1.73.1 protobuf==6.31.1 redis[hiredis]==6.0.0
OLDEST_VENV := .venv-oldest
$(OLDEST_VENV)/.installed: pyproject.toml
	@$(call make-venv,$(OLDEST_VENV))
	$(OLDEST_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' $(OLDEST)
	@touch $@

# The oldest grpc.aio raises an interceptor's exception a second time when the call is garbage-collected.
.PHONY: test-oldest
test-oldest: $(OLDEST_VENV)/.installed ## Run the tests of servers, clients and stores on the oldest grpcio, protobuf and redis
	$(OLDEST_VENV)/bin/python -m pytest --numprocesses $(JOBS) --dist loadfile \
		-W 'ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning' \
		tests/server tests/streams tests/stores tests/client tests/tokens $(ARGS)

.PHONY: lint
lint: setup ## Check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

.PHONY: format
format: setup ## Fix style and formatting automatically where possible
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	@$(for-each-root) $(BIN)/buf format --write $$protos; done

.PHONY: type
type: setup ## Check types
	$(BIN)/mypy

# Starts a shell loop over the roots that have protos; the caller ends it with `done`.
for-each-root = set -e; for root in $(PROTO_ROOTS); do \
	protos=$${root%%:*} stubs=$${root\#\#*:}; \
	files=$$(find $$protos -name '*.proto' 2>/dev/null | LC_ALL=C sort); \
	[ -n "$$files" ] || continue;

.PHONY: extension-number
extension-number: ## Write EXTENSION_NUMBER into options.proto, as `make proto` does
	@new=$(OPTIONS_PROTO).new; \
		sed -E 's/^(  [A-Za-z]+ (policy|default_policy|role) = )[0-9]{3,};/\1$(EXTENSION_NUMBER);/' \
			$(OPTIONS_PROTO) > $$new; \
		if cmp -s $$new $(OPTIONS_PROTO); then rm $$new; else mv $$new $(OPTIONS_PROTO); fi

# The stubs are first written to another folder, so that an error in a proto leaves the old stubs in place. Then all
# old stubs are deleted, including those of deleted protos.
.PHONY: proto
proto: extension-number $(PROTO_STAMP) ## Generate the stubs from the protos
	@$(for-each-root) \
		new=$(PROTO_VENV)/new; rm -rf $$new; mkdir -p $$new $$stubs; \
		protoc="$(PROTO_VENV)/bin/python -m grpc_tools.protoc -I $$protos -I protos \
			--plugin=protoc-gen-mypy=$(PROTO_VENV)/bin/protoc-gen-mypy \
			--plugin=protoc-gen-mypy_grpc=$(PROTO_VENV)/bin/protoc-gen-mypy_grpc"; \
		$$protoc --python_out=$$new --mypy_out=quiet:$$new $$files; \
		services=$$(grep -lE '^service ' $$files || true); \
		[ -z "$$services" ] || $$protoc --grpc_python_out=$$new --mypy_grpc_out=quiet:$$new $$services; \
		find $$stubs -name '*_pb2*.py' -delete -o -name '*_pb2*.pyi' -delete; \
		cp -R $$new/. $$stubs/; \
		echo "$$stubs is up to date"; \
	done

.PHONY: check-proto
check-proto: setup ## Lint the protos, and check that they are compatible with the last release and their stubs are fresh
	@$(for-each-root) $(BIN)/buf lint $$protos; $(BIN)/buf format --diff --exit-code $$protos; done
	@tag=$$(git describe --tags --abbrev=0 2>/dev/null) || { echo "no release yet to compare with"; exit 0; }; \
		$(BIN)/buf breaking protos --against ".git#tag=$$tag,subdir=protos"
	@$(MAKE) --no-print-directory proto
	@$(for-each-root) \
		git --no-pager diff --exit-code -- $$stubs \
			|| { echo "Stale stubs: commit what 'make proto' writes." >&2; exit 1; }; \
		new=$$(git ls-files --others --exclude-standard -- $$stubs); \
		[ -z "$$new" ] || { echo "Not in git:" $$new >&2; exit 1; }; \
	done

# The libraries to compare with are installed in a separate environment. The load generator h2load is in the
# package nghttp2-client.
BENCH_VENV := .venv-bench
$(BENCH_VENV)/.installed: pyproject.toml benchmarks/requirements.txt
	@$(call make-venv,$(BENCH_VENV))
	$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' \
		--requirement benchmarks/requirements.txt
	@command -v h2load >/dev/null || apt-get install --yes nghttp2-client >/dev/null \
		|| { echo "h2load is missing: install nghttp2-client" >&2; exit 1; }
	@touch $@

BENCH := PYTHONPATH=.:generated:examples/generated:tests/generated $(BENCH_VENV)/bin/python -W ignore -m benchmarks

.PHONY: bench
bench: $(BENCH_VENV)/.installed ## Compare the cost of calls with bare gRPC and other libraries; fails below a bar
	$(BENCH) $(ARGS)

.PHONY: bench-quick
bench-quick: $(BENCH_VENV)/.installed ## Run the main benchmarks in less than a minute, less exactly
	$(BENCH) --quick

.PHONY: bench-soak
bench-soak: $(BENCH_VENV)/.installed ## Check that a server's memory stays flat over 300,000 calls; takes 15 minutes
	$(BENCH) soak

.PHONY: bench-commits
bench-commits: $(BENCH_VENV)/.installed ## Compare the CPU cost of a call across COMMITS
	$(BENCH).commits $(COMMITS)

.PHONY: clean
clean: ## Remove generated files, including the virtual environments
	rm -rf $(VENV) $(PROTO_VENV) $(OLDEST_VENV) $(BENCH_VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
