// GroupNorm with SiLU (arXiv 1803.08494) over maps [B, pixels, channels], and LayerNorm (arXiv 1607.06450) over rows; all
// statistics in f32. A group's channels are few and lie side by side, so a block takes some rows of a picture with
// neighbouring channels of whatever groups: what it reads is contiguous. It leaves the statistics of each channel behind,
// and a second kernel merges those of a group, always in the same order.
#include "values.cuh"

using namespace values;

namespace {

// Threads side by side, each with WIDTH channels, and threads one below the other, each with every ROWS-th pixel of a part.
constexpr unsigned COLUMNS = 8;
constexpr unsigned ROWS = 32;
// Threads that merge a group.
constexpr unsigned MERGERS = 128;
constexpr unsigned WARP = 32;

// The mean of some values and the sum of their squared differences from it; of a group, the reciprocal of its standard
// deviation in the latter's place.
struct Moments {
    float mean, squares;
};

// The sums of `g` and of `g n` with `n` the normalised value and `g` its gradient; of a group, their means.
struct Sums {
    float g, gn;
};

// A thread's part of a map.
struct Part {
    size_t picture;
    unsigned channel, first, last;
    __device__ Part(unsigned width, unsigned pixels, unsigned channels, unsigned part_pixels) {
        picture = static_cast<size_t>(blockIdx.z) * pixels * channels;
        channel = (blockIdx.x * COLUMNS + threadIdx.x) * width;
        first = blockIdx.y * part_pixels;
        last = first + part_pixels < pixels ? first + part_pixels : pixels;
    }
    // Where a part's statistics are put, one channel's after the other's.
    __device__ size_t statistic(unsigned channels) const {
        return (static_cast<size_t>(blockIdx.z) * gridDim.y + blockIdx.y) * channels;
    }
};

// What the threads one below the other have of their channels, for the block's first threads to merge, each a channel. The
// `i`th of every thread of a row lie side by side, and rows are offset against each other, so that a warp writes and reads
// different banks.
template <typename S, int WIDTH> struct Merge {
    static constexpr unsigned PITCH = COLUMNS * (WIDTH + 1);
    S threads[ROWS][PITCH];
    __device__ S& own(int i) { return threads[threadIdx.y][i * COLUMNS + threadIdx.x]; }
    __device__ static unsigned thread() { return threadIdx.y * COLUMNS + threadIdx.x; }
    __device__ const S& of_row(unsigned row) const { return threads[row][thread()]; }
    // This thread's channel to merge; `channels` if there is none.
    __device__ static unsigned channel(unsigned channels) {
        const unsigned channel = (blockIdx.x * COLUMNS + thread() % COLUMNS) * WIDTH + thread() / COLUMNS;
        return thread() < COLUMNS * WIDTH && channel < channels ? channel : channels;
    }
};

// Welford's update per thread, and Chan's merge of the block's threads: nothing is squared but differences from a mean, so
// that a large mean costs no digits of the variance.
template <typename T, int WIDTH>
__device__ void group_norm_moments(const T* x, Moments* of_parts, unsigned pixels, unsigned channels,
                                   unsigned part_pixels) {
    __shared__ Merge<Moments, WIDTH> merge;
    const Part part(WIDTH, pixels, channels, part_pixels);
    float mean[WIDTH] = {}, squares[WIDTH] = {};
    if (part.channel < channels) {
        float count = 0.0f;
        for (unsigned pixel = part.first + threadIdx.y; pixel < part.last; pixel += ROWS) {
            float value[WIDTH];
            load<WIDTH>(value, x + part.picture + static_cast<size_t>(pixel) * channels + part.channel);
            count += 1.0f;
            const float share = 1.0f / count;
#pragma unroll
            for (int i = 0; i < WIDTH; ++i) {
                const float difference = value[i] - mean[i];
                mean[i] = fmaf(difference, share, mean[i]);
                squares[i] = fmaf(difference, value[i] - mean[i], squares[i]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) merge.own(i) = Moments{mean[i], squares[i]};
    __syncthreads();
    const unsigned channel = merge.channel(channels);
    if (channel == channels) return;
    const unsigned count = part.last - part.first;
    float merged_mean = 0.0f, merged_squares = 0.0f;
    for (unsigned row = 0; row < ROWS && row < count; ++row) {
        const float of_thread = static_cast<float>((count - row + ROWS - 1) / ROWS);
        merged_mean = fmaf(of_thread, merge.of_row(row).mean, merged_mean);
    }
    merged_mean /= static_cast<float>(count);
    for (unsigned row = 0; row < ROWS && row < count; ++row) {
        const float of_thread = static_cast<float>((count - row + ROWS - 1) / ROWS);
        const float difference = merge.of_row(row).mean - merged_mean;
        merged_squares += fmaf(of_thread * difference, difference, merge.of_row(row).squares);
    }
    of_parts[part.statistic(channels) + channel] = Moments{merged_mean, merged_squares};
}

// The sum over the MERGERS threads of a block, in each of them.
__device__ float block_sum(float x) {
    __shared__ float warps[MERGERS / WARP];
    x = warp_sum(x);
    __syncthreads();  // the sum before has been read
    if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = x;
    __syncthreads();
    float sum = 0.0f;
    for (unsigned warp = 0; warp < MERGERS / WARP; ++warp) sum += warps[warp];
    return sum;
}

// A group's share of what the parts left behind: block (group, picture).
struct Group {
    size_t start;
    unsigned per_group, channel, channels, items;
    __device__ Group(unsigned channels, unsigned groups, unsigned parts) : channels(channels) {
        per_group = channels / groups;
        channel = blockIdx.x * per_group;
        items = parts * per_group;
        start = static_cast<size_t>(blockIdx.y) * parts * channels;
    }
    __device__ size_t operator[](unsigned item) const {
        return start + static_cast<size_t>(item / per_group) * channels + channel + item % per_group;
    }
};

__device__ unsigned pixels_of_part(unsigned part, unsigned pixels, unsigned part_pixels) {
    const unsigned left = pixels - part * part_pixels;
    return left < part_pixels ? left : part_pixels;
}

}  // namespace

extern "C" __global__ void group_norm_merge(const Moments* of_parts, Moments* of_groups, unsigned pixels,
                                            unsigned channels, unsigned groups, unsigned part_pixels, float eps) {
    const Group group(channels, groups, (pixels + part_pixels - 1) / part_pixels);
    const float count = static_cast<float>(pixels) * group.per_group;
    float sum = 0.0f;
    for (unsigned item = threadIdx.x; item < group.items; item += MERGERS) {
        const float of_part = pixels_of_part(item / group.per_group, pixels, part_pixels);
        sum = fmaf(of_part, of_parts[group[item]].mean, sum);
    }
    const float mean = block_sum(sum) / count;
    float squares = 0.0f;
    for (unsigned item = threadIdx.x; item < group.items; item += MERGERS) {
        const float of_part = pixels_of_part(item / group.per_group, pixels, part_pixels);
        const Moments moments = of_parts[group[item]];
        const float difference = moments.mean - mean;
        squares += fmaf(of_part * difference, difference, moments.squares);
    }
    const float variance = block_sum(squares) / count;
    if (threadIdx.x == 0) of_groups[blockIdx.y * groups + blockIdx.x] = Moments{mean, 1.0f / sqrtf(variance + eps)};
}

extern "C" __global__ void group_norm_merge_sums(const Sums* of_parts, Sums* of_groups, unsigned pixels,
                                                 unsigned channels, unsigned groups, unsigned part_pixels) {
    const Group group(channels, groups, (pixels + part_pixels - 1) / part_pixels);
    const float count = static_cast<float>(pixels) * group.per_group;
    float g = 0.0f, gn = 0.0f;
    for (unsigned item = threadIdx.x; item < group.items; item += MERGERS) {
        const Sums sums = of_parts[group[item]];
        g += sums.g;
        gn += sums.gn;
    }
    g = block_sum(g) / count;
    gn = block_sum(gn) / count;
    if (threadIdx.x == 0) of_groups[blockIdx.y * groups + blockIdx.x] = Sums{g, gn};
}

namespace {

// What a thread needs of its channels.
template <int WIDTH> struct Channels {
    float mean[WIDTH], rstd[WIDTH], weight[WIDTH], bias[WIDTH];
    unsigned group[WIDTH];
    __device__ Channels(const Moments* of_groups, const float* weights, const float* biases, unsigned channel,
                        unsigned channels, unsigned groups) {
        load_floats<WIDTH>(weight, weights + channel);
        load_floats<WIDTH>(bias, biases + channel);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
            group[i] = blockIdx.z * groups + (channel + i) / (channels / groups);
            mean[i] = of_groups[group[i]].mean;
            rstd[i] = of_groups[group[i]].squares;
        }
    }
    __device__ float normalised(int i, float x) const { return (x - mean[i]) * rstd[i]; }
    __device__ float affine(int i, float normalised) const { return fmaf(normalised, weight[i], bias[i]); }
    // The gradient of the normalised value.
    __device__ float gradient(int i, float normalised, float dy, bool silu) const {
        if (silu) {
            const float z = affine(i, normalised), sigmoid = 1.0f / (1.0f + expf(-z));
            dy *= fmaf(z * sigmoid, 1.0f - sigmoid, sigmoid);
        }
        return dy * weight[i];
    }
};

template <typename T, int WIDTH>
__device__ void group_norm(const T* x, const Moments* of_groups, const float* weight, const float* bias, T* y,
                           unsigned pixels, unsigned channels, unsigned groups, unsigned part_pixels, unsigned silu) {
    const Part part(WIDTH, pixels, channels, part_pixels);
    if (part.channel >= channels) return;
    const Channels<WIDTH> c(of_groups, weight, bias, part.channel, channels, groups);
    for (unsigned pixel = part.first + threadIdx.y; pixel < part.last; pixel += ROWS) {
        const size_t at = part.picture + static_cast<size_t>(pixel) * channels + part.channel;
        float value[WIDTH];
        load<WIDTH>(value, x + at);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
            const float z = c.affine(i, c.normalised(i, value[i]));
            value[i] = silu ? z / (1.0f + expf(-z)) : z;
        }
        store<WIDTH>(y + at, value);
    }
}

template <typename T, int WIDTH>
__device__ void group_norm_sums(const T* x, const T* dy, const Moments* of_groups, const float* weight,
                                const float* bias, Sums* of_parts, unsigned pixels, unsigned channels, unsigned groups,
                                unsigned part_pixels, unsigned silu) {
    __shared__ Merge<Sums, WIDTH> merge;
    const Part part(WIDTH, pixels, channels, part_pixels);
    float g[WIDTH] = {}, gn[WIDTH] = {};
    if (part.channel < channels) {
        const Channels<WIDTH> c(of_groups, weight, bias, part.channel, channels, groups);
        for (unsigned pixel = part.first + threadIdx.y; pixel < part.last; pixel += ROWS) {
            const size_t at = part.picture + static_cast<size_t>(pixel) * channels + part.channel;
            float value[WIDTH], slope[WIDTH];
            load<WIDTH>(value, x + at);
            load<WIDTH>(slope, dy + at);
#pragma unroll
            for (int i = 0; i < WIDTH; ++i) {
                const float normalised = c.normalised(i, value[i]);
                const float gradient = c.gradient(i, normalised, slope[i], silu);
                g[i] += gradient;
                gn[i] = fmaf(gradient, normalised, gn[i]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) merge.own(i) = Sums{g[i], gn[i]};
    __syncthreads();
    const unsigned channel = merge.channel(channels);
    if (channel == channels) return;
    Sums merged{0.0f, 0.0f};
    for (unsigned row = 0; row < ROWS; ++row) {
        merged.g += merge.of_row(row).g;
        merged.gn += merge.of_row(row).gn;
    }
    of_parts[part.statistic(channels) + channel] = merged;
}

// `dx = (g - mean(g) - n mean(g n)) / std`.
template <typename T, int WIDTH>
__device__ void group_norm_backward(const T* x, const T* dy, const Moments* of_groups, const Sums* means,
                                    const float* weight, const float* bias, T* dx, unsigned pixels, unsigned channels,
                                    unsigned groups, unsigned part_pixels, unsigned silu) {
    const Part part(WIDTH, pixels, channels, part_pixels);
    if (part.channel >= channels) return;
    const Channels<WIDTH> c(of_groups, weight, bias, part.channel, channels, groups);
    Sums mean[WIDTH];
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) mean[i] = means[c.group[i]];
    for (unsigned pixel = part.first + threadIdx.y; pixel < part.last; pixel += ROWS) {
        const size_t at = part.picture + static_cast<size_t>(pixel) * channels + part.channel;
        float value[WIDTH], slope[WIDTH];
        load<WIDTH>(value, x + at);
        load<WIDTH>(slope, dy + at);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
            const float normalised = c.normalised(i, value[i]);
            const float centred = c.gradient(i, normalised, slope[i], silu) - mean[i].g;
            value[i] = c.rstd[i] * fmaf(-normalised, mean[i].gn, centred);
        }
        store<WIDTH>(dx + at, value);
    }
}

// This warp's row, of rows `channels` wide.
__device__ size_t warp_row() { return static_cast<size_t>(blockIdx.x) * (blockDim.x / WARP) + threadIdx.x / WARP; }

// The mean of a row and the reciprocal of its standard deviation, in two passes; the second finds the row in the cache.
template <typename T, int WIDTH> __device__ Moments row_moments(const T* x, unsigned channels, float eps) {
    float sum = 0.0f, squares = 0.0f;
    for (unsigned channel = threadIdx.x % WARP * WIDTH; channel < channels; channel += WARP * WIDTH) {
        float value[WIDTH];
        load<WIDTH>(value, x + channel);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) sum += value[i];
    }
    const float mean = warp_sum(sum) / channels;
    for (unsigned channel = threadIdx.x % WARP * WIDTH; channel < channels; channel += WARP * WIDTH) {
        float value[WIDTH];
        load<WIDTH>(value, x + channel);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) squares = fmaf(value[i] - mean, value[i] - mean, squares);
    }
    return Moments{mean, 1.0f / sqrtf(warp_sum(squares) / channels + eps)};
}

template <typename T, int WIDTH>
__device__ void layer_norm(const T* x, const float* weights, const float* biases, T* y, size_t rows, unsigned channels,
                           float eps) {
    if (warp_row() >= rows) return;
    x += warp_row() * channels;
    y += warp_row() * channels;
    const Moments moments = row_moments<T, WIDTH>(x, channels, eps);
    for (unsigned channel = threadIdx.x % WARP * WIDTH; channel < channels; channel += WARP * WIDTH) {
        float value[WIDTH], weight[WIDTH], bias[WIDTH];
        load<WIDTH>(value, x + channel);
        load_floats<WIDTH>(weight, weights + channel);
        load_floats<WIDTH>(bias, biases + channel);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
            value[i] = fmaf((value[i] - moments.mean) * moments.squares, weight[i], bias[i]);
        }
        store<WIDTH>(y + channel, value);
    }
}

