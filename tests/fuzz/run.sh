#!/usr/bin/env bash
# Builds the fuzzers and runs each reader's for FUZZ_SECONDS: tests/fuzz/run.sh [TARGET...]. An input that makes one fail
# is left in fuzz-TARGET/ of the target folder, and its name is printed; new interesting inputs are left beside it.
set -euo pipefail
cd "$(dirname "$0")/../.."
cargo=${CARGO:-cargo}
seconds=${FUZZ_SECONDS:-20}
target_folder=${CARGO_TARGET_DIR:-target}
[ $# -gt 0 ] || set -- safetensors checkpoint pickle manifest scheduler style

"$cargo" build -q --manifest-path tests/fuzz/engine/Cargo.toml --target-dir "$target_folder/fuzz-engine"
engine=$(ls -t "$target_folder"/fuzz-engine/debug/build/libfuzzer-sys-*/out/libfuzzer.a | head -n 1)
# the features of a test run, so that no dependency is built twice
built=$(FUZZ_ENGINE=$(realpath "$(dirname "$engine")") RUSTC_WORKSPACE_WRAPPER=$PWD/tests/fuzz/instrument.sh \
	CARGO_INCREMENTAL=0 "$cargo" build --workspace --test fuzz --features pleinair-fuzz/libfuzzer \
	--message-format=json-render-diagnostics)
fuzzer=$(sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' <<<"$built" | tail -n 1)

# fuzz TARGET SECONDS: libFuzzer's last lines and the summary
fuzz() {
	local folder=$target_folder/fuzz-$1
	local -a inputs=("$folder/found" "$folder/seeds")
	[ ! -d "tests/fuzz/corpus/$1" ] || inputs+=("tests/fuzz/corpus/$1")
	mkdir -p "${inputs[@]}"
	FUZZ_TARGET=$1 FUZZ_SEEDS=$folder/seeds "$fuzzer" "${inputs[@]}" \
		-artifact_prefix="$folder/" -max_total_time="$2" -max_len=16384 -timeout=5 -rss_limit_mb=1024 -detect_leaks=0 \
		-print_final_stats=1 -print_funcs=0 >"$folder/log" 2>&1
}

if fuzz planted 60; then
	echo "The fuzzer did not find the fault planted for it; its other findings mean nothing" >&2
	exit 1
fi
failed=0
for name in "$@"; do
	status=0
	fuzz "$name" "$seconds" || status=$?
	log=$target_folder/fuzz-$name/log
	runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
	covered=$(sed -n 's/.* \(cov: [0-9]* ft: [0-9]*\) corp: \([0-9]*\).*/\1 inputs: \2/p' "$log" | tail -n 1)
	echo "$name: ${runs:-?} executions, $covered"
	if [ "$status" != 0 ]; then
		failed=1
		grep -vE '^(#[0-9]|INFO|NEW_FUNC|stat::)' "$log" | tail -n 40 >&2
	fi
done
exit "$failed"
