# Sourced by aarch64.sh and metal.sh: Debian's Rust for targets that the machine's own Rust does not have, in build/rust.
# It has a standard library for 64-bit Arm Linux, and the library's source with a compiler of the very same version, from
# which one for any target can be made. Nothing of it is installed in the system.
rust_folder=$PWD/build/rust
rust=$rust_folder/root/usr

fail() {
	echo "$1" >&2
	exit 1
}

# a line of Debian's package names
install_missing() {
	[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null ||
		fail "This needs the packages $* (Debian's names): install them, or run this as root on Debian"
	{ apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$@"; } >&2 ||
		fail "The packages $* could not be installed: is there a network?"
}

# The system's own packages and its list of architectures stay as they are. $1: what to do without Debian.
unpack_rust() {
	[ ! -x "$rust_folder/rustdoc" ] || return 0
	command -v apt-get >/dev/null || fail "Rust has no standard library for this target here: $1"
	local debs=$rust_folder/debs apt wanted
	mkdir -p "$debs" "$rust_folder/lists/partial" "$rust_folder/cache/archives/partial"
	apt=(-q -o APT::Architectures::=amd64 -o APT::Architectures::=arm64 -o Dir::State::Lists="$rust_folder/lists"
		-o Dir::Cache="$rust_folder/cache" -o APT::Sandbox::User=)
	apt-get "${apt[@]}" update >&2 || fail "Debian's list of packages could not be fetched: is there a network?"
	wanted=$({
		apt-cache "${apt[@]}" depends --recurse --important cargo-web |
			grep -oE '^(cargo-web|rustc-web|libstd-rust-web|libllvm)[^:]*$'
		apt-get "${apt[@]}" -s install --no-install-recommends cargo-web | sed -n 's/^Inst \([^ ]*\) .*/\1/p'
	} | sort -u)
	[ -n "$wanted" ] || fail "This Debian has no package cargo-web: $1"
	# shellcheck disable=SC2086
	(cd "$debs" && apt-get "${apt[@]}" download $wanted rust-web-src libstd-rust-web-dev:arm64 >&2) ||
		fail "Debian's Rust could not be downloaded: is there a network?"
	rm -rf "$rust_folder/root"
	for deb in "$debs"/*.deb; do
		dpkg -x "$deb" "$rust_folder/root"
	done
	rm -rf "$debs" "$rust_folder/lists" "$rust_folder/cache"
	for tool in cargo rustc rustdoc; do
		printf '%s\n' '#!/bin/sh' "LD_LIBRARY_PATH=$rust/lib/x86_64-linux-gnu exec $rust/bin/$tool \"\$@\"" >"$rust_folder/$tool"
		chmod +x "$rust_folder/$tool"
	done
}
