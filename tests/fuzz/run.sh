#!/usr/bin/env bash
# tests/fuzz/run.sh [TARGET[=SECONDS]...]: builds the fuzzers and runs each reader's for FUZZ_SECONDS. The inputs that lead somewhere
# new are kept in fuzz-TARGET/found of the target folder and are where the next run starts; one that breaks a reader is
# left beside them and named. `FUZZ_MERGE=1` runs nothing new but puts those that matter into corpus/.
set -euo pipefail
cd "$(dirname "$0")/../.."
cargo=${CARGO:-cargo}
seconds=${FUZZ_SECONDS:-20}
target_folder=${CARGO_TARGET_DIR:-target}
[ $# -gt 0 ] || set -- safetensors checkpoint pickle manifest scheduler style mjpeg y4m multipart configuration

"$cargo" build -q --manifest-path tests/fuzz/engine/Cargo.toml --locked --target-dir "$target_folder/fuzz-engine"
engine=$(ls -t "$target_folder"/fuzz-engine/debug/build/libfuzzer-sys-*/out/libfuzzer.a | head -n 1)
# the features of a test run, so that no dependency is built twice
built=$(FUZZ_ENGINE=$(realpath "$(dirname "$engine")") RUSTC_WORKSPACE_WRAPPER=$PWD/tests/fuzz/instrument.sh \
	CARGO_INCREMENTAL=0 "$cargo" build --workspace --test fuzz --features pleinair-fuzz/libfuzzer \
	--message-format=json-render-diagnostics)
fuzzer=$(sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' <<<"$built" | tail -n 1)

# fuzz TARGET OPTION...: what libFuzzer says goes to fuzz-TARGET/log
fuzz() {
	local name=$1 folder=$target_folder/fuzz-$1
	mkdir -p "$folder/found" "$folder/seeds"
	FUZZ_TARGET=$name FUZZ_SEEDS=$folder/seeds "$fuzzer" "${@:2}" -artifact_prefix="$folder/" -max_len=16384 -timeout=5 \
		-rss_limit_mb=1024 -detect_leaks=0 -print_final_stats=1 -print_funcs=0 >"$folder/log" 2>&1
}

# run TARGET SECONDS
run() {
	local folder=$target_folder/fuzz-$1 kept=tests/fuzz/corpus/$1
	[ -d "$kept" ] || kept=$folder/seeds # the planted fault has none
	fuzz "$1" "$folder/found" "$folder/seeds" "$kept" -max_total_time="$2"
}

if run planted 60; then
	echo "The fault planted for the fuzzer was not found; neither would be others" >&2
	exit 1
fi
grep -q 'overflow' "$target_folder/fuzz-planted/log" || { cat "$target_folder/fuzz-planted/log" >&2; exit 1; }
if [ -n "${FUZZ_MERGE:-}" ]; then
	for name in "$@"; do
		fuzz "$name" -merge=1 "tests/fuzz/corpus/$name" "$target_folder/fuzz-$name/found" &&
			grep '^MERGE-OUTER: ' "$target_folder/fuzz-$name/log" | tail -n 1
	done
	exit
fi

# one reader's fuzzer needs one core: two at a time
for asked in "$@"; do
	name=${asked%%=*} own=${asked#*=}
	[ "$own" != "$asked" ] || own=$seconds
	while [ "$(jobs -rp | wc -l)" -ge 2 ]; do wait -n || true; done
	{ run "$name" "$own" && echo 0 || echo $?; } >"$target_folder/fuzz-$name.status" &
done
wait
failed=0
for asked in "$@"; do
	name=${asked%%=*}
	log=$target_folder/fuzz-$name/log
	runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
	covered=$(sed -n 's/.* cov: \([0-9]*\) ft: \([0-9]*\) corp: \([0-9]*\).*/\1 edges, \2 features, \3 inputs/p' "$log" | tail -n 1)
	echo "$name: ${runs:-?} executions, $covered"
	if [ "$(cat "$target_folder/fuzz-$name.status")" != 0 ]; then
		failed=1
		grep -vE '^(#[0-9]|INFO|stat::)' "$log" | tail -n 40 >&2
	fi
done
exit "$failed"
