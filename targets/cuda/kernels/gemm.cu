// Matrix products with f16 tensor cores or in f32, and what convolutions need around them. gemm_product.cuh says what is
// multiplied. A block's tile of C is (blockIdx.y, blockIdx.x); blockIdx.z is the part of k where there are partial sums,
// else the matrix.
#include "gemm_tiles.cuh"

namespace gemm {

/// Puts f32 sums into C, or into the partial sums [parts, m, n] that `gemm_reduce` adds up.
struct Results {
    const Product& product;
    const float *scales, *bias;
    __half* c;
    float* partial;
    float scale[2], offset[2];

    __device__ Results(const Product& product, const float* scales, const float* bias, __half* c, float* partial)
        : product(product), scales(scales), bias(bias), c(c), partial(partial) {
        if (partial) this->partial += (long long)blockIdx.z * product.m * product.n;
        else this->c = matrix(c, product.c, product, blockIdx.z);
    }

    /// What follows goes to columns n and n + 1.
    __device__ void columns(int n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            if (partial || n + e >= product.n) continue;
            const Column column(product, scales, bias, n + e);
            scale[e] = column.scale;
            offset[e] = column.bias;
        }
    }

    __device__ void put(int m, int n, float first, float second) const {
        if (m >= product.m || n >= product.n) return;
        const bool both = n + 1 < product.n;
        if (partial) {
            float* at = partial + (long long)m * product.n + n;
            at[0] = first;
            if (both) at[1] = second;
            return;
        }
        __half* at = c + m * product.c.row + n;
        first = fmaf(first, scale[0], offset[0]);
        if (both) second = fmaf(second, scale[1], offset[1]);
        if (both && (reinterpret_cast<uintptr_t>(at) & 3) == 0) {
            *reinterpret_cast<__half2*>(at) = __floats2half2_rn(first, second);
        } else {
            gemm::put(at, first);
            if (both) gemm::put(at + 1, second);
        }
    }
};

/// The pipeline: while the tiles of one step are multiplied, those of the next STAGES - 1 are on their way.
///
/// One barrier a step is enough. At it every thread has waited for its own part of this step's tiles, so behind it they
/// are whole; and every thread has multiplied the step before, so the stage that step read may be filled anew. Tiles that
/// pass through registers are stored behind this barrier, too, and read STAGES - 1 barriers later.
template <int M, int N, int WARP_M, int WARP_N, int STAGES, bool A_K_INNER, bool B_K_INNER, typename A, typename B>
__device__ void tensor_product(A a, B b, const float* factors, Results results, const Product& product, int first_step) {
    static_assert(M / WARP_M * (N / WARP_N) * 32 == THREADS, "a warp for each part of the tile");
    static_assert(STAGES >= 2 && STAGES * (M + N) * DEPTH * sizeof(__half) <= 48 << 10, "what a block gets unasked");
    __shared__ __align__(128) __half a_tiles[STAGES][M * DEPTH];
    __shared__ __align__(128) __half b_tiles[STAGES][N * DEPTH];
    const int all_steps = (product.k + DEPTH - 1) / DEPTH;
    const int steps = all_steps - first_step < product.steps ? all_steps - first_step : product.steps;
    const int warp = threadIdx.x / 32, warp_m = warp / (N / WARP_N) * WARP_M, warp_n = warp % (N / WARP_N) * WARP_N;
    Carrier<A> a_carrier;
    Carrier<B> b_carrier;
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; ++stage) {
        if (stage < steps) {
            a_carrier.fetch(a, a_tiles[stage]);
            b_carrier.fetch(b, b_tiles[stage]);
            a_carrier.store(a, a_tiles[stage], nullptr);
            b_carrier.store(b, b_tiles[stage], factors);
        }
        ptx::cp_async_commit();
    }
    Sums<WARP_M, WARP_N> sums;
    int from = 0, into = STAGES - 1;
    for (int step = 0; step < steps; ++step) {
        ptx::cp_async_wait<STAGES - 2>(); // a group a step: all but the last STAGES - 2 of them are here
        __syncthreads();
        const bool more = step + STAGES - 1 < steps;
        if (more) {
            a_carrier.fetch(a, a_tiles[into]);
            b_carrier.fetch(b, b_tiles[into]);
        }
        ptx::cp_async_commit(); // an empty group at the end, so that the count stays right
        sums.template add<A::WIDTH, A_K_INNER, B::WIDTH, B_K_INNER>(a_tiles[from], b_tiles[from], warp_m, warp_n);
        if (more) {
            a_carrier.store(a, a_tiles[into], nullptr);
            b_carrier.store(b, b_tiles[into], factors);
        }
        from = from + 1 == STAGES ? 0 : from + 1;
        into = into + 1 == STAGES ? 0 : into + 1;
    }
    sums.give(results, blockIdx.y * M + warp_m, blockIdx.x * N + warp_n);
}

