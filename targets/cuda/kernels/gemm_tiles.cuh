// Tiles of f16 in shared memory: how they lie there, who brings them, who multiplies them.
#pragma once
#include "gemm_product.cuh"
#include "ptx.cuh"
#include <string.h>

namespace gemm {

/// Of k in one tile.
constexpr int DEPTH = 32;
/// Numbers that move together: 16 bytes of f16.
constexpr int CHUNK = 8;
/// Of every block here: four warps.
constexpr int THREADS = 128;

/// Where a chunk lies in a tile with rows of WIDTH numbers. ldmatrix reads one chunk of each of eight rows at a time, and
/// eight neighbouring lanes write neighbouring chunks: in both cases the eight fall into different 16-byte columns of the
/// 128 bytes that the banks serve at once. Of rows of 64 bytes two share them, so there the chunk is mixed with row / 2.
template <int WIDTH> __host__ __device__ constexpr int place_in_tile(int row, int chunk) {
    static_assert(WIDTH == 32 || WIDTH == 64 || WIDTH == 128, "the mixing is made for these");
    return row * WIDTH + (chunk ^ (WIDTH == 32 ? (row >> 1) & 3 : row & 7)) * CHUNK;
}

/// The banks' column of a place, as one bit of eight.
__host__ __device__ constexpr int bank_column(int place) { return 1 << place / CHUNK % 8; }

/// Whether that is so.
template <int WIDTH> __host__ __device__ constexpr bool banks_are_shared_out() {
    for (int first = 0; first < 32; first += 8) {
        for (int chunk = 0; chunk < WIDTH / CHUNK; ++chunk) {
            int read = 0;
            for (int row = first; row < first + 8; ++row) read |= bank_column(place_in_tile<WIDTH>(row, chunk));
            if (read != 0xff) return false;
        }
    }
    for (int first = 0; first < 32 * WIDTH / CHUNK; first += 8) {
        int written = 0;
        for (int i = first; i < first + 8; ++i) {
            written |= bank_column(place_in_tile<WIDTH>(i / (WIDTH / CHUNK), i % (WIDTH / CHUNK)));
        }
        if (written != 0xff) return false;
    }
    return true;
}
static_assert(banks_are_shared_out<32>() && banks_are_shared_out<64>() && banks_are_shared_out<128>(), "a conflict of banks");

// Who knows where a thread's chunks of an operand lie. Each has
//     Number          what they are stored as
//     WIDTH           numbers in a row of the tile
//     COUNT           chunks of a thread
//     at(i, valid)    the i-th in memory; where not valid it is zeros, and not read
//     slot(i)         the i-th in the tile
//     factors(i, all) what its numbers are multiplied with, where that is asked for
//     advance()       on to the next DEPTH of k
// What they do in a step costs as much as the products do if it is more than a few instructions a chunk: offsets of 32 bits,
// and divisions and neighbourhoods only where k goes on to another tap.

/// A, tile [SIZE][DEPTH]: neighbourhoods in a map. A chunk lies in one tap, as channels are a multiple of it.
template <int SIZE> struct Neighbourhoods {
    using Number = __half;
    static constexpr int WIDTH = DEPTH, ACROSS = WIDTH / CHUNK, APART = THREADS / ACROSS, COUNT = SIZE / APART;
    const __half* a;
    const Product& product;
    Place place;
    int pictures[COUNT], corners[COUNT], offsets[COUNT];
    uint32_t valid = 0;

    __device__ Neighbourhoods(const __half* a, const Product& product, int first_m, int first_k)
        : a(a), product(product), place(product.gather, first_k + threadIdx.x % ACROSS * CHUNK) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            const Pixel pixel(product, first_m + threadIdx.x / ACROSS + i * APART);
            pictures[i] = pixel.picture;
            corners[i] = pixel.corner();
            look(i, pixel);
        }
    }
    __device__ void look(int i, const Pixel& pixel) {
        int row;
        if (pixel.row(product.gather, place, row)) valid |= 1u << i;
        offsets[i] = row * (int)product.a.row;
    }
    __device__ const __half* at(int i, bool& valid) const {
        valid = this->valid >> i & 1;
        return a + place.channel + offsets[i];
    }
    __device__ int slot(int i) const {
        return place_in_tile<WIDTH>(threadIdx.x / ACROSS + i * APART, threadIdx.x % ACROSS);
    }
    __device__ void advance() {
        place.channel += DEPTH;
        if (place.channel < product.gather.channels) return;
        place.advance(product.gather, 0);
        valid = 0;
        if (!place.exists(product.gather)) return; // and the corner of a plain matrix's row is none
#pragma unroll
        for (int i = 0; i < COUNT; ++i) look(i, Pixel(pictures[i], corners[i]));
    }
};

