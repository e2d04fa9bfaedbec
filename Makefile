# make train     sets up, trains the toy model for ten minutes, then asks it about pictures it has never seen
# make test      sets up, runs every test
# make lessons   sets up, opens the notebooks
# make lint      sets up, checks style
# The plain commands behind these, for systems without make, are in README.md.

PYTHON ?= python3
MINUTES ?= 10
PROCESSES ?= 2
BIN := .venv/bin

.PHONY: train test lessons lint clean
train: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node $(PROCESSES) train_tiny.py --minutes $(MINUTES)

test: .venv/ready-for-tests
	$(BIN)/python -m pytest -n 2

lessons: .venv/ready-for-lessons
	$(BIN)/jupyter lab lessons

lint: .venv/ready-for-tests
	$(BIN)/ruff check .

# constraints.txt pins every version, torch's among them: an open range may take a build of several gigabytes.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

.venv/ready-for-tests: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[test]"
	touch $@ .venv/ready

.venv/ready-for-lessons: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[lessons]"
	touch $@ .venv/ready

clean:
	rm -rf .venv build *.egg-info
