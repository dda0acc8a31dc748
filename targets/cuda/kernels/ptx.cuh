// Everything that C++ has no words for: loads of matrix fragments, products on tensor cores and copies that run beside the
// computation. nvcc gets the instructions of the PTX ISA (all of sm_80); any other compiler gets the same in C++ for the
// emulated device, where the wrong fragment, an address out of line and a copy not waited for do not go unseen.
//
// A warp's fragments (PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type"), for lane l:
//   g = l / 4, t = l % 4
//   a, 16 rows by 16: a[0] = rows g, columns 2t and 2t + 1; a[1] the same of row g + 8; a[2] and a[3] eight columns on
//   b, 16 rows by 8: b[0] = rows 2t and 2t + 1 of column g; b[1] eight rows on
//   d, 16 rows by 8: d[0], d[1] = row g, columns 2t and 2t + 1; d[2], d[3] of row g + 8
// The number with the lower index is in the lower half of a register.
#pragma once

#include <cuda_fp16.h>
#include <stdint.h>

namespace ptx {

#ifdef __CUDACC__

__device__ __forceinline__ uint32_t shared_address(const void* at) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

// Four 8x8 matrices of f16 from shared memory: lane l names row l % 8 of matrix l / 8 (16 bytes, in line with 16); r[i] is
// of matrix i: row l / 4, columns 2 (l % 4) and one more.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same of each matrix transposed: rows 2 (l % 4) and one more of column l / 4.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// d += a * b: f16 times f16, sums in f32.
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Two to the power of x, off by at most 2 units in the last place; what is below the normal numbers is zero. exp2f spends
// three instructions more on those.
__device__ __forceinline__ float exp2_flushed(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 16 bytes from global to shared memory, both in line with 16, beside the computation; zeros where not valid, and then
// `global` is not read.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                 "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0)
                 : "memory");
}

// What this thread has asked for since the last time becomes one group.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the last N of this thread's groups are under way. Other threads see the copies after a barrier.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

#else

inline void in_line(const void* at, const char* what) {
    if (reinterpret_cast<uintptr_t>(at) % 16) emulator::fail("%s: an address that is no multiple of 16", what);
}

// Element (row, column) of matrix i, as the lanes named its rows.
template <bool TRANSPOSED>
void load_matrices(uint32_t (&r)[4], const void* row, const char* file, int line) {
    in_line(row, "ldmatrix");
    struct Cell {
        const uint16_t* row;
        uint32_t* r;
    } cell{static_cast<const uint16_t*>(row), r};
    emulator::Block::current()->collective({file, line}, 0xffffffff, &cell, [](void** lanes) {
        Cell* cells[32];
        for (int lane = 0; lane < 32; lane++) {
            if (!lanes[lane]) emulator::fail("%s: lane %u takes no part", "ldmatrix", lane);
            cells[lane] = static_cast<Cell*>(lanes[lane]);
        }
        for (int lane = 0; lane < 32; lane++)
            for (int i = 0; i < 4; i++) {
                int g = lane / 4, t = lane % 4;
                auto element = [&](int y, int x) { return uint32_t(cells[8 * i + y]->row[x]); };
                cells[lane]->r[i] = TRANSPOSED ? element(2 * t, g) | element(2 * t + 1, g) << 16
                                               : element(g, 2 * t) | element(g, 2 * t + 1) << 16;
            }
    });
}
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    load_matrices<false>(r, row, file, line);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, const char* file = __builtin_FILE(),
                              int line = __builtin_LINE()) {
    load_matrices<true>(r, row, file, line);
}

inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const char* file = __builtin_FILE(),
                         int line = __builtin_LINE()) {
    struct Cell {
        const uint32_t *a, *b;
        float* d;
    } cell{a, b, d};
    emulator::Block::current()->collective({file, line}, 0xffffffff, &cell, [](void** lanes) {
        float a[16][16], b[16][8];
        auto low = [](uint32_t bits) { return float(__ushort_as_half(uint16_t(bits))); };
        auto high = [](uint32_t bits) { return float(__ushort_as_half(uint16_t(bits >> 16))); };
        for (int lane = 0; lane < 32; lane++) {
            if (!lanes[lane]) emulator::fail("%s: lane %u takes no part", "mma", lane);
            const Cell& cell = *static_cast<Cell*>(lanes[lane]);
            int g = lane / 4, t = lane % 4;
            for (int i = 0; i < 4; i++) {
                int row = g + i % 2 * 8, column = 2 * t + i / 2 * 8;
                a[row][column] = low(cell.a[i]);
                a[row][column + 1] = high(cell.a[i]);
            }
            for (int i = 0; i < 2; i++) {
                b[2 * t + 8 * i][g] = low(cell.b[i]);
                b[2 * t + 8 * i + 1][g] = high(cell.b[i]);
            }
        }
        for (int lane = 0; lane < 32; lane++)
            for (int i = 0; i < 4; i++) {
                int row = lane / 4 + i / 2 * 8, column = 2 * (lane % 4) + i % 2;
                float& d = static_cast<Cell*>(lanes[lane])->d[i];
                for (int k = 0; k < 16; k++) d += a[row][k] * b[k][column];
            }
    });
}

inline float exp2_flushed(float x) {
    float y = exp2f(x);
    return y < std::numeric_limits<float>::min() ? 0.0f : y;
}

// Copied only when waited for; until then there are NaNs.
inline void cp_async_16(void* shared, const void* global, bool valid) {
    in_line(shared, "cp.async");
    if (valid) in_line(global, "cp.async");
    emulator::Thread& self = emulator::Block::self();
    std::memset(shared, 0xff, 16);
    self.copies.push_back({shared, valid ? global : nullptr, self.copy_group});
}
inline void cp_async_commit() { emulator::Block::self().copy_group++; }
template <int N>
void cp_async_wait() {
    emulator::Thread& self = emulator::Block::self();
    size_t done = 0;
    for (; done < self.copies.size() && self.copies[done].group + N < self.copy_group; done++) {
        const emulator::Copy& copy = self.copies[done];
        if (copy.from)
            std::memcpy(copy.to, copy.from, 16);
        else
            std::memset(copy.to, 0, 16);
    }
    self.copies.erase(self.copies.begin(), self.copies.begin() + done);
}

#endif

}  // namespace ptx