/// The same for numbers that cannot move 8 at a time: channels or columns that are no multiple of 8, or addresses that
/// are none of 16 bytes. Only the first and last convolutions of a network are such.
template <typename W>
__device__ void any_product(const __half* a, const W* b, const float* factors, Results results, const Product& product,
                            int first_step) {
    constexpr int SIZE = 64;
    __shared__ __align__(128) __half a_tile[SIZE * DEPTH], b_tile[SIZE * DEPTH];
    const int first_m = blockIdx.y * SIZE, first_n = blockIdx.x * SIZE;
    const int warp = threadIdx.x / 32, warp_m = warp / 2 * 32, warp_n = warp % 2 * 32;
    Sums<32, 32> sums;
    for (int step = first_step; step < first_step + product.steps && step * DEPTH < product.k; ++step) {
        __syncthreads(); // the tiles have been read
        for (int i = threadIdx.x; i < SIZE * DEPTH; i += THREADS) {
            const int row = i / DEPTH, column = i % DEPTH, k = step * DEPTH + column;
            const int place = place_in_tile<DEPTH>(row, column / CHUNK) + column % CHUNK;
            a_tile[place] = __float2half_rn(a_number(a, product, first_m + row, k));
            b_tile[place] = __float2half_rn(b_number(b, factors, product, k, first_n + row));
        }
        __syncthreads(); // and written
        sums.template add<DEPTH, true, DEPTH, true>(a_tile, b_tile, warp_m, warp_n);
    }
    sums.give(results, first_m + warp_m, first_n + warp_n);
}

/// Products and sums in f32, for parity: nothing is rounded to less, nothing is hurried.
template <typename W>
__device__ void plain_product(const float* a, const W* b, const float* factors, const float* scales, const float* bias,
                              float* c, const Product& product) {
    constexpr int SIZE = 64, SIDE = 16, EACH = SIZE / SIDE, PLAIN_DEPTH = 16;
    __shared__ float a_tile[PLAIN_DEPTH][SIZE + 1], b_tile[PLAIN_DEPTH][SIZE + 1];
    const int first_m = blockIdx.y * SIZE, first_n = blockIdx.x * SIZE;
    const int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    float sums[EACH][EACH] = {};
    for (int step = 0; step < product.k; step += PLAIN_DEPTH) {
        __syncthreads(); // the tiles have been read
        for (int i = threadIdx.x; i < SIZE * PLAIN_DEPTH; i += SIDE * SIDE) {
            const int k = i % PLAIN_DEPTH, row = i / PLAIN_DEPTH;
            a_tile[k][row] = step + k < product.k ? a_number(a, product, first_m + row, step + k) : 0.0f;
            b_tile[k][row] = b_number(b, factors, product, step + k, first_n + row);
        }
        __syncthreads(); // and written
        for (int k = 0; k < PLAIN_DEPTH; ++k) {
#pragma unroll
            for (int i = 0; i < EACH; ++i) {
#pragma unroll
                for (int j = 0; j < EACH; ++j) {
                    sums[i][j] = fmaf(a_tile[k][y + i * SIDE], b_tile[k][x + j * SIDE], sums[i][j]);
                }
            }
        }
    }
    c = matrix(c, product.c, product, blockIdx.z);
    for (int j = 0; j < EACH; ++j) {
        const int n = first_n + x + j * SIDE;
        if (n >= product.n) continue;
        const Column column(product, scales, bias, n);
        for (int i = 0; i < EACH; ++i) {
            const int m = first_m + y + i * SIDE;
            if (m < product.m) c[m * product.c.row + n] = column.of(sums[i][j]);
        }
    }
}

/// What every pixel of a map, repeated twice each way, gives to the pixels beside it: sums[u][v] adds the gradients of
/// the 2x2 repeated pixels from (u - 1, v - 1). The gradient `dy` lies on every `stride`-th of height x width of them.
template <typename T>
__device__ void fold(const T* dy, T* sums, int height, int width, int stride, int channels, long long count) {
    const long long index = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= count) return;
    const long long pixel = index / channels, line = pixel / (width + 1);
    const int channel = index - pixel * channels, v = pixel - line * (width + 1), u = line % (height + 1);
    const int dy_height = (height + stride - 1) / stride, dy_width = (width + stride - 1) / stride;
    const T* picture = dy + line / (height + 1) * dy_height * dy_width * channels;
    float sum = 0.0f;
    for (int row = u - 1; row <= u; ++row) {
        for (int column = v - 1; column <= v; ++column) {
            if (row < 0 || row >= height || column < 0 || column >= width || row % stride || column % stride) continue;
            sum += number(picture[((long long)(row / stride) * dy_width + column / stride) * channels + channel]);
        }
    }
    put(sums + index, sum);
}

template <typename T> __device__ const T* part(const T* all, const Strides& strides, const Product& product, bool parts) {
    return parts ? all : matrix(all, strides, product, blockIdx.z);
}
__device__ inline int first_step(const Product& product, bool parts) { return parts ? blockIdx.z * product.steps : 0; }

} // namespace gemm

using namespace gemm;

