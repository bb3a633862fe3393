# Ringway. `make help` lists the targets; README tells the story.
SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
BIN     := bin
GO      ?= go
export CGO_ENABLED := 0

GOTESTSUM := $(GO) tool gotestsum --format pkgname --hide-summary=skipped

DEMO_PACKAGES := iproute2 iperf3 sip-tester nftables wireguard-tools iputils-ping util-linux procps
TEST_PACKAGES := $(DEMO_PACKAGES) tshark tcpdump ethtool dnsmasq-base radvd kea-dhcp6-server jq conntrack man-db curl openssl sngrep kamailio kamailio-tls-modules baresip-core gcc libc6-dev libsrtp2-dev
BENCH_PACKAGES := $(TEST_PACKAGES) openvpn kamailio rtpengine-daemon
VM_PACKAGES   := qemu-system-x86 cpio busybox-static kmod iproute2 nftables wireguard-tools iperf3 iputils-ping util-linux procps ppp pppoe tcpdump dnsmasq-base
SYSTEMD_PACKAGES := systemd-container debootstrap
RACE_PACKAGES := gcc libc6-dev

.PHONY: help
help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: demo-packages build ## install what the lab needs, build, and measure two branches beside stock WireGuard (root)
	$(BIN)/ringway lab --baseline --wan 20mbit --bulk udp --plot lab-out/demo.png

