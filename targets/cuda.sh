#!/usr/bin/env bash
# targets/cuda.sh COMMAND ARGUMENT...: the program with feature cuda.
#   check, clippy   its types, where there is neither a GPU nor CUDA: a stand-in for nvcc is all they need
#   test            the kernels' tests (or another crate's: -p pleinair) on an emulated GPU: stand-ins for the driver,
#                   cuBLAS and cuRAND, loaded at run time, execute the kernels of this repository and candle's, compiled
#                   with g++ from the same sources; with EMULATOR=0 on the GPU of this machine, with its CUDA
#   build CAP       the program for GPUs of one compute capability (87: Jetson Orin), with this machine's nvcc or one from
#                   PyPI; TARGET=aarch64-unknown-linux-gnu for a board. All kernels are assembled, their registers and
#                   spills listed.
#   build-tests CAP the same, and tests for those GPUs (targets/cuda/day/binaries.py)
set -euo pipefail
cd "$(dirname "$0")/.."
emulator=$PWD/targets/cuda/emulator
host=$(rustc -vV | sed -n 's/^host: //p')
command=${1:?check, clippy, test or build}
shift

fail() {
	echo "$1" >&2
	exit 1
}

# What the linker asks for by name: nothing is taken from it, and what is loaded at run time is not named in the program.
empty_libraries() { # folder, compiler
	mkdir -p "$1"
	for name in cuda nvrtc curand cublas cublasLt ${3:-}; do
		[ -e "$1/lib$name.so" ] || echo | "$2" -shared -x c - -o "$1/lib$name.so"
	done
}

# nvcc, its headers and the run-time library, as PyPI has them; an older driver than CUDA 13.0's does not take this PTX.
fetch_toolkit() { # folder, wheels' architecture, packages...
	local folder=$1 platforms=() wheel
	[ ! -e "$folder/complete" ] || return 0
	for glibc in 2_28 2_27 2_24 2_17 2014 2010 1; do
		case $glibc in 2_*) platforms+=(--platform "manylinux_${glibc}_$2") ;; *) platforms+=(--platform "manylinux${glibc}_$2") ;; esac
	done
	rm -rf "$folder"
	mkdir -p "$folder"
	python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 "${platforms[@]}" -d "$folder/wheels" "${@:3}" >&2 ||
		fail "nvcc is not here and could not be fetched from PyPI: install CUDA and set CUDA_HOME to its folder"
	for wheel in "$folder"/wheels/*.whl; do
		python3 -m zipfile -e "$wheel" "$folder"
	done
	rm -rf "$folder/wheels"
	mv "$folder"/nvidia/cu13/* "$folder"
	chmod -f +x "$folder"/bin/* "$folder"/nvvm/bin/* || true # zipfile forgets it
	ln -sfn lib "$folder/lib64"
	ln -sf libcudart_static.a "$folder/lib/libcudart.a"
	touch "$folder/complete"
}

# Sets CUDA_HOME for `build`: this machine's CUDA, or one in build/cuda.
find_toolkit() { # target
	local nvcc folder=$PWD/build/cuda
	nvcc=${NVCC:-$(PATH=${CUDA_HOME:+$CUDA_HOME/bin:}$PATH:/usr/local/cuda/bin type -P nvcc || true)}
	if [ -n "$nvcc" ] && [ "$1" = "$host" ]; then
		CUDA_HOME=$(cd "$(dirname "$nvcc")/.." && pwd)
	else
		fetch_toolkit "$folder/toolkit" "$(uname -m)" nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 \
			nvidia-cuda-cccl==13.0.85 nvidia-cuda-runtime==13.0.96
		CUDA_HOME=$folder/toolkit
		if [ "$1" != "$host" ]; then
			CUDA_HOME=$folder/toolkit-${1%%-*}
			fetch_toolkit "$CUDA_HOME" "${1%%-*}" nvidia-cuda-runtime==13.0.96
			rm -rf "$CUDA_HOME/include"
			for part in bin nvvm include; do ln -sfn ../toolkit/$part "$CUDA_HOME/$part"; done
			export NVCC_CCBIN=${1%%-*}-linux-gnu-g++
			empty_libraries "$CUDA_HOME/lib" "${1%%-*}-linux-gnu-gcc"
		else
			empty_libraries "$CUDA_HOME/lib" gcc
		fi
	fi
	export CUDA_HOME CUDA_PATH=$CUDA_HOME NVCC=$CUDA_HOME/bin/nvcc PATH=$CUDA_HOME/bin:$PATH
}

# Every kernel as machine code: ptxas sees here what a GPU's driver would see at the first start.
assemble() { # compute capability, log
	local architecture=sm_$1
	[ "$1" != 90 ] || architecture=sm_90a
	: >"$2"
	for source in targets/cuda/kernels/*.cu; do
		echo "== ${source##*/}" >>"$2"
		"$NVCC" -cubin "-arch=$architecture" -std=c++17 -O3 --expt-relaxed-constexpr -Xptxas -v,--warning-as-error \
			${NVCC_CCBIN:+-allow-unsupported-compiler -ccbin "$NVCC_CCBIN"} -o /dev/null "$source" >>"$2" 2>&1 || {
			tail -n 30 "$2" >&2
			fail "ptxas does not take $source for $architecture"
		}
	done
	awk '/^== / { source = $2 } /Compiling entry function/ { split($0, part, "\047"); name = part[2] }
		/bytes spill stores/ { spills = $5 + $9 } /Used [0-9]+ registers/ { for (i = 1; i < NF; i++) if ($i == "Used") registers = $(i + 1)
			shared = match($0, /[0-9]+ bytes smem/) ? substr($0, RSTART, RLENGTH) : "0 bytes smem"
			printf "%-16s %-40s %3d registers %4d bytes spilled %s\n", source, name, registers, spills, shared }' "$2"
}

