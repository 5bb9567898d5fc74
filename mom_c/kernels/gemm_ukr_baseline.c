/* 4 x 8 micro-kernel in plain C; the fixed inner loops become vector code at -O3.
 * Contract: mom_gemm_f32_kernels.packed (product_kernels.h). */
#include "kernels/levels.h"

#define MR 4
#define NR 8

void mom_gemm_f32_4x8_baseline(size_t kc, const float *restrict a, const float *restrict b, float *restrict c,
                               size_t ldc, int accumulate, const void *next) {
    (void)next;
    float t[MR][NR] = {{0}};
    for (size_t p = 0; p < kc; p++, a += MR, b += NR)
        for (int i = 0; i < MR; i++)
            for (int j = 0; j < NR; j++)
                t[i][j] += a[i] * b[j];
    for (int i = 0; i < MR; i++)
        for (int j = 0; j < NR; j++)
            c[(size_t)i * ldc + (size_t)j] = accumulate ? c[(size_t)i * ldc + (size_t)j] + t[i][j] : t[i][j];
}
