# Every task is one target, and each first makes sure of what it needs. `make` alone lists them.
# On Debian and Ubuntu root gets missing packages installed; anyone else is told their names.

.DEFAULT_GOAL := help
.PHONY: help build pages check test test-root figures test-faults sanity demo bench image image-test test-droplets e2e-nomad droplet-test e2e-droplet dist dist-test dist-again clean
.PHONY: plugin program sim root rust lints own compiler disk-tools strace packagers csi-sanity docker monitoring-tools network debootstrap machines bases tasks nomad
# A recipe is one script, so it can use functions, and its first failing line ends it.
.ONESHELL:
.SHELLFLAGS := -euc
# Cargo does the work in parallel; make only calls it, and must not offer it a job server it cannot reach.
.NOTPARALLEL:
unexport MAKEFLAGS

# The C++ core of gRPC takes minutes to build. One target directory outside the clone and no RUSTFLAGS of our own let all
# targets, and the next clone, share it. What users get is built as SHIPPED, what tests it as FAST.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/do-csi-plugin/target
SHIPPED := --release --locked
FAST := --locked
PLUGIN = $$CARGO_TARGET_DIR/do-csi-plugin
SIM = $$CARGO_TARGET_DIR/debug/examples/do-sim

# With a compiler cache the core is compiled once for both profiles.
export CMAKE_C_COMPILER_LAUNCHER := ccache
export CMAKE_CXX_COMPILER_LAUNCHER := ccache
export CCACHE_DIR ?= $(HOME)/.cache/do-csi-plugin/ccache

# Programs that are installed only for a test, such as csi-sanity.
TOOLS := $(HOME)/.cache/do-csi-plugin/bin

# mkfs and its like are in sbin, which is not on every user's PATH.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin:$(TOOLS)

RUST := $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)

help: ## Say what can be made (the default)
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 12

build: plugin ## Build the plugin
	ls -l "$(PLUGIN)"

# Stripped here and not by cargo, so that what cargo leaves still tells where a crash was.
plugin: rust own compiler
	@cargo build $(SHIPPED) --bin do-csi-plugin
	strip -o "$(PLUGIN)" "$$CARGO_TARGET_DIR/release/do-csi-plugin"

pages: rust own compiler ## Write the flags into docs/flags.md, and the licences of what is linked into packaging/
	cargo run $(FAST) --quiet --example do-pages flags docs/flags.md
	$(PARTS) | cargo run $(FAST) --quiet --example do-pages licenses packaging/third-party.txt

sim: rust own compiler
	@cargo build $(FAST) --example do-sim

