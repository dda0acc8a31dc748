// Attention's backward in f16, with the probabilities computed again from the logarithms that the forward left (arXiv
// 2307.08691). With `p` the probabilities, `dp = dy v^T` and `ds = p (dp - rowsum(dy y))`:
//     dq = ds k / sqrt(d)    dk = ds^T q / sqrt(d)    dv = p^T dy
// Each of the three is a launch of its own, in which a warp's rows meet tile by tile what lies across: more products than
// one launch for all would take (eight for seven), but no atomics, and sums that fit in registers.
#include "attention_tiles.cuh"

using namespace tiles;

namespace {

enum class Of { QUERIES, KEYS, VALUES };

// Of each query: the logarithm to base 2 of its sum of exponentials, and `rowsum(dy y)`.
struct Statistics {
    const float *logs, *dots;
};

// BLOCK rows of queries or keys and what goes with them (`dy` or values) against tiles of ROWS rows of the other kind.
template <Of OF, int DEPTH, int ROWS>
__device__ void gradient(const Rows& own, const Rows& own_factor, const Rows& other, const Rows& other_factor,
                         Statistics statistics, Result result, float scale, bool causal) {
    constexpr int OWN = WARPS * 16, TILE = ROWS * PITCH<DEPTH>;
    static_assert(2 * OWN <= 4 * ROWS, "own rows go through the tiles' place");
    __shared__ Shared<DEPTH, 4 * ROWS> shared;
    // of a tile of queries, twice as the tile is
    __shared__ float tile_logs[2][ROWS], tile_dots[2][ROWS];
    __half* const memory = shared.packs[0].values;
    const unsigned lane = threadIdx.x % WARP;
    const unsigned first_of_all = blockIdx.x * OWN, first = first_of_all + threadIdx.x / WARP * 16;

    // 1. own rows
    load_rows<DEPTH, OWN>(memory, own, first_of_all);
    if (OF != Of::VALUES) load_rows<DEPTH, OWN>(memory + OWN * PITCH<DEPTH>, own_factor, first_of_all);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncthreads();
    uint32_t rows[1][DEPTH / 16][4], factors[1][DEPTH / 16][4];
    left_factors<DEPTH, 1>(rows, memory);
    if (OF != Of::VALUES) left_factors<DEPTH, 1>(factors, memory + OWN * PITCH<DEPTH>);
    float log[2] = {}, dot[2] = {};
    if (OF == Of::QUERIES) {
        for (int half = 0; half < 2; ++half) {
            const unsigned query = first + half * 8 + lane / 4;
            if (query < own.rows) {
                log[half] = statistics.logs[query];
                dot[half] = statistics.dots[query];
            }
        }
    }
    __syncthreads();

    // 2. tile by tile of the keys that these queries see, or of the queries that see these keys
    const unsigned past = first_of_all + OWN;
    const unsigned start = OF != Of::QUERIES && causal ? first_of_all / ROWS * ROWS : 0;
    const unsigned end = OF == Of::QUERIES && causal && past < other.rows ? past : other.rows;
    const auto load_tile = [&](unsigned first_other) {
        const unsigned buffer = (first_other - start) / ROWS % 2;
        load_rows<DEPTH, ROWS>(memory + buffer * 2 * TILE, other, first_other);
        load_rows<DEPTH, ROWS>(memory + buffer * 2 * TILE + TILE, other_factor, first_other);
        if (OF != Of::QUERIES && threadIdx.x < ROWS) {
            // a query that there is not sees nothing
            const unsigned query = first_other + threadIdx.x;
            tile_logs[buffer][threadIdx.x] = query < other.rows ? statistics.logs[query] : INFINITY;
            tile_dots[buffer][threadIdx.x] = OF == Of::KEYS && query < other.rows ? statistics.dots[query] : 0.0f;
        }
    };
    float sums[1][DEPTH / 8][4] = {};
    if (start < end) load_tile(start);
    ptx::cp_async_commit();
    for (unsigned first_other = start; first_other < end; first_other += ROWS) {
        if (first_other + ROWS < end) load_tile(first_other + ROWS);
        ptx::cp_async_commit();
        ptx::cp_async_wait<1>();  // all but the next tile
        __syncthreads();
        const unsigned buffer = (first_other - start) / ROWS % 2;
        const __half* const tile = memory + buffer * 2 * TILE;
        float s[1][ROWS / 8][4] = {}, dp[1][ROWS / 8][4] = {};
        times_transposed<DEPTH, ROWS, 1>(s, rows, tile);
        if (OF != Of::VALUES) times_transposed<DEPTH, ROWS, 1>(dp, factors, tile + TILE);
#pragma unroll
        for (int j = 0; j < ROWS / 8; ++j) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const unsigned column = j * 8 + lane % 4 * 2 + i % 2;
                const unsigned row_index = first + lane / 4 + i / 2 * 8, column_index = first_other + column;
                const unsigned query = OF == Of::QUERIES ? row_index : column_index;
                const unsigned key = OF == Of::QUERIES ? column_index : row_index;
                const float of_log = OF == Of::QUERIES ? log[i / 2] : tile_logs[buffer][column];
                const float of_dot = OF == Of::QUERIES ? dot[i / 2] : tile_dots[buffer][column];
                const bool seen = (OF != Of::QUERIES || key < other.rows) && !(causal && key > query);
                const float p = seen ? ptx::exp2_flushed(fmaf(s[0][j][i], scale, -of_log)) : 0.0f;
                s[0][j][i] = OF == Of::VALUES ? p : p * (dp[0][j][i] - of_dot);
            }
        }
        times<DEPTH, ROWS, 1>(sums, s, OF == Of::VALUES ? tile + TILE : tile);
        __syncthreads();  // before the tile after next is written where this one lies
    }

    // 3. the result
    constexpr float LN_2 = 0.69314718f;
    const float factor = OF == Of::VALUES ? 1.0f : scale * LN_2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const unsigned row = first + half * 8 + lane / 4;
        if (row < own.rows) store_row<DEPTH>(result.start + row * result.stride, sums[0], half, factor, own.depth);
    }
}

}  // namespace

