// What attention takes when its scores lie in memory, all in f32: a warp to a row of scores.
#include "values.cuh"

using namespace values;

namespace {

constexpr unsigned WARP = 32;

// This warp's row.
__device__ size_t warp_row() { return static_cast<size_t>(blockIdx.x) * (blockDim.x / WARP) + threadIdx.x / WARP; }

__device__ unsigned this_number() { return blockIdx.x * blockDim.x + threadIdx.x; }

}  // namespace

// Each row of scores becomes probabilities `exp(score - largest) / sum`. Rows are those of `queries` queries per head, the
// first of which has the index `first_query`; a causal one sees the keys up to its own position.
extern "C" __global__ void softmax(const float* scores, float* probabilities, size_t rows, unsigned queries,
                                   unsigned first_query, unsigned keys, unsigned causal) {
    const size_t row = warp_row();
    if (row >= rows) return;
    const unsigned past = first_query + static_cast<unsigned>(row % queries) + 1, lane = threadIdx.x % WARP;
    const unsigned seen = causal && past < keys ? past : keys;
    scores += row * keys;
    probabilities += row * keys;
    float largest = -INFINITY, sum = 0.0f;
    for (unsigned key = lane; key < seen; key += WARP) largest = fmaxf(largest, scores[key]);
    largest = warp_max(largest);
    for (unsigned key = lane; key < seen; key += WARP) sum += expf(scores[key] - largest);
    const float share = 1.0f / warp_sum(sum);
    for (unsigned key = lane; key < keys; key += WARP) {
        probabilities[key] = key < seen ? expf(scores[key] - largest) * share : 0.0f;
    }
}

// The gradients of the scores take the place of the probabilities: `p * (dp - sum(p dp))`.
extern "C" __global__ void score_gradients(float* probabilities, const float* gradients, size_t rows, unsigned keys) {
    const size_t row = warp_row();
    if (row >= rows) return;
    probabilities += row * keys;
    gradients += row * keys;
    float sum = 0.0f;
    for (unsigned key = threadIdx.x % WARP; key < keys; key += WARP) sum = fmaf(probabilities[key], gradients[key], sum);
    sum = warp_sum(sum);
    for (unsigned key = threadIdx.x % WARP; key < keys; key += WARP) probabilities[key] *= gradients[key] - sum;
}

// One more share of some rows, `stride` apart.
extern "C" __global__ void add_rows(const float* share, float* to, unsigned count, unsigned width, size_t stride) {
    const unsigned i = this_number();
    if (i < count) to[i / width * stride + i % width] += share[i];
}

// f16 rows of pictures, wherever they lie, to f32 without gaps, and back.
extern "C" __global__ void widen_rows(const __half* from, float* to, unsigned count, unsigned rows, unsigned width,
                                      size_t picture, size_t stride) {
    const unsigned i = this_number();
    if (i < count) to[i] = __half2float(from[i / width / rows * picture + i / width % rows * stride + i % width]);
}

extern "C" __global__ void narrow_all(const float* from, __half* to, unsigned count) {
    const unsigned i = this_number();
    if (i < count) to[i] = __float2half(from[i]);
}