/// Factors of eight channels, in f16.
struct Factors {
    __half2 pairs[CHUNK / 2];
};

/// B stored [n, k], tile [SIZE][DEPTH].
template <typename W, int SIZE> struct RowsOfN {
    using Number = W;
    static constexpr int WIDTH = DEPTH, ACROSS = WIDTH / CHUNK, APART = THREADS / ACROSS, COUNT = SIZE / APART;
    const W* at_k;
    const Product& product;
    int k, step;
    uint32_t exists = 0;

    __device__ RowsOfN(const W* b, const Product& product, int first_n, int first_k)
        : product(product), k(first_k + threadIdx.x % ACROSS * CHUNK), step(APART * (int)product.b.row) {
        const int n = first_n + threadIdx.x / ACROSS;
        at_k = b + n * product.b.row + k;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) exists |= (n + i * APART < product.n ? 1u : 0u) << i;
    }
    __device__ const W* at(int i, bool& valid) const {
        valid = (exists >> i & 1) && k < product.k;
        return at_k + i * step;
    }
    __device__ int slot(int i) const {
        return place_in_tile<WIDTH>(threadIdx.x / ACROSS + i * APART, threadIdx.x % ACROSS);
    }
    __device__ Factors factors(int, const float* all) const {
        const float4* at = reinterpret_cast<const float4*>(all + k % product.gather.channels);
        const float4 low = at[0], high = at[1];
        return {{__floats2half2_rn(low.x, low.y), __floats2half2_rn(low.z, low.w), __floats2half2_rn(high.x, high.y),
                 __floats2half2_rn(high.z, high.w)}};
    }
    __device__ void advance() {
        k += DEPTH;
        at_k += DEPTH;
    }
};

/// B stored [channels, taps * n] or A stored [k, m], tile [DEPTH][SIZE].
template <typename W, int SIZE> struct RowsOfK {
    using Number = W;
    static constexpr int WIDTH = SIZE, ACROSS = WIDTH / CHUNK, APART = THREADS / ACROSS, COUNT = DEPTH / APART;
    const W* column;
    const Product& product;
    const int stride, size;
    const bool inside;
    int k;
    Place place; // of the thread's first row
    int offset;

    __device__ RowsOfK(const W* base, const Product& product, long long stride, int size, int first, int first_k)
        : column(base + first + threadIdx.x % ACROSS * CHUNK), product(product), stride((int)stride), size(size),
          inside(first + (int)(threadIdx.x % ACROSS) * CHUNK < size), k(first_k + threadIdx.x / ACROSS),
          place(product.gather, k), offset(offset_of(place)) {}
    __device__ int offset_of(const Place& row) const {
        return row.channel * stride + row.mirrored(product.gather) * size;
    }
    /// Whether all rows of a tile belong to one tap.
    __device__ bool one_tap() const {
        return product.gather.taps_across == 1 || product.gather.channels % DEPTH == 0;
    }
    __device__ Place row(int i) const {
        Place row = place;
        row.advance(product.gather, i * APART);
        return row;
    }
    __device__ const W* at(int i, bool& valid) const {
        valid = inside && k + i * APART < product.k;
        return column + (one_tap() ? offset + i * APART * stride : offset_of(row(i)));
    }
    __device__ int slot(int i) const {
        return place_in_tile<WIDTH>(threadIdx.x / ACROSS + i * APART, threadIdx.x % ACROSS);
    }
    __device__ Factors factors(int i, const float* all) const {
        // beyond the end of k, too, a channel that exists: its number is zero
        const __half2 factor = __float2half2_rn(all[row(i).channel]);
        return {{factor, factor, factor, factor}};
    }
    __device__ void advance() {
        k += DEPTH;
        place.advance(product.gather, DEPTH);
        offset = offset_of(place);
    }
};

