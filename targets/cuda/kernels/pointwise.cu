// What a block adds, and GEGLU: every number by itself, one pack a thread.
#include "values.cuh"

using namespace values;

namespace {

constexpr float ROOT_HALF = 0.70710678f;
// One over the root of two pi.
constexpr float DENSITY_AT_ZERO = 0.39894228f;

__device__ float normal_cdf(float x) { return fmaf(0.5f, erff(x * ROOT_HALF), 0.5f); }

__device__ unsigned this_pack() { return blockIdx.x * blockDim.x + threadIdx.x; }

template <typename T, int WIDTH> __device__ void add(const T* a, const T* b, T* y, unsigned packs) {
    if (this_pack() >= packs) return;
    const size_t at = static_cast<size_t>(this_pack()) * WIDTH;
    float left[WIDTH], right[WIDTH];
    load<WIDTH>(left, a + at);
    load<WIDTH>(right, b + at);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) left[i] += right[i];
    store<WIDTH>(y + at, left);
}

// Where a pack's values lie in rows of `channels` values and as many gates.
__device__ size_t value_at(unsigned pack, unsigned width, unsigned channels) {
    const unsigned row_packs = channels / width;
    return static_cast<size_t>(pack / row_packs) * 2 * channels + pack % row_packs * width;
}

// `y = value * gelu(gate)`, arXiv 2002.05202.
template <typename T, int WIDTH> __device__ void geglu(const T* x, T* y, unsigned packs, unsigned channels) {
    if (this_pack() >= packs) return;
    const size_t at = value_at(this_pack(), WIDTH, channels);
    float value[WIDTH], gate[WIDTH];
    load<WIDTH>(value, x + at);
    load<WIDTH>(gate, x + at + channels);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) value[i] *= gate[i] * normal_cdf(gate[i]);
    store<WIDTH>(y + static_cast<size_t>(this_pack()) * WIDTH, value);
}

template <typename T, int WIDTH>
__device__ void geglu_backward(const T* x, const T* dy, T* dx, unsigned packs, unsigned channels) {
    if (this_pack() >= packs) return;
    const size_t at = value_at(this_pack(), WIDTH, channels);
    float value[WIDTH], gate[WIDTH], slope[WIDTH];
    load<WIDTH>(value, x + at);
    load<WIDTH>(gate, x + at + channels);
    load<WIDTH>(slope, dy + static_cast<size_t>(this_pack()) * WIDTH);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
        const float cdf = normal_cdf(gate[i]);
        const float density = DENSITY_AT_ZERO * expf(-0.5f * gate[i] * gate[i]);
        const float dvalue = slope[i] * gate[i] * cdf;
        gate[i] = slope[i] * value[i] * fmaf(gate[i], density, cdf);
        value[i] = dvalue;
    }
    store<WIDTH>(dx + at, value);
    store<WIDTH>(dx + at + channels, gate);
}

}  // namespace

// The suffix is the type and how many of it a thread takes at a time.
#define POINTWISE(SUFFIX, T, WIDTH)                                                                                    \
    extern "C" __global__ void add_##SUFFIX(const T* a, const T* b, T* y, unsigned packs) {                            \
        add<T, WIDTH>(a, b, y, packs);                                                                                 \
    }                                                                                                                  \
    extern "C" __global__ void geglu_##SUFFIX(const T* x, T* y, unsigned packs, unsigned channels) {                   \
        geglu<T, WIDTH>(x, y, packs, channels);                                                                        \
    }                                                                                                                  \
    extern "C" __global__ void geglu_backward_##SUFFIX(const T* x, const T* dy, T* dx, unsigned packs,                 \
                                                       unsigned channels) {                                            \
        geglu_backward<T, WIDTH>(x, dy, dx, packs, channels);                                                          \
    }

POINTWISE(f16x8, __half, 8)
POINTWISE(f16x1, __half, 1)
POINTWISE(f32x4, float, 4)
POINTWISE(f32x1, float, 1)
