# skiff is built, tried and tested from here; CI runs `make test` and nothing else.

VERSION    ?= 0.1.0-dev
KUBERNETES := v1.37.2
COMMIT     := $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)

VERSIONPKG := k8s.io/component-base/version
LDFLAGS := -s -w -X main.version=$(VERSION) \
  -X $(VERSIONPKG).gitVersion=$(KUBERNETES)+skiff.1 -X $(VERSIONPKG).gitMajor=1 -X $(VERSIONPKG).gitMinor=37 \
  -X $(VERSIONPKG).gitCommit=$(COMMIT) -X $(VERSIONPKG).gitTreeState=clean

# Only the shim is linked with C (runc's nsenter, libseccomp).
export CGO_ENABLED = 0
SHIMTAGS := seccomp netgo osusergo runc_nocriu

SHIM  := node/runtime/embedded/skiff-shim.gz
HELLO := node/image/demo/embedded/hello.gz

GOTESTFLAGS ?=
UNIT := $(shell go list ./... 2>/dev/null | grep -v -e /cmd/skiff-shim -e /cmd/test/integration$$)

.PHONY: build demo test unit race integration soak lint verify bench conformance generate clean deps deps-build shim

BIN  ?= bin/skiff
TAGS ?=

# bin/skiff: one static binary with the shim and the demo image inside; BIN, VERSION and TAGS make another
build: shim
	go build $(if $(TAGS),-tags $(TAGS)) -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/skiff

shim: $(SHIM) $(HELLO)

$(SHIM): $(shell find cmd/skiff-shim node/runtime/shimproto -name '*.go' 2>/dev/null) go.sum | deps-build
	@mkdir -p bin
	CGO_ENABLED=1 go build -trimpath -tags "$(SHIMTAGS)" -ldflags "-s -w -linkmode external -extldflags -static" -o bin/skiff-shim ./cmd/skiff-shim
	gzip -9 -n -c bin/skiff-shim > $@.new && mv $@.new $@

$(HELLO): $(shell find cmd/hello -name '*.go' 2>/dev/null)
	@mkdir -p bin
	go build -trimpath -ldflags "-s -w" -o bin/hello ./cmd/hello
	gzip -9 -n -c bin/hello > $@.new && mv $@.new $@

# what the build needs beside Go, gcc and make: libseccomp, for the shim
deps-build:
	@test -e /usr/include/seccomp.h || { echo "installing libseccomp-dev"; apt-get update -qq && apt-get install -y -qq libseccomp-dev >/dev/null; }

# Debian packages that the tests use: they are installed, no service is started
deps: deps-build
	@missing=; command -v kubectl >/dev/null || missing=" kubernetes-client"; for p in busybox-static curl iproute2 etcd-server conntrack systemd dbus-daemon; do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	  if [ -n "$$missing" ]; then echo "installing$$missing"; apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$missing >/dev/null; fi

# a cluster, a real application, its answers, a killed pod, a snapshot; KEEP=1 leaves it running
demo: build
	go run ./cmd/test/demo -skiff bin/skiff $(if $(KEEP),-keep)

# everything that CI checks: verify, unit tests, integration tests
test: deps verify unit integration

# unit tests
unit: shim
	go test $(GOTESTFLAGS) -timeout 10m $(UNIT)
	CGO_ENABLED=1 go test $(GOTESTFLAGS) -timeout 10m -tags "$(SHIMTAGS)" ./cmd/skiff-shim
	go test $(GOTESTFLAGS) -timeout 10m -tags nextlevel -run 'Level|Golden|Snapshot|Gate' ./fsm ./cluster/consensus
	go test $(GOTESTFLAGS) -timeout 10m -tags nextlevel -run Golden ./fsm/raftdir ./backup ./cluster ./cluster/gossip ./cluster/membership

# unit tests under the race detector
race: shim
	CGO_ENABLED=1 go test -race -timeout 20m $(UNIT)

# slow tests with real processes, containers and kubectl; needs root
integration: deps build
	go test $(GOTESTFLAGS) -tags integration -timeout 90m -count 1 -p 1 ./cmd/test/host ./cmd/test/integration/... ./cluster/consensus/... ./cluster/clustertest/... ./cmd/test/fleet/...
	go test $(GOTESTFLAGS) -tags integration -timeout 10m -count 1 -run Epoch ./cluster
	go test $(GOTESTFLAGS) -tags integration -timeout 10m -count 1 -run EveryDamaged ./cmd/skiff

SEEDS ?= 2000
FIRST ?= 1

# whole clusters under faults, one for each of SEEDS seeds from FIRST on; hours
# of a cluster's life take minutes. One seed again, with its story:
# go test ./cluster/clustertest -run TestSeeds -v -seed N
soak:
	go test -tags soak -c -o bin/soak.test ./cluster/clustertest
	bin/soak.test -test.timeout 24h -test.run 'TestSeeds|TestCrashAtEachStep' -seeds $(SEEDS) -first $(FIRST)
	bin/soak.test -test.timeout 1h -test.v -test.run TestLeadersKilledUnderLoad
	go test -tags soak -timeout 2h -count 1 -v -run TestSoak ./cluster/gossip
	go test -tags soak -timeout 2h -count 1 -v ./cmd/test/fleet

# staticcheck, at the version pinned in go.mod
lint: shim
	go tool staticcheck -tags integration $(UNIT) ./cmd/test/integration
	CGO_ENABLED=1 go tool staticcheck -tags "$(SHIMTAGS)" ./cmd/skiff-shim

# gofmt, vet, staticcheck, import rules, go.mod
verify: shim lint
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); echo "run gofmt -w on these"; exit 1; }
	go vet $(UNIT)
	go vet -tags integration ./cmd/test/...
	CGO_ENABLED=1 go vet -tags "$(SHIMTAGS)" ./cmd/skiff-shim/...
	go test -run TestImports ./cmd/skiff
	go mod verify >/dev/null

# the table of budgets, beside etcd on the same disk; writes bench/results.json
bench: deps build
	go run ./cmd/test/bench -skiff bin/skiff -out bench/results.json

# upstream's e2e tests against skiff: E2E=/path/to/e2e.test, and as you like AGNHOST=its
# program, IMAGES=folder of archives, FOCUS=expression, FLAGS="-resume -shards 8"
conformance: deps build
	go run ./cmd/test/conformance -skiff bin/skiff -e2e "$(E2E)" $(if $(AGNHOST),-agnhost "$(AGNHOST)") $(if $(IMAGES),-images "$(IMAGES)") $(if $(FOCUS),-focus '$(FOCUS)') $(FLAGS)

# generated code: OpenAPI definitions
generate:
	go generate ./cluster/api/...

# removes what build and bench made
clean:
	rm -rf bin bench $(SHIM) $(HELLO)