.PHONY: build
build: ## bin/ringway, bin/ringway-lab, and bin/wireguard-go (the stock program, for comparison only)
	$(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o $(BIN)/ ./cmd/ringway ./cmd/ringway-lab
	$(GO) build -trimpath -o $(BIN)/wireguard-go golang.zx2c4.com/wireguard

.PHONY: test
test: test-packages build ## every test (root, 10 to 20 minutes); ends with the runner's totals
	@mkdir -p dist && rm -f dist/again
	PATH="$(CURDIR)/$(BIN):$$PATH" GO="$(GO)" $(GOTESTSUM) --rerun-fails=1 --rerun-fails-max-failures=5 \
	  --rerun-fails-report=dist/again --raw-command -- test/run.sh
	@[ ! -s dist/again ] || { echo "tests that failed once and passed alone:"; cat dist/again; }

.PHONY: test-unit
test-unit: ## the tests that need no root and no other program (40 s)
	$(GOTESTSUM) -- -short -timeout 2m -skip '^Test(Timed|Long)' ./...

.PHONY: test-race
test-race: race-packages test-packages ## the race detector over all that measures neither time nor allocations, and its coverage (root, 13 minutes)
	test/race.sh

.PHONY: test-repeat
test-repeat: test-packages build ## a hunt for unsteady tests: 20 runs beside two busy loops, timed ones 5 times; prints a table (root, quiet machine, hours)
	PATH="$(CURDIR)/$(BIN):$$PATH" test/repeat.sh $(PACKAGES)

.PHONY: lint
lint: ## gofmt, go vet, staticcheck
	@fmt=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$fmt" ]; then echo "not gofmt-clean:"; echo "$$fmt"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

.PHONY: fuzz
FUZZTIME ?= 30s
fuzz: ## every fuzz target for FUZZTIME (30s)
	@grep -rn --include='*_test.go' -o '^func Fuzz[A-Za-z0-9]*' . | sed 's|^./||; s|/[^/]*:[0-9]*:func | |' | while read -r dir f; do \
	  echo "== $$dir $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 20x ./$$dir || exit 1; done

.PHONY: bench
bench: bench-go bench-pairs ## every benchmark, the lab's comparison as three interleaved pairs, all rivals at once (root, quiet machine)
	$(BIN)/ringway bench jitter --vs wireguard-go-shared,wireguard-go,nebula,openvpn,kernel --loads 0,50,100 \
	  --rounds $(or $(PAIRS),3) --duration $(or $(CALL),20s) --plot bench-out
	$(BIN)/ringway bench throughput --sizes 200 --trial $(or $(TRIAL),500ms) --engines ringway,wireguard-go --rounds $(or $(PAIRS),3) --one-core
	$(BIN)/ringway bench rekey --rekeys $(or $(PAIRS),3) --roams 1 --moves 0 --restarts 1
	$(BIN)/ringway bench sip --vs kamailio --rounds $(or $(PAIRS),3) --duration $(or $(CALL),20s) $(SIP)
	$(BIN)/ringway bench media --rounds $(or $(PAIRS),3) $(MEDIA)

.PHONY: bench-go
bench-go: bench-packages build ## the benchmarks of single parts, by go test (root, quiet machine)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(GO) test -run '^$$' -bench . -benchtime $(or $(BENCHTIME),1s) -p 1 \
	  $$(grep -rl --include='*_test.go' '^func Benchmark' . | xargs -n 1 dirname | sort -u)

.PHONY: bench-pairs
bench-pairs: bench-packages build ## the lab's budgets, in interleaved pairs (root, quiet machine)
	PATH="$(CURDIR)/$(BIN):$$PATH" test/bench/pairs.sh $(or $(PAIRS),3) $(or $(CALL),20s)

.PHONY: bench-link
bench-link: bench-packages build ## voice and data on full links of 1 to 100 Mbit/s, three rounds (root, quiet machine, half an hour)
	$(BIN)/ringway bench link $(if $(RATES),--rates $(RATES)) --rounds $(or $(ROUNDS),3) --duration $(or $(CALL),20s) --plot bench-out

.PHONY: bench-link-vm
bench-link-vm: vm-packages build ## the same at 2 Mbit/s beside fq_codel and cake, on a Debian kernel in QEMU, in its time, one path after the other (root, some 20 minutes)
	test/vm/bench.sh --in-turn --rates $(or $(RATES),2mbit) --vs none,fq_codel,cake --rounds $(or $(ROUNDS),3) --duration $(or $(CALL),4s)
	TEST_VM_LINK="$(CURDIR)/bench-out/vm/link.json" $(GO) test -count=1 -v -run '^TestCallsOnAFullLink' ./test/vm

.PHONY: test-long
test-long: test-packages build ## whole branches where it takes long: kills in a reload, configs that cut off, a hub of 500, fair flows, too many calls, attacks, lines that lose packets (root, 16 minutes)
	PATH="$(CURDIR)/$(BIN):$$PATH" GO="$(GO)" test/long.sh

.PHONY: soak-lines
soak-lines: test-packages build ## calls for SOAK (10m) over two lines that lose 5 %, and over one that comes and goes: nothing is called down wrongly (root)
	PATH="$(CURDIR)/$(BIN):$$PATH" TEST_SOAK=$(or $(SOAK),10m) $(GO) test -count=1 -v -timeout 3h -run '^TestLongSoak' ./test/e2e

.PHONY: soak-srtp
soak-srtp: test-packages build ## calls whose keys between the boxes change a hundred times, in SOAK (2h40m): no packet is lost or refused (root)
	PATH="$(CURDIR)/$(BIN):$$PATH" TEST_SOAK=$(or $(SOAK),2h40m) $(GO) test -count=1 -v -timeout 6h -run '^TestLongRotations' ./test/e2e

.PHONY: test-day
test-day: ## 24 hours of calls on a simulated clock, and 24 with the relay replaced now and then, end with no hole, call or memory left; TEST_DAY_SEED=N repeats a day (1 minute)
	$(GO) test -count=1 -v -timeout 5m -p 1 -run '^TestLongADay' ./sip/relay

.PHONY: test-rekey
test-rekey: test-packages build ## interoperation with stock WireGuard across its real two-minute re-key (root, 5 minutes)
	PATH="$(CURDIR)/$(BIN):$$PATH" TEST_REKEY=1 $(GO) tool gotestsum --format standard-verbose --hide-summary=skipped \
	  --rerun-fails=1 --rerun-fails-max-failures=2 --packages="$(or $(REKEY),./test/interop/ ./test/e2e/ ./tunnel/realtime/)" -- \
	  -count=1 -timeout 12m -parallel 4 -run "Rekey|SteadyVoice"

.PHONY: test-kernel
test-kernel: vm-packages build ## the kernel engine, VLANs, netem, fq_codel and cake beside a call, a clock in the past, under a Debian kernel in QEMU (root)
	test/vm/run.sh

.PHONY: test-pppoe
test-pppoe: vm-packages build ## PPPoE in a VLAN: pppd dials pppoe-server, under Debian's full kernel in QEMU (root, 6 minutes)
	test/vm/pppoe.sh

.PHONY: test-systemd
test-systemd: systemd-packages build deb ## the Debian package under a real systemd in a container (root)
	test/systemd/run.sh

.PHONY: deb
deb: build ## dist/ringway_VERSION_ARCH.deb and dist/ringway-lab_VERSION_ARCH.deb
	packaging/deb.sh "$(VERSION)"

.PHONY: install
install: build ## into DESTDIR and PREFIX (default /usr)
	packaging/install.sh "$(DESTDIR)" "$(or $(PREFIX),/usr)"

.PHONY: clean
clean: ## remove what the targets made
	rm -rf $(BIN) dist lab-out bench-out

# install-packages installs what is missing of a list and says so; a machine that has all is not touched.
define install-packages
	@missing=$$(for p in $(1); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	  echo "installing the Debian packages:" $$missing; mkdir -p dist; \
	  flock dist/apt.lock apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive flock dist/apt.lock apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	fi
endef

.PHONY: demo-packages test-packages bench-packages vm-packages systemd-packages race-packages
demo-packages: ; $(call install-packages,$(DEMO_PACKAGES))
test-packages: ; $(call install-packages,$(TEST_PACKAGES))
bench-packages: ; $(call install-packages,$(BENCH_PACKAGES))
vm-packages: ; $(call install-packages,$(VM_PACKAGES))
systemd-packages: ; $(call install-packages,$(SYSTEMD_PACKAGES))
race-packages: ; $(call install-packages,$(RACE_PACKAGES))
