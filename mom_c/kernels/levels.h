/* The tables and micro-kernels of all levels; only kernels.c and the files of the levels include this header. */
#ifndef MOM_KERNELS_LEVELS_H
#define MOM_KERNELS_LEVELS_H

#include "kernels/kernels.h"

/* The shapes of tile registers, as LDTILECFG reads them. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} mom_tile_shapes;
_Static_assert(sizeof(mom_tile_shapes) == 64, "the structure has no gaps");

extern const mom_kernels mom_kernels_baseline;
void mom_gemm_f32_4x8_baseline(size_t kc, const float *a, const float *b, float *c, size_t ldc, int accumulate,
                               const void *next);

#if defined(__x86_64__)
extern const mom_kernels mom_kernels_avx2, mom_kernels_avx512, mom_kernels_avx512bf16, mom_kernels_amx;
void mom_gemm_f32_6x16_avx2(size_t kc, const float *a, const float *b, float *c, size_t ldc, int accumulate,
                            const void *next);
void mom_gemm_f32_b_rows_6x16_avx2(size_t kc, const float *a, const float *b, size_t ldb, float *c, size_t ldc,
                                   int accumulate);
void mom_gemm_f32_12x32_avx512(size_t kc, const float *a, const float *b, float *c, size_t ldc, int accumulate,
                               const void *next);
void mom_gemm_f32_few_12x32_avx512(size_t kc, size_t rows, const float *a, const float *b, float *c, size_t ldc,
                                   int accumulate);
void mom_gemm_bf16f32_few_12x32_avx512bf16(size_t pairs, size_t rows, const mom_bf16 *a, const mom_bf16 *b, float *c,
                                           size_t ldc, int accumulate);
void mom_gemm_f32_rows_12x32_avx512(size_t kc, const float *const *rows, const float *b, float *c, size_t ldc,
                                    int accumulate, const void *next);
void mom_gemm_f32_columns_12x32_avx512(size_t kc, const float *a, size_t lda, const float *b, float *c, size_t ldc,
                                       int accumulate, const void *next);
void mom_gemm_f32_b_rows_12x32_avx512(size_t kc, const float *a, const float *b, size_t ldb, float *c, size_t ldc,
                                      int accumulate);
void mom_gemm_f32_b_rows_few_12x32_avx512(size_t kc, size_t rows, const float *a, const float *b, size_t ldb, float *c,
                                          size_t ldc, int accumulate);
void mom_gemm_bf16f32_12x32_avx512bf16(size_t pairs, const mom_bf16 *a, const mom_bf16 *b, float *c, size_t ldc,
                                       int accumulate, const void *next);
void mom_gemm_bf16f32_rows_12x32_avx512bf16(size_t pairs, const mom_bf16 *const *rows, const mom_bf16 *b, float *c,
                                            size_t ldc, int accumulate, const void *next);
void mom_gemm_bf16f32_columns_12x32_avx512bf16(size_t pairs, const mom_bf16 *a, size_t lda, const mom_bf16 *b, float *c,
                                               size_t ldc, int accumulate, const void *next);
void mom_tiles_bf16f32_24x32_amx(size_t chunks, size_t panels, const mom_bf16 *a, const mom_bf16 *b, float *c, size_t ldc,
                                 int accumulate, const void *next);
void mom_tiles_begin_amx(void);
void mom_tiles_end_amx(void);
#endif

#if defined(__aarch64__)
extern const mom_kernels mom_kernels_neon, mom_kernels_neonbf16;
void mom_gemm_f32_8x12_neon(size_t kc, const float *a, const float *b, float *c, size_t ldc, int accumulate,
                            const void *next);
void mom_gemm_f32_b_rows_8x12_neon(size_t kc, const float *a, const float *b, size_t ldb, float *c, size_t ldc,
                                   int accumulate);
void mom_gemm_bf16f32_8x12_neonbf16(size_t pairs, const mom_bf16 *a, const mom_bf16 *b, float *c, size_t ldc,
                                    int accumulate, const void *next);
void mom_tiles_bf16f32_8x12_neonbf16(size_t chunks, size_t panels, const mom_bf16 *a, const mom_bf16 *b, float *c, size_t ldc,
                                     int accumulate, const void *next);
void mom_tiles_begin_neonbf16(void);
void mom_tiles_end_neonbf16(void);
#endif

#endif
