#!/usr/bin/env bash
# targets/aarch64.sh ARGUMENT...: cargo for 64-bit Arm Linux on another machine, with what it builds run under qemu, on a
# CPU that has every instruction set. What it needs is installed first, Debian's packages unpacked in build/aarch64: rustup's
# Rust is used where it has this target, else Debian's, which has a standard library for Arm. The system gets gcc and qemu.
set -euo pipefail
cd "$(dirname "$0")/.."
target=aarch64-unknown-linux-gnu
folder=$PWD/build/aarch64
rust=$folder/root/usr

fail() {
	echo "$1" >&2
	exit 1
}

# a line of Debian's package names
install_missing() {
	[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null ||
		fail "For aarch64 this needs the packages $* (Debian's names): install them, or run this as root on Debian"
	{ apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$@"; } >&2 ||
		fail "The packages $* for aarch64 could not be installed: is there a network?"
}

# Debian's Rust, and its standard library for this architecture and for Arm, unpacked: the system's own packages and
# its list of architectures stay as they are.
unpack_rust() {
	command -v apt-get >/dev/null ||
		fail "Rust has no standard library for aarch64 here: rustup target add $target"
	local debs=$folder/debs apt wanted
	mkdir -p "$debs" "$folder/lists/partial" "$folder/cache/archives/partial"
	apt=(-q -o APT::Architectures::=amd64 -o APT::Architectures::=arm64 -o Dir::State::Lists="$folder/lists"
		-o Dir::Cache="$folder/cache" -o APT::Sandbox::User=)
	apt-get "${apt[@]}" update >&2 || fail "Debian's list of packages could not be fetched: is there a network?"
	wanted=$({
		apt-cache "${apt[@]}" depends --recurse --important rustc-web | grep -oE '^(rustc-web|libstd-rust-web|libllvm)[^:]*$'
		apt-get "${apt[@]}" -s install --no-install-recommends rustc-web | sed -n 's/^Inst \([^ ]*\) .*/\1/p'
	} | sort -u)
	[ -n "$wanted" ] || fail "This Debian has no package rustc-web: rustup target add $target"
	# shellcheck disable=SC2086
	(cd "$debs" && apt-get "${apt[@]}" download $wanted libstd-rust-web-dev:arm64 >&2) ||
		fail "Debian's Rust could not be downloaded: is there a network?"
	rm -rf "$folder/root"
	for deb in "$debs"/*.deb; do
		dpkg -x "$deb" "$folder/root"
	done
	rm -rf "$debs" "$folder/lists" "$folder/cache"
	printf '%s\n' '#!/bin/sh' "LD_LIBRARY_PATH=$rust/lib/x86_64-linux-gnu exec $rust/bin/\${0##*/} \"\$@\"" >"$folder/rustc"
	cp "$folder/rustc" "$folder/rustdoc"
	chmod +x "$folder/rustc" "$folder/rustdoc"
}

command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64-static >/dev/null ||
	install_missing qemu-user-static gcc-aarch64-linux-gnu g++-aarch64-linux-gnu libc6-dev-arm64-cross
if [ ! -d "$(rustc --print sysroot)/lib/rustlib/$target" ]; then
	[ -x "$folder/rustdoc" ] || unpack_rust
	export RUSTC=$folder/rustc RUSTDOC=$folder/rustdoc
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
