# Thin: every recipe is one or two commands that can be typed by hand.
VENV ?= .venv
PYTHON ?= python3
PIP = $(VENV)/bin/python -m pip install --quiet --constraint constraints.txt

.PHONY: demo test references

demo: $(VENV)/.demo
	$(VENV)/bin/python -m train.demo --workdir=runs/demo

test: $(VENV)/.test
	$(VENV)/bin/python -m pytest --numprocesses=2 --dist=worksteal --durations=15

# The original implementations; with them installed, `make test` compares every network with its own.
# Where there is a libtpu it goes into a folder apart: JAX looks for TPUs wherever one is installed.
references: $(VENV)/.test
	$(PIP) --editable '.[references]'
	-$(PIP) --no-deps --upgrade --target=$(VENV)/tpu 'libtpu==0.0.42.*'

$(VENV)/.demo $(VENV)/.test: $(VENV)/.%: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[$*]'
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
