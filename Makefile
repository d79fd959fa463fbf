# Every target says what it does in `make help`. The work itself is cargo's and that of the programs in
# script/, so that each of them can be run alone.

.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

# Cargo takes a relative folder from where it is started, build scripts from where they are.
ifdef CARGO_TARGET_DIR
export CARGO_TARGET_DIR := $(abspath $(CARGO_TARGET_DIR))
endif
TARGET := $(or $(CARGO_TARGET_DIR),target)
KILN   := $(TARGET)/release/kiln
PREFIX ?= /usr/local
# A scenario's own disks and kernel come from its file; this is what `make demo` runs, in order.
DEMO   := btrfs-smoke ext4-smoke xfs-smoke btrfs-raid5-scrub many-clones
CARGO_BENCHES := $(wildcard crates/*/benches/*.rs)

export PATH := $(abspath $(TARGET))/tools/bin:$(PATH):/usr/sbin:/sbin

# Each step needs what the one before it made; cargo itself uses every processor.
.NOTPARALLEL:

.PHONY: help demo test bench build guest player kernel install bootstrap clean

help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: build ## From nothing to a report: install, build, fetch a kernel, run five scenarios in VMs
	@script/demo $(KILN) $(DEMO)

test: ## Everything that must hold before a change lands (script/test --help names the steps)
	@script/test

bench: build ## Measure what Kiln promises to be fast at
	@script/bench $(KILN) $(CARGO_BENCHES)

build: bootstrap player guest ## The release build: one program, target/release/kiln, that works alone
	cargo build --locked --release --package kiln-cli

guest: ## The guest executable: PID 1 and agent, static
	@script/guest

player: ## The terminal player that reports embed
	@script/player

kernel: bootstrap ## Fetch a Debian kernel into Kiln's cache, for tests
	cargo run --quiet --locked --package kiln-cli -- kernel fetch debian

install: build ## Install kiln, its manual and completions under PREFIX (/usr/local)
	install -D -m 755 $(KILN) $(DESTDIR)$(PREFIX)/bin/kiln
	install -d $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/bash-completion/completions
	$(KILN) man --output $(DESTDIR)$(PREFIX)/share/man/man1
	$(KILN) completions bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/kiln

bootstrap: ## Install what is missing on this machine
	@script/bootstrap

clean: ## Remove everything built here (Kiln's caches and recordings stay)
	rm -rf $(TARGET) crates/history/assets/player node_modules
