# Two commands on a fresh machine with Python 3.11 or later: `make demo` and `make test`.
PYTHON ?= python3
PIP = $(1)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement $(2)

.PHONY: demo test check bench image docs lock clean

demo: .venv/.cpu
	.venv/bin/transfer-job demo

test: .venv/.dev
	.venv/bin/python -m pytest -m "not long" --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: .venv/.dev .venv-lint/.done
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo
	.venv-lint/bin/shellcheck .ci/* slurm/*
	.venv-lint/bin/hadolint Dockerfile

bench: .venv/.dev
	.venv/bin/python -m benchmarks.side_by_side
	.venv/bin/python -m benchmarks.decoding
	.venv/bin/python -m benchmarks.augmentation
	.venv/bin/python -m benchmarks.fine_tune_memory
	.venv/bin/python -m benchmarks.data_quality
	.venv/bin/python -m benchmarks.scale --rounds 3 3 2
	.venv/bin/python -m benchmarks.checkpoints
	.venv/bin/python -m benchmarks.buckets
	.venv/bin/python -m benchmarks.gpu

# VARIANT=gpu for the image with CUDA.
VARIANT ?= cpu
image:
	docker build --build-arg VARIANT=$(VARIANT) --build-arg REVISION=$$(git rev-parse HEAD) --tag transfer-job:$(VARIANT) .

.venv/.dev: requirements/dev.txt pyproject.toml
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(call PIP,.venv,requirements/dev.txt)
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch .venv/.cpu $@

.venv/.cpu: requirements/cpu.txt pyproject.toml
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(call PIP,.venv,requirements/cpu.txt)
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

# What users install and nothing else: tests/e2e/test_user_environment.py runs the README's commands there.
.venv-user/.done: requirements/cpu.txt pyproject.toml
	test -x .venv-user/bin/python || $(PYTHON) -m venv .venv-user
	$(call PIP,.venv-user,requirements/cpu.txt)
	.venv-user/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

.venv-lint/.done: requirements/lint.txt
	test -x .venv-lint/bin/python || $(PYTHON) -m venv .venv-lint
	$(call PIP,.venv-lint,requirements/lint.txt)
	touch $@

docs: .venv/.dev
	.venv/bin/python -m docs.make_reference

# Locks carry hashes and no index address. The CPU and GPU locks hold the development lock's versions.
LOCK = uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header
lock:
	$(LOCK) pyproject.toml --extra cpu --extra s3 --extra dev --output-file requirements/dev.txt
	$(LOCK) pyproject.toml --extra cpu --extra s3 --constraint requirements/dev.txt --output-file requirements/cpu.txt
	$(LOCK) pyproject.toml --extra gpu --extra s3 --constraint requirements/dev.txt --output-file requirements/gpu.txt
	$(LOCK) requirements/lint.in --output-file requirements/lint.txt

clean:
	rm -rf .venv .venv-lint .venv-user demo-run
