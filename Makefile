# Thin on purpose: the logic is in press/, in Python.
#   PYTHON=python3.12   the interpreter to use (or set FLOWBOOK_PYTHON once)
#   TORCH=cpu           install PyTorch without CUDA
PYTHON ?= $(or $(FLOWBOOK_PYTHON),python3)
run := FLOWBOOK_PYTHON= $(PYTHON) press/env.py

.DEFAULT_GOAL := help
.PHONY: help book test check timings audit serve chapter export clean-notebooks lint release lock data bench gpu record dev clean

help: ## this list
	@awk -F ': .*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' Makefile
	@awk '/^#   / { print substr($$0, 5) }' Makefile

book: ## run every notebook and build the book
	@$(run) book

test: ## every gate, the book in a browser included
	@$(run) test

check: ## the quick gates, for use all day: notebooks, export, lint, unit tests
	@$(run) check

timings: ## what each gate took when it ran last
	@$(run) timings

audit: ## Lighthouse on every page (needs Node; the rest does not)
	@$(run) audit

serve: ## show the built book on this machine
	@$(run) serve

chapter: ## N=9 or N=flows: run one chapter and build its page
	@$(if $(N),$(run) chapter $(N),echo "which chapter? Say, for example: make chapter N=9" >&2; exit 2)

export: ## write the package from the notebooks, and what follows from settings.ini
	@$(run) export

clean-notebooks: ## remove outputs and stray metadata from the notebooks
	@$(run) clean

lint: ## format and lint notebooks and tools
	@$(run) lint

release: ## write to dist/: the site as a zip, the book as a PDF, notebooks, the wheel
	@$(run) release

lock: ## write lock.txt anew from settings.ini (UPGRADE=1: newer versions)
	@$(run) lock

data: ## put Fashion-MNIST into data/ (FROM=folder: from there), checksums checked
	@$(run) module benchmarks.data $(FROM)

bench: ## time the package beside plain torch: ratios against budgets
	@$(run) module benchmarks.speed

gpu: ## STAGE=tests|speed|images|table: run it on this GPU, record it in results/gpu
	@$(if $(STAGE),$(PYTHON) -m benchmarks.gpu $(STAGE) --device $(or $(DEVICE),cuda) \
	  $(if $(QUICK),--quick) --out $(or $(OUT),results/gpu) --seed $(or $(SEED),0),\
	  echo "which stage? Say, for example: make gpu STAGE=speed" >&2; exit 2)

record: ## STAGE=ring|moons|checkerboard|digits: a long run on a CPU, in results/cpu
	@$(if $(STAGE),$(PYTHON) -m benchmarks.cpu $(STAGE) $(if $(QUICK),--quick) \
	  --out $(or $(OUT),results/cpu),\
	  echo "which stage? Say, for example: make record STAGE=moons" >&2; exit 2)

dev: ## install the hooks that clean and lint before each commit
	@$(run) dev

clean: ## delete what was built; .venv and the notebooks stay
	@rm -rf _build build dist *.egg-info
