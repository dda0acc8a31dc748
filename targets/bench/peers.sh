#!/bin/sh
# Measures pleinair beside its peers (make bench-peers). Everything it makes lies in build/peers, which git ignores; the
# results are added to targets/results. PEERS_VENV names a ready environment, arguments go to peers.py (such as --quick).
set -eu
cd "$(dirname "$0")/../.."
work=build/peers
pleinair=${PLEINAIR:-target/release/pleinair}
quantize=${QUANTIZE:-target/release/pleinair-quantize}
model=${MEASURED:-build/sd15-f32}
venv=${PEERS_VENV:-$work/env}
mkdir -p "$work" "$(dirname "$model")"

if [ ! -x "$venv/bin/python" ]; then
	python3 -m venv "$venv"
	"$venv/bin/pip" install -r targets/bench/requirements.txt
	# from source, for this very processor; where that fails the table says so
	env PATH="$(cd "$venv/bin" && pwd):$PATH" CMAKE_ARGS=-DGGML_NATIVE=ON \
		"$venv/bin/pip" install --no-binary stable-diffusion-cpp-python stable-diffusion-cpp-python==0.4.7 \
		>"$work/stable-diffusion-cpp.log" 2>&1 ||
		echo "stable-diffusion.cpp could not be built, see $work/stable-diffusion-cpp.log" >&2
fi
test -d "$model" || "$quantize" synth sd15 --seed 1 --dtype f32 --out "$model"
test -d "$model-int8" || "$quantize" convert --from "$model" --dtype int8 --out "$model-int8"
exec "$venv/bin/python" targets/bench/peers.py --pleinair "$pleinair" --model "$model" --work "$work" "$@"