template <typename T, int WIDTH>
__device__ void layer_norm_backward(const T* x, const T* dy, const float* weights, T* dx, size_t rows,
                                    unsigned channels, float eps) {
    if (warp_row() >= rows) return;
    const size_t start = warp_row() * channels;
    const Moments moments = row_moments<T, WIDTH>(x + start, channels, eps);
    float g = 0.0f, gn = 0.0f;
    for (unsigned channel = threadIdx.x % WARP * WIDTH; channel < channels; channel += WARP * WIDTH) {
        float value[WIDTH], slope[WIDTH], weight[WIDTH];
        load<WIDTH>(value, x + start + channel);
        load<WIDTH>(slope, dy + start + channel);
        load_floats<WIDTH>(weight, weights + channel);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
            g = fmaf(slope[i], weight[i], g);
            gn = fmaf(slope[i] * weight[i], (value[i] - moments.mean) * moments.squares, gn);
        }
    }
    const float mean_g = warp_sum(g) / channels, mean_gn = warp_sum(gn) / channels;
    for (unsigned channel = threadIdx.x % WARP * WIDTH; channel < channels; channel += WARP * WIDTH) {
        float value[WIDTH], slope[WIDTH], weight[WIDTH];
        load<WIDTH>(value, x + start + channel);
        load<WIDTH>(slope, dy + start + channel);
        load_floats<WIDTH>(weight, weights + channel);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
            const float normalised = (value[i] - moments.mean) * moments.squares;
            value[i] = moments.squares * fmaf(-normalised, mean_gn, fmaf(slope[i], weight[i], -mean_g));
        }
        store<WIDTH>(dx + start + channel, value);
    }
}

}  // namespace

