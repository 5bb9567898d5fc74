/* 6 x 16 micro-kernel: 12 accumulators of 8 floats, 2 registers for b, broadcasts of a.
 * Contracts: mom_gemm_f32_kernels (product_kernels.h). A packed b is aligned to 32 bytes; a and c may be unaligned. */
#include <immintrin.h>

#include "kernels/levels.h"

#define ROW(i)                                          \
    do {                                                \
        const __m256 ai = _mm256_broadcast_ss(a + (i)); \
        c##i##0 = _mm256_fmadd_ps(ai, b0, c##i##0);     \
        c##i##1 = _mm256_fmadd_ps(ai, b1, c##i##1);     \
    } while (0)

#define STORE(i)                                                                            \
    do {                                                                                    \
        float *out = c + (size_t)(i) * ldc;                                                 \
        if (accumulate) {                                                                   \
            c##i##0 = _mm256_add_ps(_mm256_loadu_ps(out), c##i##0);                         \
            c##i##1 = _mm256_add_ps(_mm256_loadu_ps(out + 8), c##i##1);                     \
        }                                                                                   \
        _mm256_storeu_ps(out, c##i##0);                                                     \
        _mm256_storeu_ps(out + 8, c##i##1);                                                 \
    } while (0)

#define ROWS                                                                        \
    ROW(0);                                                                            \
    ROW(1);                                                                            \
    ROW(2);                                                                            \
    ROW(3);                                                                            \
    ROW(4);                                                                            \
    ROW(5);
#define ZERO                                                                           \
    __m256 c00 = _mm256_setzero_ps(), c01 = c00, c10 = c00, c11 = c00, c20 = c00, c21 = c00; \
    __m256 c30 = c00, c31 = c00, c40 = c00, c41 = c00, c50 = c00, c51 = c00;
#define FINISH                                                                         \
    STORE(0);                                                                          \
    STORE(1);                                                                          \
    STORE(2);                                                                          \
    STORE(3);                                                                          \
    STORE(4);                                                                          \
    STORE(5);

/* As with AVX-512 (gemm_ukr_12x32.inc), every 8 steps a row of c and some of what comes next is fetched. */
#define FETCH(line) _mm_prefetch((const char *)(line), _MM_HINT_T0);

void mom_gemm_f32_6x16_avx2(size_t kc, const float *a, const float *b, float *c, size_t ldc, int accumulate,
                            const void *next) {
    const char *line = next;
    const float *row = c, *const last = c + 6 * ldc;
    ZERO
    for (size_t left = kc; left;) {
        const size_t steps = left < 8 ? left : 8;
        left -= steps;
        FETCH(line)
        FETCH(line + 64)
        line += 128;
        if (row < last) {
            FETCH(row)
            row += ldc;
        }
        for (size_t p = 0; p < steps; p++, a += 6, b += 16) {
            const __m256 b0 = _mm256_load_ps(b), b1 = _mm256_load_ps(b + 8);
            ROWS
        }
    }
    FINISH
}

/* b (kc, 16) where it lies: rows ldb apart, which no hardware prefetches in time when they come from memory. */
#define B_AHEAD 8

void mom_gemm_f32_b_rows_6x16_avx2(size_t kc, const float *a, const float *b, size_t ldb, float *c, size_t ldc,
                                   int accumulate) {
    ZERO
    for (size_t p = 0; p < kc; p++, a += 6, b += ldb) {
        const __m256 b0 = _mm256_loadu_ps(b), b1 = _mm256_loadu_ps(b + 8);
        _mm_prefetch((const char *)(b + B_AHEAD * ldb), _MM_HINT_T0);
        ROWS
    }
    FINISH
}
