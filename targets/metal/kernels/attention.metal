// What attention needs besides products: its rows gathered, the softmax of its scores, and their gradient.

// Rows of a tensor [pictures, rows, columns] that lie apart, cut into heads.
struct Heads {
    uint count;
    uint rows;                        // of a picture
    uint picture_stride, row_stride;  // of what is read
    uint heads, per_head, padded;     // channels of a head, and how many it gets
};

// [pictures, rows, heads, padded], with zeros behind each head's channels: they add nothing to a product.
kernel void pad_heads(device const Number* x [[buffer(0)]], device Number* y [[buffer(1)]], constant Heads& p [[buffer(2)]],
                      uint i [[thread_position_in_grid]]) {
    if (i >= p.count) return;
    uint channel = i % p.padded, head = i / p.padded % p.heads, row = i / p.padded / p.heads;
    uint at = row / p.rows * p.picture_stride + row % p.rows * p.row_stride + head * p.per_head + channel;
    y[i] = channel < p.per_head ? x[at] : Number(0.0f);
}

// The same without padding, in float.
kernel void widen_rows(device const Number* x [[buffer(0)]], device float* y [[buffer(1)]], constant Heads& p [[buffer(2)]],
                       uint i [[thread_position_in_grid]]) {
    if (i >= p.count) return;
    uint columns = p.heads * p.per_head, row = i / columns;
    y[i] = float(x[row / p.rows * p.picture_stride + row % p.rows * p.row_stride + i % columns]);
}

// Back from [pictures, rows, heads, padded].
kernel void unpad_heads(device const Number* x [[buffer(0)]], device Number* y [[buffer(1)]], constant Heads& p [[buffer(2)]],
                        uint i [[thread_position_in_grid]]) {
    if (i < p.count) y[i] = x[i / p.per_head * p.padded + i % p.per_head];
}

// Scores [heads, queries, keys] of some of the queries.
struct Scores {
    uint count;
    uint queries, keys;
    uint first_query;  // of all queries
    uint causal;       // whether a query sees only keys up to its own place
    float scale;
};

// Scores become probabilities; a simdgroup for each query of each head.
kernel void softmax_rows(device float* scores [[buffer(0)]], constant Scores& p [[buffer(1)]],
                         uint i [[thread_position_in_grid]]) {
    uint row = i / SIMD, lane = i % SIMD;
    if (row >= p.count) return;
    device float* s = scores + row * p.keys;
    uint seen = p.causal != 0 ? min(p.keys, p.first_query + row % p.queries + 1) : p.keys;
    float largest = s[0], sum = 0.0f;
    for (uint j = lane; j < seen; j += SIMD) largest = max(largest, s[j]);
    largest = simd_max(largest);
    for (uint j = lane; j < seen; j += SIMD) {
        s[j] = exp((s[j] - largest) * p.scale);
        sum += s[j];
    }
    sum = simd_sum(sum);
    for (uint j = lane; j < p.keys; j += SIMD) s[j] = j < seen ? s[j] / sum : 0.0f;
}

// [pictures, rows, heads]: what a row of each head of a is times that of b; both dense.
kernel void head_dots(device const float* a [[buffer(0)]], device const float* b [[buffer(1)]], device float* y [[buffer(2)]],
                      constant Heads& p [[buffer(3)]], uint i [[thread_position_in_grid]]) {
    uint row = i / SIMD, lane = i % SIMD;
    if (row >= p.count) return;
    float sum = 0.0f;
    for (uint j = lane; j < p.per_head; j += SIMD) sum += a[row * p.per_head + j] * b[row * p.per_head + j];
    sum = simd_sum(sum);
    if (lane == 0) y[row] = sum;
}

// The gradient of the scores, P * (dP - dots) * scale, in the place of dP. dots: [queries of the picture, heads].
kernel void score_slopes(device const float* probabilities [[buffer(0)]], device const float* dots [[buffer(1)]],
                         device float* slopes [[buffer(2)]], constant Scores& p [[buffer(3)]],
                         uint i [[thread_position_in_grid]]) {
    if (i >= p.count) return;
    uint query = i / p.keys % p.queries, head = i / p.keys / p.queries, heads = p.count / p.keys / p.queries;
    float dot = dots[(p.first_query + query) * heads + head];
    slopes[i] = probabilities[i] * (slopes[i] - dot) * p.scale;
}
