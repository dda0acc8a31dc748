# The only list of commands; bare `make` prints it.
.DEFAULT_GOAL := help
.PHONY: help demo kiosk artists-pictures fidelity test crash soak load test-aarch64 test-aarch64-library check-cuda test-cuda test-cuda-program build-cuda check-metal metal-day test-slow fuzz lint build bundles measure-convert bench-peers gpu-day gpu-day-binaries gpu-day-check tools fuzz-tools cxx cameras test-browser screenshots browser-tools references clean

CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
PLEINAIR := $(TARGET)/release/pleinair
QUANTIZE := $(TARGET)/release/pleinair-quantize
OUT ?= painted
# your own: make demo PHOTO=me.jpg STYLE=painting.jpg CONTEXT="A painting of a garden, in the style of {}"
SAMPLES := models/atelier/samples
PHOTO ?= $(SAMPLES)/content/fields0.jpg
STYLE ?= $(SAMPLES)/style/gcd_board3.jpg
CONTEXT ?= a painting of a church under a dark sky, in the style of {}
FIRST ?= hiroshige
FIRST_FILE = models/atelier/styles/$(FIRST).safetensors
STEPS ?= 200
CONFIG ?= targets/service/kiosk.toml
# the default model is small: gentle guidance and strength keep the photograph in sight
PAINT ?= --guidance 2 --strength 0.6 --size 256

help: ## print this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: build ## paint a photograph, learn a style from a picture, paint the photograph in it; one contact sheet
	@mkdir -p $(OUT)
	$(PLEINAIR) paint --content "$(PHOTO)" --style $(FIRST) $(PAINT) --out $(OUT)/first.png
	$(PLEINAIR) learn --image "$(STYLE)" --context "$(CONTEXT)" --steps $(STEPS) --lr 0.01 --out $(OUT)/learned.safetensors
	$(PLEINAIR) paint --content "$(PHOTO)" --style $(OUT)/learned.safetensors $(PAINT) --out $(OUT)/learned.png
	$(PLEINAIR) sheet --cell "photograph=$(PHOTO)" --cell "in the style $(FIRST)=$(OUT)/first.png" \
		--cell "style picture=$(STYLE)" --cell "in the style just learned=$(OUT)/learned.png" --columns 2 --out $(OUT)/demo.png
	@echo "The contact sheet is $(OUT)/demo.png"

kiosk: build ## a kiosk in the browser: pages on http://127.0.0.1:7860, the sample photographs as its camera (CONFIG=your.toml)
	$(PLEINAIR) serve --config "$(CONFIG)"

test: tools cxx cameras ## everything that must hold
	$(CARGO) test --workspace --no-fail-fast

test-aarch64: tools ## the CPU kernels' tests for 64-bit Arm, on an emulated CPU with NEON, dot products and i8mm
	targets/aarch64.sh test -p pleinair-cpu --lib --tests --no-fail-fast

# all but those tests that start a program, which the system would have to run under qemu by itself
test-aarch64-library: tools cxx ## the whole library's tests, on that emulated CPU (half an hour)
	targets/aarch64.sh test -p pleinair -p pleinair-cpu -p pleinair-quantize --lib --test bundles --test gradients --test learning \
		--test networks --test opening --test painting --test pickle --test shipped --test solvers --test onnx --test source \
		--test int8 --test wide --test attention --test oracle --no-fail-fast

check-cuda: cxx ## lint the CUDA target where there is neither a GPU nor CUDA
	targets/cuda.sh clippy -p pleinair -p pleinair-cuda --all-targets -- -D warnings

test-cuda: cxx ## the CUDA kernels' tests, on an emulated GPU
	targets/cuda.sh test --no-fail-fast
	EMULATOR_ORDER=hasty targets/cuda.sh test --no-fail-fast # shows missing barriers

# in f32 beside diffusers, and in half precision beside f32
test-cuda-program: cxx ## the whole program on an emulated GPU: parity, learning, recorded steps (twenty minutes)
	PLEINAIR_TEST_DEVICE=cuda targets/cuda.sh test -p pleinair --lib --test networks --test painting --test learning \
		--test gradients --test bundles --test gpu --no-fail-fast

load: tools ## 100 clients while paintings are painted: how much slower are these, does a request hang?
	$(CARGO) test --release --test load -- --ignored --nocapture

# CRASHES kills at random moments while paintings and a lesson run
CRASHES ?= 50
crash: tools ## kill the daemon CRASHES=50 times under load; what was announced has to be there each time
	CRASHES=$(CRASHES) $(CARGO) test --release --test crash -- --nocapture

