# Two commands on a fresh machine with Python 3.11, 3.12 or 3.13: `make demo` and `make test`. `make help` lists the others.

# The first Python that TensorFlow supports and that can create virtual environments.
ifndef PYTHON
PYTHON := $(shell for python in python3 python3.13 python3.12 python3.11 "$$(uv python find '>=3.11,<3.14' 2> /dev/null)"; do \
    "$$python" -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2> /dev/null && \
    echo "$$python" && break; done)
endif
PIP_INSTALL = -m pip install --disable-pip-version-check

define ENVIRONMENT
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 with venv was found. TensorFlow supports no other version." \
	    "Install one (Debian, Ubuntu: python3-venv; or uv python install 3.13), or give it: make PYTHON=/path/to/python3.13" >&2; \
	    exit 1; }
	test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
endef

# A lock file is complete, so --no-deps: otherwise pip would look for tensorflow-text, which is left out on purpose.
define INSTALL
	$(call ENVIRONMENT,$(1))
	@echo "Installing $(2) into $(1): downloads about 550 MB unless pip has them in its cache; takes $(3) GB of disk."
	$(1)/bin/python $(PIP_INSTALL) --no-deps --require-hashes --requirement $(2)
	$(1)/bin/python $(PIP_INSTALL) --quiet --no-deps --no-build-isolation --editable .
endef

.PHONY: help demo test test-all check fix bench image docs lock clean

help:  ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 22

demo: .venv/.cpu  ## run the whole job on pictures that it draws itself
	.venv/bin/transfer-job demo

# Tests start hundreds of processes. Where this is set, each one compiles what it imports of job/.
unexport PYTHONDONTWRITEBYTECODE

PROCESSES = 2
LEFT_OUT = long or thorough
test: .venv/.dev  ## run the tests that every change needs, in minutes
	.venv/bin/python -m pytest --dist loadfile --no-loadscope-reorder --numprocesses $(PROCESSES) -m "not ($(LEFT_OUT))"

# Six processes on two cores: many tests mostly wait, for Slurm, the back-off of Kubernetes, or the deadline of a lost worker.
test-all:  ## run all tests except those marked long
	$(MAKE) test PROCESSES=6 LEFT_OUT=long

check: .venv/.dev .venv-lint/.done  ## check format, lint, types, imports, shell scripts, Dockerfile
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo
	.venv-lint/bin/shellcheck .ci/* image/* slurm/*
	.venv-lint/bin/hadolint Dockerfile

fix: .venv/.dev  ## format the code, and repair what the linter can repair
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench: .venv/.dev  ## run all benchmarks; takes hours
	.venv/bin/python -m benchmarks.side_by_side
	.venv/bin/python -m benchmarks.decoding
	.venv/bin/python -m benchmarks.augmentation
	.venv/bin/python -m benchmarks.fine_tune_memory
	.venv/bin/python -m benchmarks.data_quality
	.venv/bin/python -m benchmarks.intake --rounds 3 3 2
	.venv/bin/python -m benchmarks.scale
	.venv/bin/python -m benchmarks.checkpoints
	.venv/bin/python -m benchmarks.buckets
	.venv/bin/python -m benchmarks.transformers
	.venv/bin/python -m benchmarks.gpu

# VARIANT=gpu for the image with CUDA.
VARIANT ?= cpu
image:  ## build the container image
	docker build --build-arg VARIANT=$(VARIANT) --build-arg REVISION=$$(git rev-parse HEAD) --tag transfer-job:$(VARIANT) .

# tensorflow-serving-api, for tests: it requires tensorflow, so it comes without its dependencies, which are all there.
.venv/.dev: requirements/dev.txt requirements/serving.txt pyproject.toml
	$(call INSTALL,.venv,requirements/dev.txt,2.6)
	.venv/bin/python $(PIP_INSTALL) --quiet --no-deps --require-hashes --requirement requirements/serving.txt
	touch .venv/.cpu $@

.venv/.cpu: requirements/cpu.txt pyproject.toml
	$(call INSTALL,.venv,requirements/cpu.txt,2.3)
	touch $@

# Only what users install. tests/e2e/test_user_environment.py runs the commands of the README in it.
.venv-user/.done: requirements/cpu.txt pyproject.toml
	$(call INSTALL,.venv-user,requirements/cpu.txt,2.3)
	touch $@

.venv-lint/.done: requirements/lint.txt
	$(call ENVIRONMENT,.venv-lint)
	.venv-lint/bin/python $(PIP_INSTALL) --quiet --require-hashes --requirement requirements/lint.txt
	touch $@

docs: .venv/.dev  ## write docs/configuration.md, docs/backbones.md and THIRD_PARTY.md
	.venv/bin/python -m docs.make_reference
	.venv/bin/python -m docs.make_third_party

# Lock files contain hashes and no address of a package index. cpu.txt and gpu.txt have the same versions as dev.txt.
# Versions stay as they are, unless UPGRADE says otherwise: CONTRIBUTING.md.
UPGRADE ?=
LOCK = uv pip compile $(UPGRADE) --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header
lock:  ## write the lock files in requirements/; needs uv
	$(LOCK) pyproject.toml --extra cpu --extra s3 --extra heif --extra xlsx --extra hub --extra onnx --extra litert --extra mlflow --extra dev --output-file requirements/dev.txt
	$(LOCK) pyproject.toml --extra cpu --extra s3 --extra heif --extra xlsx --extra hub --constraint requirements/dev.txt --output-file requirements/cpu.txt
	$(LOCK) pyproject.toml --extra gpu --extra s3 --extra heif --extra xlsx --extra hub --constraint requirements/dev.txt --output-file requirements/gpu.txt
	$(LOCK) requirements/lint.in --output-file requirements/lint.txt

clean:  ## remove the virtual environments and the demo
	rm -rf .venv .venv-lint .venv-user demo-run
