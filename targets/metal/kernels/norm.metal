// GroupNorm (arXiv 1803.08494) with SiLU, and LayerNorm. A group's numbers are summed up part by part, a part being some
// pixels of one picture, and the parts then in their order: results do not depend on when which part is done.

struct Groups {
    uint count;
    uint pixels, channels, groups;
    uint parts, part_pixels;  // of a picture; the last part may be smaller
    uint silu;
    float eps;
};

// One thread's numbers of a group's part.
struct Span {
    uint start, pixels, per_group;
};

static Span span(constant Groups& p, uint row) {
    uint group = row % p.groups, part = row / p.groups % p.parts, picture = row / p.groups / p.parts;
    uint first = part * p.part_pixels, per_group = p.channels / p.groups;
    uint pixels = first < p.pixels ? min(p.part_pixels, p.pixels - first) : 0;
    return Span{(picture * p.pixels + first) * p.channels + group * per_group, pixels, per_group};
}

// [pictures, parts, groups] of (mean, sum of squared differences from it)
kernel void group_parts(device const Number* x [[buffer(0)]], device float2* y [[buffer(1)]], constant Groups& p [[buffer(2)]],
                        uint i [[thread_position_in_grid]]) {
    uint row = i / SIMD, lane = i % SIMD;
    if (row >= p.count) return;
    Span s = span(p, row);
    uint numbers = s.pixels * s.per_group;
    float sum = 0.0f, squares = 0.0f;
    for (uint j = lane; j < numbers; j += SIMD) sum += float(x[s.start + j / s.per_group * p.channels + j % s.per_group]);
    float mean = simd_sum(sum) / float(max(numbers, 1u));
    for (uint j = lane; j < numbers; j += SIMD) {
        float difference = float(x[s.start + j / s.per_group * p.channels + j % s.per_group]) - mean;
        squares += difference * difference;
    }
    squares = simd_sum(squares);
    if (lane == 0) y[row] = float2(mean, squares);
}

// [pictures, groups] of (mean, one over the standard deviation)
kernel void group_moments(device const float2* parts [[buffer(0)]], device float2* y [[buffer(1)]],
                          constant Groups& p [[buffer(2)]], uint i [[thread_position_in_grid]]) {
    uint row = i / SIMD, lane = i % SIMD;
    if (row >= p.count) return;
    uint group = row % p.groups, first = row / p.groups * p.parts;
    float per_group = float(p.channels / p.groups), numbers = float(p.pixels) * per_group;
    float sum = 0.0f, squares = 0.0f;
    for (uint part = lane; part < p.parts; part += SIMD) {
        float size = float(min(p.part_pixels, p.pixels - part * p.part_pixels)) * per_group;
        sum += size * parts[(first + part) * p.groups + group].x;
    }
    float mean = simd_sum(sum) / numbers;
    for (uint part = lane; part < p.parts; part += SIMD) {
        float size = float(min(p.part_pixels, p.pixels - part * p.part_pixels)) * per_group;
        float2 of_part = parts[(first + part) * p.groups + group];
        squares += of_part.y + size * (of_part.x - mean) * (of_part.x - mean);
    }
    squares = simd_sum(squares);
    if (lane == 0) y[row] = float2(mean, 1.0f / sqrt(squares / numbers + p.eps));
}

static float sigmoid(float z) {
    return 1.0f / (1.0f + exp(-z));
}

kernel void group_norm(device const Number* x [[buffer(0)]], device const float2* moments [[buffer(1)]],
                       device const float* weight [[buffer(2)]], device const float* bias [[buffer(3)]],
                       device Number* y [[buffer(4)]], constant Groups& p [[buffer(5)]], uint i [[thread_position_in_grid]]) {
    if (i >= p.count) return;
    uint channel = i % p.channels, picture = i / p.channels / p.pixels;
    float2 m = moments[picture * p.groups + channel / (p.channels / p.groups)];
    float z = (float(x[i]) - m.x) * m.y * weight[channel] + bias[channel];
    y[i] = Number(p.silu != 0 ? z * sigmoid(z) : z);
}

// The gradient of the normalised number number `at` and that number.
static float2 slope(device const Number* x, device const Number* dy, float2 m, float weight, float bias, uint silu, uint at) {
    float normal = (float(x[at]) - m.x) * m.y, z = normal * weight + bias, gradient = float(dy[at]);
    if (silu != 0) {
        float s = sigmoid(z);
        gradient *= s * (1.0f + z * (1.0f - s));
    }
    return float2(gradient * weight, normal);
}

