// What a matrix product C[m, n] = alpha * sum over k of A[m, k] B[k, n] is made of, and its numbers one at a time.
#pragma once
#include <cuda_fp16.h>
#include <stdint.h>

namespace gemm {

/// Distances in numbers.
struct Strides {
    long long row, head, batch;
};

/// Which row of a channels-last map a tap of output pixel (y, x) reads:
///     u = y * stride + tap_row - pad,  0 <= u < height,  u & parity = 0,  row u >> shift of the stored map
/// and alike for columns. A pixel repeated twice is shift 1; a map spread over every second pixel is shift 1, parity 1;
/// a plain matrix is a map of one column with one tap.
struct Gather {
    int channels, taps_across;
    int out_height, out_width;
    int height, width;
    int source_height, source_width;
    int stride, pad, shift, parity;
};

struct Product {
    Strides a, b, c;
    Gather gather;
    int m, n, k;
    /// Of DEPTH of k, that a block adds up.
    int steps;
    int heads;
    /// A is stored [k, m]; B is stored [n, k], else [channels, taps * n] with the taps in the opposite order.
    int a_transposed, b_transposed;
    float alpha;
};

/// k as the tap and channel it stands for.
struct Place {
    int tap_row, tap_column, channel;

    __device__ Place(const Gather& gather, int k) {
        const int tap = k / gather.channels;
        channel = k - tap * gather.channels;
        tap_row = tap / gather.taps_across;
        tap_column = tap - tap_row * gather.taps_across;
    }

    __device__ void advance(const Gather& gather, int by) {
        channel += by;
        while (channel >= gather.channels) {
            channel -= gather.channels;
            if (++tap_column == gather.taps_across) {
                tap_column = 0;
                ++tap_row;
            }
        }
    }

    /// Whether k is below its end.
    __device__ bool exists(const Gather& gather) const { return tap_row < gather.taps_across; }

    /// The tap, counted from the last: B stored [channels, taps * n] belongs to the forward direction, which A runs against.
    __device__ int mirrored(const Gather& gather) const {
        return gather.taps_across * gather.taps_across - 1 - (tap_row * gather.taps_across + tap_column);
    }
};

/// The pixel that row m of A looks from: the first row of its picture in memory, and where its first tap falls.
struct Pixel {
    int picture, top, left;

    __device__ Pixel(const Product& product, int m) {
        const Gather& gather = product.gather;
        const int line = m / gather.out_width, batch = line / gather.out_height;
        left = (m - line * gather.out_width) * gather.stride - gather.pad;
        top = (line - batch * gather.out_height) * gather.stride - gather.pad;
        picture = batch * gather.source_height * gather.source_width;
        if (m >= product.m) top = -(1 << 15); // no tap brings it back
    }

    /// In 16 bits each, which is enough for a map; a plain matrix's rows do not fit and have no second tap to look for.
    __device__ int corner() const { return (int)((uint32_t)top << 16 | ((uint32_t)left & 0xffff)); }
    __device__ Pixel(int picture, int corner) : picture(picture), top(corner >> 16), left((int16_t)corner) {}

    /// The row of memory that a tap reads; false where there is none, which then counts as zeros.
    __device__ bool row(const Gather& gather, const Place& place, int& row) const {
        const int u = top + place.tap_row, v = left + place.tap_column;
        row = picture + (u >> gather.shift) * gather.source_width + (v >> gather.shift);
        return place.exists(gather) && u >= 0 && u < gather.height && v >= 0 && v < gather.width &&
               ((u | v) & gather.parity) == 0;
    }
};

__device__ inline float number(float x) { return x; }
__device__ inline float number(__half x) { return __half2float(x); }
__device__ inline float number(int8_t x) { return (float)x; }

/// A[m, k], zero outside.
template <typename T> __device__ float a_number(const T* a, const Product& product, int m, int k) {
    if (product.a_transposed) {
        return m < product.m && k < product.k ? number(a[(long long)k * product.a.row + m]) : 0.0f;
    }
    const Place place(product.gather, k);
    int row;
    const bool valid = Pixel(product, m).row(product.gather, place, row);
    return valid ? number(a[row * product.a.row + place.channel]) : 0.0f;
}

/// B[k, n], zero outside; `factors`, where there are any, belong to the channels of k.
template <typename W>
__device__ float b_number(const W* b, const float* factors, const Product& product, int k, int n) {
    if (k >= product.k || n >= product.n) return 0.0f;
    const Place place(product.gather, k);
    const W* at = product.b_transposed
                      ? b + (long long)n * product.b.row + k
                      : b + (long long)place.channel * product.b.row + place.mirrored(product.gather) * product.n + n;
    return number(*at) * (factors ? factors[place.channel] : 1.0f);
}

/// What is multiplied and added to the sum of a column.
struct Column {
    float scale, bias;

    __device__ Column(const Product& product, const float* scales, const float* bias, int n)
        : scale(product.alpha * (scales ? scales[n] : 1.0f)), bias(bias ? bias[n] : 0.0f) {}

    __device__ float of(float sum) const { return fmaf(sum, scale, bias); }
};

__device__ inline void put(float* at, float x) { *at = x; }
__device__ inline void put(__half* at, float x) { *at = __float2half_rn(x); }

/// The matrices of one head of one batch.
template <typename T> __device__ T* matrix(T* all, const Strides& strides, const Product& product, int index) {
    const int batch = index / product.heads, head = index - batch * product.heads;
    return all + batch * strides.batch + head * strides.head;
}

} // namespace gemm
