// What every kernel knows. The type `Number` of the activations (float or half) is declared in front of this file, which is
// compiled once for each; sums and statistics are float.
//
// Every kernel takes what it reads, what it writes, its parameters, and its thread's place among all; a simdgroup of 32
// threads shares the work of those that sum up a row. Parameters have the layout of the Rust structure of the same name in
// plan.rs.

#include <metal_stdlib>
using namespace metal;

constant uint SIMD = 32;

// An elementwise kernel's number of elements.
struct Count {
    uint count;
};