// [pictures, parts, groups] of the sums of the gradients of the normalised numbers, plain and times the numbers
kernel void slope_parts(device const Number* x [[buffer(0)]], device const Number* dy [[buffer(1)]],
                        device const float2* moments [[buffer(2)]], device const float* weight [[buffer(3)]],
                        device const float* bias [[buffer(4)]], device float2* y [[buffer(5)]],
                        constant Groups& p [[buffer(6)]], uint i [[thread_position_in_grid]]) {
    uint row = i / SIMD, lane = i % SIMD;
    if (row >= p.count) return;
    Span s = span(p, row);
    uint group = row % p.groups;
    float2 m = moments[row / p.groups / p.parts * p.groups + group];
    float plain = 0.0f, times = 0.0f;
    for (uint j = lane; j < s.pixels * s.per_group; j += SIMD) {
        uint at = s.start + j / s.per_group * p.channels + j % s.per_group, channel = group * s.per_group + j % s.per_group;
        float2 g = slope(x, dy, m, weight[channel], bias[channel], p.silu, at);
        plain += g.x;
        times += g.x * g.y;
    }
    plain = simd_sum(plain);
    times = simd_sum(times);
    if (lane == 0) y[row] = float2(plain, times);
}

// [pictures, groups] of the means of the same
kernel void slope_means(device const float2* parts [[buffer(0)]], device float2* y [[buffer(1)]],
                        constant Groups& p [[buffer(2)]], uint i [[thread_position_in_grid]]) {
    uint row = i / SIMD, lane = i % SIMD;
    if (row >= p.count) return;
    uint group = row % p.groups, first = row / p.groups * p.parts;
    float plain = 0.0f, times = 0.0f;
    for (uint part = lane; part < p.parts; part += SIMD) {
        float2 of_part = parts[(first + part) * p.groups + group];
        plain += of_part.x;
        times += of_part.y;
    }
    float numbers = float(p.pixels) * float(p.channels / p.groups);
    plain = simd_sum(plain) / numbers;
    times = simd_sum(times) / numbers;
    if (lane == 0) y[row] = float2(plain, times);
}

kernel void group_norm_backward(device const Number* x [[buffer(0)]], device const Number* dy [[buffer(1)]],
                                device const float2* moments [[buffer(2)]], device const float2* means [[buffer(3)]],
                                device const float* weight [[buffer(4)]], device const float* bias [[buffer(5)]],
                                device Number* dx [[buffer(6)]], constant Groups& p [[buffer(7)]],
                                uint i [[thread_position_in_grid]]) {
    if (i >= p.count) return;
    uint channel = i % p.channels, picture = i / p.channels / p.pixels;
    uint group = picture * p.groups + channel / (p.channels / p.groups);
    float2 m = moments[group], mean = means[group];
    float2 g = slope(x, dy, m, weight[channel], bias[channel], p.silu, i);
    dx[i] = Number(m.y * (g.x - mean.x - g.y * mean.y));
}

struct Rows {
    uint count, columns;
    float eps;
};

// (mean, one over the standard deviation) of a row that a simdgroup shares
static float2 row_moments(device const Number* x, uint columns, float eps, uint lane) {
    float sum = 0.0f, squares = 0.0f;
    for (uint j = lane; j < columns; j += SIMD) sum += float(x[j]);
    float mean = simd_sum(sum) / float(columns);
    for (uint j = lane; j < columns; j += SIMD) squares += (float(x[j]) - mean) * (float(x[j]) - mean);
    return float2(mean, 1.0f / sqrt(simd_sum(squares) / float(columns) + eps));
}

kernel void layer_norm(device const Number* x [[buffer(0)]], device const float* weight [[buffer(1)]],
                       device const float* bias [[buffer(2)]], device Number* y [[buffer(3)]], constant Rows& p [[buffer(4)]],
                       uint i [[thread_position_in_grid]]) {
    uint row = i / SIMD, lane = i % SIMD;
    if (row >= p.count) return;
    device const Number* from = x + row * p.columns;
    float2 m = row_moments(from, p.columns, p.eps, lane);
    for (uint j = lane; j < p.columns; j += SIMD)
        y[row * p.columns + j] = Number((float(from[j]) - m.x) * m.y * weight[j] + bias[j]);
}

kernel void layer_norm_backward(device const Number* x [[buffer(0)]], device const Number* dy [[buffer(1)]],
                                device const float* weight [[buffer(2)]], device Number* dx [[buffer(3)]],
                                constant Rows& p [[buffer(4)]], uint i [[thread_position_in_grid]]) {
    uint row = i / SIMD, lane = i % SIMD;
    if (row >= p.count) return;
    uint first = row * p.columns;
    float2 m = row_moments(x + first, p.columns, p.eps, lane);
    float plain = 0.0f, times = 0.0f;
    for (uint j = lane; j < p.columns; j += SIMD) {
        float gradient = float(dy[first + j]) * weight[j];
        plain += gradient;
        times += gradient * (float(x[first + j]) - m.x) * m.y;
    }
    plain = simd_sum(plain) / float(p.columns);
    times = simd_sum(times) / float(p.columns);
    for (uint j = lane; j < p.columns; j += SIMD) {
        float normal = (float(x[first + j]) - m.x) * m.y;
        dx[first + j] = Number(m.y * (float(dy[first + j]) * weight[j] - plain - normal * times));
    }
}
