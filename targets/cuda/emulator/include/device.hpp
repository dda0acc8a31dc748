// What nvcc knows without being told, for g++: this header comes before everything else in a kernel's source. It turns the
// source into C++ functions that run as fibres (threads.hpp). Undefined behaviour of a GPU is an error here where it is cheap
// to see, and nothing here is about speed.
#pragma once

#include <cassert>
#include <climits>
#include <math.h>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <type_traits>

#include "threads.hpp"

// A GPU with the instruction set of Jetson Orin
#define __CUDA_ARCH__ 870
#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0

#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#ifdef EMULATOR_LIST  // only preprocessed, to find the kernels and the arrays of dynamic shared memory
#define __global__ EMULATED_KERNEL
#define __shared__ EMULATED_SHARED
#else
#define __global__
#define __shared__ thread_local  // one block at a time on each CPU thread
#endif

#define threadIdx (::emulator::Block::self().index)
#define blockIdx (::emulator::Block::self().block)
#define blockDim (::emulator::Block::self().threads)
#define gridDim (::emulator::Block::self().blocks)
constexpr int warpSize = emulator::WARP;

// ---- vectors

#define EMULATED_VECTORS(T, NAME)                                                                          \
    struct alignas(2 * sizeof(T)) NAME##2 { T x, y; };                                                    \
    struct NAME##3 { T x, y, z; };                                                                        \
    struct alignas(sizeof(T) > 4 ? 16 : 4 * sizeof(T)) NAME##4 { T x, y, z, w; };                         \
    inline NAME##2 make_##NAME##2(T x, T y) { return {x, y}; }                                            \
    inline NAME##3 make_##NAME##3(T x, T y, T z) { return {x, y, z}; }                                    \
    inline NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATED_VECTORS(float, float)
EMULATED_VECTORS(double, double)
EMULATED_VECTORS(int, int)
EMULATED_VECTORS(unsigned, uint)
EMULATED_VECTORS(short, short)
EMULATED_VECTORS(unsigned short, ushort)
EMULATED_VECTORS(signed char, char)
EMULATED_VECTORS(unsigned char, uchar)
#undef EMULATED_VECTORS
using dim3 = emulator::Dim3;

// ---- waiting

#define EMULATED_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(EMULATED_HERE) { emulator::Block::current()->barrier({file, line}); }
inline void __syncwarp(uint32_t mask = 0xffffffff, EMULATED_HERE) {
    emulator::Block::current()->collective({file, line}, mask, &mask, [](void**) {});
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// ---- shuffles: a lane outside its group of `width` lanes is not read

template <class T>
T __shfl_sync(uint32_t mask, T value, int lane, int width = 32, EMULATED_HERE) {
    return emulator::shuffle<T>({file, line}, mask, value, [=](int self) { return (self & ~(width - 1)) | (lane & (width - 1)); });
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32, EMULATED_HERE) {
    return emulator::shuffle<T>({file, line}, mask, value, [=](int self) {
        int from = self ^ bits;
        return from < (self & ~(width - 1)) + width ? from : self;
    });
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32, EMULATED_HERE) {
    return emulator::shuffle<T>({file, line}, mask, value, [=](int self) {
        int from = self + int(delta);
        return from < (self & ~(width - 1)) + width ? from : self;
    });
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32, EMULATED_HERE) {
    return emulator::shuffle<T>({file, line}, mask, value, [=](int self) {
        int from = self - int(delta);
        return from >= (self & ~(width - 1)) ? from : self;
    });
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate, EMULATED_HERE) {
    struct Cell {
        bool mine;
        uint32_t result;
    } cell{predicate != 0, 0};
    emulator::Block::current()->collective({file, line}, mask, &cell, [](void** lanes) {
        uint32_t bits = 0;
        for (int lane = 0; lane < 32; lane++)
            if (lanes[lane] && static_cast<Cell*>(lanes[lane])->mine) bits |= 1u << lane;
        for (int lane = 0; lane < 32; lane++)
            if (lanes[lane]) static_cast<Cell*>(lanes[lane])->result = bits;
    });
    return cell.result;
}
inline int __any_sync(uint32_t mask, int predicate, EMULATED_HERE) { return __ballot_sync(mask, predicate, file, line) != 0; }
inline int __all_sync(uint32_t mask, int predicate, EMULATED_HERE) { return __ballot_sync(mask, !predicate, file, line) == 0; }

// ---- atomics: blocks may run on several CPU threads

template <class T>
T atomicCAS(T* at, T compare, T value) {
    __atomic_compare_exchange_n(at, &compare, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return compare;
}
// The number of any type at `at` becomes change(number); what it was before.
template <class T, class Change>
T emulated_atomic(T* at, Change change) {
    using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>>;
    Bits* bits = reinterpret_cast<Bits*>(at);
    Bits old = __atomic_load_n(bits, __ATOMIC_SEQ_CST), changed;
    T before;
    do {
        std::memcpy(&before, &old, sizeof old);
        T after = change(before);
        std::memcpy(&changed, &after, sizeof changed);
    } while (!__atomic_compare_exchange_n(bits, &old, changed, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    return before;
}
template <class T>
T atomicAdd(T* at, std::common_type_t<T> value) {
    return emulated_atomic(at, [&](T old) { return T(old + value); });
}
template <class T>
T atomicMax(T* at, std::common_type_t<T> value) {
    return emulated_atomic(at, [&](T old) { return value > old ? value : old; });
}
template <class T>
T atomicMin(T* at, std::common_type_t<T> value) {
    return emulated_atomic(at, [&](T old) { return value < old ? value : old; });
}
template <class T>
T atomicExch(T* at, std::common_type_t<T> value) {
    return emulated_atomic(at, [&](T) { return value; });
}

// ---- arithmetic

template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    return T(b) < T(a) ? T(b) : T(a);
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    return T(a) < T(b) ? T(b) : T(a);
}
template <class To, class From>
To emulated_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
inline float __uint_as_float(uint32_t a) { return emulated_bits<float>(a); }
inline float __int_as_float(int a) { return emulated_bits<float>(a); }
inline uint32_t __float_as_uint(float a) { return emulated_bits<uint32_t>(a); }
inline int __float_as_int(float a) { return emulated_bits<int>(a); }
inline double __longlong_as_double(long long a) { return emulated_bits<double>(a); }
inline long long __double_as_longlong(double a) { return emulated_bits<long long>(a); }

inline float rsqrtf(float a) { return 1.0f / sqrtf(a); }
inline float normcdff(float a) { return 0.5f * erfcf(-a * 0.70710678f); }
inline double normcdf(double a) { return 0.5 * erfc(-a * 0.70710678118654752); }
inline float __expf(float a) { return expf(a); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __saturatef(float a) { return fminf(fmaxf(a, 0.0f), 1.0f); }
inline int __float2int_rn(float a) { return int(nearbyintf(a)); }
inline float __int2float_rn(int a) { return float(a); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    uint64_t bytes = uint64_t(b) << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) result |= unsigned(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
    return result;
}
inline int __popc(unsigned a) { return __builtin_popcount(a); }
inline int __clz(int a) { return a ? __builtin_clz(unsigned(a)) : 32; }
template <class T>
T __ldg(const T* at) {
    return *at;
}
