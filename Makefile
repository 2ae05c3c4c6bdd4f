# Every target sets up .venv by itself. The torch pin is the CPU build; the package itself
# accepts any recent torch.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
export TF_CPP_MIN_LOG_LEVEL ?= 3
BACKENDS := tensorflow jax torch
SYNC := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)# not in the make of macOS

.PHONY: quickstart serve-demo test test-lowest lint format test-slow torture clean $(BACKENDS:%=test-%)

quickstart: $(READY)
	$(BIN)/python scripts/train.py --data generated --stride 3 --scheme pre_agg_decoupled \
		--budget 1.05e6 --recipe quickstart --name quickstart
	$(BIN)/python scripts/evaluate.py runs/quickstart --pictures

serve-demo: $(READY)
	$(BIN)/python scripts/serve_demo.py

# All backends at a time: most of a test is one core's work, and a thread that waits shall sleep.
test: export OMP_WAIT_POLICY ?= passive
# What XLA compiles runs but a few times here: unoptimised, as JAX can be told for its own tests,
# models train in 0.6 (JAX) and 0.8 (TensorFlow) of the time. `make test-slow`, `make test-lowest`
# and pytest by itself run what users run.
test: export JAX_DISABLE_MOST_OPTIMIZATIONS ?= 1
test: export XLA_FLAGS ?= --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true
test: $(READY)
	$(MAKE) --jobs 3 $(SYNC) $(BACKENDS:%=test-%)

$(BACKENDS:%=test-%): test-%: $(READY)
	KERAS_BACKEND=$* $(BIN)/python -m pytest

test-slow: $(READY)
	for backend in $(BACKENDS); do KERAS_BACKEND=$$backend $(BIN)/python -m pytest -m slow \
		--ignore tests/test_torture.py --ignore tests/test_outages.py || exit 1; done

# KERAS_WSGCN_KILLS says how many kills a command gets: by default 50 under torch, else 10.
torture: $(READY)
	for backend in torch jax tensorflow; do KERAS_BACKEND=$$backend $(BIN)/python -m pytest -s \
		-m slow tests/test_torture.py tests/test_outages.py || exit 1; done

# The floors of pyproject.toml, exactly (but for torch, whose older builds bring CUDA along).
test-lowest: .venv-lowest/.ready
	for backend in $(BACKENDS); do \
		KERAS_BACKEND=$$backend .venv-lowest/bin/python -m pytest || exit 1; done

.venv-lowest/.ready: pyproject.toml tests/lowest.txt
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet torch==2.13.0
	.venv-lowest/bin/pip install --quiet --constraint tests/lowest.txt --editable '.[dev]'
	touch $@

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .venv-lowest build *.egg-info
