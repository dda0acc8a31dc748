// Attention's forward in f16, `softmax(q k^T / sqrt(d)) v` per head: tiles of queries against tiles of keys with a running
// softmax, so that no score leaves the registers (arXiv 2205.14135, in the order of loops of arXiv 2307.08691).
#include "attention_tiles.cuh"

using namespace tiles;

namespace {

// The largest scores so far and the sums of exponentials of score minus largest score, for the lane's two rows.
struct Running {
    float largest[2], sum[2];
};

// The queries' scores against a tile of keys become what they weigh: `exp2(scale * (score - largest))`. What had been
// summed with a smaller largest score is scaled down.
template <int DEPTH, int KEYS>
__device__ void weigh(float (&s)[KEYS / 8][4], float (&y)[DEPTH / 8][4], Running& running, float scale) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float largest = running.largest[half];
#pragma unroll
        for (int j = 0; j < KEYS / 8; ++j) largest = fmaxf(largest, fmaxf(s[j][2 * half], s[j][2 * half + 1]));
        largest = row_max(largest);
        const float shrink = ptx::exp2_flushed((running.largest[half] - largest) * scale), base = -largest * scale;
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < KEYS / 8; ++j) {
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; ++i) {
                s[j][i] = ptx::exp2_flushed(fmaf(s[j][i], scale, base));
                sum += s[j][i];
            }
        }
        running.largest[half] = largest;
        running.sum[half] = fmaf(running.sum[half], shrink, sum);
#pragma unroll
        for (int j = 0; j < DEPTH / 8; ++j) {
            y[j][2 * half] *= shrink;
            y[j][2 * half + 1] *= shrink;
        }
    }
}

// Scores of keys that there are not, or that a query does not see, become minus infinity.
template <int KEYS>
__device__ void mask(float (&s)[KEYS / 8][4], unsigned first_query, unsigned first_key, unsigned keys, bool causal) {
    const unsigned lane = threadIdx.x % WARP;
#pragma unroll
    for (int j = 0; j < KEYS / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const unsigned query = first_query + lane / 4 + i / 2 * 8;
            const unsigned key = first_key + j * 8 + lane % 4 * 2 + i % 2;
            if (key >= keys || (causal && key > query)) s[j][i] = -INFINITY;
        }
    }
}

// The mean of the values of 16 queries from `first` on, and for the backward, if it is asked for, the logarithm to base 2 of
// the sum of exponentials.
template <int DEPTH>
__device__ void finish(const float (&sums)[DEPTH / 8][4], const Running& running, Result y, float* logs, unsigned first,
                       const Rows& q, float scale) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float sum = row_sum(running.sum[half]);
        const unsigned query = first + half * 8 + threadIdx.x % WARP / 4;
        if (query >= q.rows) continue;
        store_row<DEPTH>(y.start + query * y.stride, sums, half, 1.0f / sum, q.depth);
        if (logs && threadIdx.x % 4 == 0) logs[query] = fmaf(running.largest[half], scale, log2f(sum));
    }
}

