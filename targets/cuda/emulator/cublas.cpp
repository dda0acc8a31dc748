// A stand-in for libcublas.so.13: matrix products as candle asks for them, one number after another, summed in f64.
#include <cmath>

#include "driver.hpp"
#include "include/cuda_bf16.h"
#include "include/cuda_fp16.h"

namespace {
struct Handle {
    void* stream = nullptr;
};
enum { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum Type { F32 = 0, F64 = 1, F16 = 2, BF16 = 14 };  // cudaDataType

double read(const void* at, long i, int type) {
    switch (type) {
    case F32: return static_cast<const float*>(at)[i];
    case F64: return static_cast<const double*>(at)[i];
    case F16: return float(static_cast<const __half*>(at)[i]);
    default: return float(static_cast<const __nv_bfloat16*>(at)[i]);
    }
}
void write(void* at, long i, int type, double value) {
    switch (type) {
    case F32: static_cast<float*>(at)[i] = float(value); break;
    case F64: static_cast<double*>(at)[i] = value; break;
    case F16: static_cast<__half*>(at)[i] = __half(float(value)); break;
    default: static_cast<__nv_bfloat16*>(at)[i] = __nv_bfloat16(float(value));
    }
}
bool known(int type) { return type == F32 || type == F64 || type == F16 || type == BF16; }

// Columns first, as cuBLAS has them: C[i + j ldc] = alpha sum_k A[i, k] B[k, j] + beta C. alpha and beta are of the type
// `scale`.
int product(Handle* handle, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha_at, const void* a, int type_a,
            int lda, long stride_a, const void* b, int type_b, int ldb, long stride_b, const void* beta_at, void* c, int type_c,
            int ldc, long stride_c, int batch, int scale) {
    if (!known(type_a) || !known(type_b) || !known(type_c) || transpose_a > 1 || transpose_b > 1) return NOT_SUPPORTED;
    if (m < 0 || n < 0 || k < 0 || lda < (transpose_a ? k : m) || ldb < (transpose_b ? n : k) || ldc < m) return INVALID_VALUE;
    double alpha = read(alpha_at, 0, scale), beta = read(beta_at, 0, scale);
    return emulator_enqueue(handle->stream, [=] {
        for (long l = 0; l < batch; l++)
            for (long j = 0; j < n; j++)
                for (long i = 0; i < m; i++) {
                    double sum = 0;
                    for (long p = 0; p < k; p++)
                        sum += read(a, l * stride_a + (transpose_a ? p + i * lda : i + p * lda), type_a) *
                               read(b, l * stride_b + (transpose_b ? j + p * ldb : p + j * ldb), type_b);
                    long at = l * stride_c + i + j * ldc;
                    write(c, at, type_c, alpha * sum + (beta ? beta * read(c, at, type_c) : 0));
                }
        return 0;
    });
}
// The type of alpha and beta for a cublasComputeType_t: 64 and 65 are f16, 70 and 71 are f64, the others here f32.
int scale_of(int compute) { return compute == 64 || compute == 65 ? F16 : compute == 70 || compute == 71 ? F64 : F32; }
}  // namespace

#define CUBLAS extern "C" __attribute__((visibility("default"))) int

CUBLAS cublasCreate_v2(Handle** out) { return *out = new Handle, SUCCESS; }
CUBLAS cublasDestroy_v2(Handle* handle) { return delete handle, SUCCESS; }
CUBLAS cublasSetStream_v2(Handle* handle, void* stream) { return handle->stream = stream, SUCCESS; }
CUBLAS cublasSetWorkspace_v2(Handle*, void*, size_t) { return SUCCESS; }
CUBLAS cublasSetMathMode(Handle*, int) { return SUCCESS; }
CUBLAS cublasSgemm_v2(Handle* h, int ta, int tb, int m, int n, int k, const float* alpha, const float* a, int lda, const float* b, int ldb, const float* beta, float* c, int ldc) {
    return product(h, ta, tb, m, n, k, alpha, a, F32, lda, 0, b, F32, ldb, 0, beta, c, F32, ldc, 0, 1, F32);
}
CUBLAS cublasGemmEx(Handle* h, int ta, int tb, int m, int n, int k, const void* alpha, const void* a, int type_a, int lda, const void* b, int type_b, int ldb, const void* beta, void* c, int type_c, int ldc, int compute, int) {
    return product(h, ta, tb, m, n, k, alpha, a, type_a, lda, 0, b, type_b, ldb, 0, beta, c, type_c, ldc, 0, 1, scale_of(compute));
}
CUBLAS cublasGemmStridedBatchedEx(Handle* h, int ta, int tb, int m, int n, int k, const void* alpha, const void* a, int type_a, int lda, long long stride_a, const void* b, int type_b, int ldb, long long stride_b, const void* beta, void* c, int type_c, int ldc, long long stride_c, int batch, int compute, int) {
    return product(h, ta, tb, m, n, k, alpha, a, type_a, lda, stride_a, b, type_b, ldb, stride_b, beta, c, type_c, ldc, stride_c, batch, scale_of(compute));
}
CUBLAS cublasDgemmStridedBatched(Handle* h, int ta, int tb, int m, int n, int k, const double* alpha, const double* a, int lda, long long stride_a, const double* b, int ldb, long long stride_b, const double* beta, double* c, int ldc, long long stride_c, int batch) {
    return product(h, ta, tb, m, n, k, alpha, a, F64, lda, stride_a, b, F64, ldb, stride_b, beta, c, F64, ldc, stride_c, batch, F64);
}
