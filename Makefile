# Two commands do everything: `make train` and `make test`. Each installs what it needs first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# For a small CPU-only torch: make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
ARGS ?=
# Processes that share the tests between them; about 1.5 GiB each.
JOBS ?= 2

.PHONY: setup train test test-fast fuzz kills kernels-aot lint types docs figures rehearse package clean

setup: $(VENV)/.installed

# What training and its bundles need is less than what testing does.
$(VENV)/.installed: EXTRAS := mujoco,dev,docs
$(VENV)/.trains: EXTRAS := mujoco,export
$(VENV)/.installed $(VENV)/.trains: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "supple needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -e ".[$(EXTRAS)]"
	touch $@

train: $(if $(wildcard $(VENV)/.installed),setup,$(VENV)/.trains)
	$(BIN)/supple train gym/HalfCheetah-v5 --agent flashsac --preset laptop $(ARGS)

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder \
	  --durations 20 $(ARGS)

test-fast: setup
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

fuzz: setup
	SUPPLE_FUZZ=1000 $(BIN)/python -m pytest tests/test_fuzz.py $(ARGS)

kills: setup
	SUPPLE_KILLS=100 $(BIN)/python -m pytest tests/test_kill.py -s $(ARGS)

kernels-aot: setup
	$(BIN)/python -m supple.kernels.critic_integration.aot $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

docs: setup
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html $(ARGS)

# Figures and tables of docs/ from benchmarks/results/; commit what they change.
figures: setup
	$(BIN)/python -m benchmarks.figures
	$(BIN)/python -m benchmarks.tables

# docker/Dockerfile.cpu without an engine, as root, in a clean Debian root; minutes and 3 GiB.
REHEARSAL ?= build/rehearsal
rehearse:
	$(PYTHON) docker/rehearse.py docker/Dockerfile.cpu $(REHEARSAL) $(ARGS)

# One simulator for real, in an environment of its own: sim-mjlab, sim-dmc, sim-genesis ...
SIM_VENVS ?= $(HOME)/.cache/supple/simulators
sim-%:
	$(PYTHON) benchmarks/simulators/venvs.py $* $(SIM_VENVS)
	PYTHONPATH=. MUJOCO_GL=$${MUJOCO_GL:-egl} $(SIM_VENVS)/$*/bin/python benchmarks/simulators/prove.py $*

package: setup
	$(BIN)/python -m build --wheel --outdir dist

clean:
	rm -rf build dist docs/_build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
