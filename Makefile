# Thin by design: every target calls a stage; the stages decide what is out of date.
CONFIG ?= configs/reference.yaml
PYTHON := .venv/bin/python
ENVIRONMENT := environment
TPU_ENVIRONMENT := tpu-environment

select = --config $(CONFIG) $(if $(TASK),--task $(TASK)) $(if $(COMPONENT),--component $(COMPONENT))
force = $(if $(FORCE),--force)
dry_run = $(if $(DRY_RUN),--dry-run)
precision = $(if $(PRECISION),--precision $(PRECISION))
target = $(if $(TARGET),--target $(TARGET))

evaluated = --config $(CONFIG) $(if $(TASK),--task $(TASK)) $(if $(DATASET),--dataset $(DATASET)) \
	$(if $(QUESTIONS),--questions $(QUESTIONS)) $(if $(IMAGES),--images $(IMAGES)) $(if $(SPLIT),--split $(SPLIT)) \
	$(if $(ITEMS),--items $(ITEMS)) $(if $(MODE),--mode $(MODE)) $(if $(RERANK),--rerank $(RERANK)) \
	$(if $(WORKERS),--workers $(WORKERS)) $(if $(filter full,$(VERIFY)),--full)

.DEFAULT_GOAL := help
.PHONY: help all environment tpu-environment setup setup-tpu doctor export ir bmodel compile verify evaluate estimate board-test report bench bisect test test-slow test-device \
	test-network test-browser lint format clean distclean

help:
	@awk -F ':.*## ' '/^##@ / {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\nOptions:  CONFIG=%s TASK= TARGET= PRECISION= COMPONENT= DRY_RUN=1 FORCE=1 VERIFY=full\n' '$(CONFIG)'

##@ Start here
all: setup ## everything: set up, export, compile for every target of CONFIG, verify, report
	@$(PYTHON) -m export $(select) $(dry_run) $(force)
	@$(PYTHON) -m compile $(select) $(target) $(precision) $(dry_run) $(force)
	@$(if $(DRY_RUN),:,$(PYTHON) -m verify $(select) $(target) $(precision) $(if $(filter full,$(VERIFY)),--full); \
		status=$$?; [ $$status -gt 1 ] || $(PYTHON) -m verify report --config $(CONFIG); exit $$status)

setup: $(ENVIRONMENT) $(TPU_ENVIRONMENT) ## create .venv and, for pipelines with chips, .venv-tpu

setup-tpu: $(ENVIRONMENT) ## create .venv-tpu (TPU-MLIR, Python 3.10), whatever CONFIG says
	@$(PYTHON) -m scripts.setup_tpu

# What is up to date, by content, is left as it is. A dry run sets nothing up.
$(ENVIRONMENT):
	@$(if $(DRY_RUN),[ -x $(PYTHON) ] || { echo "error: a dry run needs .venv and makes none; run: make setup" >&2; exit 2; },\
		python3 scripts/setup_environment.py)

$(TPU_ENVIRONMENT): $(ENVIRONMENT)
	@$(if $(DRY_RUN),:,$(PYTHON) -m scripts.setup_tpu --config $(CONFIG) $(target))

doctor: $(ENVIRONMENT) ## what is installed, what can be built here, what to do about the rest
	@$(PYTHON) -m scripts.doctor --config $(CONFIG)

##@ Build
export: $(ENVIRONMENT) ## checkpoints -> ONNX, one file per component
	@$(PYTHON) -m export $(select) $(dry_run) $(force)

ir: export ## ONNX -> OpenVINO IR (TARGET=openvino_npu: of fixed shapes)
	@$(PYTHON) -m compile $(select) --backend openvino --target $(or $(TARGET),openvino) $(precision) $(dry_run) $(force)

bmodel: export $(TPU_ENVIRONMENT) ## ONNX -> BModel for TARGET=bm1684|bm1684x|bm1688 (default: all in CONFIG)
	@$(PYTHON) -m compile $(select) --backend sophon $(target) $(precision) $(dry_run) $(force)

compile: export $(TPU_ENVIRONMENT) ## ONNX -> every target of CONFIG
	@$(PYTHON) -m compile $(select) $(target) $(precision) $(dry_run) $(force)

##@ Prove and measure
verify: setup ## every artifact against onnxruntime and the checkpoint (VERIFY=full: simulate full size too)
	@$(PYTHON) -m verify $(select) $(target) $(precision) $(if $(filter full,$(VERIFY)),--full)

estimate: $(ENVIRONMENT) ## the chips' compiler estimates: per net, per answer, sizes (TOKENS=12 ANSWER_TOKENS=3)
	@$(PYTHON) -m compile estimate --config $(CONFIG) $(if $(TASK),--task $(TASK)) $(target) \
		$(if $(TOKENS),--tokens $(TOKENS)) $(if $(ANSWER_TOKENS),--answer-tokens $(ANSWER_TOKENS))

board-test: setup ## a folder that gives parity and latency on a board in one command (TARGET=bm1684x)
	@$(PYTHON) -m verify board-test --config $(CONFIG) $(if $(TASK),--task $(TASK)) $(target) $(precision)

report: $(ENVIRONMENT) ## one HTML page per pipeline: verdict, tables, plots, answers side by side
	@$(PYTHON) -m verify report --config $(CONFIG) $(force)

bisect: $(ENVIRONMENT) ## the layer or stage that makes an artifact drift (TASK= TARGET= PRECISION= MODE=exact|fast)
	@$(PYTHON) -m verify bisect $(select) $(target) $(precision) $(if $(MODE),--mode $(MODE))

evaluate: $(ENVIRONMENT) ## answers over a data set, side by side with the checkpoint's (DATASET=kind:path ITEMS= MODE=)
	@$(PYTHON) -m verify evaluate $(evaluated) $(target) $(precision)

bench: $(ENVIRONMENT) ## measure torch, onnxruntime, the notebook's design and our modes side by side (QUICK=1)
	@$(PYTHON) -m benchmarks $(if $(filter file,$(origin CONFIG)),,--config $(CONFIG)) $(if $(TASK),--task $(TASK)) $(if $(QUICK),--quick)

##@ Develop
test: setup ## run the tests
	@$(PYTHON) -m pytest

test-slow: setup ## tests that need full-size models
	@$(PYTHON) -m pytest -m slow

test-device: setup ## tests that need a SOPHON board or card
	@$(PYTHON) -m pytest -m device

test-browser: setup ## the report in a headless browser (needs Chromium)
	@$(PYTHON) -m pytest -m browser

test-network: setup ## tests that need a model hub
	@$(PYTHON) -m pytest -m network

lint: $(ENVIRONMENT) ## ruff and mypy
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy

format: $(ENVIRONMENT) ## rewrite the code in the project's format
	@$(PYTHON) -m ruff check --fix .
	@$(PYTHON) -m ruff format .

clean: ## remove artifacts (environments stay)
	@rm -rf models/artifacts .mypy_cache .ruff_cache .pytest_cache .hypothesis

distclean: clean ## remove artifacts and environments
	@rm -rf .venv .venv-tpu .cache blip_edge.egg-info
