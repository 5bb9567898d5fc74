/* 12 x 32 micro-kernel: 24 accumulators of 16 floats, 2 registers for b, broadcasts of a.
 * Contracts: mom_gemm_f32_kernels (product_kernels.h). A packed b is aligned to 64 bytes; a and c may be unaligned. */
#include <immintrin.h>

#include "kernels/gemm_ukr_12x32.inc"
#include "kernels/levels.h"

#define FMA(i, element)                                       \
    {                                                         \
        const __m512 ai = _mm512_set1_ps(element);            \
        c##i##_0 = _mm512_fmadd_ps(ai, b0, c##i##_0);         \
        c##i##_1 = _mm512_fmadd_ps(ai, b1, c##i##_1);         \
    }

#define STEP(i) FMA(i, a[i])
#define PACKED_STEP(p)                                                            \
    {                                                                             \
        const __m512 b0 = _mm512_load_ps(b), b1 = _mm512_load_ps(b + 16);         \
        FETCH(a + 12 * 16)                                                        \
        ROWS(STEP)                                                                \
        a += 12;                                                                  \
        b += 32;                                                                  \
    }

void mom_gemm_f32_12x32_avx512(size_t kc, const float *a, const float *b, float *c, size_t ldc, int accumulate,
                               const void *next) {
    ROWS(ZERO)
    ALL_STEPS(kc, PACKED_STEP)
    FINISH(ROWS)
}

#define COLUMNS_STEP(p)                                                           \
    {                                                                             \
        const __m512 b0 = _mm512_load_ps(b), b1 = _mm512_load_ps(b + 16);         \
        ROWS(STEP)                                                                \
        a += lda;                                                                 \
        b += 32;                                                                  \
    }

void mom_gemm_f32_columns_12x32_avx512(size_t kc, const float *a, size_t lda, const float *b, float *c, size_t ldc,
                                       int accumulate, const void *next) {
    ROWS(ZERO)
    ALL_STEPS(kc, COLUMNS_STEP)
    FINISH(ROWS)
}
#undef STEP

#define STEP(i) FMA(i, a##i[p])
#define ROWS_STEP(p)                                                              \
    {                                                                             \
        const __m512 b0 = _mm512_load_ps(b), b1 = _mm512_load_ps(b + 16);         \
        ROWS(STEP)                                                                \
        b += 32;                                                                  \
    }

void mom_gemm_f32_rows_12x32_avx512(size_t kc, const float *const *rows, const float *b, float *c, size_t ldc,
                                    int accumulate, const void *next) {
#define POINTER(i) const float *a##i = rows[i];
    ROWS(POINTER)
#undef POINTER
    ROWS(ZERO)
    ALL_STEPS(kc, ROWS_STEP)
    FINISH(ROWS)
}
#undef STEP

#define STEP(i) FMA(i, a[i])
#define FEW(name, rows)                                                                                  \
    static void name(size_t kc, const float *a, const float *b, float *c, size_t ldc, int accumulate) {  \
        rows(ZERO)                                                                                       \
        for (size_t p = 0; p < kc; p++, a += 12, b += 32) {                                              \
            const __m512 b0 = _mm512_load_ps(b), b1 = _mm512_load_ps(b + 16);                            \
            rows(STEP)                                                                                   \
        }                                                                                                \
        FINISH(rows)                                                                                     \
    }
FEW(few_4, ROWS_4)
FEW(few_8, ROWS_8)

void mom_gemm_f32_few_12x32_avx512(size_t kc, size_t rows, const float *a, const float *b, float *c, size_t ldc,
                                   int accumulate) {
    (rows <= 4 ? few_4 : few_8)(kc, a, b, c, ldc, accumulate);
}

/* b (kc, 32) where it lies: rows ldb apart, which no hardware prefetches in time when they come from memory. */
#define B_AHEAD 8
#define B_ROWS(linkage, name, rows)                                                                                  \
    linkage void name(size_t kc, const float *a, const float *b, size_t ldb, float *c, size_t ldc, int accumulate) { \
        rows(ZERO)                                                                                                   \
        for (size_t p = 0; p < kc; p++, a += 12, b += ldb) {                                                         \
            const __m512 b0 = _mm512_loadu_ps(b), b1 = _mm512_loadu_ps(b + 16);                                      \
            FETCH(b + B_AHEAD * ldb)                                                                                 \
            FETCH(b + B_AHEAD * ldb + 16)                                                                            \
            rows(STEP)                                                                                               \
        }                                                                                                            \
        FINISH(rows)                                                                                                 \
    }
B_ROWS(, mom_gemm_f32_b_rows_12x32_avx512, ROWS)
B_ROWS(static, b_rows_4, ROWS_4)
B_ROWS(static, b_rows_8, ROWS_8)

void mom_gemm_f32_b_rows_few_12x32_avx512(size_t kc, size_t rows, const float *a, const float *b, size_t ldb, float *c,
                                          size_t ldc, int accumulate) {
    (rows <= 4 ? b_rows_4 : b_rows_8)(kc, a, b, ldb, c, ldc, accumulate);
}
