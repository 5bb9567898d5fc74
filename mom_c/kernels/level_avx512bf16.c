/* AVX-512 F, BW, DQ, VL and BF16: as avx512, with instructions for products of bfloat16, whose panels hold twice the
 * steps in the same bytes. */
#define MOM_LEVEL_NAME "avx512bf16"
#define MOM_LEVEL_TABLE mom_kernels_avx512bf16
#define MOM_GEMM_BF16_NAME "mom_gemm_bf16f32_12x32_avx512bf16"
#define MOM_GEMM_BF16_UKR mom_gemm_bf16f32_12x32_avx512bf16
#define MOM_GEMM_BF16_FEW_UKR mom_gemm_bf16f32_few_12x32_avx512bf16
#define MOM_GEMM_BF16_ROWS_UKR mom_gemm_bf16f32_rows_12x32_avx512bf16
#define MOM_GEMM_BF16_COLUMNS_UKR mom_gemm_bf16f32_columns_12x32_avx512bf16
#include "kernels/level_avx512.inc"
#include "kernels/level.inc"
