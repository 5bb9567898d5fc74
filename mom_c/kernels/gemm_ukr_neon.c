/* 8 x 12 micro-kernel: a step of b is 3 vectors, and every number of a step of a is a lane.
 * Contracts: mom_gemm_f32_kernels (product_kernels.h). Factors and c may be unaligned. */
#include "kernels/gemm_ukr_8x12.inc"
#include "kernels/levels.h"

#define FMA(i, half, lane)                                \
    c##i##_0 = vfmaq_laneq_f32(c##i##_0, b0, half, lane); \
    c##i##_1 = vfmaq_laneq_f32(c##i##_1, b1, half, lane); \
    c##i##_2 = vfmaq_laneq_f32(c##i##_2, b2, half, lane);

/* One step; the next one lies `apart` floats further in b. */
#define STEP(apart)                                                                          \
    {                                                                                        \
        const float32x4_t b0 = vld1q_f32(b), b1 = vld1q_f32(b + 4), b2 = vld1q_f32(b + 8);    \
        const float32x4_t upper = vld1q_f32(a), lower = vld1q_f32(a + 4);                    \
        FMA(0, upper, 0) FMA(1, upper, 1) FMA(2, upper, 2) FMA(3, upper, 3)                  \
        FMA(4, lower, 0) FMA(5, lower, 1) FMA(6, lower, 2) FMA(7, lower, 3)                  \
        a += 8;                                                                              \
        b += apart;                                                                          \
    }

void mom_gemm_f32_8x12_neon(size_t kc, const float *a, const float *b, float *c, size_t ldc, int accumulate,
                            const void *next) {
    ROWS(ZERO)
    ALL_STEPS(kc, STEP(12))
    ROWS(STORE)
}

/* b (kc, 12) where it lies: rows ldb apart, which no hardware prefetches in time when they come from memory. */
#define B_AHEAD 8

void mom_gemm_f32_b_rows_8x12_neon(size_t kc, const float *a, const float *b, size_t ldb, float *c, size_t ldc,
                                   int accumulate) {
    ROWS(ZERO)
    for (size_t p = 0; p < kc; p++) {
        FETCH(b + B_AHEAD * ldb)
        STEP(ldb)
    }
    ROWS(STORE)
}