// DEPTH: channels of a head, padded with zeros. KEYS: keys of a tile. BLOCKS: blocks of 16 queries that a warp takes.
template <int DEPTH, int KEYS, int BLOCKS>
__device__ void attend(const Rows& q, const Rows& k, const Rows& v, Result y, float* logs, float scale, bool causal) {
    constexpr int QUERIES = WARPS * BLOCKS * 16, TILE = KEYS * PITCH<DEPTH>;
    // keys and values, each twice: one is read while the other is written
    __shared__ Shared<DEPTH, (4 * KEYS > QUERIES ? 4 * KEYS : QUERIES)> shared;
    __half* const memory = shared.packs[0].values;
    const unsigned first_of_all = blockIdx.x * QUERIES, first = first_of_all + threadIdx.x / WARP * BLOCKS * 16;

    // 1. the queries, by way of the keys' place
    load_rows<DEPTH, QUERIES>(memory, q, first_of_all);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncthreads();
    uint32_t queries[BLOCKS][DEPTH / 16][4];
    left_factors<DEPTH, BLOCKS>(queries, memory);
    __syncthreads();

    // 2. tile by tile of the keys that any of the block's queries sees
    float sums[BLOCKS][DEPTH / 8][4] = {};
    Running running[BLOCKS];
#pragma unroll
    for (int block = 0; block < BLOCKS; ++block) running[block] = {{-INFINITY, -INFINITY}, {0.0f, 0.0f}};
    const unsigned past = first_of_all + QUERIES;
    const unsigned seen = causal && past < k.rows ? past : k.rows;
    const unsigned tile_count = (seen + KEYS - 1) / KEYS;
    load_rows<DEPTH, KEYS>(memory, k, 0);
    load_rows<DEPTH, KEYS>(memory + TILE, v, 0);
    ptx::cp_async_commit();
    for (unsigned tile = 0; tile < tile_count; ++tile) {
        const unsigned first_key = tile * KEYS;
        if (tile + 1 < tile_count) {
            __half* const next = memory + (tile + 1) % 2 * 2 * TILE;
            load_rows<DEPTH, KEYS>(next, k, first_key + KEYS);
            load_rows<DEPTH, KEYS>(next + TILE, v, first_key + KEYS);
        }
        ptx::cp_async_commit();
        ptx::cp_async_wait<1>();  // all but the next tile
        __syncthreads();
        const __half* const keys = memory + tile % 2 * 2 * TILE;
        float s[BLOCKS][KEYS / 8][4] = {};
        times_transposed<DEPTH, KEYS, BLOCKS>(s, queries, keys);
#pragma unroll
        for (int block = 0; block < BLOCKS; ++block) {
            const unsigned first_query = first + block * 16;
            if (first_key + KEYS > k.rows || (causal && first_key + KEYS - 1 > first_query)) {
                mask<KEYS>(s[block], first_query, first_key, k.rows, causal);
            }
            weigh<DEPTH, KEYS>(s[block], sums[block], running[block], scale);
        }
        times<DEPTH, KEYS, BLOCKS>(sums, s, keys + TILE);
        __syncthreads();  // before the tile after next is written where this one lies
    }

#pragma unroll
    for (int block = 0; block < BLOCKS; ++block) {
        finish<DEPTH>(sums[block], running[block], y, logs, first + block * 16, q, scale);
    }
}

// Heads of any width: a block's scores are summed over CHUNK channels at a time, of queries and keys alike, and weigh SLICE
// channels of the values. Scores are computed again for each slice; the values' products are by far fewer in memory.
constexpr int CHUNK = 64, WIDE_KEYS = 32, SLICE = 128;

__device__ void attend_wide(const Rows& q, const Rows& k, const Rows& v, Result y, float scale, bool causal) {
    constexpr int QUERIES = WARPS * 16, BUFFER = (QUERIES + WIDE_KEYS) * PITCH<CHUNK>;
    // queries and keys, twice: one chunk is read while the next is written
    __shared__ Shared<CHUNK, 2 * (QUERIES + WIDE_KEYS)> shared;
    __shared__ Shared<SLICE, WIDE_KEYS> shared_values;
    __half* const memory = shared.packs[0].values;
    __half* const values = shared_values.packs[0].values;
    const unsigned first_of_all = blockIdx.x * QUERIES, first = first_of_all + threadIdx.x / WARP * 16;
    const unsigned past = first_of_all + QUERIES;
    const unsigned seen = causal && past < k.rows ? past : k.rows;
    const unsigned chunks = (q.depth + CHUNK - 1) / CHUNK, steps = (seen + WIDE_KEYS - 1) / WIDE_KEYS * chunks;
    const auto load_step = [&](unsigned step) {
        const unsigned channel = step % chunks * CHUNK;
        const Rows some_q{q.start + channel, q.stride, q.rows, q.depth - channel, q.aligned};
        const Rows some_k{k.start + channel, k.stride, k.rows, k.depth - channel, k.aligned};
        __half* const buffer = memory + step % 2 * BUFFER;
        load_rows<CHUNK, QUERIES>(buffer, some_q, first_of_all);
        load_rows<CHUNK, WIDE_KEYS>(buffer + QUERIES * PITCH<CHUNK>, some_k, step / chunks * WIDE_KEYS);
    };
    float sums[1][SLICE / 8][4] = {}, s[1][WIDE_KEYS / 8][4] = {};
    Running running = {{-INFINITY, -INFINITY}, {0.0f, 0.0f}};
    load_step(0);
    ptx::cp_async_commit();
    for (unsigned step = 0; step < steps; ++step) {
        const unsigned first_key = step / chunks * WIDE_KEYS;
        // the values arrive with the tile's second chunk; there are two at least
        if (step % chunks == 0) load_rows<SLICE, WIDE_KEYS>(values, v, first_key);
        if (step + 1 < steps) load_step(step + 1);
        ptx::cp_async_commit();
        ptx::cp_async_wait<1>();  // all but what was just asked for
        __syncthreads();
        const __half* const buffer = memory + step % 2 * BUFFER;
        uint32_t queries[1][CHUNK / 16][4];
        left_factors<CHUNK, 1>(queries, buffer);
        times_transposed<CHUNK, WIDE_KEYS, 1>(s, queries, buffer + QUERIES * PITCH<CHUNK>);
        if (step % chunks + 1 == chunks) {
            if (first_key + WIDE_KEYS > k.rows || (causal && first_key + WIDE_KEYS - 1 > first)) {
                mask<WIDE_KEYS>(s[0], first, first_key, k.rows, causal);
            }
            weigh<SLICE, WIDE_KEYS>(s[0], sums[0], running, scale);
            times<SLICE, WIDE_KEYS, 1>(sums, s, values);
#pragma unroll
            for (int j = 0; j < WIDE_KEYS / 8; ++j) {
#pragma unroll
                for (int i = 0; i < 4; ++i) s[0][j][i] = 0.0f;
            }
        }
        __syncthreads();  // before the chunk after next, or the next values, are written where these lie
    }
    finish<SLICE>(sums[0], running, y, nullptr, first, Rows{q.start, q.stride, q.rows, v.depth, q.aligned}, scale);
}

}  // namespace