# cargo-deny is not installed for it, as compiling it takes longer than everything else here.
check: rust lints own compiler ## Check format, lints, documentation and the licences of what is depended on
	cargo fmt --check
	cargo clippy $(FAST) --all-targets -- -D warnings
	cargo rustdoc $(FAST) --lib -- --document-private-items -D warnings
	licenses=$$(mktemp)
	trap 'rm -f "$$licenses"' EXIT
	$(PARTS) | cargo run $(FAST) --quiet --example do-pages licenses "$$licenses"
	cmp "$$licenses" packaging/third-party.txt || { echo "what is linked has changed: make pages" >&2; exit 1; }
	unchecked() { echo "NOT CHECKED: $$1" >&2; }
	cargo deny --version >/dev/null 2>&1 || { unchecked "licences, sources, advisories of dependencies: no cargo-deny"; exit 0; }
	cargo deny --locked --offline check licenses bans sources
	cargo deny --locked fetch db >/dev/null 2>&1 || echo "the database of advisories could not be fetched anew" >&2
	set -- "$${CARGO_HOME:-$$HOME/.cargo}"/advisory-dbs/*/
	[ -d "$$1" ] || { unchecked "advisories of dependencies: no database of them"; exit 0; }
	cargo deny --locked --offline check advisories

test: rust own compiler disk-tools ## Run the unit and socket tests; no root needed
	cargo test $(FAST)

# In a mount namespace of its own, what a failed test leaves mounted goes away with the test.
test-root: root rust own compiler disk-tools strace ## Run the kernel tests: loop devices, mkfs, mounts (as root)
	cargo test $(FAST) --test it --no-run
	exec unshare --mount --propagation private cargo test $(FAST) --test it -- --ignored root_ --skip root_figures --skip root_faults

# What is shipped for Prometheus is checked and tried with Prometheus itself. Debian's is built without Nomad's service discovery,
# so that part of the configuration is left out.
monitoring-test: rust own compiler monitoring-tools ## Check and try the alerts with Prometheus, and the page with a browser
	@cd nomad/monitoring
	promtool check rules alerts.yml
	promtool test rules alerts_test.yml
	scrape=$$(mktemp -d)
	trap 'rm -rf "$$scrape"' EXIT
	cp alerts.yml "$$scrape"
	sed '/nomad_sd_configs:/,/server:/d' prometheus.yml >"$$scrape/prometheus.yml"
	promtool check config "$$scrape/prometheus.yml"
	cd ../..
	cargo test $(FAST) --test it -- --ignored prometheus_

# What is found is kept in a file, which the failed test names; tests/support/fuzz.rs says what becomes of it.
SECONDS ?= 10
fuzz: root rust own compiler disk-tools ## Try random input for SECONDS=10 each: every parser, calls, disks (as root)
	cargo test $(FAST) --lib --test it --no-run
	export FUZZ_SECONDS=$(SECONDS)
	cargo test $(FAST) --lib -- --nocapture fuzz_
	exec unshare --mount --propagation private cargo test $(FAST) --test it -- --ignored --nocapture --test-threads=1 root_fuzz_

# Measured alone, with no other test beside it, and with the plugin as it is shipped. No part of continuous integration, as it
# fails on a machine that is busy with something else.
figures: root rust own compiler disk-tools ## Measure what the node's calls cost, against their aims (as root)
	exec unshare --mount --propagation private cargo test $(SHIPPED) --test it -- --ignored --nocapture --test-threads=1 root_figures

# FAULTS=every plays also those faults that are the same as others. FAULTS=sample plays every 300th fault, beginning with another
# one each day; what is printed as FAULTS=K/N plays the same ones again, and CASE="Publish xfs" only those of the cases that have
# this in their names. IN=programs plays those of mkfs, blkid and the like instead of the plugin's own.
FAULTS ?= all
test-faults: root rust own compiler disk-tools strace ## Let each system call of the node calls fail once (as root, FAULTS=sample)
	cargo test $(FAST) --test it --no-run
	case "$(FAULTS)" in
	all) FAULTS=1/1 ;;
	sample) FAULTS=$$(($$(date +%s) / 86400 % 300))/300 ;;
	esac
	export FAULTS CASE IN
	exec unshare --mount --propagation private cargo test $(FAST) --test it -- --ignored --nocapture root_faults

# The stock suite against the built plugin, on a simulated droplet with loop devices: once with file systems, once with
# raw block volumes. Only the specs of group snapshots, which DigitalOcean does not have, are skipped, and by the suite
# itself; the totals are checked, so that a capability that is lost does not pass for a skip.
SANITY := 5.6.0
SANITY_TOTALS := 95 Passed | 0 Failed | 1 Pending | 7 Skipped
# Fails for every driver that says where a snapshot can be used: it compares two messages of Go by all their fields, of which one
# is the size that only a message has which was sent before. tests/it/health.rs has the same test.
SANITY_LEFT_OUT := should succeed when creating a snapshot with accessibility requirements
sanity: root plugin sim disk-tools csi-sanity ## Run stock csi-sanity against the plugin (as root)
	@for access in mount block; do
		echo "csi-sanity $(SANITY), access type $$access"
		log=$$(mktemp)
		trap 'rm -f "$$log"' EXIT
		"$(SIM)" serve "$(PLUGIN)" \
			sh -c 'exec csi-sanity --ginkgo.no-color --ginkgo.skip="$$2" --csi.endpoint="$$CSI_ENDPOINT" \
				--csi.mountdir="$$DROPLET_HOME/mount" --csi.stagingdir="$$DROPLET_HOME/staging" \
				--csi.testvolumeaccesstype="$$0" --csi.testnodevolumeattachlimit \
				--csi.testvolumemutableparameters="$$1"' "$$access" '$(CURDIR)/tests/fixtures/sanity/mutable.yaml' \
			'$(SANITY_LEFT_OUT)' \
			>"$$log" 2>&1 || { cat "$$log" >&2; exit 1; }
		grep -E 'Ran|Passed' "$$log"
		grep -qF '$(SANITY_TOTALS)' "$$log" || { cat "$$log" >&2; echo "expected: $(SANITY_TOTALS)" >&2; exit 1; }
		rm -f "$$log"
	done

# exec: a signal sent to make then reaches the demo itself, which cleans up.
demo: root plugin sim disk-tools ## Show a volume's whole life on this machine (as root)
	exec "$(SIM)" demo "$(PLUGIN)"

bench: root plugin sim disk-tools ## Measure attaching, moving and sharing volumes (as root, two minutes)
	exec "$(SIM)" bench "$(PLUGIN)"

# With BASES=local the bases are made from this machine's own Debian packages and Rust, for where no registry is reached.
comma := ,
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
REVISION := $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
BASES ?= registry
PLATFORM ?=
IMAGE ?= do-csi-plugin:$(VERSION)$(if $(PLATFORM),-$(subst /,-,$(PLATFORM)))
# The Debian of the image, and that of the virtual droplets.
RELEASE := trixie
DROPLET_RELEASE := bookworm
LOCAL_TOOLS_BASE := do-csi-plugin-base:$(RELEASE)
LOCAL_BUILD_BASE := do-csi-plugin-base:$(RELEASE)-rust$(RUST)
ifeq ($(BASES),local)
BUILD_BASE ?= $(LOCAL_BUILD_BASE)
TOOLS_BASE ?= $(LOCAL_TOOLS_BASE)
endif
# With PROGRAM=host the image gets what `make build` makes here, and with PROGRAM=FILE that file, so that the C++ core is not compiled
# once more for it. Without BuildKit, Docker builds every stage, so the one that compiles is taken out of the Dockerfile: up to its
# first empty line. With FRESH=yes nothing is taken from Docker's cache, so that Debian's packages are those of today.
FRESH ?=
PROGRAM ?= build
PROGRAM_IMAGE := do-csi-plugin-program:$(VERSION)
STAGES := $(if $(filter build,$(PROGRAM)),cat,sed '/ AS build$$/$(comma)/^$$/d') Dockerfile
image: docker $(if $(filter local,$(BASES)),bases) $(if $(filter host,$(PROGRAM)),plugin) ## Build the Docker image (PLATFORM=linux/arm64, BASES=local, PROGRAM=host)
	@[ $(PROGRAM) = build ] || tar -c -P --transform='s|.*/|build/target/release/|' "$(if $(filter host,$(PROGRAM)),$(PLUGIN),$(PROGRAM))" |
		tests/image/engine docker import - $(PROGRAM_IMAGE) >/dev/null
	$(STAGES) | tests/image/engine docker $(if $(PLATFORM),buildx build --load --platform=$(PLATFORM),build) --tag $(IMAGE) --file - \
		$(if $(FRESH),--no-cache) \
		--build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) \
		$(if $(filter-out build,$(PROGRAM)),--build-arg PROGRAM=$(PROGRAM_IMAGE)) \
		$(if $(BUILD_BASE),--build-arg BUILD_BASE=$(BUILD_BASE)) \
		$(if $(TOOLS_BASE),--build-arg TOOLS_BASE=$(TOOLS_BASE)) .

