// The functions of ptx.cuh, one warp of each, so that a test can hold them against what the PTX ISA says.
#include <stddef.h>

#include "ptx.cuh"

// out[lane * 4 + i] = register i of an ldmatrix of the four 8x8 matrices `in`, each row first
template <bool TRANSPOSED>
__device__ void load(const __half* in, uint32_t* out) {
    __shared__ __align__(16) __half tile[4 * 64];
    for (int i = threadIdx.x; i < 4 * 64; i += 32) tile[i] = in[i];
    __syncthreads();
    uint32_t r[4];
    if (TRANSPOSED)
        ptx::ldmatrix_x4_trans(r, tile + threadIdx.x * 8);
    else
        ptx::ldmatrix_x4(r, tile + threadIdx.x * 8);
    for (int i = 0; i < 4; i++) out[threadIdx.x * 4 + i] = r[i];
}
extern "C" __global__ void load_rows(const __half* in, uint32_t* out) { load<false>(in, out); }
extern "C" __global__ void load_transposed(const __half* in, uint32_t* out) { load<true>(in, out); }

// d[lane * 4 + i] += the product of the fragments a (4 registers a lane) and b (2)
extern "C" __global__ void multiply(const uint32_t* a, const uint32_t* b, float* d) {
    int lane = threadIdx.x;
    uint32_t ra[4], rb[2];
    float rd[4];
    for (int i = 0; i < 4; i++) ra[i] = a[lane * 4 + i];
    for (int i = 0; i < 2; i++) rb[i] = b[lane * 2 + i];
    for (int i = 0; i < 4; i++) rd[i] = d[lane * 4 + i];
    ptx::mma_m16n8k16(rd, ra, rb);
    for (int i = 0; i < 4; i++) d[lane * 4 + i] = rd[i];
}

// Two groups of 16 bytes a thread, the second zeros for lanes from `valid` on; through dynamic shared memory.
extern "C" __global__ void copy(const float* in, float* out, int valid) {
    extern __shared__ __align__(16) unsigned char shared[];
    float* tile = reinterpret_cast<float*>(shared);
    int lane = threadIdx.x;
    ptx::cp_async_16(tile + lane * 4, in + lane * 4, true);
    ptx::cp_async_commit();
    ptx::cp_async_16(tile + 128 + lane * 4, in + 128 + lane * 4, lane < valid);
    ptx::cp_async_commit();
    ptx::cp_async_wait<1>();
    __syncthreads();
    for (int i = lane; i < 128; i += 32) out[i] = tile[i];
    ptx::cp_async_wait<0>();
    __syncthreads();
    for (int i = lane; i < 128; i += 32) out[128 + i] = tile[128 + i];
}