// `rowsum(dy y)` of every head of every query, `[B, heads, queries]`, a warp each; `dy` and `y` are `[B, queries, heads,
// depth]`.
extern "C" __global__ void attention_dots(const __half* dy, const __half* y, float* dots, size_t count,
                                          unsigned queries, unsigned heads, unsigned depth) {
    const size_t row = static_cast<size_t>(blockIdx.x) * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= count) return;
    float sum = 0.0f;
    for (unsigned i = threadIdx.x % WARP; i < depth; i += WARP) {
        sum = fmaf(__half2float(dy[row * depth + i]), __half2float(y[row * depth + i]), sum);
    }
    sum = values::warp_sum(sum);
    const size_t picture = row / heads / queries, query = row / heads % queries, head = row % heads;
    if (threadIdx.x % WARP == 0) dots[(picture * heads + head) * queries + query] = sum;
}

// Block (tile of own rows, head, picture). `scale` is log2(e) / sqrt(depth); `values` is where a row's values begin after
// its keys, and in the result `width`. `dy` and the results are contiguous.
#define GRADIENT(NAME, OF, DEPTH, ROWS, OWN, OWN_FACTOR, OTHER, OTHER_FACTOR, RESULT)                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME##_##DEPTH(                                              \
        const __half* q_start, const __half* kv_start, const __half* dy_start, const float* logs, const float* dots,   \
        __half* to, size_t q_picture, size_t q_row, size_t kv_picture, size_t kv_row, unsigned queries, unsigned keys, \
        unsigned depth, unsigned values, float scale, unsigned causal, unsigned aligned) {                             \
        const size_t picture = blockIdx.z, head = blockIdx.y * depth, width = gridDim.y * depth;                       \
        const __half* const keys_start = kv_start + picture * kv_picture + head;                                       \
        const Rows q{q_start + picture * q_picture + head, q_row, queries, depth, (aligned & 1) != 0};                 \
        const Rows k{keys_start, kv_row, keys, depth, (aligned & 1) != 0};                                             \
        const Rows v{keys_start + values, kv_row, keys, depth, (aligned & 1) != 0};                                    \
        const Rows dy{dy_start + picture * queries * width + head, width, queries, depth, (aligned & 2) != 0};         \
        const size_t statistics = (picture * gridDim.y + blockIdx.y) * queries;                                        \
        gradient<OF, DEPTH, ROWS>(OWN, OWN_FACTOR, OTHER, OTHER_FACTOR,                                                \
                                  Statistics{logs + statistics, dots + statistics}, RESULT, scale, causal != 0);       \
    }

#define GRADIENTS(DEPTH, ROWS)                                                                                         \
    GRADIENT(attention_dq, Of::QUERIES, DEPTH, ROWS, q, dy, k, v,                                                      \
             (Result{to + picture * queries * width + head, width}))                                                   \
    GRADIENT(attention_dk, Of::KEYS, DEPTH, ROWS, k, v, q, dy,                                                         \
             (Result{to + picture * keys * 2 * width + head, 2 * width}))                                              \
    GRADIENT(attention_dv, Of::VALUES, DEPTH, ROWS, k, v, q, dy,                                                       \
             (Result{to + picture * keys * 2 * width + width + head, 2 * width}))

GRADIENTS(16, 64)
GRADIENTS(32, 64)
GRADIENTS(48, 64)
GRADIENTS(64, 64)
GRADIENTS(80, 32)
GRADIENTS(128, 32)
GRADIENTS(160, 32)
