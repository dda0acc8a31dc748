#!/bin/sh
# Measures pleinair beside its peers (make bench-peers). Everything it makes lies in build/, which git ignores; the results
# are added to targets/results. PEERS_VENV names a ready environment, arguments go to peers.py (such as --quick).
set -eu
cd "$(dirname "$0")/../.."
work=build/peers
pleinair=${PLEINAIR:-target/release/pleinair}
quantize=${QUANTIZE:-target/release/pleinair-quantize}
model=${MEASURED:-build/sd15-f32}
venv=${PEERS_VENV:-$work/env}
wanted=targets/bench/requirements.txt
mkdir -p "$work" "$(dirname "$model")"

# the list is copied last: an environment without it was interrupted, one with another list is out of date
if [ -z "${PEERS_VENV:-}" ] && ! cmp -s "$wanted" "$venv/requirements.txt"; then
	python3 -m venv "$venv"
	"$venv/bin/pip" install -r "$wanted"
	# from source, for this very processor; where that fails the table says so
	env PATH="$(cd "$venv/bin" && pwd):$PATH" CMAKE_ARGS=-DGGML_NATIVE=ON \
		"$venv/bin/pip" install --no-binary stable-diffusion-cpp-python stable-diffusion-cpp-python==0.4.7 \
		>"$work/stable-diffusion-cpp.log" 2>&1 ||
		echo "stable-diffusion.cpp could not be built, see $work/stable-diffusion-cpp.log" >&2
	cp "$wanted" "$venv/requirements.txt"
fi

# candle and tract, for this very processor as candle's own repository builds its examples; PEERS_RUST names a ready program
rust=${PEERS_RUST:-$work/target/release/peers}
if [ -z "${PEERS_RUST:-}" ]; then
	RUSTFLAGS="-C target-cpu=native" "${CARGO:-cargo}" build --release --locked \
		--manifest-path targets/bench/rust/Cargo.toml --target-dir "$work/target"
fi

test -d "$model" || "$quantize" synth sd15 --seed 1 --dtype f32 --out "$model"
for dtype in int8 bf16; do
	test -d "$model-$dtype" || "$quantize" convert --from "$model" --dtype "$dtype" --out "$model-$dtype"
done
exec "$venv/bin/python" targets/bench/peers.py --pleinair "$pleinair" --rust "$rust" --model "$model" --work "$work" "$@"
