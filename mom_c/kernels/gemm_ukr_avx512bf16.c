/* 12 x 32 micro-kernel on pairs of bfloat16: 24 accumulators of 16 floats; each instruction adds two products.
 * Contracts: mom_gemm_bf16_kernels (product_kernels.h). b is packed and aligned to 64 bytes; a and c may be unaligned. */
#include <immintrin.h>

#include "kernels/gemm_ukr_12x32.inc"
#include "kernels/levels.h"

typedef int pair __attribute__((may_alias, aligned(2)));

#define DOT_PAIR(i, element)                                       \
    {                                                              \
        const __m512bh ai = (__m512bh)_mm512_set1_epi32(element);  \
        c##i##_0 = _mm512_dpbf16_ps(c##i##_0, b0, ai);             \
        c##i##_1 = _mm512_dpbf16_ps(c##i##_1, b1, ai);             \
    }
#define DOT(i) DOT_PAIR(i, ((const pair *)(const void *)a)[i])

#define PAIR_STEP(p)                                                              \
    {                                                                             \
        const __m512bh b0 = (__m512bh)_mm512_load_si512((const void *)b);         \
        const __m512bh b1 = (__m512bh)_mm512_load_si512((const void *)(b + 32));  \
        FETCH(a + 24 * 16)                                                        \
        ROWS(DOT)                                                                 \
        a += 24;                                                                  \
        b += 64;                                                                  \
    }

void mom_gemm_bf16f32_12x32_avx512bf16(size_t pairs, const mom_bf16 *a, const mom_bf16 *b, float *c, size_t ldc,
                                       int accumulate, const void *next) {
    ROWS(ZERO)
    ALL_STEPS(pairs, PAIR_STEP)
    FINISH(ROWS)
}

#define COLUMNS_STEP(p)                                                           \
    {                                                                             \
        const __m512bh b0 = (__m512bh)_mm512_load_si512((const void *)b);         \
        const __m512bh b1 = (__m512bh)_mm512_load_si512((const void *)(b + 32));  \
        ROWS(DOT)                                                                 \
        a += 2 * lda;                                                             \
        b += 64;                                                                  \
    }

void mom_gemm_bf16f32_columns_12x32_avx512bf16(size_t pairs, const mom_bf16 *a, size_t lda, const mom_bf16 *b, float *c,
                                               size_t ldc, int accumulate, const void *next) {
    ROWS(ZERO)
    ALL_STEPS(pairs, COLUMNS_STEP)
    FINISH(ROWS)
}

#define ROW_DOT(i) DOT_PAIR(i, a##i[p])
#define ROWS_STEP(p)                                                              \
    {                                                                             \
        const __m512bh b0 = (__m512bh)_mm512_load_si512((const void *)b);         \
        const __m512bh b1 = (__m512bh)_mm512_load_si512((const void *)(b + 32));  \
        ROWS(ROW_DOT)                                                             \
        b += 64;                                                                  \
    }

void mom_gemm_bf16f32_rows_12x32_avx512bf16(size_t pairs, const mom_bf16 *const *rows, const mom_bf16 *b, float *c,
                                            size_t ldc, int accumulate, const void *next) {
#define POINTER(i) const pair *a##i = (const pair *)(const void *)rows[i];
    ROWS(POINTER)
#undef POINTER
    ROWS(ZERO)
    ALL_STEPS(pairs, ROWS_STEP)
    FINISH(ROWS)
}

#define FEW(name, rows)                                                                                             \
    static void name(size_t pairs, const mom_bf16 *a, const mom_bf16 *b, float *c, size_t ldc, int accumulate) {     \
        rows(ZERO)                                                                                                  \
        for (size_t p = 0; p < pairs; p++, a += 24, b += 64) {                                                      \
            const __m512bh b0 = (__m512bh)_mm512_load_si512((const void *)b);                                       \
            const __m512bh b1 = (__m512bh)_mm512_load_si512((const void *)(b + 32));                                \
            rows(DOT)                                                                                               \
        }                                                                                                           \
        FINISH(rows)                                                                                                \
    }
FEW(few_4, ROWS_4)
FEW(few_8, ROWS_8)

void mom_gemm_bf16f32_few_12x32_avx512bf16(size_t pairs, size_t rows, const mom_bf16 *a, const mom_bf16 *b, float *c,
                                           size_t ldc, int accumulate) {
    (rows <= 4 ? few_4 : few_8)(pairs, a, b, c, ldc, accumulate);
}
