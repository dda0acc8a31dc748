// The part of CUDA's cuda_fp16.h that kernels here and candle's use.
#pragma once

#include "small_float.hpp"

#if defined(__F16C__)
#include <immintrin.h>
inline uint16_t emulated_half_bits(float value) { return uint16_t(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT)); }
inline float emulated_half_float(uint16_t bits) { return _cvtsh_ss(bits); }
#else
inline uint16_t emulated_half_bits(float value) {
    uint32_t in = emulated_bits<uint32_t>(value), sign = in >> 16 & 0x8000, size = in & 0x7fffffff;
    if (size > 0x7f800000) return uint16_t(sign | 0x7e00 | (size >> 13 & 0x1ff));
    if (size >= 0x47800000) return uint16_t(sign | 0x7c00);  // 65536 and more
    // below the normal numbers the 16-bit number counts 2^-24ths; adding 0.5 rounds to nearest, ties to even, by the f32 unit
    if (size < 0x38800000) return uint16_t(sign | (emulated_bits<uint32_t>(emulated_bits<float>(size) + 0.5f) - 0x3f000000));
    return uint16_t(sign | ((size + 0xfff + (size >> 13 & 1) - 0x38000000) >> 13));
}
inline float emulated_half_float(uint16_t bits) {
    uint32_t sign = uint32_t(bits & 0x8000) << 16, size = bits & 0x7fff;
    if (size >= 0x7c00) return emulated_bits<float>(sign | 0x7f800000 | (size & 0x3ff) << 13);
    if (size < 0x400) return emulated_bits<float>(sign | emulated_bits<uint32_t>(float(size) * 0x1p-24f));
    return emulated_bits<float>(sign | ((size << 13) + 0x38000000));
}
#endif

EMULATED_SMALL_FLOAT(__half, emulated_half_bits, emulated_half_float)
EMULATED_SMALL_PAIR(__half2, __half)
using half = __half;
using half2 = __half2;

struct __half_raw {
    unsigned short x;
};

inline float __half2float(__half a) { return a; }
inline __half __float2half(float a) { return __half(a); }
inline __half __float2half_rn(float a) { return __half(a); }
inline unsigned short __half_as_ushort(__half a) { return a.bits; }
inline __half __ushort_as_half(unsigned short bits) { return emulated_bits<__half>(bits); }
inline __half2 __halves2half2(__half a, __half b) { return {a, b}; }
inline __half2 make_half2(__half a, __half b) { return {a, b}; }
inline __half2 __half2half2(__half a) { return {a, a}; }
inline __half2 __floats2half2_rn(float a, float b) { return {__half(a), __half(b)}; }
inline __half2 __float2half2_rn(float a) { return {__half(a), __half(a)}; }
inline __half2 __float22half2_rn(float2 a) { return {__half(a.x), __half(a.y)}; }
inline float2 __half22float2(__half2 a) { return {a.x, a.y}; }
inline __half __low2half(__half2 a) { return a.x; }
inline __half __high2half(__half2 a) { return a.y; }
