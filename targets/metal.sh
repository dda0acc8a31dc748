#!/usr/bin/env bash
# targets/metal.sh check ARGUMENT...: cargo for Apple Silicon on a machine that is none. It sees every line of Rust that a Mac
# compiles. The standard library is made from source by a compiler of its version, Debian's, unpacked in build/rust; C is
# not compiled, and nothing is linked.
# targets/metal.sh kernels: our .metal sources, and candle's matrix product and attention as we launch them, compiled as C++ and run.
set -euo pipefail
cd "$(dirname "$0")/.."
target=aarch64-apple-darwin
# shellcheck source=targets/debian_rust.sh
. targets/debian_rust.sh

if [ "${1:-}" = kernels ]; then
	cargo=${CARGO:-cargo}
	candle=$("$cargo" metadata --format-version 1 --features metal --filter-platform "$target" |
		grep -oE '"[^"]*/candle-metal-kernels-[^"/]*/Cargo.toml"' | head -1 | tr -d '"' | xargs dirname)
	export CANDLE_METAL=$candle/src/metal_src
	exec "$cargo" test -p pleinair-metal --test kernels --test products -- --include-ignored
fi

unpack_rust "run this on a Mac"
export RUSTC=$rust_folder/rustc RUSTDOC=$rust_folder/rustdoc CARGO=$rust_folder/cargo
# building the standard library is no stable feature of cargo
export RUSTC_BOOTSTRAP=1
export CC_aarch64_apple_darwin=$PWD/targets/metal/cc CXX_aarch64_apple_darwin=$PWD/targets/metal/cc AR_aarch64_apple_darwin=ar
# else the compiler asks Xcode where Apple's headers are
export SDKROOT=/
# Two compilers must not take turns in one folder.
exec "$CARGO" "$1" -Zbuild-std=std,panic_abort --target "$target" --target-dir "${CARGO_TARGET_DIR:-target}/metal" "${@:2}"
