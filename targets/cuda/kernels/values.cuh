// Activations in registers: read and written several at a time, f16 or f32 in memory, f32 in every sum.
#pragma once
#include <cuda_fp16.h>

namespace values {

__device__ inline float wide(float x) { return x; }
__device__ inline float wide(__half x) { return __half2float(x); }

template <typename T> __device__ inline T narrow(float x);
template <> __device__ inline float narrow<float>(float x) { return x; }
template <> __device__ inline __half narrow<__half>(float x) { return __float2half(x); }

// WIDTH numbers that one instruction reads or writes: the address is a multiple of their size.
template <typename T, int WIDTH> struct alignas(WIDTH * sizeof(T)) Pack {
    T values[WIDTH];
};

template <int WIDTH, typename T> __device__ inline void load(float (&to)[WIDTH], const T* from) {
    const Pack<T, WIDTH> pack = *reinterpret_cast<const Pack<T, WIDTH>*>(from);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) to[i] = wide(pack.values[i]);
}

template <int WIDTH, typename T> __device__ inline void store(T* to, const float (&from)[WIDTH]) {
    Pack<T, WIDTH> pack;
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) pack.values[i] = narrow<T>(from[i]);
    *reinterpret_cast<Pack<T, WIDTH>*>(to) = pack;
}

// Norm weights are f32 whatever the activations are: as many instructions as it takes.
template <int WIDTH> __device__ inline void load_floats(float (&to)[WIDTH], const float* from) {
    constexpr int PART = WIDTH < 4 ? WIDTH : 4;
#pragma unroll
    for (int i = 0; i < WIDTH; i += PART) {
        float part[PART];
        load<PART>(part, from + i);
#pragma unroll
        for (int j = 0; j < PART; ++j) to[i + j] = part[j];
    }
}

// The sum over a warp, in every lane.
__device__ inline float warp_sum(float x) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
    return x;
}

// The largest of a warp, in every lane. NaN is left out, as fmaxf does.
__device__ inline float warp_max(float x) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lanes));
    return x;
}

}  // namespace values
