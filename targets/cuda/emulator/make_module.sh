#!/usr/bin/env bash
# make_module.sh SOURCE.cu OUT.so: one .cu file as a library of emulated kernels. Every `extern "C" __global__` function is
# found by preprocessing and put into the library's table, and so is every array of dynamic shared memory.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source=$1
out=$2
generated=${out%.so}.cpp
include=(-I "$here/include" -I "$here" -I "$here/../../emulator" -I "$(dirname "$source")")
compile=("${CXX:-g++}" -x c++ -std=c++17 -include "$here/include/device.hpp" "${include[@]}")
text=$("${compile[@]}" -DEMULATOR_LIST -E -P "$source" | tr '\n' ' ')
kernels=$(grep -oE 'EMULATED_KERNEL +void +[A-Za-z0-9_]+' <<<"$text" | awk '{ print $NF }' | sort -u || true)
arrays=$(grep -oE 'extern +EMULATED_SHARED +[^;]*\[ *\] *;' <<<"$text" |
	sed -E 's/__attribute__ *\(\([^)]*\)*\)//g; s/extern +EMULATED_SHARED +//; s/\[ *\] *;//; s/ +$//' | sort -u || true)
[ -n "$kernels" ] || { echo "$source has no extern \"C\" __global__ function" >&2; exit 1; }
{
	echo "#include \"$source\""
	echo '#include "kernels.hpp"'
	while read -r type_and_name; do
		[ -z "$type_and_name" ] || echo "alignas(1024) thread_local $type_and_name[(EMULATED_SHARED_BYTES + emulated_kernels::FENCE)" \
			"/ sizeof(${type_and_name% *})];"
	done <<<"$arrays"
	echo 'static const EmulatedKernel emulated_table[] = {'
	for kernel in $kernels; do
		echo "    emulated_kernels::describe<&$kernel>(\"$kernel\"),"
	done
	echo '};'
	echo 'static void emulated_launch(const EmulatedKernel& kernel, emulator::Dim3 blocks, emulator::Dim3 threads, size_t bytes, void** arguments) {'
	echo '    emulated_kernels::launch(kernel, blocks, threads, bytes, arguments, [] { return emulated_kernels::Arrays{'
	while read -r type_and_name; do
		[ -z "$type_and_name" ] || echo "        reinterpret_cast<unsigned char*>(${type_and_name##* }),"
	done <<<"$arrays"
	echo '    }; });'
	echo '}'
	echo 'static const EmulatedModule emulated{emulated_table, sizeof emulated_table / sizeof *emulated_table, emulated_launch};'
	echo 'const EmulatedModule* emulated_module() { return &emulated; }'
} >"$generated"
# the kernels' own warnings are nvcc's business; local binding: see module.hpp
"${compile[@]}" "${EMULATOR_CXXFLAGS:--O2}" -w -g1 -march=native -fPIC -fvisibility=hidden -fno-exceptions -pthread \
	-shared -Wl,-Bsymbolic -Wl,-z,defs -o "$out.new" "$generated"
mv "$out.new" "$out"
