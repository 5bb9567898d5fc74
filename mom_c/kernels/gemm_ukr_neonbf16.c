/* 8 x 12 micro-kernels on bfloat16. Contracts: mom_gemm_bf16_kernels and mom_gemm_tile_kernels (product_kernels.h).
 * Factors and c may be unaligned.
 *
 * ORDER     BFDOT adds a0 b0 + a1 b1 to a sum. BFMMLA does this twice in a row, for the first and the second pair of a chunk.
 * ROUNDING  Both instructions round every product, sum of two products and addition "to odd": if bits are lost, the last bit
 *           that stays becomes 1. Such an addition errs by up to 1 unit in the last place, one that rounds to nearest by up to
 *           half of it. Errors of either kind have mean 0, and products of two bfloat16 are exact. A sum of 1,000 random
 *           products errs by 3.4e-7 of its typical size, one that rounds to nearest by 2.5e-7. Denormal numbers count as zero.
 * SOURCE    Arm Architecture Reference Manual for A-profile, BFDOT and BFMMLA without FEAT_EBF16 (or with FPCR.EBF = 0).
 */
#include "kernels/gemm_ukr_8x12.inc"
#include "kernels/levels.h"

static inline bfloat16x8_t load(const mom_bf16 *p) { return vreinterpretq_bf16_u16(vld1q_u16(p)); }

/* ---- pairs of steps, as attention packs them */

#define DOT(i, half, lane)                                   \
    c##i##_0 = vbfdotq_laneq_f32(c##i##_0, b0, half, lane);  \
    c##i##_1 = vbfdotq_laneq_f32(c##i##_1, b1, half, lane);  \
    c##i##_2 = vbfdotq_laneq_f32(c##i##_2, b2, half, lane);
#define PAIR_STEP                                                                \
    {                                                                            \
        const bfloat16x8_t b0 = load(b), b1 = load(b + 8), b2 = load(b + 16);    \
        const bfloat16x8_t upper = load(a), lower = load(a + 8);                 \
        DOT(0, upper, 0) DOT(1, upper, 1) DOT(2, upper, 2) DOT(3, upper, 3)      \
        DOT(4, lower, 0) DOT(5, lower, 1) DOT(6, lower, 2) DOT(7, lower, 3)      \
        a += 16;                                                                 \
        b += 24;                                                                 \
    }

void mom_gemm_bf16f32_8x12_neonbf16(size_t pairs, const mom_bf16 *a, const mom_bf16 *b, float *c, size_t ldc,
                                    int accumulate, const void *next) {
    ROWS(ZERO)
    ALL_STEPS(pairs, PAIR_STEP)
    ROWS(STORE)
}

/* ---- chunks of two pairs: vectors of 2 rows or columns, 4 steps each */

void mom_tiles_begin_neonbf16(void) {}
void mom_tiles_end_neonbf16(void) {}

#define ROW_PAIRS(X) X(0) X(1) X(2) X(3)

/* c<i>_<j> holds rows 2i, 2i + 1 of columns 2j, 2j + 1. */
#define START(i) \
    float32x4_t c##i##_0 = zero, c##i##_1 = zero, c##i##_2 = zero, c##i##_3 = zero, c##i##_4 = zero, c##i##_5 = zero;
#define JOIN(first, second, half) \
    vcombine_f32(vget_##half##_f32(first), vget_##half##_f32(second))
#define LOAD_4(i, at, left, right)                                                     \
    {                                                                                  \
        const float32x4_t row0 = vld1q_f32(c + 2 * i * ldc + at);                      \
        const float32x4_t row1 = vld1q_f32(c + (2 * i + 1) * ldc + at);                \
        left = JOIN(row0, row1, low);                                                  \
        right = JOIN(row0, row1, high);                                                \
    }
#define STORE_4(i, at, left, right)                                    \
    vst1q_f32(c + 2 * i * ldc + at, JOIN(left, right, low));           \
    vst1q_f32(c + (2 * i + 1) * ldc + at, JOIN(left, right, high));
#define ALL_COLUMNS(X, i) X(i, 0, c##i##_0, c##i##_1) X(i, 4, c##i##_2, c##i##_3) X(i, 8, c##i##_4, c##i##_5)
#define LOAD_ROWS(i) ALL_COLUMNS(LOAD_4, i)
#define STORE_ROWS(i) ALL_COLUMNS(STORE_4, i)
#define LOAD_A(i) const bfloat16x8_t a##i = load(a + 8 * i);
/* The columns 2j, 2j + 1 of all rows. */
#define COLUMNS(j)                                    \
    {                                                 \
        const bfloat16x8_t bj = load(b + 8 * j);      \
        c0_##j = vbfmmlaq_f32(c0_##j, a0, bj);        \
        c1_##j = vbfmmlaq_f32(c1_##j, a1, bj);        \
        c2_##j = vbfmmlaq_f32(c2_##j, a2, bj);        \
        c3_##j = vbfmmlaq_f32(c3_##j, a3, bj);        \
    }

/* A chunk. Without the barrier GCC would load all 6 vectors of b first, and there are no registers for them. */
#define CHUNK_STEP                                          \
    {                                                       \
        ROW_PAIRS(LOAD_A)                                   \
        COLUMNS(0) COLUMNS(1) COLUMNS(2)                    \
        __asm__ volatile("" : : : "memory");                \
        COLUMNS(3) COLUMNS(4) COLUMNS(5)                    \
        a += 32;                                            \
        b += 48;                                            \
    }

static void one_panel(size_t chunks, const mom_bf16 *a, const mom_bf16 *b, float *c, size_t ldc, int accumulate,
                      const void *next) {
    const float32x4_t zero = vdupq_n_f32(0.0f);
    ROW_PAIRS(START)
    if (accumulate) {
        ROW_PAIRS(LOAD_ROWS)
    }
    ALL_STEPS(chunks, CHUNK_STEP)
    ROW_PAIRS(STORE_ROWS)
}

/* A panel fetches chunks / 8 lines. */
void mom_tiles_bf16f32_8x12_neonbf16(size_t chunks, size_t panels, const mom_bf16 *a, const mom_bf16 *b, float *c, size_t ldc,
                                     int accumulate, const void *next) {
    one_panel(chunks, a, b, c, ldc, accumulate, next);
    if (panels == 2)
        one_panel(chunks, a + 32 * chunks, b, c + 8 * ldc, ldc, accumulate, (const char *)next + 8 * chunks);
}
