// 8-bit floating-point numbers have a type here, so that candle's kernels compile, and no arithmetic: nothing uses them.
#pragma once

#include "cuda_fp16.h"

struct __nv_fp8_e4m3 {
    unsigned char __x;
    __nv_fp8_e4m3() = default;
    template <class T, class = std::enable_if_t<std::is_arithmetic<T>::value>>
    __nv_fp8_e4m3(T) {
        emulator::fail("%s: 8-bit floating-point numbers are not emulated", "fp8");
    }
};
enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 };
inline __half __nv_cvt_fp8_to_halfraw(unsigned char, __nv_fp8_interpretation_t) {
    emulator::fail("%s: 8-bit floating-point numbers are not emulated", "fp8");
}
