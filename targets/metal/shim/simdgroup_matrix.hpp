// What MLX's matrix product and fused attention use of Metal besides our own kernels' needs: SIMD groups' 8x8 matrices, of which every thread
// holds two numbers, in the places that MLX counts on.
#pragma once

#include <metal_stdlib>

#include <limits>
#include <type_traits>

#define thread
#define threadgroup
#define METAL_FUNC inline

using ushort = uint16_t;
using ulong = uint64_t;

namespace metal {

template <class T>
struct pair {
    T x, y;
    pair(T x = 0, T y = 0) : x(x), y(y) {}
    template <class U>
    pair operator-(const pair<U>& other) const { return pair(T(x - other.x), T(y - other.y)); }
    pair& operator-=(const pair& other) { return *this = *this - other; }
};
using short2 = pair<short>;
using int2 = pair<int>;
using ulong2 = pair<ulong>;

template <class T>
struct triple {
    T x, y, z;
    triple(T x = 0, T y = 0, T z = 0) : x(x), y(y), z(z) {}
};
using uint3 = triple<uint>;
using ulong3 = triple<ulong>;
using packed_int3 = triple<int>;

template <class T, int N>
struct vec {
    T x, y;
    static_assert(N <= 2);
    vec() = default;
    explicit vec(T all) : x(all), y(all) {}
    T& operator[](int i) { return i ? y : x; }
    T operator[](int i) const { return i ? y : x; }
};

enum class mem_flags { mem_none, mem_threadgroup };

template <class T, int Rows, int Columns>
struct simdgroup_matrix {
    static_assert(std::is_same_v<T, float> && Rows == 8 && Columns == 8);
    struct Elements {
        float of[2];
        float& operator[](int i) { return of[i]; }
        float operator[](int i) const { return of[i]; }
    } elements;
    explicit simdgroup_matrix(float all = 0) : elements{{all, all}} {}
    Elements& thread_elements() { return elements; }
    const Elements& thread_elements() const { return elements; }
};

// d = a b + c
inline void multiply_accumulate(emulator::Place place, simdgroup_matrix<float, 8, 8>& d, const simdgroup_matrix<float, 8, 8>& a,
                                const simdgroup_matrix<float, 8, 8>& b, const simdgroup_matrix<float, 8, 8>& c) {
    struct Lane {
        const float *a, *b, *c;
        float* d;
    } mine{a.elements.of, b.elements.of, c.elements.of, d.elements.of};
    emulator::Block::current()->collective(place, ~0u, &mine, [](void** lanes) {
        float a[8][8], b[8][8], d[8][8];
        auto each = [&](auto&& visit) {
            for (int lane = 0; lane < emulator::WARP; lane++) {
                int quarter = lane / 4, row = (quarter & 4) + lane / 2 % 4, column = (quarter & 2) * 2 + lane % 2 * 2;
                for (int i = 0; i < 2; i++) visit(*static_cast<Lane*>(lanes[lane]), row, column + i, i);
            }
        };
        each([&](Lane& lane, int row, int column, int i) {
            a[row][column] = lane.a[i];
            b[row][column] = lane.b[i];
            d[row][column] = lane.c[i];
        });
        for (int row = 0; row < 8; row++)
            for (int column = 0; column < 8; column++)
                for (int k = 0; k < 8; k++) d[row][column] += a[row][k] * b[k][column];
        each([&](Lane& lane, int row, int column, int i) { lane.d[i] = d[row][column]; });
    });
}

inline float simd_shuffle_xor(float value, ushort mask) {
    return emulator::shuffle({"simd_shuffle_xor", mask}, ~0u, value, [=](int lane) { return lane ^ mask; });
}

using std::conditional_t;
using std::integral_constant;
using std::is_same_v;
using std::numeric_limits;
using std::remove_cv_t;

namespace fast {
using std::exp2;
}

}  // namespace metal

#define simdgroup_multiply_accumulate(...) multiply_accumulate({"simdgroup_multiply_accumulate", __LINE__}, __VA_ARGS__)
#define threadgroup_barrier(flags) emulator::Block::current()->barrier({"threadgroup_barrier", __LINE__})
#define simdgroup_barrier(flags) (void)(flags)
