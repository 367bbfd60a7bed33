# undertone: `make run` shows what it does, `make test` checks that it does.

CARGO ?= cargo
INPUT ?= $(wildcard /usr/share/sounds/alsa/*_*.wav)
OUT   ?= out
RATES ?= 1.5,3,6

.PHONY: help setup build run test test-recipe bench install clean

help:
	@echo "make run [INPUT=file] [RATES=1.5,3,6]  recordings through a daemon and back: out/*.wav, a table, spectrograms"
	@echo "make test                              formatting, lints, docs, all tests of the Rust code"
	@echo "make test-recipe                       tests of the training recipe (installs PyTorch outside the checkout)"
	@echo "make bench [AUDIO=dir]                 beside Opus: quality by rate, under loss, speed: out/bench-*"
	@echo "make bench-parts                       benchmarks of single parts (criterion)"
	@echo "make deb                               a Debian package: target/debian/"
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

test:
	@bash scripts/setup.sh chromium
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --lib --no-default-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps
	@bash scripts/core-only.sh
	$(CARGO) test --locked --no-default-features --lib
	$(CARGO) test --locked

test-recipe:
	@bash scripts/test-recipe.sh

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
install: build
	install -D -m 755 target/release/undertone $(DESTDIR)$(PREFIX)/bin/undertone
	install -D -m 644 target/onnxruntime/libonnxruntime.so $(DESTDIR)$(PREFIX)/lib/undertone/libonnxruntime.so
	install -d $(DESTDIR)$(PREFIX)/share/undertone/models/undertone-24k-v1
	install -m 644 models/undertone-24k-v1/* $(DESTDIR)$(PREFIX)/share/undertone/models/undertone-24k-v1/
	[ -e $(DESTDIR)/etc/undertone/undertone.toml ] || \
		install -D -m 644 packaging/undertone.toml $(DESTDIR)/etc/undertone/undertone.toml
	install -d $(DESTDIR)/etc/systemd/system
	sed 's#/usr/bin/undertone#$(PREFIX)/bin/undertone#' packaging/undertone.service \
		> $(DESTDIR)/etc/systemd/system/undertone.service

# target/debian/undertone_*.deb
.PHONY: deb
deb: build
	@command -v cargo-deb >/dev/null || $(CARGO) install --locked cargo-deb --version 3.8.0
	$(CARGO) deb --no-build --strip --locked

clean:
	$(CARGO) clean
	rm -rf $(OUT)