SOAK_MINUTES ?= 30
soak: tools ## half an hour of paintings: does memory stay where it is? SOAK_MINUTES=30
	SOAK_MINUTES=$(SOAK_MINUTES) $(CARGO) test --release --test soak -- --ignored --nocapture

# compute capability: 87 is Jetson Orin, 89 an RTX 40, 90 an H100
CAP ?= 87
build-cuda: cxx ## the program with CUDA for one generation of GPUs, CAP=87; nvcc is fetched from PyPI
	targets/cuda.sh build $(CAP)

# tests/fuzz/run.sh has the list of readers; FUZZ=pickle runs only that one
FUZZ ?=
fuzz: fuzz-tools ## let libFuzzer look for files that break a reader, FUZZ_SECONDS=20 for each
	tests/fuzz/run.sh $(FUZZ)

check-metal: cxx ## type-check everything for Apple silicon, on a machine that is none, and run the Metal kernels on the CPU
	targets/metal.sh kernels
	targets/metal.sh check -p pleinair-metal --features metal --all-targets
	targets/metal.sh check --features metal --all-targets

metal-day: tools ## on a Mac: every Metal op and the networks on its GPU, benchmarks, one JSON (an hour; QUICK=1 for minutes)
	QUICK=$(QUICK) targets/metal/day.sh

test-slow: tools ## the tests that take minutes: a whole lesson through int8 on the default model
	$(CARGO) test --workspace --no-fail-fast -- --ignored --nocapture

lint: tools ## formatting and lints, no warning allowed
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --features pleinair-fuzz/libfuzzer -- -D warnings

build: tools ## the program and the converter, optimised
	$(CARGO) build --release --workspace

artists-pictures: build ## the pictures of docs/artists.md, made with the default model (a minute)
	docs/artists/pictures.sh $(PLEINAIR) $(OUT)/artists

# VENV is kept; what was learned and painted lies in build/fidelity
VENV ?= .venv
fidelity: build ## how faithful are learned styles? held-out pictures, judged by another network (Python; an hour or more)
	test -x $(VENV)/bin/python || python3 -m venv $(VENV)
	$(VENV)/bin/pip install -q -r models/recipe/requirements.txt
	$(VENV)/bin/pip install -q --no-deps -r models/recipe/requirements-judge.txt
	PLEINAIR_BUNDLE=models/atelier $(VENV)/bin/python models/recipe/fidelity.py $(PLEINAIR) build/fidelity models/atelier/FIDELITY.md

bundles: build ## the default model as f16, bf16 and int8 bundles, their quality reports, and one contact sheet
	@mkdir -p $(OUT)
	for dtype in f16 bf16 int8; do \
		$(QUANTIZE) convert --from models/atelier --dtype $$dtype --force --out $(OUT)/atelier-$$dtype && \
		$(QUANTIZE) report $(OUT)/atelier-$$dtype --against models/atelier --min-psnr 40 && \
		$(PLEINAIR) paint --bundle $(OUT)/atelier-$$dtype --content "$(PHOTO)" --style $(FIRST_FILE) $(PAINT) --out $(OUT)/$$dtype.png \
		|| exit 1; \
	done
	$(PLEINAIR) paint --content "$(PHOTO)" --style $(FIRST_FILE) $(PAINT) --out $(OUT)/source.png
	$(PLEINAIR) sheet --cell "photograph=$(PHOTO)" --cell "the model itself=$(OUT)/source.png" \
		--cell "f16 bundle=$(OUT)/f16.png" --cell "bf16 bundle=$(OUT)/bf16.png" --cell "int8 bundle=$(OUT)/int8.png" \
		--columns 3 --out $(OUT)/bundles.png
	@echo "The contact sheet is $(OUT)/bundles.png"

