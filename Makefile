# SPDX-License-Identifier: GPL-2.0-or-later
#
#   make demo    set up what is missing, then plug and unplug memory in real arm64 and riscv64 guests
#   make test    set up what is missing, then run all tests, also in real guests; CI=1: including the long ones
#   make check   lint, types and unit tests: no guest, fetches only Python packages
#   make setup   only set up: system packages (APT, with sudo if needed) and .venv
#   make clean   remove what these created in the checkout; the cache of parts stays

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help

# The first Python that runs and is new enough; a shim for a Python that is not installed does not run.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin

# Tests run in parallel: a guest with two CPUs is idle half of the time. Tests that belong together stay together; one
# more process runs the unit tests beside those with guests.
JOBS ?= $(shell nproc)
# CI runs all tests.
QUICK := $(if $(CI),,--quick)
# Rounds of a soak, which shows a leak of a single page in any of them. The nightly matrix runs fifty.
ROUNDS ?= 12
SHARED := --no-loadscope-reorder

# Needed to fetch parts, to build kernels, QEMU and guest programs, and for the virtual environment.
PACKAGES := \
	apt bc binutils bison debian-archive-keyring dpkg dpkg-dev flex gcc gcc-aarch64-linux-gnu gcc-riscv64-linux-gnu \
	libc6-dev libc6-dev-arm64-cross libc6-dev-riscv64-cross libelf-dev libfdt-dev libglib2.0-dev libseccomp-dev \
	libslirp-dev libssl-dev make ninja-build patch perl pkg-config python3-venv xz-utils zlib1g-dev

# Needed by the tests only: a browser that opens the report, standard tools to compare with, keys for an archive.
TEST_PACKAGES := chromium cpio git gnupg zstd

.PHONY: help demo test check setup packages clean

help:
	@sed -n 's/^#   //p' $(firstword $(MAKEFILE_LIST))

demo: setup
	$(BIN)/memhp demo

test: PACKAGES += $(TEST_PACKAGES)
test: setup
	# Hundreds of processes start from these, also where Python may not keep what it compiles.
	$(BIN)/python -m compileall -q harness
	$(BIN)/memhp fetch
	$(BIN)/python -m pytest -n $$(($(JOBS) + 1)) $(SHARED) $(QUICK) --durations=40 \
		--memhp-arch arm64 --memhp-arch riscv64 --memhp-rounds $(ROUNDS) \
		tests/unit tests/integration tests/kernel

check: $(VENV)/.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest -n $(JOBS) $(SHARED) tests/unit

setup: packages $(VENV)/.stamp

# dpkg answers at once; APT only installs what is missing, and updates its lists only if that fails.
packages:
	@installed=$$(dpkg-query -W -f '$${Package} $${db:Status-Status}\n' $(PACKAGES) 2>/dev/null || true); \
	missing=(); \
	for package in $(PACKAGES); do \
		grep -qxF "$$package installed" <<<"$$installed" || missing+=("$$package"); \
	done; \
	[[ $${#missing[@]} -gt 0 ]] || exit 0; \
	root=(); \
	if [[ $$(id -u) -ne 0 ]]; then \
		command -v sudo >/dev/null || { echo "As root: apt-get install $${missing[*]}" >&2; exit 1; }; \
		root=(sudo); \
	fi; \
	echo "Installing $${missing[*]}"; \
	install=("$${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends \
		"$${missing[@]}"); \
	"$${install[@]}" || { "$${root[@]}" apt-get -q update && "$${install[@]}"; }

$(VENV)/.stamp: pyproject.toml
	@[[ -n "$(PYTHON)" ]] || { echo "memhp needs Python 3.11 or newer" >&2; exit 1; }
	@[[ -x $(BIN)/python ]] || $(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "cannot create a venv: sudo apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build memhp-runs .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find harness tests -name __pycache__ -type d -prune -exec rm -rf {} +