/// The bits of two f16.
__device__ inline uint32_t pair(float low, float high) {
    const __half2 two = __floats2half2_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &two, 4);
    return bits;
}

/// Bytes 0 and 1 or, with the selector 0x4342, 2 and 3 of `four` as two f16. 0x6400 | u is 1024 + u in f16, so that a byte
/// u = q + 128 becomes the number q by one exact subtraction, and two bytes by two instructions.
__device__ inline __half2 pair_of_int8(uint32_t four, uint32_t selector) {
    const uint32_t bits = __byte_perm(four, 0x64646464u, selector), start = 0x64806480u; // 1024 + 128, twice
    __half2 two, offset;
    memcpy(&two, &bits, 4);
    memcpy(&offset, &start, 4);
    return __hsub2(two, offset);
}

/// Brings an operand's chunks into a tile: f16 by themselves, all else through registers, since it must be converted.
/// `fetch` before the products of another tile and `store` after them, so that they hide the memory's latency; `store`
/// also goes on to the next DEPTH.
template <typename Operand, typename Number = typename Operand::Number> struct Carrier;

template <typename Operand> struct Carrier<Operand, __half> {
    __device__ void fetch(const Operand& operand, __half* tile) {
#pragma unroll
        for (int i = 0; i < Operand::COUNT; ++i) {
            bool valid;
            const __half* at = operand.at(i, valid);
            ptx::cp_async_16(tile + operand.slot(i), at, valid);
        }
    }
    __device__ void store(Operand& operand, __half*, const float*) { operand.advance(); }
};

template <typename Operand> struct Carrier<Operand, int8_t> {
    uint2 chunks[Operand::COUNT];

    __device__ void fetch(const Operand& operand, __half*) {
#pragma unroll
        for (int i = 0; i < Operand::COUNT; ++i) {
            bool valid;
            const int8_t* at = operand.at(i, valid);
            chunks[i] = make_uint2(0, 0);
            if (valid) chunks[i] = *reinterpret_cast<const uint2*>(at);
        }
    }
    __device__ void store(Operand& operand, __half* tile, const float* factors) {
#pragma unroll
        for (int i = 0; i < Operand::COUNT; ++i) {
            // + 128 turns signed bytes into unsigned ones
            const uint32_t low = chunks[i].x ^ 0x80808080u, high = chunks[i].y ^ 0x80808080u;
            __half2 pairs[4] = {pair_of_int8(low, 0x4140), pair_of_int8(low, 0x4342), pair_of_int8(high, 0x4140),
                                pair_of_int8(high, 0x4342)};
            if (factors) {
                const Factors these = operand.factors(i, factors);
#pragma unroll
                for (int e = 0; e < CHUNK / 2; ++e) pairs[e] = __hmul2(pairs[e], these.pairs[e]);
            }
            uint4 words;
            memcpy(&words, pairs, 16);
            *reinterpret_cast<uint4*>(tile + operand.slot(i)) = words;
        }
        operand.advance();
    }
};

template <typename Operand> struct Carrier<Operand, float> {
    float4 chunks[Operand::COUNT][2];

    __device__ void fetch(const Operand& operand, __half*) {
#pragma unroll
        for (int i = 0; i < Operand::COUNT; ++i) {
            bool valid;
            const float* at = operand.at(i, valid);
            chunks[i][0] = chunks[i][1] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (valid) {
                chunks[i][0] = reinterpret_cast<const float4*>(at)[0];
                chunks[i][1] = reinterpret_cast<const float4*>(at)[1];
            }
        }
    }
    __device__ void store(Operand& operand, __half* tile, const float*) {
#pragma unroll
        for (int i = 0; i < Operand::COUNT; ++i) {
            const float4 low = chunks[i][0], high = chunks[i][1];
            *reinterpret_cast<uint4*>(tile + operand.slot(i)) =
                make_uint4(pair(low.x, low.y), pair(low.z, low.w), pair(high.x, high.y), pair(high.z, high.w));
        }
        operand.advance();
    }
};

