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
template <int WIDTH> __device__ int place_in_tile(int row, int chunk) {
    static_assert(WIDTH == 32 || WIDTH == 64 || WIDTH == 128, "the mixing is made for these");
    const int mixed = chunk ^ (WIDTH == 32 ? (row >> 1) & 3 : row & 7);
    return row * WIDTH + mixed * CHUNK;
}

// Who knows where a thread's chunks of an operand lie. Each has
//     Number          what they are stored as
//     WIDTH           numbers in a row of the tile
//     COUNT           chunks of a thread
//     at(i, valid)    the i-th in memory; where not valid it is zeros, and the address is one that may be read
//     slot(i)         the i-th in the tile
//     channel(i, e)   what number e of it belongs to
//     advance()       on to the next DEPTH of k

/// A, tile [SIZE][DEPTH]: neighbourhoods in a map. A chunk lies in one tap, as channels are a multiple of it.
template <int SIZE> struct Neighbourhoods {
    using Number = __half;
    static constexpr int WIDTH = DEPTH, ACROSS = WIDTH / CHUNK, APART = THREADS / ACROSS, COUNT = SIZE / APART;
    const __half* a;
    const Product& product;
    Place place;
    Pixel<__half> pixels[COUNT];

    __device__ Neighbourhoods(const __half* a, const Product& product, int first_m, int first_k)
        : a(a), product(product), place(product.gather, first_k + threadIdx.x % ACROSS * CHUNK) {
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            pixels[i] = Pixel<__half>(a, product, first_m + threadIdx.x / ACROSS + i * APART);
        }
    }
    __device__ const __half* at(int i, bool& valid) const { return pixels[i].at(a, product, place, valid); }
    __device__ int slot(int i) const {
        return place_in_tile<WIDTH>(threadIdx.x / ACROSS + i * APART, threadIdx.x % ACROSS);
    }
    __device__ void advance() { place.advance(product.gather, DEPTH); }
};

/// B stored [n, k], tile [SIZE][DEPTH].
template <typename W, int SIZE> struct RowsOfN {
    using Number = W;
    static constexpr int WIDTH = DEPTH, ACROSS = WIDTH / CHUNK, APART = THREADS / ACROSS, COUNT = SIZE / APART;
    const W* b;
    const Product& product;
    int first_n, k;
    Place place;

    __device__ RowsOfN(const W* b, const Product& product, int first_n, int first_k)
        : b(b), product(product), first_n(first_n + threadIdx.x / ACROSS),
          k(first_k + threadIdx.x % ACROSS * CHUNK), place(product.gather, k) {}
    __device__ const W* at(int i, bool& valid) const {
        const int n = first_n + i * APART;
        valid = n < product.n && k < product.k;
        return valid ? b + n * product.b.row + k : b;
    }
    __device__ int slot(int i) const {
        return place_in_tile<WIDTH>(threadIdx.x / ACROSS + i * APART, threadIdx.x % ACROSS);
    }
    __device__ int channel(int, int e) const { return place.channel + e; }
    __device__ void advance() {
        k += DEPTH;
        place.advance(product.gather, DEPTH);
    }
};

/// B stored [channels, taps * n] or A stored [k, m], tile [DEPTH][SIZE].
template <typename W, int SIZE> struct RowsOfK {
    using Number = W;
    static constexpr int WIDTH = SIZE, ACROSS = WIDTH / CHUNK, APART = THREADS / ACROSS, COUNT = DEPTH / APART;
    const W* base;
    const Product& product;
    const long long stride;
    const int size, first;
    Place place; // of the thread's first row

    __device__ RowsOfK(const W* base, const Product& product, long long stride, int size, int first, int first_k)
        : base(base), product(product), stride(stride), size(size), first(first + threadIdx.x % ACROSS * CHUNK),
          place(product.gather, first_k + threadIdx.x / ACROSS) {}
    __device__ Place row(int i) const {
        Place row = place;
        row.advance(product.gather, i * APART);
        return row;
    }
    __device__ const W* at(int i, bool& valid) const {
        const Place row = this->row(i);
        valid = first < size && row.exists(product.gather);
        return valid ? base + row.channel * stride + row.mirrored(product.gather) * size + first : base;
    }
    __device__ int slot(int i) const {
        return place_in_tile<WIDTH>(threadIdx.x / ACROSS + i * APART, threadIdx.x % ACROSS);
    }
    __device__ int channel(int i, int) const { return row(i).channel; }
    __device__ void advance() { place.advance(product.gather, DEPTH); }
};

/// The bits of two f16.
__device__ inline uint32_t pair(float low, float high) {
    const __half2 two = __floats2half2_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &two, 4);
    return bits;
}

/// Two int8 as f16: 0x6400 | u is 1024 + u in f16, so that u = q + 128 needs one exact subtraction and no conversion.
__device__ inline uint32_t pair_of_int8(uint32_t low, uint32_t high) {
    const uint32_t bits = 0x64006400u | low | high << 16, start = 0x64806480u; // 1024 + 128, twice
    __half2 two, offset;
    memcpy(&two, &bits, 4);
    memcpy(&offset, &start, 4);
    two = __hsub2(two, offset);
    uint32_t result;
    memcpy(&result, &two, 4);
    return result;
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
            uint32_t words[4];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                // + 128 turns signed bytes into unsigned ones
                const uint32_t four = (half ? chunks[i].y : chunks[i].x) ^ 0x80808080u;
                words[2 * half] = pair_of_int8(four & 0xff, four >> 8 & 0xff);
                words[2 * half + 1] = pair_of_int8(four >> 16 & 0xff, four >> 24);
            }
            if (factors) { // beyond the end, too, a place's channel is one that exists, and times zero
#pragma unroll
                for (int e = 0; e < CHUNK; e += 2) {
                    __half2 two;
                    memcpy(&two, &words[e / 2], 4);
                    words[e / 2] = pair(__low2float(two) * factors[operand.channel(i, e)],
                                        __high2float(two) * factors[operand.channel(i, e + 1)]);
                }
            }
            *reinterpret_cast<uint4*>(tile + operand.slot(i)) = make_uint4(words[0], words[1], words[2], words[3]);
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
