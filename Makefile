# ptthqd. `make help` lists the targets. Needed: Go 1.26, git, make; each target that wants more says which package.

.DEFAULT_GOAL := build
SHELL         := /bin/bash
.SHELLFLAGS   := -eu -o pipefail -c
MAKEFLAGS     += --no-print-directory

GO      ?= go
# A release is a tag; before the first one, commits are counted.
VERSION ?= $(shell git describe --tags --match 'v[0-9]*' 2>/dev/null | sed 's/^v//' | grep . || echo 0.0.0+git$$(git rev-list --count HEAD 2>/dev/null || echo 0))
VERSION := $(VERSION)
COMMIT  ?= $(shell git describe --always --dirty --abbrev=12 --exclude='*' 2>/dev/null || echo unknown)
COMMIT  := $(COMMIT)

PREFIX     ?= /usr/local
DESTDIR    ?=
ZSHDIR     ?= $(PREFIX)/share/zsh/site-functions
BIN        ?= bin
DIST       ?= dist

# The tools are pinned in a module of their own, so that they do not shape the program's dependencies.
TOOL := $(GO) tool -modfile=tools/go.mod

# Static and reproducible: the same commit gives the same bytes wherever it is built.
BUILDFLAGS := -trimpath -buildvcs=false -ldflags '-s -w -buildid= -X main.version=$(VERSION) -X main.commit=$(COMMIT)'

# The race detector needs cgo, and so a C compiler.
CC_FOUND  := $(shell command -v $$($(GO) env CC) 2>/dev/null)
RACE      := $(if $(CC_FOUND),-race)
TESTFLAGS ?=
FUZZTIME  ?= 10s
SOAK      ?= 1h
SOAK_DIR  ?=