# Everything that is started lives in namespaces that end with it: processes, mounts and network.
APART := unshare --mount --propagation private --net --pid --fork --kill-child --mount-proc
image-test: root sim disk-tools network image ## Run a volume's life through the image (as root)
	@archive=$$(mktemp -d)
	trap 'rm -rf "$$archive"' EXIT
	trap 'exit 130' INT TERM HUP
	tests/image/engine docker save --output="$$archive/image.tar" $(IMAGE)
	$(APART) "$(SIM)" image $(IMAGE) "$$archive/image.tar"

# What the machines boot from is made once; a change of the scripts that make it makes it anew. CASE plays one case alone,
# and with DISKS=loop those that need no machine are played on loop devices.
DROPLET_IMAGES := $(HOME)/.cache/do-csi-plugin/droplets
CASE ?=
DISKS ?= machines
test-droplets: root plugin sim disk-tools debootstrap machines ## Run the plugin in virtual machines (as root, CASE=name, DISKS=loop)
	@images=loop
	[ $(DISKS) = loop ] || images=$$(tests/vm/image $(DROPLET_RELEASE) "$(DROPLET_IMAGES)")
	exec "$(SIM)" droplets "$(PLUGIN)" \
		"$$images" "$(DROPLET_IMAGES)/failed" $(CASE)

