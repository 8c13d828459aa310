PYTHON ?= python3
PREFIX ?= $(HOME)/.local
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
HOME_OF_NVMTOOL = $(PREFIX)/lib/nvmtool
NVMTOOL = $(CURDIR)/$(BIN)/nvmtool
COMPLETION_BASH = share/bash-completion/completions/nvmtool
COMPLETION_ZSH = share/zsh/site-functions/_nvmtool
COMPLETION_FISH = share/fish/vendor_completions.d/nvmtool.fish

# pip can fill a virtual environment from outside, so that Debian's python3-venv (ensurepip) is not needed where pip is.
define make-venv
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo "nvmtool needs Python 3.11 or newer; this is $$($(PYTHON) --version 2>&1). Name another one: make PYTHON=python3.12" >&2; exit 1; }
@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
	$(PYTHON) -m venv $(1) && $(1)/bin/python -m pip install --quiet --disable-pip-version-check $(2); \
elif $(PYTHON) -m pip --version >/dev/null 2>&1; then \
	$(PYTHON) -m venv --without-pip $(1) && $(PYTHON) -m pip --disable-pip-version-check --python $(1)/bin/python install --quiet $(2); \
else \
	echo "$(PYTHON) has neither ensurepip nor pip. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; \
fi
endef

.PHONY: help install install-manners uninstall demo guest-kernel test check bench crash fuzz fuzz-nbd faults crash-long kills-swap kills-host demo-host demo-guests demo-serve clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# What the paths are made of may have spaces, so they stand in quotes everywhere.
install: ## install nvmtool for you alone, under PREFIX (~/.local)
	$(call make-venv,"$(HOME_OF_NVMTOOL)",'.[live]')
	@pkg-config --exists fuse3 2>/dev/null && $(PYTHON) -m pip --disable-pip-version-check --python "$(HOME_OF_NVMTOOL)/bin/python" install --quiet '.[mount]' || \
	echo "without nvmtool mount, which needs libfuse3 (on Debian and Ubuntu: apt-get install fuse3 libfuse3-dev pkg-config gcc python3-dev)"
	@mkdir -p "$(PREFIX)/bin"
	@ln -sf "$(HOME_OF_NVMTOOL)/bin/nvmtool" "$(PREFIX)/bin/nvmtool"
	@$(MAKE) --no-print-directory install-manners NVMTOOL="$(HOME_OF_NVMTOOL)/bin/nvmtool"
	@echo "installed: $(PREFIX)/bin/nvmtool, its man pages, and completion for bash, zsh and fish"

# Man pages, and completion where the shells look. zsh looks in its fpath alone.
install-manners:
	@"$(NVMTOOL)" manual "$(PREFIX)/share/man/man1" >/dev/null
	@mkdir -p "$(PREFIX)/share/bash-completion/completions" "$(PREFIX)/share/zsh/site-functions" "$(PREFIX)/share/fish/vendor_completions.d"
	@"$(NVMTOOL)" completion bash >"$(PREFIX)/$(COMPLETION_BASH)"
	@"$(NVMTOOL)" completion zsh >"$(PREFIX)/$(COMPLETION_ZSH)"
	@"$(NVMTOOL)" completion fish >"$(PREFIX)/$(COMPLETION_FISH)"

uninstall: ## remove what install installed
	rm -rf "$(HOME_OF_NVMTOOL)"
	rm -f "$(PREFIX)/bin/nvmtool" "$(PREFIX)/share/man/man1/nvmtool.1" "$(PREFIX)/share/man/man1/nvmtool-"*.1
	rm -f "$(PREFIX)/$(COMPLETION_BASH)" "$(PREFIX)/$(COMPLETION_ZSH)" "$(PREFIX)/$(COMPLETION_FISH)"

$(READY): pyproject.toml
	@echo "setting up $(VENV) (once)"
	$(call make-venv,$(VENV),-e '.[dev]')
	@touch $@

demo: $(READY) ## do the whole main job once, on real data
	@$(BIN)/python bench/demo.py

guest-kernel: ## unpack the kernel that tests and bench boot in real guests (Debian's, without installing it)
	@$(PYTHON) -m tests.guest.kernel

demo-host: $(READY) ## three VMs of 1 GiB on a host of 1 GiB, one of them a real guest's memory (needs QEMU)
	@$(BIN)/python bench/host_session.py

demo-guests: $(READY) ## two real QEMU guests governed by the memory scheduler (needs QEMU)
	@$(BIN)/python bench/guests_session.py

demo-serve: $(READY) ## a region served to fio, mounted, and sent to another image (root; needs fio, nbdcopy, FUSE)
	@$(BIN)/python bench/serve_session.py

test: $(READY) ## run the tests
	$(BIN)/python -m pytest -q -n auto --dist worksteal

crash: $(READY) ## cut every operation off at every store, and prove that planted bugs are found (SEED=, SECONDS=)
	$(BIN)/python -m tests.crash.run '$(SEED)' $(SECONDS)

check: $(READY) ## ruff, mypy --strict, and whether the documents are fresh
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict nvmtool
	$(BIN)/python -m pytest -q tests/test_docs.py

bench: $(READY) ## measure, side by side with qemu-img where it is installed
	$(BIN)/python bench/run.py

fuzz: $(READY) ## damage every bit, field and structure of small images (SEED=, BITS=64 for every bit of words that are 0 too)
	$(BIN)/python -m tests.damage.fuzz $(if $(SEED),--seed $(SEED)) $(if $(BITS),--bits $(BITS))

fuzz-nbd: $(READY) ## hostile clients of the NBD server, for SECONDS (60) beside one that verifies its data (SEED=)
	$(BIN)/python -m tests.live.nbd_fuzz '$(SEED)' $(or $(SECONDS),60)

faults: $(READY) ## fail and kill system calls of every command that changes something (SEED=, MOST=1000 for each of them)
	$(BIN)/python -m tests.faults.run $(if $(SEED),--seed $(SEED)) $(if $(MOST),--most $(MOST))

crash-long: $(READY) ## 2,000 kills of real commands at random moments (SEED=, KILLS=)
	$(BIN)/python -m tests.faults.kills $(if $(SEED),--seed $(SEED)) $(if $(KILLS),--kills $(KILLS))

kills-swap: $(READY) ## 1,000 kills of a defragmentation beside a running VM, and of the VM (SEED=, KILLS=)
	$(BIN)/python -m tests.faults.swap_kills $(if $(SEED),--seed $(SEED)) $(if $(KILLS),--kills $(KILLS))

kills-host: $(READY) ## 300 kills of commands on a host beside a running guest, and of the guest (SEED=, KILLS=)
	$(BIN)/python -m tests.faults.host_kills $(if $(SEED),--seed $(SEED)) $(if $(KILLS),--kills $(KILLS))

clean: ## remove what the other targets made here
	rm -rf $(VENV) .cache build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
