// The part of CUDA's cuda_bf16.h that candle's kernels use.
#pragma once

#include "small_float.hpp"

inline uint16_t emulated_bfloat_bits(float value) {
    uint32_t in = emulated_bits<uint32_t>(value);
    if ((in & 0x7fffffff) > 0x7f800000) return uint16_t(in >> 16 | 0x40);
    return uint16_t((in + 0x7fff + (in >> 16 & 1)) >> 16);
}
inline float emulated_bfloat_float(uint16_t bits) { return emulated_bits<float>(uint32_t(bits) << 16); }

EMULATED_SMALL_FLOAT(__nv_bfloat16, emulated_bfloat_bits, emulated_bfloat_float)
EMULATED_SMALL_PAIR(__nv_bfloat162, __nv_bfloat16)

inline float __bfloat162float(__nv_bfloat16 a) { return a; }
inline __nv_bfloat16 __float2bfloat16(float a) { return __nv_bfloat16(a); }
inline __nv_bfloat16 __float2bfloat16_rn(float a) { return __nv_bfloat16(a); }
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return {__nv_bfloat16(a), __nv_bfloat16(b)}; }
inline float2 __bfloat1622float2(__nv_bfloat162 a) { return {a.x, a.y}; }