// The suffix is the type and how many of it a thread takes at a time.
#define NORM(SUFFIX, T, WIDTH)                                                                                         \
    extern "C" __global__ void group_norm_moments_##SUFFIX(const T* x, Moments* of_parts, unsigned pixels,             \
                                                           unsigned channels, unsigned part_pixels) {                  \
        group_norm_moments<T, WIDTH>(x, of_parts, pixels, channels, part_pixels);                                      \
    }                                                                                                                  \
    extern "C" __global__ void group_norm_##SUFFIX(const T* x, const Moments* of_groups, const float* weight,          \
                                                   const float* bias, T* y, unsigned pixels, unsigned channels,        \
                                                   unsigned groups, unsigned part_pixels, unsigned silu) {             \
        group_norm<T, WIDTH>(x, of_groups, weight, bias, y, pixels, channels, groups, part_pixels, silu);              \
    }                                                                                                                  \
    extern "C" __global__ void group_norm_sums_##SUFFIX(                                                               \
        const T* x, const T* dy, const Moments* of_groups, const float* weight, const float* bias, Sums* of_parts,     \
        unsigned pixels, unsigned channels, unsigned groups, unsigned part_pixels, unsigned silu) {                    \
        group_norm_sums<T, WIDTH>(x, dy, of_groups, weight, bias, of_parts, pixels, channels, groups, part_pixels,     \
                                  silu);                                                                               \
    }                                                                                                                  \
    extern "C" __global__ void group_norm_backward_##SUFFIX(                                                           \
        const T* x, const T* dy, const Moments* of_groups, const Sums* means, const float* weight, const float* bias,  \
        T* dx, unsigned pixels, unsigned channels, unsigned groups, unsigned part_pixels, unsigned silu) {             \
        group_norm_backward<T, WIDTH>(x, dy, of_groups, means, weight, bias, dx, pixels, channels, groups,             \
                                      part_pixels, silu);                                                              \
    }                                                                                                                  \
    extern "C" __global__ void layer_norm_##SUFFIX(const T* x, const float* weight, const float* bias, T* y,           \
                                                   size_t rows, unsigned channels, float eps) {                        \
        layer_norm<T, WIDTH>(x, weight, bias, y, rows, channels, eps);                                                 \
    }                                                                                                                  \
    extern "C" __global__ void layer_norm_backward_##SUFFIX(const T* x, const T* dy, const float* weight, T* dx,       \
                                                            size_t rows, unsigned channels, float eps) {               \
        layer_norm_backward<T, WIDTH>(x, dy, weight, dx, rows, channels, eps);                                         \
    }

NORM(f16x8, __half, 8)
NORM(f16x1, __half, 1)
NORM(f32x4, float, 4)
NORM(f32x1, float, 1)