# SD 1.5 in f32 with random weights, 5.7 GB; made once
MEASURED ?= build/sd15-f32
measure-convert: build ## convert a model of SD 1.5's full size to int8: time, memory and size, with their limits
	@mkdir -p $(dir $(MEASURED))
	test -d $(MEASURED) || $(QUANTIZE) synth sd15 --seed 1 --dtype f32 --out $(MEASURED)
	cat $(MEASURED)/*/*.safetensors >/dev/null # into the page cache
	$(QUANTIZE) convert --from $(MEASURED) --dtype int8 --force --out $(MEASURED)-int8 | tee $(MEASURED)-int8.log
	@awk '/^converted in/ { found = 1; fine = $$3 <= 15 && $$8 <= 0.27 && $$16 <= 600 } \
		END { if (!found || !fine) { print "over a limit: 15 s, 0.27 of f32, 600 MB resident"; exit 1 } }' $(MEASURED)-int8.log

bench-peers: build fuzz-tools ## ours beside PyTorch, OpenVINO, stable-diffusion.cpp, candle and tract (Python, 25 GB, an hour; QUICK=--quick)
	PLEINAIR=$(PLEINAIR) QUANTIZE=$(QUANTIZE) MEASURED=$(MEASURED) targets/bench/peers.sh $(QUICK)

# CAP and TARGET as for build-cuda; HERE=1 where the card is in this machine: nothing is packed then
gpu-day-binaries: cxx ## what gpu-day needs, built and packed for one generation of NVIDIA cards, CAP=90 (Python; 20 minutes)
	python3 targets/cuda/day/binaries.py $(CAP) $(if $(HERE),--no-archive)

# PART=parity, bench or peers; MODEL=folder of `synth sd15`, NOTE="what else ran", KEEP_GOING=1, FRESH=1, SIZE=tiny
PYTHON ?= python3
gpu-day: ## every test on an NVIDIA card, then ours beside PyTorch; no network, no Rust (Python; an hour, QUICK=1: ten minutes)
	PYTHONUNBUFFERED=1 $(PYTHON) targets/cuda/day/day.py $(if $(QUICK),--quick) $(if $(PART),--part $(PART)) \
		$(if $(SIZE),--size $(SIZE)) $(if $(MODEL),--model "$(MODEL)") $(if $(MINUTES),--minutes $(MINUTES)) \
		$(if $(RESULTS),--results "$(RESULTS)") $(if $(NOTE),--note "$(NOTE)") $(if $(KEEP_GOING),--keep-going) $(if $(FRESH),--fresh)

gpu-day-check: # whether gpu-day finds what is wrong, with programs that only pretend (Python)
	python3 targets/cuda/day/check_day.py

tools: ## what the build itself needs: Rust and a C compiler
	@command -v $(CARGO) >/dev/null || { echo "Rust is missing; install it with rustup" >&2; exit 1; }
	@command -v cc >/dev/null || if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -q && apt-get install -qy --no-install-recommends gcc libc6-dev; \
		else echo "A C compiler is missing; install gcc or clang" >&2; exit 1; fi

fuzz-tools: cxx # libFuzzer is written in C++

cxx: tools # a C++ compiler
	@command -v c++ >/dev/null || if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -q && apt-get install -qy --no-install-recommends g++; \
		else echo "A C++ compiler is missing; install g++ or clang++" >&2; exit 1; fi

cameras: tools # ffmpeg, the cameras of the tests
	@command -v ffmpeg >/dev/null || if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -q && apt-get install -qy --no-install-recommends ffmpeg; \
		else echo "ffmpeg is missing; install it with your system's packages" >&2; exit 1; fi

# the program as it was last built, optimised or not; small random networks, whose screenshots the references are of
BUILT = $(shell test -x $(PLEINAIR) && echo release || echo debug)
test-browser: browser-tools ## the pages in a real browser: whole rounds at the kiosk, studio, gallery, admin (four minutes)
	$(CARGO) build $(if $(filter release,$(BUILT)),--release) -p pleinair --bin pleinair
	@mkdir -p $(OUT)
	PLEINAIR=$(TARGET)/$(BUILT)/pleinair MODEL=tests/fixtures/tiny-sd15 OUT=$(OUT) \
		node --test --test-concurrency=1 tests/browser/

screenshots: build browser-tools ## the README's screenshots, docs/*.jpg, from the sample photographs
	PLEINAIR=$(PLEINAIR) MODEL=models/atelier OUT=$(OUT) node tests/browser/screenshots.js

# CHROMIUM names another browser than the system's
browser-tools: tools # Chromium, Node and what drives it
	@missing=; for tool in chromium node npm; do command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	missing=$$(echo "$$missing" | sed 's/ node/ nodejs/'); \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -q && apt-get install -qy --no-install-recommends $$missing fonts-inter fonts-ebgaramond; \
	else echo "Missing for the tests in a browser:$$missing; install them" >&2; exit 1; fi
	@cd tests/browser && { cmp -s package-lock.json node_modules/.pleinair || { npm ci --no-audit --no-fund && \
		cp package-lock.json node_modules/.pleinair; }; }

references: ## make the parity fixtures again (Python with tests/reference/requirements.txt)
	tests/reference/make_all.sh

clean: ## remove what was built and painted
	$(CARGO) clean
	rm -rf $(OUT)
