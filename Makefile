# Thin by design: every target calls `python -m pipeline`, which checks the options and calls the stages.
# Options reach it in the environment, so no shell reads them; they are checked before any set-up.
CONFIG ?= configs/reference.yaml
PYTHON := .venv/bin/python
ENVIRONMENT := environment
TPU_ENVIRONMENT := tpu-environment
PIPELINE = python3 -m pipeline --make
dry := $(filter-out 0 no false off,$(DRY_RUN))
export CALLER ?= $(CURDIR)
export MAKECMDGOALS

.DEFAULT_GOAL := help
.NOTPARALLEL:

HERE := $(shell file='$(MAKEFILE_LIST)'; dirname -- "$${file# }")
ifneq ($(HERE),.)
# Called with -f from elsewhere: everything happens in the checkout.
goals := $(or $(MAKECMDGOALS),help)
.PHONY: elsewhere $(goals)
$(goals): elsewhere ; @:
elsewhere: ; @$(MAKE) --no-print-directory -C "$(HERE)" $(goals)
else

.PHONY: help check all environment tpu-environment setup setup-tpu doctor export ir bmodel compile verify report bundle evaluate estimate board-test bench bisect \
	test test-slow test-device test-network test-browser lint format clean distclean

help:
	@awk -F ':.*## ' '/^##@ / {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\nOptions:  CONFIG=%s TASK= TARGET= PRECISION= COMPONENT= DRY_RUN=1 FORCE=1 VERIFY=full\n' '$(CONFIG)'

##@ Start here
all: setup ## everything: set up, export, compile for every target of CONFIG, verify, report
	@$(PIPELINE) all

setup: $(ENVIRONMENT) $(TPU_ENVIRONMENT) ## create .venv and, for pipelines with chips, .venv-tpu

setup-tpu: $(ENVIRONMENT) ## create .venv-tpu (TPU-MLIR, Python 3.10), whatever CONFIG says
	@$(PYTHON) -m scripts.setup_tpu

check:
	@$(PIPELINE) check

# What is up to date, by content, is left as it is. A dry run sets nothing up.
$(ENVIRONMENT): check
	@$(if $(dry),:,python3 scripts/setup_environment.py)

$(TPU_ENVIRONMENT): $(ENVIRONMENT)
	@$(if $(dry),:,$(PIPELINE) setup)

doctor: $(ENVIRONMENT) ## what is installed, what can be built here, what to do about the rest
	@$(PIPELINE) doctor

##@ Build
export: $(ENVIRONMENT) ## checkpoints -> ONNX, one file per component
	@$(PIPELINE) export

ir: $(ENVIRONMENT) ## ONNX -> OpenVINO IR (TARGET=openvino_npu: of fixed shapes)
	@$(PIPELINE) ir

bmodel: $(ENVIRONMENT) $(TPU_ENVIRONMENT) ## ONNX -> BModel for TARGET=bm1684|bm1684x|bm1688 (default: all in CONFIG)
	@$(PIPELINE) bmodel

compile: $(ENVIRONMENT) $(TPU_ENVIRONMENT) ## ONNX -> every target of CONFIG
	@$(PIPELINE) compile

##@ Prove, ship and measure
verify: setup ## every artifact against onnxruntime and the checkpoint (VERIFY=full: simulate full size too)
	@$(PIPELINE) verify

report: $(ENVIRONMENT) ## one HTML page per pipeline: verdict, tables, plots, answers side by side
	@$(PIPELINE) report

bundle: $(ENVIRONMENT) ## what was verified as archives that install without a network (WHEELS=cp38-aarch64 SIGN_KEY= UNVERIFIED=1)
	@$(PIPELINE) bundle

estimate: $(ENVIRONMENT) ## the chips' compiler estimates: per net, per answer, sizes (TOKENS=12 ANSWER_TOKENS=3)
	@$(PIPELINE) estimate

board-test: setup ## a folder that gives parity and latency on a board in one command (TARGET=bm1684x)
	@$(PIPELINE) board-test

bisect: $(ENVIRONMENT) ## the layer or stage that makes an artifact drift (TASK= TARGET= PRECISION= MODE=exact|fast)
	@$(PIPELINE) bisect

evaluate: $(ENVIRONMENT) ## answers over a data set, side by side with the checkpoint's (DATASET=kind:path ITEMS= MODE=)
	@$(PIPELINE) evaluate

bench: $(ENVIRONMENT) ## measure torch, onnxruntime, the notebook's design and our modes side by side (QUICK=1)
	@$(PIPELINE) bench

##@ Develop
test: setup ## run the tests
	@$(PYTHON) -m pytest -n 2 --dist loadfile

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

clean: check ## remove artifacts (environments stay)
	@rm -rf models/artifacts .mypy_cache .ruff_cache .pytest_cache .hypothesis

distclean: clean ## remove artifacts and environments
	@rm -rf .venv .venv-tpu .cache blip_edge.egg-info
endif