/// A warp's part of the products: M x N of C at (m, n) of the block's tile. Fragments as PTX lays them out for
/// mma.m16n8k16: lane l holds rows l / 4 and l / 4 + 8, columns l % 4 * 2 and the next.
template <int M, int N> struct Sums {
    static_assert(M % 16 == 0 && N % 16 == 0, "two fragments of B are loaded at once");
    float sums[M / 16][N / 8][4];

    __device__ Sums() {
#pragma unroll
        for (int i = 0; i < M / 16; ++i) {
#pragma unroll
            for (int j = 0; j < N / 8; ++j) {
#pragma unroll
                for (int e = 0; e < 4; ++e) sums[i][j][e] = 0.0f;
            }
        }
    }

    /// Adds the products of two tiles; A's rows are DEPTH wide, or k is its rows; so with B.
    template <int A_WIDTH, bool A_K_INNER, int B_WIDTH, bool B_K_INNER>
    __device__ void add(const __half* a, const __half* b, int m, int n) {
        const int lane = threadIdx.x % 32, low = lane % 8, middle = lane / 8 % 2, high = lane / 16;
#pragma unroll
        for (int k = 0; k < DEPTH; k += 16) {
            uint32_t from_a[M / 16][4];
#pragma unroll
            for (int i = 0; i < M / 16; ++i) {
                // 8x8 matrices in the order (rows, k), (rows + 8, k), (rows, k + 8), (rows + 8, k + 8)
                if (A_K_INNER) {
                    const int row = m + i * 16 + middle * 8 + low;
                    ptx::ldmatrix_x4(from_a[i], a + place_in_tile<A_WIDTH>(row, k / CHUNK + high));
                } else {
                    const int row = k + high * 8 + low;
                    ptx::ldmatrix_x4_trans(from_a[i], a + place_in_tile<A_WIDTH>(row, m / CHUNK + i * 2 + middle));
                }
            }
#pragma unroll
            for (int j = 0; j < N / 16; ++j) {
                // (columns, k), (columns, k + 8), (columns + 8, k), (columns + 8, k + 8)
                uint32_t from_b[4];
                if (B_K_INNER) {
                    const int row = n + j * 16 + high * 8 + low;
                    ptx::ldmatrix_x4(from_b, b + place_in_tile<B_WIDTH>(row, k / CHUNK + middle));
                } else {
                    const int row = k + middle * 8 + low;
                    ptx::ldmatrix_x4_trans(from_b, b + place_in_tile<B_WIDTH>(row, n / CHUNK + j * 2 + high));
                }
                const uint32_t first[2] = {from_b[0], from_b[1]}, second[2] = {from_b[2], from_b[3]};
#pragma unroll
                for (int i = 0; i < M / 16; ++i) {
                    ptx::mma_m16n8k16(sums[i][2 * j], from_a[i], first);
                    ptx::mma_m16n8k16(sums[i][2 * j + 1], from_a[i], second);
                }
            }
        }
    }

    /// Hands them over, two columns at a time.
    template <typename Results> __device__ void give(Results& results, int first_m, int first_n) const {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int j = 0; j < N / 8; ++j) {
            const int n = first_n + j * 8 + lane % 4 * 2;
            results.columns(n);
#pragma unroll
            for (int i = 0; i < M / 16; ++i) {
                const int m = first_m + i * 16 + lane / 4;
                results.put(m, n, sums[i][j][0], sums[i][j][1]);
                results.put(m + 8, n, sums[i][j][2], sums[i][j][3]);
            }
        }
    }
};

} // namespace gemm
