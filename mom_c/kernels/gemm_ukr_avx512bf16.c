/* 12 x 32 micro-kernel on pairs of bfloat16: 24 accumulators of 16 floats; each instruction adds two products.
 * Contract: kernels.h, gemm_bf16_ukr. b is 64-byte aligned (packed), a any, c may be unaligned. */
#include <immintrin.h>

#include "kernels/levels.h"

#define ROWS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

#define ZERO(i) __m512 c##i##_0 = _mm512_setzero_ps(), c##i##_1 = _mm512_setzero_ps();
#define PREFETCH(i)                                                       \
    _mm_prefetch((const char *)(c + (size_t)(i) * ldc), _MM_HINT_T0);     \
    _mm_prefetch((const char *)(c + (size_t)(i) * ldc + 16), _MM_HINT_T0);
#define DOT(i)                                                                             \
    {                                                                                      \
        const __m512bh ai = (__m512bh)_mm512_set1_epi32(((const int *)(const void *)a)[i]); \
        c##i##_0 = _mm512_dpbf16_ps(c##i##_0, b0, ai);                                      \
        c##i##_1 = _mm512_dpbf16_ps(c##i##_1, b1, ai);                                      \
    }
#define STORE(i)                                                                  \
    {                                                                             \
        float *out = c + (size_t)(i) * ldc;                                       \
        _mm512_storeu_ps(out, c##i##_0);                                          \
        _mm512_storeu_ps(out + 16, c##i##_1);                                     \
    }
#define ADD(i)                                                                    \
    {                                                                             \
        const float *out = c + (size_t)(i) * ldc;                                 \
        c##i##_0 = _mm512_add_ps(_mm512_loadu_ps(out), c##i##_0);                 \
        c##i##_1 = _mm512_add_ps(_mm512_loadu_ps(out + 16), c##i##_1);            \
    }

void mom_gemm_bf16f32_12x32_avx512bf16(size_t pairs, const mom_bf16 *a, const mom_bf16 *b, float *c, size_t ldc,
                                       int accumulate) {
    ROWS(ZERO)
    ROWS(PREFETCH)
    for (size_t p = 0; p < pairs; p++, a += 24, b += 64) {
        const __m512bh b0 = (__m512bh)_mm512_load_si512((const void *)b);
        const __m512bh b1 = (__m512bh)_mm512_load_si512((const void *)(b + 32));
        _mm_prefetch((const char *)(a + 24 * 16), _MM_HINT_T0);
        ROWS(DOT)
    }
    if (accumulate) {
        ROWS(ADD)
    }
    ROWS(STORE)
}
