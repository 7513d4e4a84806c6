# Everything that is done by hand with this checkout. Needs make and Python 3.11 or newer.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/sh

VENV := .venv
TOOLS := .tools
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-header --no-emit-index-url --no-emit-find-links
EXPORT := $(BIN)/python manage.py export_schedule
# For a small run, such as BENCH_ROWS=20000, whose figures are not for the documentation.
BENCH_SMALL = --rows=$(BENCH_ROWS) --turns=1 --output=.bench/benchmarks.md
# The shell scripts: by their suffix, or in .ci by their first line.
SCRIPTS = $(shell { find . -type d \( -name '.venv' -o -name '.tools' -o -name '.demo' \
		-o -name '.git' \) -prune -o -type f \( -name '*.sh' -o -name '*.bash' \) -print; \
	grep -rlE '^\#!.*sh$$' ./.ci; } 2>/dev/null | sort -u)

# The crontab's lines call `python` and find it on PATH, as in the image.
export PATH := $(CURDIR)/$(BIN):$(CURDIR)/$(TOOLS):$(PATH)

.PHONY: help demo up down test soak check check-python check-format check-types check-scripts \
	check-image check-migrations bench docs export sbom update requirements supercronic pgbouncer minio clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

demo: $(INSTALLED) ## run every job against real local services, and show what it did
	@$(BIN)/python -m demo.run

up: ## build the image and run the whole deployment in Docker: a worker, and a page to look at
	docker compose up --build --detach --wait
	@echo "Open http://127.0.0.1:$${PAGE_PORT:-8090}  (docker compose logs -f cron follows the worker)"

down: ## stop and remove the containers; the data stays, `docker compose down -v` removes it
	docker compose down

test: $(INSTALLED) supercronic pgbouncer ## run the tests, against real local services
	$(BIN)/python -m pytest -n auto --dist worksteal $(PYTEST)

soak: $(INSTALLED) supercronic pgbouncer $(S3) ## repeat what `test` tries a few times, 8 minutes; LONG=1 takes hours; S3=minio
	TESTS_S3=$(S3) LONG=$(LONG) $(BIN)/python -m pytest -m soak -n auto --dist worksteal $(PYTEST)

check: check-python check-format check-types check-scripts check-image
check: check-migrations ## lint the Python, the scripts, the image; check types and migrations

bench: $(INSTALLED) ## measure start-up, runner, badges and archive, 20 minutes, into docs/benchmarks.md
	@demo/get_minio.sh $(TOOLS) || true
	@$(BIN)/python -m bench $(if $(BENCH_ROWS),$(BENCH_SMALL))

docs: $(INSTALLED) ## write the pages of docs/ as a site that can be searched, into .site/
	$(BIN)/python -m mkdocs build --quiet
	@echo "Open .site/index.html"

export: $(INSTALLED) ## write render.yaml and deploy/ from the crontab
	$(EXPORT) render-worker --output .
	$(EXPORT) render-cron --output deploy
	$(EXPORT) kubernetes --output deploy/kubernetes
	rm -f deploy/systemd/*.service deploy/systemd/*.timer
	$(EXPORT) systemd --output deploy/systemd

sbom: $(INSTALLED) ## list what the built image is made of, as CycloneDX, in .sbom/
	@$(BIN)/python .ci/sbom.py

update: UPGRADE = --upgrade
update: requirements ## compile *.in with the newest versions

requirements: $(INSTALLED) ## compile *.in, with hashes
	$(COMPILE) $(UPGRADE) requirements.in -o requirements.txt
	$(COMPILE) $(UPGRADE) requirements-dev.in -o requirements-dev.txt

clean: ## remove what make made: .venv, .tools, caches, ... (never audit_archives)
	@[ ! -d .demo ] || [ ! -x $(BIN)/python ] || $(BIN)/python -m demo.run clean
	rm -rf $(VENV) $(TOOLS) .demo .bench .sbom .site .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# -- what `make check` is made of -------------------------------------------------------

check-python: $(INSTALLED)
	$(BIN)/ruff check .

check-format: $(INSTALLED)
	$(BIN)/ruff format --check .

check-types: $(INSTALLED)
	DEBUG=True $(BIN)/mypy

check-scripts: $(INSTALLED)
	$(BIN)/shellcheck $(SCRIPTS)

check-image: $(INSTALLED)
	$(BIN)/hadolint Dockerfile.cron

# Compares models with migrations; this needs no database.
check-migrations: $(INSTALLED)
	DEBUG=True $(BIN)/python -W ignore::RuntimeWarning manage.py makemigrations --check --dry-run

# -- tools ------------------------------------------------------------------------------

# Without supercronic only the tests of the schedule are skipped.
supercronic:
	@demo/get_supercronic.sh $(TOOLS) || true

# Without PgBouncer only the tests of the locks behind a pooler are skipped.
pgbouncer:
	@demo/get_pgbouncer.sh $(TOOLS) || true

# Without MinIO the benchmarks use moto, whose own time is as much as psql's; a soak with
# S3=minio needs it.
minio:
	@demo/get_minio.sh $(TOOLS)

$(INSTALLED): requirements-dev.txt
	@demo/make_venv.sh $(VENV) requirements-dev.txt
	@touch $@
