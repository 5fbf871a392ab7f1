# make demo: the main job end to end on real photographs. make test: linters, types and tests. make test-fast: most tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
RAY := tests/pipeline/engines/test_ray.py

# Container images often set it: then every process compiles some 3,200 modules again, which takes longer than its work.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-fast clean
.DELETE_ON_ERROR:

$(READY): requirements.lock pyproject.toml Makefile $(wildcard pipeline/*.c shards/*.c)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	# Not compiled beforehand: of some 16,000 modules few are ever imported, and those are compiled by the last line.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.lock
	SAM2_BUILD_CUDA=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation sam2==1.1.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/python -c 'import cli, evaluation.evaluate, inference.run, trainer.doctor.checks, trainer.export, trainer.train'
	touch $@

demo: $(READY)
	$(BIN)/python demo/make_sav.py data/sav --pairs 84 --scenes --seed 4
	$(BIN)/python -m demo.make_folder data/folder --pictures 84 --seed 104
	$(BIN)/python -m demo.make_conversations data/mevis data/gcg --videos 16 --pictures 24 --seed 2
	$(BIN)/python -m demo.make_model data/model --seed 4
	$(BIN)/python cli.py shard --source sav --out shards/ --shard-size 32MB --overwrite
	$(BIN)/python cli.py shard --source folder --out shards/ --shard-size 32MB --overwrite
	$(BIN)/python cli.py shard --source mevis --frames 4 --out shards/ --shard-size 32MB --overwrite
	$(BIN)/python cli.py shard --source gcg-grandf --root data/gcg --out shards/ --shard-size 32MB --overwrite
	$(BIN)/python cli.py verify-shard shards/sav shards/folder shards/mevis shards/gcg-grandf
	$(BIN)/python cli.py preview shards/sav --out runs/demo/preview
	rm -rf runs/segment runs/demo/checkpoint*  # a demo trains anew, it does not go on
	$(BIN)/accelerate launch --quiet --num_processes 1 --num_cpu_threads_per_process 2 trainer/train.py demo/segment.yaml
	$(BIN)/python cli.py export --checkpoint runs/segment --out runs/segment/model
	$(BIN)/accelerate launch --quiet --num_processes 1 --num_cpu_threads_per_process 2 trainer/train.py demo/train.yaml
	$(BIN)/python demo/check_run.py runs/demo

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	# The type checker beside the tests, on what they leave of two cores. Whole files go to either.
	# Ray may end the process that drives it where it loses a node: its tests have one of their own, and a second try.
	$(BIN)/mypy & types=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore $(RAY) tests; \
	tests=$$?; wait $$types && exit $$tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(RAY) || OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(RAY)

test-fast: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" tests

clean:
	rm -rf $(VENV) data/sav data/folder data/mevis data/gcg data/model shards/sav shards/folder shards/mevis shards/gcg-grandf runs
