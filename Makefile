# make demo: train and classify on real scans; make photos DIR=...: from class folders to a served model; make test: the tests;
# make test-all: with the slow ones; make check: ruff and mypy; make format: ruff's fixes and formatting; make bench: benchmarks beside
# peers; make soak: the service under load; make fuzz: mutated input; make extras: install what the tests of the extras need;
# make sbom: write sbom.json, the bill of materials; make lock: write requirements.lock.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo photos test test-all fuzz check setup extras format bench soak sbom lock

demo: setup
	$(BIN)/python -m tools.make_digits
	$(BIN)/python train.py
	$(BIN)/python inference.py --quiet
	@echo
	@echo "images     data_example/images, sorted into classes in data_example/result"
	@echo "report     logs/weights/report.html"
	@echo "curves     $(BIN)/tensorboard --logdir logs"

photos: setup
	$(if $(DIR),,$(error name the folder that has one folder a class: make photos DIR=photos))
	$(BIN)/python -m tools.quickstart --images "$(DIR)"

test: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-all: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations 40

fuzz: setup
	FUZZ_TIMES=10 $(BIN)/python -m pytest tests/test_fuzz.py

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .

BENCH := $(BIN)/python -m tools.benchmark
OUT := logs/bench
FLOWERS ?= data_example/flowers
CIFAR ?= data_example/cifar10
DUBAI ?= data_example/dubai
NET ?= logs/flowers/flowers.pth
EXPORTED ?= exported
ROOTS := --set train_data_root_dir=$(FLOWERS)/train/images --set val_data_root_dir=$(FLOWERS)/valid/images

bench: setup
	$(BENCH) --check_peers
	test -x logs/peers/bin/python || $(BENCH) --make_peers logs/peers
	$(BENCH) train $(ROOTS) --variant cached:data_cache=ram,augment_on=device --json $(OUT)/train.json
	$(BENCH) load $(ROOTS) --json $(OUT)/load.json
	$(BENCH) infer --weights $(NET) --artefacts $(EXPORTED) --images $(FLOWERS)/valid/images --json $(OUT)/infer.json
	$(BENCH) simsiam --set train_data_root_dir=$(CIFAR)/train --set val_data_root_dir=$(CIFAR)/test --json $(OUT)/simsiam.json
	$(BENCH) probe --json $(OUT)/probe.json
	$(BENCH) masks --set train_data_root_dir=$(DUBAI)/train --set val_data_root_dir=$(DUBAI)/valid --json $(OUT)/masks.json
	$(BENCH) pim --json $(OUT)/pim.json
	$(BENCH) serve --weights $(EXPORTED)/model.onnx --rounds 5 --json $(OUT)/serve.json
	$(BENCH) page $(OUT)/*.json

soak: setup
	$(BIN)/python -m tools.soak --weights $(EXPORTED)/model.onnx --json logs/soak.json

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The packages of requirements.txt and all their dependencies, for Linux x86_64 with Python 3.11.
UV := uv==0.13.9
sbom: setup
	$(BIN)/python -m tools.sbom --output sbom.json

lock: setup
	test -x .venv/lock/bin/uv || $(BIN)/python -m venv .venv/lock
	.venv/lock/bin/python -m pip install --disable-pip-version-check -q $(UV)
	.venv/lock/bin/uv pip compile requirements.txt --no-config --generate-hashes \
		--python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-emit-index-url --no-header -q -o requirements.lock

setup: .venv/ready

# The extras too, so that their tests run.
extras: setup
	$(BIN)/python -m pip install --disable-pip-version-check -q -c requirements.txt -r requirements-checks.txt

.venv/ready: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt
	touch $@
