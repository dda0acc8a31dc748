#!/usr/bin/env bash
# targets/metal/day.sh: all that only a Mac with Apple silicon can prove. Builds, runs every op and the networks' parity tests
# on its GPU, measures, and writes one JSON into targets/results. What fails is told at the end, and does not keep the rest
# from running. QUICK=1 measures the model that ships alone; else one of SD 1.5's size is made once (9 GB under build/).
set -euo pipefail
cd "$(dirname "$0")/../.."

fail() {
	echo "$1" >&2
	exit 1
}

[ "$(uname -sm)" = "Darwin arm64" ] || fail "This needs a Mac with Apple silicon; make check-metal is for other machines"
cargo=${CARGO:-cargo}
target=${CARGO_TARGET_DIR:-target}
pleinair=$target/release/pleinair
quantize=$target/release/pleinair-quantize
synthetic=${MEASURED:-build/sd15-f32}
chip=$(sysctl -n machdep.cpu.brand_string)
name=$(echo "$chip" | tr 'A-Z ' 'a-z-')-$(date +%F)${QUICK:+-quick}
result=targets/results/$name.json
log=$target/metal-day
rm -rf "$log"
mkdir -p "$log" targets/results
failed=

# NAME COMMAND...: into a log and, if it fails, into the list of what did
step() {
	local step=$1
	shift
	echo "== $step: $*"
	if "$@" >"$log/$step.log" 2>&1; then
		outcomes=${outcomes:-}${outcomes:+,}"\"$step\": true"
	else
		outcomes=${outcomes:-}${outcomes:+,}"\"$step\": false"
		failed="$failed $step"
		tail -n 40 "$log/$step.log"
	fi
}

# NAME ARGUMENT...: one benchmark, whose JSON joins the others
measure() {
	local step=$1
	shift
	step "$step" "$pleinair" bench "$@" --json
	if [[ "$failed " != *" $step "* ]]; then
		measured=${measured:-}${measured:+,}$(cat "$log/$step.log")
	fi
}

"$cargo" build --release --features metal -p pleinair -p pleinair-quantize
step kernels "$cargo" test --release -p pleinair-metal --features metal --test kernels
step ops "$cargo" test --release -p pleinair-metal --features metal --test ops --no-fail-fast
# parity with the references, in f32, and what f16 keeps
step parity env PLEINAIR_TEST_DEVICE=metal "$cargo" test --release -p pleinair --features metal --no-fail-fast \
	--test networks --test gradients --test learning --test painting --test gpu

for dtype in f16 int8; do
	step "convert-atelier-$dtype" "$quantize" convert --from models/atelier --dtype $dtype --force --out "build/atelier-$dtype"
	measure "atelier-$dtype-unet" unet --bundle "build/atelier-$dtype" --device metal
	measure "atelier-$dtype-unet-cpu" unet --bundle "build/atelier-$dtype" --device cpu
	measure "atelier-$dtype-learn" learn --bundle "build/atelier-$dtype" --device metal
done
if [ -z "${QUICK:-}" ]; then
	[ -d "$synthetic" ] || "$quantize" synth sd15 --seed 1 --dtype f32 --out "$synthetic"
	for dtype in f16 int8; do
		bundle=$synthetic-$dtype
		[ -d "$bundle" ] || step "convert-$dtype" "$quantize" convert --from "$synthetic" --dtype $dtype --out "$bundle"
		for batch in 1 2 4; do
			measure "sd15-$dtype-unet-$batch" unet --bundle "$bundle" --device metal --size 512 --batch $batch
		done
		measure "sd15-$dtype-paint" paint --bundle "$bundle" --device metal --size 512 --steps 25
		measure "sd15-$dtype-learn" learn --bundle "$bundle" --device metal --size 512
		measure "sd15-$dtype-unet-cpu" unet --bundle "$bundle" --device cpu --size 512
	done
fi

cat >"$result" <<END
{
"date": "$(date +%F)",
"quick": $([ -n "${QUICK:-}" ] && echo true || echo false),
"machine": {"chip": "$chip", "memory_bytes": $(sysctl -n hw.memsize), "macos": "$(sw_vers -productVersion)"},
"commit": "$(git rev-parse HEAD 2>/dev/null || echo unknown)",
"passed": {${outcomes:-}},
"benchmarks": [${measured:-}]
}
END
echo "Written: $result"
[ -z "$failed" ] || fail "Failed:$failed; their logs are in $log"
