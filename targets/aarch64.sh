#!/usr/bin/env bash
# targets/aarch64.sh ARGUMENT...: cargo for 64-bit Arm Linux on another machine, with what it builds run under qemu, on a
# CPU that has every instruction set. What it needs is installed first, Debian's packages unpacked in build/rust: rustup's
# Rust is used where it has this target, else Debian's, which has a standard library for Arm. The system gets gcc and qemu.
set -euo pipefail
cd "$(dirname "$0")/.."
target=aarch64-unknown-linux-gnu
# shellcheck source=targets/debian_rust.sh
. targets/debian_rust.sh

command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64-static >/dev/null ||
	install_missing qemu-user-static gcc-aarch64-linux-gnu g++-aarch64-linux-gnu libc6-dev-arm64-cross
if [ ! -d "$(rustc --print sysroot)/lib/rustlib/$target" ]; then
	unpack_rust "rustup target add $target"
	export RUSTC=$rust_folder/rustc RUSTDOC=$rust_folder/rustdoc
fi
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -cpu max -L /usr/aarch64-linux-gnu"
# gemm's half precision does not assemble without; every Arm core that has dot products has it
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=+fp16"
export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc CXX_aarch64_unknown_linux_gnu=aarch64-linux-gnu-g++
export AR_aarch64_unknown_linux_gnu=aarch64-linux-gnu-ar
# tests name what may not be missing on that CPU
export PLEINAIR_TEST_ISAS="neon-i8mm neon-dotprod neon"
# Two compilers must not take turns in one folder. Optimising the dependencies costs more than it saves in tests.
exec "${CARGO:-cargo}" "$1" --target "$target" --target-dir "${CARGO_TARGET_DIR:-target}/aarch64" \
	--config 'profile.dev.package."*".opt-level=1' "${@:2}"
