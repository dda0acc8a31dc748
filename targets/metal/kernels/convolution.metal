// 3x3 convolution with padding 1 of channels-last pictures, as a matrix product: what it multiplies, and from its transposed
// product the gradient. A row of the product is an output pixel, of all pictures one after the other.

struct Taps {
    uint count;
    uint height, width, channels;     // of the input
    uint out_height, out_width;
    uint repeat, stride;
    uint first_row;                   // of this part of the product
    uint first_channel, all_channels; // of this part of the gradient, and the gradient's
};

// [rows, (ky, kx, channel)]: every output pixel's neighbourhood.
kernel void pack_taps(device const Number* x [[buffer(0)]], device Number* y [[buffer(1)]], constant Taps& p [[buffer(2)]],
                      uint i [[thread_position_in_grid]]) {
    if (i >= p.count) return;
    uint channel = i % p.channels, tap = i / p.channels % 9, row = i / p.channels / 9 + p.first_row;
    uint column = row % p.out_width, line = row / p.out_width % p.out_height, picture = row / p.out_width / p.out_height;
    // one too large, for the padding
    uint top = line * p.stride + tap / 3, left = column * p.stride + tap % 3;
    bool inside = top >= 1 && top <= p.height * p.repeat && left >= 1 && left <= p.width * p.repeat;
    uint pixel = inside ? (picture * p.height + (top - 1) / p.repeat) * p.width + (left - 1) / p.repeat : 0;
    y[i] = inside ? x[pixel * p.channels + channel] : Number(0.0f);
}

// The gradient of an input pixel: the sum over all places of all neighbourhoods where it was put, in a fixed order.
// columns: [rows, (ky, kx, channel)], dx: [pixels, all_channels], of which this writes `channels` from first_channel on.
kernel void gather_taps(device const Number* columns [[buffer(0)]], device Number* dx [[buffer(1)]],
                        constant Taps& p [[buffer(2)]], uint i [[thread_position_in_grid]]) {
    if (i >= p.count) return;
    uint channel = i % p.channels, pixel = i / p.channels;
    uint column = pixel % p.width, line = pixel / p.width % p.height, picture = pixel / p.width / p.height;
    float sum = 0.0f;
    for (uint down = 0; down < p.repeat; down++) {
        for (uint right = 0; right < p.repeat; right++) {
            for (uint tap = 0; tap < 9; tap++) {
                // where tap (1, 1) lies, one too large, times the stride
                uint top = line * p.repeat + down + 2 - tap / 3, left = column * p.repeat + right + 2 - tap % 3;
                if (top < 1 || left < 1 || (top - 1) % p.stride != 0 || (left - 1) % p.stride != 0) continue;
                uint y = (top - 1) / p.stride, x = (left - 1) / p.stride;
                if (y >= p.out_height || x >= p.out_width) continue;
                uint row = (picture * p.out_height + y) * p.out_width + x;
                sum += float(columns[(row * 9 + tap) * p.channels + channel]);
            }
        }
    }
    dx[pixel * p.all_channels + p.first_channel + channel] = Number(sum);
}
