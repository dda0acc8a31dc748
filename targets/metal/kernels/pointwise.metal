// One thread for each number of the result.

struct Columns {
    uint count, columns;
};

kernel void add(device const Number* a [[buffer(0)]], device const Number* b [[buffer(1)]], device Number* y [[buffer(2)]],
                constant Count& p [[buffer(3)]], uint i [[thread_position_in_grid]]) {
    if (i < p.count) y[i] = Number(float(a[i]) + float(b[i]));
}

// y[row, column] += bias[column]
kernel void add_bias(device const float* bias [[buffer(0)]], device Number* y [[buffer(1)]], constant Columns& p [[buffer(2)]],
                     uint i [[thread_position_in_grid]]) {
    if (i < p.count) y[i] = Number(float(y[i]) + bias[i % p.columns]);
}

// From float.
kernel void narrow(device const float* x [[buffer(0)]], device Number* y [[buffer(1)]], constant Count& p [[buffer(2)]],
                   uint i [[thread_position_in_grid]]) {
    if (i < p.count) y[i] = Number(x[i]);
}

// The distribution function of the normal distribution and its density. Metal has no error function; this one is off by
// at most 1.5e-7 (Abramowitz and Stegun, 7.1.26), the half of that here.
static float2 normal(float x) {
    float z = fabs(x) * 0.70710678f;
    float t = 1.0f / (1.0f + 0.3275911f * z);
    float shape = exp(-z * z);
    float poly = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    float tail = 0.5f * poly * shape;
    return float2(x < 0.0f ? tail : 1.0f - tail, 0.39894228f * shape);
}

// Rows of `columns` values, then as many gates; arXiv 2002.05202.
kernel void geglu(device const Number* x [[buffer(0)]], device Number* y [[buffer(1)]], constant Columns& p [[buffer(2)]],
                  uint i [[thread_position_in_grid]]) {
    if (i >= p.count) return;
    uint at = i / p.columns * 2 * p.columns + i % p.columns;
    float gate = float(x[at + p.columns]);
    y[i] = Number(float(x[at]) * gate * normal(gate).x);
}

kernel void geglu_backward(device const Number* x [[buffer(0)]], device const Number* dy [[buffer(1)]],
                           device Number* dx [[buffer(2)]], constant Columns& p [[buffer(3)]],
                           uint i [[thread_position_in_grid]]) {
    if (i >= p.count) return;
    uint at = i / p.columns * 2 * p.columns + i % p.columns;
    float value = float(x[at]), gate = float(x[at + p.columns]), slope = float(dy[i]);
    float2 n = normal(gate);
    dx[at] = Number(slope * gate * n.x);
    dx[at + p.columns] = Number(slope * value * (n.x + gate * n.y));
}
