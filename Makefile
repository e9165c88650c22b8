# make demo    set up, then a whole backup and restore on the embedded mirror   (ARGS="--json ...")
# make test    set up, then every test; the slow tiers say what they ran        (ARGS="-k name")
# make bench   a backup against GNU tar on the mounted leg, as paired ratios  (ARGS="--pairs 5")
# make check   style, types and the rooms' import rules
.PHONY: setup demo test test-fast bench check clean

setup:
	@scripts/setup

demo: setup
	@.venv/bin/splitmirror demo $(ARGS)

test: setup check
	.venv/bin/pytest $(ARGS)

test-fast: setup
	.venv/bin/pytest tests/unit tests/contract tests/property -m "not real and not crash" $(ARGS)

bench: setup
	@.venv/bin/python bench/backup_vs_tar.py $(ARGS)

check: setup
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
