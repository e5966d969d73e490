# make demo: train and classify on real scans; make test: the tests; make check: style and types.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check setup format

demo: setup
	$(BIN)/python -m tools.make_digits
	$(BIN)/python train.py
	$(BIN)/python inference.py --quiet
	@echo
	@echo "pictures   data_example/images, sorted into classes in data_example/result"
	@echo "report     logs/weights/report.html"
	@echo "curves     $(BIN)/tensorboard --logdir logs"

test: setup
	$(BIN)/python -m pytest -n 2

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: .venv/ready

.venv/ready: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt
	touch $@
