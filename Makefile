# Each target is one or two commands; nothing here that cannot be typed by hand after `. .venv/bin/activate`.
# All paths are relative, so that the project may lie in a folder with a space in its name.

PYTHON ?= python3
VENV := $(CURDIR)/.venv
# Ray does not start dependably from an interpreter whose path has a space: there .venv is a link into the user's cache.
ifneq ($(words $(CURDIR)),1)
VENV := $(HOME)/.cache/unetpp/venvs/$(shell pwd | cksum | cut -d ' ' -f 1)
endif
export PATH := $(VENV)/bin:$(PATH)
# uv does not read pip's settings: where local wheels lie, if there is such a place.
FIND_LINKS = UV_FIND_LINKS="$${UV_FIND_LINKS:-$${PIP_FIND_LINKS:-$$(pip config get global.find-links 2>/dev/null)}}"

.PHONY: demo test test-nightly test-fast check format docs screenshots dist hooks lock setup mlflow clean help

help:            ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 15

demo: setup      ## the whole pipeline on built-in synthetic images, then the depth table
	@touch .venv/demo
	@dvc repro --quiet || { echo "the pipeline stopped: \`dvc repro\` resumes it, and shows where"; exit 1; }
	@test reports/register/versions.json -nt .venv/demo || { echo "everything is up to date" && unetpp summary; }
	@test -n "$$VIRTUAL_ENV" || echo "in a new shell, first: . .venv/bin/activate"

test: setup      ## all tests but the nightly ones
	@pytest --numprocesses 2 --dist loadgroup --durations=30 -m "not nightly"

test-nightly: setup ## the matrices of faults and combinations
	@pytest --numprocesses 2 --dist loadgroup --durations=30 -m nightly

test-fast: setup ## the tests that start no Ray, no server and no pipeline
	@pytest --numprocesses 2 -m "not slow and not ray and not nightly"

check: setup     ## what CI checks beside the tests: style, types, tidy files
	@ruff check . && ruff format --check . && pyright && pre-commit run --all-files

format: setup    ## rewrite to the style
	@ruff check --fix . && ruff format .

# Links between pages are as in the repository, so the site is built from a copy of the pages in the same places.
PAGES = README.md CONTRIBUTING.md CHANGELOG.md SECURITY.md LICENSE NOTICE params.yaml docs examples benchmarks/*.md
docs: setup      ## the documentation site in build/site; a broken link is an error
	@rm -rf build/docs build/site && mkdir -p build/docs && tar -cf - $(PAGES) | tar -xf - -C build/docs
	@zensical build --strict --clean

screenshots: setup ## docs/images anew, from the pages of the project in FROM (default: this one) in headless Chromium
	@python -m tests.screenshots "$(or $(FROM),.)"

# A release: `git tag v0.2.0 && git push --tags`, and .github/workflows/release.yml runs this.
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
dist: setup      ## sdist and wheel in dist/; TAG=v0.1.0 has to be the version of pyproject.toml
	@test "$(or $(TAG),v$(VERSION))" = "v$(VERSION)" || { echo "error: tag $(TAG), and pyproject.toml has version $(VERSION)"; exit 2; }
	@rm -rf dist && $(FIND_LINKS) uv build --quiet --out-dir dist

hooks: setup     ## what `git commit` checks from now on: style and tidy files
	@pre-commit install

mlflow: setup    ## the MLflow page
	@unetpp mlflow

setup: .venv/installed ## .venv with every package pinned, and a cache of DVC's own that no other user may enter
	@mkdir -p "$(HOME)/.cache/unetpp" && chmod 700 "$(HOME)/.cache/unetpp"
	@grep -qs site_cache_dir .dvc/config.local || dvc config --local core.site_cache_dir "$(HOME)/.cache/unetpp/dvc"

# Its scripts begin with the folder where it was made: a project that was moved or copied gets a new one.
MOVED := $(shell test -s .venv/installed && test "$$(cat .venv/installed)" != "$(CURDIR)" && echo moved)
ifneq ($(MOVED),)
.PHONY: .venv/installed
endif
.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:3]; sys.exit(0 if (3, 11, 4) <= v < (3, 14) else "error: Python %d.%d.%d found, 3.11.4 to 3.13 expected; name another one: make PYTHON=python3.12 ..." % v)'
	@echo "installing into .venv (once; one or two minutes)"
	@$(if $(MOVED),rm -rf .venv)
	@test -x .venv/bin/python || $(PYTHON) -m venv "$(VENV)"
	@test -e .venv || ln -sfn "$(VENV)" .venv
	@python -m pip install --quiet --disable-pip-version-check uv
	@# Compiled once here: a stage is several processes, and each would compile torch anew where Python may not write.
	@$(FIND_LINKS) uv pip install --quiet --python "$(VENV)/bin/python" --compile-bytecode -r requirements.lock
	@uv pip install --quiet --python "$(VENV)/bin/python" --no-deps -e .
	@echo "$(CURDIR)" > .venv/installed

# What is pinned stays where it still fits: delete the file to take the newest. torch's wheels differ by machine.
lock:            ## requirements.lock from pyproject.toml, with the hashes of all packages but torch
	@sed -i '/^torch==/d' requirements.lock # else the public build would be preferred to a local one
	@$(FIND_LINKS) uv pip compile --quiet pyproject.toml --all-extras --python-version 3.11.4 --no-header --no-annotate --generate-hashes --output-file requirements.lock
	@sed -i -E '/^torch==/,/[^\\]$$/{/^ /d;s/^(torch==[0-9.]+).*/\1/}' requirements.lock

clean:           ## what the stages made, downloads, unfinished runs, the site; .venv and DVC's cache stay
	@rm -rf data/raw data/prepared data/cache models/search models/train models/export reports runs dvc_plots build dist
