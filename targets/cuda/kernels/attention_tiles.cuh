// Tiles of attention's arguments in shared memory, and products of rows in registers with them. A warp's rows are in blocks
// of 16 and in mma fragments: of each block, lane `l` has rows `l / 4` and `l / 4 + 8` and of every eight columns the two
// from `l % 4 * 2` on. Sums that come out of one product this way go into the next one as they are, rounded to f16.
#pragma once
#include "ptx.cuh"
#include "values.cuh"
#include <string.h>

namespace tiles {

constexpr unsigned WARP = 32;
constexpr unsigned WARPS = 4;
constexpr unsigned THREADS = WARPS * WARP;

// `[rows, depth]` of one head of one picture, rows `stride` apart. `aligned`: every row and every eighth column begins at a
// multiple of 16 bytes.
struct Rows {
    const __half* start;
    size_t stride;
    unsigned rows, depth;
    bool aligned;
};

// Where the rows of a result go.
struct Result {
    __half* start;
    size_t stride;
};

// Numbers from one row to the next: an odd multiple of 16 bytes, so that the eight rows of a matrix which ldmatrix reads
// at once lie in different banks.
template <int DEPTH> constexpr int PITCH = DEPTH + 8;

// Shared memory for `ROWS` rows.
template <int DEPTH, int ROWS> struct Shared {
    static constexpr int SIZE = ROWS * PITCH<DEPTH>;
    static_assert(SIZE * sizeof(__half) <= 48 * 1024, "more than a block gets without asking");
    values::Pack<__half, 8> packs[SIZE / 8];
};

// Rows `first` up to `first + ROWS` into shared memory; zeros below the last row and right of the last channel.
template <int DEPTH, int ROWS> __device__ void load_rows(__half* to, const Rows& from, unsigned first) {
    constexpr unsigned PIECES = DEPTH / 8;
    for (unsigned piece = threadIdx.x; piece < ROWS * PIECES; piece += THREADS) {
        const unsigned row = piece / PIECES, column = piece % PIECES * 8;
        __half* const target = to + row * PITCH<DEPTH> + column;
        const bool inside = first + row < from.rows;
        const __half* const source = from.start + (first + row) * from.stride + column;
        if (from.aligned) {
            const bool valid = inside && column < from.depth;
            ptx::cp_async_16(target, valid ? source : from.start, valid);
        } else {
#pragma unroll
            for (unsigned i = 0; i < 8; ++i) {
                target[i] = inside && column + i < from.depth ? source[i] : __float2half(0.0f);
            }
        }
    }
}

// A warp's rows of what lies in shared memory as left factors.
template <int DEPTH, int BLOCKS>
__device__ void left_factors(uint32_t (&a)[BLOCKS][DEPTH / 16][4], const __half* rows) {
    const unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll
    for (int block = 0; block < BLOCKS; ++block) {
#pragma unroll
        for (int step = 0; step < DEPTH / 16; ++step) {
            const unsigned row = (warp * BLOCKS + block) * 16 + lane % 16;
            ptx::ldmatrix_x4(a[block][step], rows + row * PITCH<DEPTH> + step * 16 + lane / 16 * 8);
        }
    }
}

// `s += a tile^T`: each of the warp's rows against each of the tile's.
template <int DEPTH, int ROWS, int BLOCKS>
__device__ void times_transposed(float (&s)[BLOCKS][ROWS / 8][4], const uint32_t (&a)[BLOCKS][DEPTH / 16][4],
                                 const __half* tile) {
    const unsigned lane = threadIdx.x % WARP;
#pragma unroll
    for (int step = 0; step < DEPTH / 16; ++step) {
#pragma unroll
        for (int j = 0; j < ROWS / 16; ++j) {
            uint32_t b[4];
            const unsigned row = j * 16 + lane / 16 * 8 + lane % 8;
            ptx::ldmatrix_x4(b, tile + row * PITCH<DEPTH> + step * 16 + lane / 8 % 2 * 8);
            const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
#pragma unroll
            for (int block = 0; block < BLOCKS; ++block) {
                ptx::mma_m16n8k16(s[block][2 * j], a[block][step], left);
                ptx::mma_m16n8k16(s[block][2 * j + 1], a[block][step], right);
            }
        }
    }
}

__device__ inline uint32_t two_halves(float low, float high) {
    const __half2 both = __floats2half2_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &both, sizeof(bits));
    return bits;
}

// `sums += weights tile`: the tile's rows, weighted.
template <int DEPTH, int ROWS, int BLOCKS>
__device__ void times(float (&sums)[BLOCKS][DEPTH / 8][4], const float (&weights)[BLOCKS][ROWS / 8][4],
                      const __half* tile) {
    const unsigned lane = threadIdx.x % WARP;
#pragma unroll
    for (int step = 0; step < ROWS / 16; ++step) {
        uint32_t a[BLOCKS][4];
#pragma unroll
        for (int block = 0; block < BLOCKS; ++block) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float* const two = weights[block][2 * step + i / 2] + i % 2 * 2;
                a[block][i] = two_halves(two[0], two[1]);
            }
        }
#pragma unroll
        for (int j = 0; j < DEPTH / 16; ++j) {
            uint32_t b[4];
            ptx::ldmatrix_x4_trans(b, tile + (step * 16 + lane % 16) * PITCH<DEPTH> + j * 16 + lane / 16 * 8);
            const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
#pragma unroll
            for (int block = 0; block < BLOCKS; ++block) {
                ptx::mma_m16n8k16(sums[block][2 * j], a[block], left);
                ptx::mma_m16n8k16(sums[block][2 * j + 1], a[block], right);
            }
        }
    }
}

// One row of a block, this lane's columns of it, times `factor`. `half` says which of the lane's two rows it is.
template <int DEPTH>
__device__ void store_row(__half* row, const float (&sums)[DEPTH / 8][4], int half, float factor, unsigned depth) {
#pragma unroll
    for (int j = 0; j < DEPTH / 8; ++j) {
        const unsigned column = j * 8 + threadIdx.x % 4 * 2;
        const float low = sums[j][2 * half] * factor, high = sums[j][2 * half + 1] * factor;
        if (depth % 2 == 0) {
            if (column < depth) *reinterpret_cast<uint32_t*>(row + column) = two_halves(low, high);
        } else {
            if (column < depth) row[column] = __float2half(low);
            if (column + 1 < depth) row[column + 1] = __float2half(high);
        }
    }
}

// The largest and the sum over the four lanes that share a row.
__device__ inline float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ inline float row_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

}  // namespace tiles
