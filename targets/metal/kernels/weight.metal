// A part of a frozen weight as a dense matrix of activations' type: what is stored otherwise is made so part by part, since
// simdgroup matrices multiply numbers of one type only.

struct Tile {
    uint count, columns;           // of the part
    uint inputs;                   // columns of the whole weight
    uint first_row, first_column;  // of the part
    uint channels;                 // smoothed numbers: of columns with the same remainder; 0: none
};

static uint stored_at(constant Tile& p, uint i) {
    return (p.first_row + i / p.columns) * p.inputs + p.first_column + i % p.columns;
}

kernel void float_tile(device const float* w [[buffer(0)]], device Number* y [[buffer(1)]], constant Tile& p [[buffer(2)]],
                       uint i [[thread_position_in_grid]]) {
    if (i < p.count) y[i] = Number(w[stored_at(p, i)]);
}

kernel void half_tile(device const half* w [[buffer(0)]], device Number* y [[buffer(1)]], constant Tile& p [[buffer(2)]],
                      uint i [[thread_position_in_grid]]) {
    if (i < p.count) y[i] = Number(float(w[stored_at(p, i)]));
}

// rows[o, i] * scales[o] / smooth[i]
kernel void int8_tile(device const int8_t* rows [[buffer(0)]], device const float* scales [[buffer(1)]],
                      device const float* smooth [[buffer(2)]], device Number* y [[buffer(3)]], constant Tile& p [[buffer(4)]],
                      uint i [[thread_position_in_grid]]) {
    if (i >= p.count) return;
    float value = float(rows[stored_at(p, i)]) * scales[p.first_row + i / p.columns];
    if (p.channels != 0) value /= smooth[(p.first_column + i % p.columns) % p.channels];
    y[i] = Number(value);
}