#define TENSOR_PRODUCT(NAME, W, M, N, WARP_M, WARP_N, STAGES, A_K_INNER, B_K_INNER, A_OPERAND, B_OPERAND)                \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                               \
        NAME(const __half* a, const W* b, const float* factors, const float* scales, const float* bias, __half* c,      \
             float* partial, const Product product) {                                                                  \
        const int first_m = blockIdx.y * M, first_n = blockIdx.x * N, step = first_step(product, partial);              \
        a = part(a, product.a, product, partial);                                                                       \
        b = part(b, product.b, product, partial);                                                                       \
        (void)first_m, (void)first_n;                                                                                   \
        tensor_product<M, N, WARP_M, WARP_N, STAGES, A_K_INNER, B_K_INNER>(                                             \
            A_OPERAND(M), B_OPERAND(W, N), factors, Results(product, scales, bias, c, partial), product, step);         \
    }
#define A_ROWS(M) Neighbourhoods<M>(a, product, first_m, step * DEPTH)
#define A_TRANSPOSED(M) RowsOfK<__half, M>(a, product, product.a.row, product.m, first_m, step * DEPTH)
#define B_ROWS(W, N) RowsOfN<W, N>(b, product, first_n, step * DEPTH)
#define B_TRANSPOSED(W, N) RowsOfK<W, N>(b, product, product.b.row, product.n, first_n, step * DEPTH)

// nt: B stored [n, k], nn: B stored [k, n], tn: A stored [k, m] as well
#define TENSOR_PRODUCTS(SIZE, W, NAME, M, N, WARP_M, WARP_N, STAGES)                                                    \
    TENSOR_PRODUCT(gemm_##NAME##_nt_##SIZE, W, M, N, WARP_M, WARP_N, STAGES, true, true, A_ROWS, B_ROWS)                \
    TENSOR_PRODUCT(gemm_##NAME##_nn_##SIZE, W, M, N, WARP_M, WARP_N, STAGES, true, false, A_ROWS, B_TRANSPOSED)
#define TENSOR_PRODUCTS_TN(SIZE, W, NAME, M, N, WARP_M, WARP_N, STAGES)                                                 \
    TENSOR_PRODUCT(gemm_##NAME##_tn_##SIZE, W, M, N, WARP_M, WARP_N, STAGES, false, false, A_TRANSPOSED, B_TRANSPOSED)

TENSOR_PRODUCTS(128x128, __half, f16, 128, 128, 64, 64, 3)
TENSOR_PRODUCTS(128x64, __half, f16, 128, 64, 64, 32, 4)
TENSOR_PRODUCTS(64x64, __half, f16, 64, 64, 32, 32, 4)
TENSOR_PRODUCTS_TN(128x128, __half, f16, 128, 128, 64, 64, 3)
TENSOR_PRODUCTS_TN(128x64, __half, f16, 128, 64, 64, 32, 4)
TENSOR_PRODUCTS_TN(64x64, __half, f16, 64, 64, 32, 32, 4)
TENSOR_PRODUCTS(128x128, int8_t, int8, 128, 128, 64, 64, 3)
TENSOR_PRODUCTS(128x64, int8_t, int8, 128, 64, 64, 32, 4)
TENSOR_PRODUCTS(64x64, int8_t, int8, 64, 64, 32, 32, 4)
TENSOR_PRODUCTS(64x64, float, f32, 64, 64, 32, 32, 4)

#define ANY_PRODUCT(NAME, W)                                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                               \
        gemm_##NAME##_any(const __half* a, const W* b, const float* factors, const float* scales, const float* bias,    \
                          __half* c, float* partial, const Product product) {                                          \
        any_product(part(a, product.a, product, partial), part(b, product.b, product, partial), factors,                \
                    Results(product, scales, bias, c, partial), product, first_step(product, partial));                 \
    }
ANY_PRODUCT(f16, __half)
ANY_PRODUCT(int8, int8_t)
ANY_PRODUCT(f32, float)

#define PLAIN_PRODUCT(NAME, W)                                                                                          \
    extern "C" __global__ void __launch_bounds__(256)                                                                   \
        gemm_##NAME##_plain(const float* a, const W* b, const float* factors, const float* scales, const float* bias,   \
                            float* c, const Product product) {                                                         \
        plain_product(part(a, product.a, product, false), part(b, product.b, product, false), factors, scales, bias, c, \
                      product);                                                                                         \
    }
PLAIN_PRODUCT(f16, __half)
PLAIN_PRODUCT(int8, int8_t)
PLAIN_PRODUCT(f32, float)

/// Adds up partial sums [parts, m, n], in their order, so that a result is the same every time.
extern "C" __global__ void gemm_reduce(const float* partial, const float* scales, const float* bias, __half* c,
                                       int parts, const Product product) {
    const long long count = (long long)product.m * product.n;
    const long long index = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= count) return;
    float sum = 0.0f;
    for (int part = 0; part < parts; ++part) sum += partial[part * count + index];
    put(c + index, Column(product, scales, bias, index % product.n).of(sum));
}

extern "C" __global__ void gemm_fold_f16(const __half* dy, __half* sums, int height, int width, int stride, int channels,
                                         long long count) {
    fold(dy, sums, height, width, stride, channels, count);
}
extern "C" __global__ void gemm_fold_f32(const float* dy, float* sums, int height, int width, int stride, int channels,
                                         long long count) {
    fold(dy, sums, height, width, stride, channels, count);
}
