# undertone: `make run` shows what it does, `make test` checks that it does.

CARGO ?= cargo
INPUT ?= $(wildcard /usr/share/sounds/alsa/*_*.wav)
OUT   ?= out
RATES ?= 1.5,3,6

.PHONY: help setup build run test test-system test-recipe test-bindings test-deb deny bench install clean

help:
	@echo "make run [INPUT=file] [RATES=1.5,3,6]  recordings through a daemon and back: out/*.wav, a table, spectrograms"
	@echo "make test                              formatting, lints, docs, tests"
	@echo "make test-system                       tests with a NATS server, a sound server, a browser, network namespaces"
	@echo "make test-recipe                       the training recipe (installs PyTorch outside the checkout)"
	@echo "make web                               the codec for browsers: target/web (installs a target of the compiler)"
	@echo "make test-web                          the codec for browsers under node"
	@echo "make test-bindings                     the C library and the Python package (installs valgrind; NumPy outside the checkout)"
	@echo "make test-deb                          the Debian package under systemd in a container (as root)"
	@echo "make deny                              licences, sources and versions of the dependencies"
	@echo "make bench [AUDIO=dir]                 beside Opus: quality by rate, under loss, speed: out/bench-*"
	@echo "make bench-parts                       benchmarks of single parts (criterion)"
	@echo "make deb                               a Debian package: target/debian/"
	@echo "make dist                              a folder and an archive that run from anywhere: target/dist/"
	@echo "make container                         a container image, by podman, buildah or docker"
	@echo "make setup | build | install | clean"

setup:
	@bash scripts/setup.sh

build: setup
	$(CARGO) build --release --locked

# A second make, because alsa-utils may have been installed by setup only now.
run: build
	@$(MAKE) --no-print-directory demo

.PHONY: demo
demo:
	@target/release/undertone demo $(INPUT) --out $(OUT) --kbps $(RATES)

# Everything in one set of features, so that it is compiled once: tests, benchmarks, fuzz targets, the comparison with Opus.
ALL := --locked --workspace --features undertone/referee

# Needs no root (once what is missing is installed) and no browser.
test: export CARGO := $(CARGO)
test:
	@bash scripts/setup.sh cmake g++
	@bash scripts/lint.sh
	$(CARGO) test --locked --no-default-features --features portable --lib
	$(CARGO) build $(ALL) --all-targets
	$(CARGO) test $(ALL)
	$(CARGO) test $(ALL) --bench '*'

# Pages decode by themselves with it; without it they get samples. Built anew only when its sources change.
.PHONY: web
web: export CARGO := $(CARGO)
web:
	@bash scripts/web.sh

# The same for what is installed; a machine whose compiler has no such target goes without.
.PHONY: web-if-possible
web-if-possible: export CARGO := $(CARGO)
web-if-possible:
	@bash scripts/web.sh --if-possible

.PHONY: test-web
test-web: export CARGO := $(CARGO)
test-web:
	@bash scripts/test-web.sh

# What needs more than a checkout: a NATS server, a sound server, a browser, a second core, network namespaces.
test-system: web
	@bash scripts/setup.sh cmake g++ pulseaudio pulseaudio-utils=pactl nats-server=/usr/sbin/nats-server chromium iproute2=ip
	$(CARGO) test $(ALL) -- --ignored

test-recipe:
	@bash scripts/test-recipe.sh

test-bindings: export CARGO := $(CARGO)
test-bindings:
	@bash scripts/test-bindings.sh

# Needs root: the package is tried in a container with a systemd of its own.
test-deb: deb
	@bash scripts/install.sh debootstrap systemd-container=systemd-nspawn util-linux=nsenter procps=pgrep
	bash scripts/try-deb.sh target/debian/undertone_*.deb

deny:
	@bash scripts/deny.sh

# The comparison with Opus builds libopus (cmake) and so is a feature of its own.
AUDIO ?= /usr/share/sounds/alsa
bench:
	@bash scripts/setup.sh cmake
	$(CARGO) build --release --locked --features referee
	target/release/undertone bench rate $(AUDIO) --quick --keep --out $(OUT)/bench-rate
	target/release/undertone bench loss $(AUDIO) --kbps 8 --opus-kbps 8,24 --loss 0,10 --out $(OUT)/bench-loss
	target/release/undertone bench speed --seconds 60 --longest 600 --out $(OUT)/bench-speed

.PHONY: bench-parts
bench-parts: setup
	$(CARGO) bench --locked

PREFIX ?= /usr/local
install: build web-if-possible
	install -D -m 755 target/release/undertone $(DESTDIR)$(PREFIX)/bin/undertone
	install -D -m 644 target/onnxruntime/libonnxruntime.so $(DESTDIR)$(PREFIX)/lib/undertone/libonnxruntime.so
	install -d $(DESTDIR)$(PREFIX)/share/undertone/models/undertone-24k-v2
	install -m 644 models/undertone-24k-v2/* $(DESTDIR)$(PREFIX)/share/undertone/models/undertone-24k-v2/
	install -d $(DESTDIR)$(PREFIX)/share/undertone/web
	install -m 644 target/web/* $(DESTDIR)$(PREFIX)/share/undertone/web/
	[ -e $(DESTDIR)/etc/undertone/undertone.toml ] || \
		install -D -m 644 packaging/undertone.toml $(DESTDIR)/etc/undertone/undertone.toml
	install -d $(DESTDIR)/etc/systemd/system
	sed 's#/usr/bin/undertone#$(PREFIX)/bin/undertone#' packaging/undertone.service \
		> $(DESTDIR)/etc/systemd/system/undertone.service

# target/debian/undertone_*.deb
.PHONY: deb
deb: build web-if-possible
	@command -v cargo-deb >/dev/null || $(CARGO) install --locked cargo-deb --version 3.8.0
	$(CARGO) deb --no-build --strip --locked

# target/dist/undertone-*.tar.gz
.PHONY: dist
dist: build web-if-possible
	@bash scripts/install.sh binutils=objcopy
	@bash scripts/dist.sh
	@bash scripts/try-dist.sh target/dist/undertone-*.tar.gz

.PHONY: container
container: dist
	@bash scripts/container.sh

clean:
	$(CARGO) clean
	rm -rf $(OUT)