MANUALS := $(wildcard cmd/ptthqd/man/*.[1-9])

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

.PHONY: build
build: ## bin/ptthqd, static
	CGO_ENABLED=0 $(GO) build $(BUILDFLAGS) -o $(BIN)/ptthqd ./cmd/ptthqd

.PHONY: demo
demo: build ## a relay, a client and a server on this machine, with data flowing between them
	$(BIN)/ptthqd demo

# --- tests -------------------------------------------------------------------------------------------------------

.PHONY: test
test: ## all tests, with the race detector where there is a C compiler
ifeq ($(RACE),)
	@echo 'make test: no C compiler, so the race detector is off; to have it: apt-get install gcc libc6-dev' >&2
endif
	$(if $(RACE),CGO_ENABLED=1) $(GO) test $(RACE) -shuffle=on -timeout=20m $(TESTFLAGS) $$($(GO) list ./... | grep -v -e '/test/e2e$$' -e '/deploy$$')
	@# Memory, rates and limits are measured without the race detector alone; see testutil.SkipRaced.
	$(GO) test -shuffle=on -timeout=10m $(TESTFLAGS) ./pkg/carrier ./pkg/link ./pkg/session ./test/sim
	@# Whole processes and hosts mostly wait: the two packages run side by side.
	$(if $(RACE),CGO_ENABLED=1) $(GO) test $(RACE) -p=2 -timeout=30m $(TESTFLAGS) ./test/e2e ./deploy

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME (10s)
	@$(GO) test -list '^Fuzz' ./... \
	| awk '/^Fuzz/ { target[n++] = $$1 } /^ok/ { for (i = 0; i < n; i++) print $$2, target[i]; n = 0 }' \
	| while read -r package target; do \
		echo "fuzz $$package $$target" >&2; \
		out=$$($(GO) test -run='^$$' -fuzz="^$$target\$$" -fuzztime=$(FUZZTIME) "$$package" 2>&1) && failed= || failed=1; \
		echo "$$out"; \
		if [ -n "$$failed" ]; then \
			: 'The go command may take the end of its own time for a failure (go.dev/issue/75804): then nothing else is said.'; \
			grep -qx ' *context deadline exceeded' <<<"$$out" && ! grep -qE 'Failing input|panic|terminated|hung' <<<"$$out" || exit 1; \
			echo "fuzz $$package $$target: its time was up, and no input failed" >&2; \
		fi; \
	done

BENCHFLAGS ?=

.PHONY: bench
bench: build ## the chain against direct TCP, plain quic-go, and others: BENCHFLAGS='-quick', '-h' lists the rest
	CGO_ENABLED=0 $(GO) build -trimpath -o $(BIN)/plainchain ./bench/plainchain
	CGO_ENABLED=0 $(GO) build -trimpath -o $(BIN)/bench ./bench
	$(BIN)/bench -programs $(BIN) $(BENCHFLAGS)

.PHONY: bench-parts
bench-parts: ## the benchmarks of the parts, six times; compare two outputs with `go tool -modfile=tools/go.mod benchstat`
	$(GO) test -run='^$$' -bench=. -benchmem -count=6 ./...

.PHONY: soak
soak: ## the long test, for SOAK (1h); its plots go to SOAK_DIR, or to a directory that it prints
	PTTHQD_SOAK='$(SOAK)' PTTHQD_SOAK_DIR='$(abspath $(SOAK_DIR))' $(GO) test -count=1 -v -timeout=0 -run='^TestSoak$$' ./test/e2e

# --- gates -------------------------------------------------------------------------------------------------------

.PHONY: check
check: gates test ## all gates, then all tests

.PHONY: gates
gates: check-format check-tidy check-toolchain vet lint cross bench-once check-configs check-units check-man check-shell check-deb reproducible sbom vulncheck ## all that is checked without running the tests

.PHONY: format
format: ## rewrite the Go files as the gates want them
	$(TOOL) gofumpt -w .
	$(TOOL) goimports -local ptthqd -w .

.PHONY: check-format
check-format:
	@files=$$($(TOOL) gofumpt -l .; $(TOOL) goimports -local ptthqd -l .); \
	if [ -n "$$files" ]; then echo 'not formatted (make format mends it):'; sort -u <<<"$$files"; exit 1; fi >&2

.PHONY: check-tidy
check-tidy:
	$(GO) mod tidy -diff
	cd tools && $(GO) mod tidy -diff

.PHONY: vet
vet:
	$(GO) vet ./...

.PHONY: lint
lint:
	$(TOOL) golangci-lint run ./...

# A client lives on desktops too.
.PHONY: cross
cross:
	GOOS=darwin  CGO_ENABLED=0 $(GO) build -o /dev/null ./cmd/ptthqd
	GOOS=windows CGO_ENABLED=0 $(GO) build -o /dev/null ./cmd/ptthqd
	GOOS=darwin  $(GO) vet ./...
	GOOS=windows $(GO) vet ./...

.PHONY: bench-once
bench-once:
	@$(GO) test -run='^$$' -bench=. -benchtime=1x ./...

.PHONY: check-configs
check-configs: build
	$(BIN)/ptthqd check --no-key configs/*.toml

# systemd-analyze exits 0 on keys that it does not know: any word from it is a failure. It looks at the program that
# ExecStart= names too, so it is shown the units with the built one.
.PHONY: check-units
check-units: build
	@deploy/systemd/check $(BIN)/ptthqd

.PHONY: check-man
check-man:
	@if ! command -v mandoc >/dev/null; then echo 'make check-man: skipped, no mandoc (apt-get install mandoc)' >&2; exit; fi; \
	said=$$(mandoc -T lint $(MANUALS) 2>&1 | grep -v -e 'referenced manual not found' -e 'mandoc.db' || true); \
	if [ -n "$$said" ]; then echo "$$said" >&2; exit 1; fi

.PHONY: check-shell
check-shell:
	@if command -v shellcheck >/dev/null; then shellcheck .ci/run deploy/sbom deploy/systemd/check deploy/debian/{postinst,prerm,postrm}; \
	else echo 'make check-shell: skipped, no shellcheck (apt-get install shellcheck)' >&2; fi

# What was compiled before is taken from Go's cache, which knows it by its contents: if a directory had a part in a program,
# the cache would not give it for another one. The programs are linked anew.
.PHONY: reproducible
reproducible: ## the same bytes from two directories
	@dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	mkdir -p "$$dir/one" "$$dir/another"; \
	git ls-files -z --cached --others --exclude-standard | tar -c --null --files-from=- --ignore-failed-read 2>/dev/null | tar -x -C "$$dir/one"; \
	cp -R "$$dir/one" "$$dir/another/elsewhere"; \
	for copy in one another/elsewhere; do \
		(cd "$$dir/$$copy" && CGO_ENABLED=0 $(GO) build $(BUILDFLAGS) -o ptthqd ./cmd/ptthqd); \
	done; \
	cmp "$$dir/one/ptthqd" "$$dir/another/elsewhere/ptthqd"; \
	sha256sum < "$$dir/one/ptthqd"

.PHONY: sbom
sbom: build ## dist/ptthqd_VERSION.cdx.json, what bin/ptthqd is built of (CycloneDX)
	@mkdir -p $(DIST)
	GO='$(GO)' deploy/sbom $(BIN)/ptthqd ptthqd '$(VERSION)' > $(DIST)/ptthqd_$(VERSION).cdx.json

# The version of Go with which a clone builds, whatever older one is installed.
TOOLCHAIN = $(shell sed -n 's/^toolchain //p' go.mod)

# go.mod and tools/go.mod name the newest patch release of the Go version that go.mod asks for: older ones have known faults.
# Out of reach of the module proxy this says so and goes on.
.PHONY: check-toolchain
check-toolchain:
	@[ -n '$(TOOLCHAIN)' ] && [ "$$(sed -n 's/^toolchain //p' tools/go.mod)" = '$(TOOLCHAIN)' ] || \
		{ echo 'make check-toolchain: go.mod and tools/go.mod must have the same toolchain line' >&2; exit 1; }; \
	minor=$$(sed -n 's/^go \([0-9]*\.[0-9]*\).*/\1/p' go.mod); \
	known=$$(GOFLAGS=-mod=mod $(GO) list -m -versions golang.org/toolchain 2>/dev/null || true); \
	newest=$$(grep -oE "go$$minor(\.[0-9]+)?\.linux-amd64" <<<"$$known" | sed 's/\.linux-amd64//' | sort -Vu | tail -n 1); \
	if [ -z "$$newest" ]; then echo 'make check-toolchain: skipped, the module proxy cannot be reached' >&2; \
	elif [ "$$newest" != '$(TOOLCHAIN)' ]; then \
		echo "make check-toolchain: the newest release is $$newest, go.mod has $(TOOLCHAIN): \`go mod edit -toolchain=$$newest\` here and in tools" >&2; exit 1; \
	fi

# The database is on the network: out of its reach this says so and goes on; a finding fails.
.PHONY: vulncheck
vulncheck: ## known faults, with the Go version of go.mod's toolchain line
	@out=$$(GOTOOLCHAIN='$(TOOLCHAIN)' $(TOOL) govulncheck ./... 2>&1) && code=0 || code=$$?; \
	if [ $$code -ne 0 ] && grep -qE 'fetching vulnerabilities|dial tcp|no such host|vuln.go.dev' <<<"$$out" && ! grep -q '^Vulnerability #' <<<"$$out"; then \
		echo 'make vulncheck: skipped, the vulnerability database cannot be reached' >&2; \
	else printf '%s\n' "$$out"; exit $$code; fi

# --- install and package -----------------------------------------------------------------------------------------

INSTALLED := bin/ptthqd lib/sysusers.d/ptthqd.conf lib/sysctl.d/10-ptthqd.conf \
	lib/systemd/system/ptthqd.service lib/systemd/system/ptthqd@.service \
	lib/systemd/system/ptthqd.socket lib/systemd/system/ptthqd@.socket lib/systemd/user/ptthqd.service \
	share/man/man8/ptthqd.8.gz share/man/man5/ptthqd.toml.5.gz \
	share/bash-completion/completions/ptthqd share/fish/vendor_completions.d/ptthqd.fish

# The completions come from the program itself, run on this machine whatever it is built for.
COMPLETION := env -u GOOS -u GOARCH CGO_ENABLED=0 $(GO) run ./cmd/ptthqd completion

.PHONY: install
install: build ## install below PREFIX (/usr/local), in DESTDIR; `ptthqd init` writes the config
	install -D -m 0755 $(BIN)/ptthqd $(DESTDIR)$(PREFIX)/bin/ptthqd
	@for kind in system user; do \
		from=deploy/systemd; [ $$kind = system ] || from=deploy/systemd/user; \
		for unit in $$from/*.service $$from/*.socket; do \
			[ -e $$unit ] || continue; \
			to=$(DESTDIR)$(PREFIX)/lib/systemd/$$kind/$${unit##*/}; \
			echo "install $$unit $$to"; \
			install -D -m 0644 $$unit $$to; \
			sed -i 's|/usr/bin/ptthqd|$(PREFIX)/bin/ptthqd|; s|/usr/share/|$(PREFIX)/share/|' $$to; \
		done; \
	done
	install -D -m 0644 deploy/systemd/ptthqd.sysusers $(DESTDIR)$(PREFIX)/lib/sysusers.d/ptthqd.conf
	install -D -m 0644 deploy/systemd/ptthqd.sysctl $(DESTDIR)$(PREFIX)/lib/sysctl.d/10-ptthqd.conf
	@for page in $(MANUALS); do \
		to=$(DESTDIR)$(PREFIX)/share/man/man$${page##*.}/$${page##*/}.gz; \
		echo "install $$page $$to"; \
		mkdir -p $${to%/*}; \
		gzip -9nc $$page > $$to; chmod 0644 $$to; \
	done
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d $(DESTDIR)$(ZSHDIR)
	$(COMPLETION) bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/ptthqd
	$(COMPLETION) fish > $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/ptthqd.fish
	$(COMPLETION) zsh > $(DESTDIR)$(ZSHDIR)/_ptthqd
	install -d $(DESTDIR)$(PREFIX)/share/ptthqd $(DESTDIR)$(PREFIX)/share/doc/ptthqd
	install -m 0644 deploy/ptthq.toml deploy/systemd/examples/* configs/*.toml $(DESTDIR)$(PREFIX)/share/ptthqd/
	sed -i 's|/usr/share/|$(PREFIX)/share/|' $(DESTDIR)$(PREFIX)/share/ptthqd/*
	install -m 0644 README.md SECURITY.md CHANGELOG.md $(wildcard docs/*.md docs/*.yml) $(DESTDIR)$(PREFIX)/share/doc/ptthqd/
	@[ -n "$(DESTDIR)" ] || echo 'Now: systemd-sysusers && systemctl daemon-reload; then `ptthqd init relay`, `server` or `client`.'

.PHONY: uninstall
uninstall: ## remove what install brought, but not the config and the key
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/,$(INSTALLED)) $(DESTDIR)$(ZSHDIR)/_ptthqd
	rm -rf $(DESTDIR)$(PREFIX)/share/doc/ptthqd $(DESTDIR)$(PREFIX)/share/ptthqd

# Debian's tools know no hyphen in the version of a package that has no other packager. The time is that of the commit, so
# that the same commit gives the same package.
DEBVERSION := $(subst -,+,$(VERSION))
DEBARCH     = $(shell $(GO) env GOARCH)
# Where the repository lives, for the package's Homepage field; it has none where this is empty.
HOMEPAGE   ?=
DEB         = $(DIST)/ptthqd_$(DEBVERSION)_$(DEBARCH).deb

.PHONY: deb
deb: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
deb: ## dist/ptthqd_VERSION_ARCH.deb; HOMEPAGE=URL names the repository in it
	rm -rf $(DIST)/root
	umask 022; $(MAKE) install DESTDIR=$(DIST)/root PREFIX=/usr ZSHDIR=/usr/share/zsh/vendor-completions VERSION='$(VERSION)' COMMIT='$(COMMIT)'
	install -D -m 0644 deploy/debian/copyright $(DIST)/root/usr/share/doc/ptthqd/copyright
	install -D -m 0644 deploy/debian/lintian-overrides $(DIST)/root/usr/share/lintian/overrides/ptthqd
	sed -e 's/@VERSION@/$(DEBVERSION)/' -e "s/@DATE@/$$(date -u -R -d @$$SOURCE_DATE_EPOCH)/" deploy/debian/changelog \
		| gzip -9nc > $(DIST)/root/usr/share/doc/ptthqd/changelog.gz
	chmod -R go=rX $(DIST)/root
	DEBVERSION='$(DEBVERSION)' DEBARCH='$(DEBARCH)' DIST='$(DIST)' HOMEPAGE='$(HOMEPAGE)' $(TOOL) nfpm package --config deploy/debian/nfpm.yaml --packager deb --target $(DEB)
	rm -rf $(DIST)/root

.PHONY: check-deb
check-deb: deb
	@if command -v lintian >/dev/null; then lintian --allow-root --fail-on error,warning $(DEB); \
	else echo 'make check-deb: skipped, no lintian (apt-get install lintian)' >&2; fi

.PHONY: clean
clean: ## remove what was built
	rm -rf $(BIN) $(DIST)