// Block (tile of queries, head, picture). `scale` is log2(e) / sqrt(depth); `values` is where a row's values begin after
// its keys; `logs` is `[B, heads, queries]`. The result's rows are contiguous.
#define ATTENTION(DEPTH, KEYS, BLOCKS)                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_##DEPTH(                                           \
        const __half* q, const __half* kv, __half* y, float* logs, size_t q_picture, size_t q_row, size_t kv_picture,  \
        size_t kv_row, unsigned queries, unsigned keys, unsigned depth, unsigned values, float scale, unsigned causal, \
        unsigned aligned) {                                                                                            \
        const size_t head = blockIdx.y * depth, width = gridDim.y * depth;                                             \
        const size_t row = static_cast<size_t>(blockIdx.z) * queries;                                                  \
        const __half* const k = kv + blockIdx.z * kv_picture + head;                                                   \
        attend<DEPTH, KEYS, BLOCKS>(Rows{q + blockIdx.z * q_picture + head, q_row, queries, depth, aligned != 0},      \
                                    Rows{k, kv_row, keys, depth, aligned != 0},                                        \
                                    Rows{k + values, kv_row, keys, depth, aligned != 0},                               \
                                    Result{y + row * width + head, width},                                             \
                                    logs + row * gridDim.y + static_cast<size_t>(blockIdx.y) * queries, scale,         \
                                    causal != 0);                                                                      \
    }

ATTENTION(16, 64, 2)
ATTENTION(32, 64, 2)
ATTENTION(48, 64, 2)
ATTENTION(64, 64, 2)
ATTENTION(80, 64, 1)
ATTENTION(128, 32, 1)
ATTENTION(160, 32, 1)

// Block (tile of queries, head and slice of its values, picture).
extern "C" __global__ void __launch_bounds__(THREADS) attention_wide(
    const __half* q, const __half* kv, __half* y, size_t q_picture, size_t q_row, size_t kv_picture, size_t kv_row,
    unsigned queries, unsigned keys, unsigned depth, unsigned values, float scale, unsigned causal, unsigned aligned) {
    const unsigned slices = (depth + SLICE - 1) / SLICE, slice = blockIdx.y % slices * SLICE;
    const size_t head = static_cast<size_t>(blockIdx.y / slices) * depth;
    const size_t width = static_cast<size_t>(gridDim.y / slices) * depth;
    const __half* const k = kv + blockIdx.z * kv_picture + head;
    attend_wide(Rows{q + blockIdx.z * q_picture + head, q_row, queries, depth, aligned != 0},
                Rows{k, kv_row, keys, depth, aligned != 0},
                Rows{k + values + slice, kv_row, keys, depth - slice, aligned != 0},
                Result{y + static_cast<size_t>(blockIdx.z) * queries * width + head + slice, width}, scale, causal != 0);
}