# NOMAD="path path ..." names the programs, if there is none on PATH or more than one version is to be played. The table that it
# prints in the end is that of nomad/versions.md.
NOMAD ?= nomad
e2e-nomad: root nomad plugin sim disk-tools network image tasks ## Play the guide on real Nomads (as root, NOMAD="path path ...")
	@archive=$$(mktemp -d)
	trap 'rm -rf "$$archive"' EXIT
	trap 'exit 130' INT TERM HUP
	tests/image/engine docker save --output="$$archive/images.tar" $(IMAGE) $(TASKS):busybox $(TASKS):postgres
	failed=
	for nomad in $(NOMAD); do
		$(APART) "$(SIM)" nomad "$(PLUGIN)" "$$archive/images.tar" "$$(command -v "$$nomad")" nomad \
			"$$archive/$$(printf %s "$$nomad" | tr / _).report" || failed="$$failed $$nomad"
	done
	"$(SIM)" nomad-table "$$archive"/*.report
	[ -z "$$failed" ] || { echo "failed on:$$failed" >&2; exit 1; }

# The same against the simulated DigitalOcean, on a simulated droplet.
droplet-test: root plugin sim disk-tools ## Run what e2e-droplet runs on a simulated droplet (as root)
	@export CONFIRM=yes
	set -- "$(SIM)" "$(PLUGIN)"
	exec "$$1" serve "$$2" "$$1" droplet "$$2"

e2e-droplet: root plugin sim disk-tools ## Run a volume's life on this very droplet (as root, with a token)
	exec "$(SIM)" droplet "$(PLUGIN)"

# The crates that are linked into the program, with their licences.
PARTS = cargo tree --locked --edges normal,no-proc-macro --prefix none --format '{p}|{l}'

# The program of a release runs on older systems than this machine, and where it is built leaves no trace in it.
PORTABLE ?= $(HOME)/.cache/do-csi-plugin/portable
RELEASED = $(PORTABLE)/target/do-csi-plugin
program: root rust debootstrap
	@packaging/program "$(PORTABLE)"

# What a release consists of, in dist/. Every file gets the time of the commit, and a release without git that of the changelog.
dist: program own compiler packagers ## Build the archive, packages, image, list of parts and sums into dist/ (as root, BASES=local)
	@work=$$(mktemp -d)
	trap 'rm -rf "$$work"' EXIT
	trap 'exit 130' INT TERM HUP
	cargo build $(FAST) --quiet --example do-pages
	pages=$$CARGO_TARGET_DIR/debug/examples/do-pages
	# Cargo compiles gRPC's C++ core anew whenever this variable changes, so it is set after the last build.
	export SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md) REVISION=$(REVISION)
	"$$pages" dist "$$work"
	$(MAKE) image PROGRAM="$(RELEASED)" BASES=$(BASES) FRESH=yes
	mkdir "$$work/packages"
	tests/image/engine packaging/image $(IMAGE) "$$work/image.tar" "$$work/packages"
	$(PARTS) | "$$pages" sbom "$$work/sbom.cdx.json" "$$work/packages"
	packaging/build "$(RELEASED)" "$$work" $(VERSION) dist

dist-test: root dist debootstrap ## Install and run what dist has made in clean roots of Debian (as root, BASES=local)
	packaging/test dist "$(PORTABLE)/root" bullseye bookworm trixie

# A clone has what is committed, so nothing else may be here.
dist-again: root dist ## Build dist once more in a clone, from nothing, and compare (as root, BASES=local)
	@[ -z "$$(git status --porcelain)" ] || { echo "not everything is committed" >&2; exit 2; }
	again=$$(mktemp -d)
	trap 'rm -rf --one-file-system "$$again"' EXIT
	trap 'exit 130' INT TERM HUP
	git clone --quiet . "$$again/clone"
	$(MAKE) -C "$$again/clone" dist BASES=$(BASES) PORTABLE="$$again/portable"
	diff dist/SHA256SUMS "$$again/clone/dist/SHA256SUMS"

# A target directory chosen by the user may hold other projects, so there only our own package goes.
clean: ## Remove what was built
ifeq ($(origin CARGO_TARGET_DIR),file)
	rm -rf "$$CARGO_TARGET_DIR"
else
	cargo clean --locked --package do-csi-plugin
	cargo clean $(SHIPPED) --package do-csi-plugin
endif

root:
	@[ "$$(id -u)" = 0 ] || { echo "make $(MAKECMDGOALS): needs root, for loop devices and mounts" >&2; exit 2; }

# sudo resets PATH, so a toolchain that the user does have is not found.
rust:
	@have=$$(rustc --version 2>/dev/null | cut -d' ' -f2)
	cargo --version >/dev/null 2>&1 && printf '%s\n' "$(RUST)" "$${have%%-*}" | sort -V -C && exit
	help='https://rustup.rs'
	[ -z "$${SUDO_USER-}" ] || help='under sudo: sudo env "PATH=$$PATH" "RUSTUP_HOME=$$HOME/.rustup" make $(MAKECMDGOALS)'
	echo "needs cargo and rustc $(RUST) or later on PATH; rustc is $${have:-missing} ($$help)" >&2
	exit 2

# Cargo tells clones that share a target directory apart by file times only, so what another clone built would pass for
# ours. Our package's part of it goes when the clone changes; the C++ core stays.
own: rust
	@mark=$$CARGO_TARGET_DIR/built-from
	[ "$$(cat "$$mark" 2>/dev/null)" != "$(CURDIR)" ] || exit 0
	[ ! -d "$$CARGO_TARGET_DIR/release" ] || cargo clean $(SHIPPED) --quiet --package do-csi-plugin
	[ ! -d "$$CARGO_TARGET_DIR/debug" ] || cargo clean $(FAST) --quiet --package do-csi-plugin
	mkdir -p "$$CARGO_TARGET_DIR"
	echo "$(CURDIR)" >"$$mark"

lints:
	@cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 && exit
	echo "needs rustfmt and clippy: rustup component add rustfmt clippy" >&2
	exit 2

# $(call need,COMMAND:PACKAGE ...), with packages named as Debian and Ubuntu do. It ends its recipe, so it is the last of one.
define need
missing() { for pair in $(1); do command -v "$${pair%:*}" >/dev/null || echo "$${pair#*:}"; done | sort -u | xargs; }
packages=$$(missing)
[ -n "$$packages" ] || exit 0
if [ "$$(id -u)" != 0 ] || [ ! -e /etc/debian_version ]; then
	echo "needs packages, as Debian and Ubuntu name them: $$packages" >&2
	exit 2
fi
echo "installing packages: $$packages"
export DEBIAN_FRONTEND=noninteractive
log=$$(mktemp)
trap 'rm -f "$$log"' EXIT
# Word splitting is meant: one word a package.
install() { apt-get install -qq --no-install-recommends -o DPkg::Lock::Timeout=120 $$packages; }
# Package lists that are missing or too old fail the first try, and only then are they fetched.
{ install || { apt-get update -qq; install; }; } >"$$log" 2>&1 </dev/null || { cat "$$log" >&2; exit 2; }
packages=$$(missing)
[ -z "$$packages" ] || { echo "installed, but their commands are not on PATH: $$packages" >&2; exit 2; }
endef

compiler:
	@$(call need,c++:g++ cmake:cmake ccache:ccache strip:binutils)

# The file systems' tools, which the plugin looks for when it starts, and what the simulated cloud makes disks with.
disk-tools:
	@$(call need,blkid:util-linux blockdev:util-linux fsfreeze:util-linux losetup:mount mke2fs:e2fsprogs mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs cryptsetup:cryptsetup-bin dmsetup:dmsetup)

strace:
	@$(call need,strace:strace)

packagers:
	@$(call need,dpkg-deb:dpkg objdump:binutils rpmbuild:rpm)

# Installed by its version from source, checked by Go's own sums. One that is found has to be that version too, which Go
# writes into its programs; csi-sanity itself says "(dev)".
csi-sanity:
	@stamp=$$(printf 'github.com/kubernetes-csi/csi-test/v5\tv%s\t' '$(SANITY)')
	is_right() { found=$$(command -v csi-sanity) && grep -aqF "$$stamp" "$$found"; }
	! is_right || exit 0
	command -v go >/dev/null || { echo "needs csi-sanity $(SANITY), or go to install it (https://go.dev)" >&2; exit 2; }
	GOBIN="$(TOOLS)" go install github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@v$(SANITY)
	is_right || { echo "$$found is not version $(SANITY), and hides the one in $(TOOLS): put that directory before it on PATH" >&2; exit 2; }

# An Engine that answers is enough, wherever it is: Docker Desktop's, or one that DOCKER_HOST names.
docker:
	@! docker info >/dev/null 2>&1 || exit 0
	$(call need,docker:docker.io dockerd:docker.io iptables:iptables)

monitoring-tools:
	@$(call need,promtool:prometheus prometheus:prometheus chromium:chromium)

# Droplets with a network each have an Engine each, whatever else answers.
network:
	@$(call need,ip:iproute2 docker:docker.io dockerd:docker.io iptables:iptables)

debootstrap:
	@$(call need,debootstrap:debootstrap wget:wget)

machines:
	@$(call need,qemu-system-x86_64:qemu-system-x86 socat:socat)

bases: docker rust debootstrap
	@tests/image/engine tests/image/bases $(RELEASE) $(LOCAL_TOOLS_BASE) $(LOCAL_BUILD_BASE)

# What stands in for the images that the job files name.
TASKS := do-csi-plugin-tasks
tasks: bases
	@for task in busybox postgres; do
		tests/image/engine docker build --quiet --tag $(TASKS):$$task --target $$task \
			--build-arg BASE=$(LOCAL_TOOLS_BASE) tests/image/tasks
	done

nomad:
	@missing=
	for nomad in $(NOMAD); do command -v "$$nomad" >/dev/null || missing=yes; done
	[ -n "$$missing" ] || exit 0
	echo "needs the nomad program on PATH, or NOMAD=path (https://developer.hashicorp.com/nomad/install)" >&2
	exit 2