# Run-time loading of CUDA: the cfg reaches cudarc itself and, with --target, not its build script, which refuses it beside
# the `dynamic-linking` that candle asks for.
export RUSTFLAGS="${RUSTFLAGS:-} --cfg feature=\"dynamic-loading\""
export CUDAFORGE_THREADS="${CUDAFORGE_THREADS:-$(nproc)}"

if [ "$command" = build ] || [ "$command" = build-tests ]; then
	export CUDA_COMPUTE_CAP=${1:?for which GPU? 87 for Jetson Orin, 89 for an RTX 40, 90 for an H100}
	shift
	target=${TARGET:-$host}
	find_toolkit "$target"
	export CARGO_TARGET_DIR=$PWD/build/cuda/$CUDA_COMPUTE_CAP
	mkdir -p "$CARGO_TARGET_DIR"
	assemble "$CUDA_COMPUTE_CAP" "$CARGO_TARGET_DIR/ptxas.log"
	program=$CARGO_TARGET_DIR/$target/release/pleinair
	build=(build)
	[ "$command" = build ] || build=(test --no-run)
	build+=(--release --features cuda)
	if [ "$target" = "$host" ]; then
		"${CARGO:-cargo}" "${build[@]}" --target "$target" "$@"
	else
		RUSTFLAGS+=" -C target-feature=+fp16"
		targets/aarch64.sh "${build[@]}" "$@"
		program=$CARGO_TARGET_DIR/aarch64/$target/release/pleinair
	fi
	ls -l "$program"
	exit
fi

folder=${CARGO_TARGET_DIR:-$PWD/target}/cuda
if [ "${EMULATOR:-1}" != 0 ]; then
	# candle's kernels for quantised models are missing, and nothing here calls them
	empty_libraries "$folder/toolkit/lib64" gcc cudart
	mkdir -p "$folder/toolkit/include"
	export NVCC=$emulator/nvcc PATH=$emulator:$PATH CUDA_HOME=$folder/toolkit CUDA_PATH=$folder/toolkit
	export CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-87}"
	RUSTFLAGS+=" -L $folder/toolkit/lib64 -C link-arg=-Wl,--unresolved-symbols=ignore-all"
fi
# Two sets of flags must not take turns in one folder. Optimising the dependencies costs more than it saves in tests.
cargo=("${CARGO:-cargo}" "$command" --features cuda --target "$host" --target-dir "$folder"
	--config 'profile.dev.package."*".opt-level=1')

case "$command" in
check | clippy) exec "${cargo[@]}" "$@" ;;
test)
	if [ "${EMULATOR:-1}" != 0 ]; then
		kernels=$(cargo metadata --format-version 1 --features cuda --filter-platform "$host" |
			grep -oE '"[^"]*/candle-kernels-[^"/]*/Cargo.toml"' | head -1 | tr -d '"' | xargs dirname)
		# checkouts may share a target folder
		libraries=$folder/emulator-$(cksum <<<"$PWD" | cut -d ' ' -f 1)
		make -j"$(nproc)" -s -C "$emulator" OUT="$libraries" CANDLE="$kernels/src" CUDARC="$(dirname "$kernels")"/cudarc-* >&2
		export EMULATED=1 LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
	fi
	case " $*" in
	*' -p '* | *' --workspace'*) exec "${cargo[@]}" "$@" ;;
	*) exec "${cargo[@]}" -p pleinair-cuda "$@" ;;
	esac
	;;
*) fail "targets/cuda.sh check, clippy, test or build" ;;
esac
