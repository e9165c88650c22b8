# make demo    set up, then a whole backup and restore of a running database       (ARGS="--json ...")
#              (--mirror qsd|lvm|md|reflink|directories; --in-guest runs it on LVM in an emulated machine)
# make test    set up, then every test; the slow tiers say what they ran        (ARGS="-k name")
#              SKIP_VM=1 leaves out the guests, which take most of the time
# make test-vm the guests alone: LVM, md, PostgreSQL on Debian's own kernel, emulated; docs/testing.md
#              (ARGS="tests/vm/test_guest.py --inside md")
# make bench   every figure that matters, against what people use instead (ARGS="--scale 0.1 --json")
# make bench-page   docs/performance.md from the figures that `make bench` saved
# make check   style, types, the rooms' import rules, and that every test can be collected
# Files of tests run side by side, as many as there are processors; ARGS="-n0" runs one after another.
PYTEST = .venv/bin/pytest -n auto --dist loadfile --no-loadscope-reorder
.PHONY: setup demo test test-vm test-fast bench bench-page check clean

setup:
	@scripts/setup

demo: setup
	@.venv/bin/python -m tests.vm.demo $(ARGS)

test: setup check
	@[ -n "$(SKIP_VM)" ] || scripts/setup vm
	$(PYTEST) $(ARGS)

test-vm: setup
	@scripts/setup vm
	$(PYTEST) $(if $(findstring tests/vm,$(ARGS)),,tests/vm) $(ARGS)

test-fast: setup
	$(PYTEST) tests/unit tests/contract tests/property -m "not real and not crash" $(ARGS)

bench: setup
	@scripts/setup bench
	@.venv/bin/python -m bench $(ARGS)

bench-page:
	.venv/bin/python -m bench.page docs/performance.json docs/performance.md

check: setup
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/pytest --collect-only -q --no-header >/dev/null || .venv/bin/pytest --collect-only -q

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
