# Everything a newcomer types. `make help` lists it.

SHELL := /bin/bash
CARGO ?= cargo
# Only -p builds reach people: a --workspace build would unify simulation features into the binaries.
SHIPPED := -p billing-server -p billingctl -p billing-worker -p billing-sandbox -p billing-demo
DATA ?= data
INVOICES ?= 10000
BENCH ?= all
SCENARIO ?= swarm
SEED ?= 1
SEEDS ?= 40
FIRST_SEED ?= 1
# Quick, and every assertion on; the one with broken rules lives in a folder of its own.
SIM_BUILD := $(CARGO) build --quiet --locked --profile sim -p billing-sim
SABOTAGE_BUILD := $(SIM_BUILD) --features sabotage --target-dir target/sabotage

.PHONY: help build check fix test test-release demo cluster bench bench-peers bench-crowd bench-failover bench-join etcd sim sim-one sim-twice sim-kept sim-canary model test-faults clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## release binaries: billingd, billingctl, billing-worker, billing-sandbox, billing-demo
	$(CARGO) build --release --locked $(SHIPPED)

check: ## format, clippy with warnings denied, licences and sources where cargo-deny is installed
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked -p billing-sim --all-targets -- -D warnings
	$(CARGO) clippy --locked --test faults -- -D warnings
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny --log-level error check licenses bans sources; \
	else echo "cargo-deny is not installed: licences and sources not checked (cargo install --locked cargo-deny)"; fi

fix: ## format, and apply clippy's own suggestions
	$(CARGO) fmt --all
	$(CARGO) clippy --fix --allow-dirty --allow-staged --all-targets

test: ## build the binaries, then every test: stories, model, disks, processes, the simulation's smoke test
	$(CARGO) build --locked $(SHIPPED)
	$(CARGO) test --locked
	$(CARGO) test --locked --profile sim -p billing-sim

test-release: build ## what must hold of the release binaries too: a node whose state differs from a majority's ends
	$(CARGO) test --locked --release --test process_divergence

# Debian: apt-get install nftables libfaketime fuse3 libfuse3-dev pkg-config gcc, and root. What is missing is said and skipped.
test-faults: ## cut networks, wrong clocks, power cuts; needs root and more, says what it skips (FAULT=partition chooses)
	$(CARGO) build --locked $(SHIPPED)
	$(CARGO) test --locked --test faults -- $(FAULT)

demo: build ## a charge run over three nodes that loses its leader (INVOICES=10000, or FILE=my.csv)
	@target/release/billing-demo charge-run $(if $(FILE),--file '$(FILE)',--invoices $(INVOICES))

cluster: build ## three nodes in the foreground on ports 7101 to 7103, data in DATA=data; Ctrl-C ends all
	@target/release/billing-demo cluster --data '$(DATA)'

bench: build bench-binary ## pairs, hand-offs, charges and held leases beside the disk's fdatasync rate (BENCH='pairs --rounds 1')
	@target/release/billing-bench $(BENCH) --json target/bench.json

bench-peers: build bench-binary ## the same load on etcd, turn by turn (make etcd installs it)
	@target/release/billing-bench peers --json target/bench-peers.json

bench-crowd: build bench-binary ## 100,000 sessions, 10,000 waiters on one invoice, 100,000 leases that expire at once
	@target/release/billing-bench crowd --json target/bench-crowd.json

bench-failover: build bench-binary ## how long nobody can acquire when the leader is killed, stopped or cut off (RUNS=20; KIND=kill,stop without root)
	@target/release/billing-bench failover --runs $(or $(RUNS),20) $(if $(KIND),--kind $(KIND)) --json target/bench-failover.json

bench-join: build bench-binary ## a node that joins a cluster of a million invoices by snapshot, while acquires go on (INVOICES=1000000)
	@target/release/billing-bench join --invoices $(if $(filter command line,$(origin INVOICES)),$(INVOICES),1000000) --json target/bench-join.json

.PHONY: bench-binary
bench-binary:
	$(CARGO) build --release --locked -p billing-bench

etcd: ## etcd from Debian's packages, for make bench-peers; not started
	@if command -v etcd >/dev/null; then etcd --version | head -1; \
	elif command -v apt-get >/dev/null; then RUNLEVEL=1 apt-get install -y --no-install-recommends etcd-server; \
	else echo "no apt-get here: put an etcd binary on the PATH" >&2; exit 1; fi

sim: sim-binary ## many seeds of everything at once: SEEDS=40 FIRST_SEED=1 SCENARIO=swarm; RESUME=FILE goes on where it was broken off
	@target/sim/billing-sim sweep --scenario '$(SCENARIO)' --seeds '$(SEEDS)' --first-seed '$(FIRST_SEED)' $(if $(RESUME),--resume '$(RESUME)')

sim-one: ## one simulated run, repeatable: SEED=3053 SCENARIO=swarm (-v as ARGS=-v shows every event)
ifdef SABOTAGE
	@$(SABOTAGE_BUILD)
	@target/sabotage/sim/billing-sim run '$(SCENARIO)' --seed '$(SEED)' --sabotage '$(SABOTAGE)' $(ARGS)
else
	@$(SIM_BUILD)
	@target/sim/billing-sim run '$(SCENARIO)' --seed '$(SEED)' $(ARGS)
endif

sim-twice: sim-binary ## each seed in two processes: the same trace, byte by byte?
	@target/sim/billing-sim twice --scenario '$(SCENARIO)' --seeds '$(if $(filter command line,$(origin SEEDS)),$(SEEDS),4)' --first-seed '$(FIRST_SEED)'

sim-kept: sim-binary ## every seed that ever failed (tests/seeds.txt)
	@target/sim/billing-sim kept

sim-canary: ## rules broken on purpose: is each noticed, and by what? (SEARCH=20 looks for seeds that are not recorded)
	@$(SABOTAGE_BUILD)
	@target/sabotage/sim/billing-sim canary $(if $(SEARCH),--search '$(SEARCH)') $(ARGS)

.PHONY: sim-binary
sim-binary:
	@$(SIM_BUILD)

model: ## every order of events around one invoice, rule by rule: the double charge is found where a rule is missing (MODEL='show loose/second-key')
	$(CARGO) run --quiet --release --locked -p billing-model -- $(MODEL)

clean: ## remove what was built; never the data
	$(CARGO) clean
