# make demo | test | soak | bench | agx | lint | docs | wheel | clean: each sets up what it needs in .venv. `PYTHON=python3.12 make ...` picks the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CXX_SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.def')

# pip compiles no module of the tools that it installs: Python does, those that it imports, and for all processes of the tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test soak bench agx lint format stub docs wheel wheel-macos check-wheel-macos clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/mlx-delta demo

# All of them, or those of TESTS: `make test TESTS=tests/ops`.
TESTS ?=
test: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(TESTS)

# Long runs of the tests of random inputs, of which CI takes a few.
soak: $(VENV)/installed-dev
	$(BIN)/python -m pytest --soak tests/unit/engine/test_schedules.py tests/unit/engine/test_prefix.py -k "random or many"
	$(BIN)/python -m pytest --soak tests/unit/engine/test_speculation.py tests/unit/chat/test_drafts.py -k without_drafts
	$(BIN)/python -m pytest --soak tests/unit/chat -k "tool_ or leak_nothing"

# The benches refuse to report on red tests: those of the ops come first.
bench: $(VENV)/installed-dev
	$(BIN)/python -m pytest tests/ops
	$(BIN)/mlx-delta bench kernels
	$(BIN)/mlx-delta bench decode --layers 8

# The Metal kernels as an Apple GPU's machine code: registers, spills, slots a byte. As root, with debootstrap.
agx: $(VENV)/installed-dev build/agx/debian/agx
	$(BIN)/python -m bench.agx

build/agx/debian/agx:
	bench/agx/setup.sh build/agx/debian

lint: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/actionlint

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CXX_SOURCES)

# The documentation site, in build/site/index.html. Strict: a broken link fails.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo build/site/index.html

# The types of the extension, for mypy and editors.
stub: $(VENV)/installed-dev
	$(BIN)/python -m nanobind.stubgen -q -m mlx_delta._core -o python/mlx_delta/_core.pyi
	$(BIN)/ruff format -q python/mlx_delta/_core.pyi

# One wheel for Python 3.10 and later, in dist/.
wheel: $(VENV)/installed-dev
	$(BIN)/python -m build --wheel --no-isolation

# The Apple Silicon wheel, cross-built on Linux and checked; needs Debian's lld and llvm.
wheel-macos: $(VENV)/installed-dev
	$(BIN)/python cross/macos/build.py

# That wheel among the ones that pip would put beside it on a Mac: symbols, ABI, and whether pip finds a set. A network.
check-wheel-macos:
	$(BIN)/python cross/macos/published.py

clean:
	rm -rf $(VENV) build dist

# The build backend, so that the extension is built once, here, and again only where a source changed.
$(VENV)/backend: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and f"Python 3.10 or later is needed, {sys.executable} is {sys.version}")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --group build
	touch $@

$(VENV)/installed: $(VENV)/backend CMakeLists.txt $(CXX_SOURCES)
	@echo "compiling the extension: five minutes of one core, where nothing of it was compiled before"
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[vision]'
	touch $@

# The site is made from sources alone: it does not need the extension.
$(VENV)/installed-docs: $(VENV)/backend
	$(BIN)/python -m pip install --quiet --no-compile --group docs
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --no-compile --group dev
	touch $@
