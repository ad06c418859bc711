# "make run" and "make test" are all that one needs to know. Each makes the virtual environment it runs in.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: help run test check style types coverage docs news bench clean

help:
	@echo "make run       start proxyd on loopback, by proxyd.ini, which is made if missing"
	@echo "make test      run the tests"
	@echo "make check     all that has to hold before a change lands: style types coverage docs news"
	@echo "make bench     measure proxyd on this machine"
	@echo "make clean     remove what was built; the virtual environment and proxyd.ini stay"

run: $(VENV)/installed proxyd.ini proxyd-cert.pem
	$(BIN)/twistd -n --pidfile= proxyd --config proxyd.ini

test: $(VENV)/installed-test
	$(BIN)/python -m twisted.trial tests

check: style types coverage docs news

style: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .

types: $(VENV)/installed-test
	$(BIN)/mypy

# The tests, once, with every process they start counted; fails below the bound in setup.cfg.
coverage: $(VENV)/installed-test
	$(BIN)/coverage erase
	$(BIN)/coverage run -m twisted.trial tests
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

docs: $(VENV)/installed-docs
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build

news: $(VENV)/installed-test
	$(BIN)/towncrier build --draft --version next

# BENCH='--help' tells what can be left out.
bench: $(VENV)/installed-test
	$(BIN)/python -m benchmarks.run $(BENCH)

clean:
	rm -rf build dist docs/_build _trial_temp* .coverage* htmlcov .mypy_cache .ruff_cache
	find proxyd tests twisted benchmarks -name __pycache__ -prune -exec rm -r {} +

proxyd.ini: | $(VENV)/installed
	$(BIN)/proxyd example-config default --certificate > $@.new
	mv $@.new $@

proxyd-cert.pem: | $(VENV)/installed
	$(BIN)/proxyd make-certificate . 127.0.0.1 ::1 localhost

$(VENV)/bin/python:
	@$(PYTHON) -c "import ensurepip, venv" 2>/dev/null || \
	    { echo "Python's venv module is missing. On Debian: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(PIP) -e .
	touch $@

$(VENV)/installed-test: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(PIP) -e '.[test]'
	touch $@ $(VENV)/installed

$(VENV)/installed-docs: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(PIP) -e '.[docs]'
	touch $@ $(VENV)/installed
