#!/usr/bin/env bash
# targets/cuda.sh check|test|clippy ARGUMENT...: the program with feature cuda where there is neither a GPU nor CUDA. A stand-in
# for nvcc is all that a type check needs. The tests run on an emulated device: stand-ins for the driver, cuBLAS and cuRAND,
# loaded at run time, execute the kernels of this repository and candle's, compiled with g++ from the same sources.
# With EMULATOR=0 the tests run on the GPU of this machine, with its CUDA.
set -euo pipefail
cd "$(dirname "$0")/.."
emulator=$PWD/targets/cuda/emulator
target=$(rustc -vV | sed -n 's/^host: //p')
folder=${CARGO_TARGET_DIR:-$PWD/target}/cuda
command=${1:?check, clippy or test}
shift

fail() {
	echo "$1" >&2
	exit 1
}

# Run-time loading of CUDA: the cfg reaches cudarc itself and, with --target, not its build script, which refuses it beside
# the `dynamic-linking` that candle asks for.
export RUSTFLAGS="${RUSTFLAGS:-} --cfg feature=\"dynamic-loading\""
export CUDAFORGE_THREADS="${CUDAFORGE_THREADS:-$(nproc)}"
if [ "${EMULATOR:-1}" != 0 ]; then
	export NVCC=$emulator/nvcc PATH=$emulator:$PATH CUDA_HOME=$folder/toolkit CUDA_PATH=$folder/toolkit
	export CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-87}"
	# what the linker asks for by name, and candle's kernels for quantised models, which nothing here calls
	mkdir -p "$folder/toolkit/include" "$folder/toolkit/lib64"
	for name in cuda cudart nvrtc curand cublas cublasLt; do
		[ -e "$folder/toolkit/lib64/lib$name.so" ] || echo | gcc -shared -x c - -o "$folder/toolkit/lib64/lib$name.so"
	done
	RUSTFLAGS+=" -L $folder/toolkit/lib64 -C link-arg=-Wl,--unresolved-symbols=ignore-all"
fi
cargo() {
	"${CARGO:-$(type -P cargo)}" "$1" --target "$target" --target-dir "$folder" --config 'profile.dev.package."*".opt-level=1' "${@:2}"
}

case "$command" in
check | clippy) cargo "$command" --features cuda "$@" ;;
test)
	if [ "${EMULATOR:-1}" != 0 ]; then
		kernels=$(command cargo metadata --format-version 1 --features cuda --filter-platform "$target" |
			grep -oE '"[^"]*/candle-kernels-[^"/]*/Cargo.toml"' | head -1 | tr -d '"' | xargs dirname)
		# checkouts may share a target folder
		libraries=$folder/emulator-$(cksum <<<"$PWD" | cut -d ' ' -f 1)
		make -j"$(nproc)" -s -C "$emulator" OUT="$libraries" CANDLE="$kernels/src" CUDARC="$(dirname "$kernels")"/cudarc-* >&2
		export EMULATED=1 LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
	fi
	cargo test -p pleinair-cuda --features cuda "$@"
	;;
*) fail "targets/cuda.sh check, clippy or test" ;;
esac
