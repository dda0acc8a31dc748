#!/bin/sh
# cargo's RUSTC_WORKSPACE_WRAPPER for the fuzzers: the crates of this workspace, and no others, count which of their
# edges an input takes and report what they compare. The fuzzer itself is linked with libFuzzer from FUZZ_ENGINE.
case " $* " in
*" --crate-name fuzz "*)
	[ "$(uname)" = Darwin ] && cxx=c++ || cxx=stdc++
	set -- "$@" -Lnative="$FUZZ_ENGINE" -lstatic=fuzzer -l"$cxx"
	;;
esac
exec "$@" -Ccodegen-units=1 -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
	-Cllvm-args=-sanitizer-coverage-trace-compares
