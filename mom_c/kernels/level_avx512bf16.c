/* AVX-512 F, BW, DQ, VL and BF16: as avx512, with instructions for products of bfloat16, whose panels hold twice the
 * steps in the same bytes. */
#define MOM_LEVEL_NAME "avx512bf16"
#define MOM_LEVEL_TABLE mom_kernels_avx512bf16
#define MOM_GEMM_NAME "mom_gemm_f32_12x32_avx512"
#define MOM_GEMM_UKR mom_gemm_f32_12x32_avx512
#define MOM_GEMM_FEW_UKR mom_gemm_f32_few_4x32_avx512
#define MOM_GEMM_ROWS_UKR mom_gemm_f32_rows_12x32_avx512
#define MOM_GEMM_B_ROWS_UKR mom_gemm_f32_b_rows_12x32_avx512
#define MOM_GEMM_B_ROWS_FEW_UKR mom_gemm_f32_b_rows_4x32_avx512
#define MOM_GEMM_COLUMNS_UKR mom_gemm_f32_columns_12x32_avx512
#define MOM_GEMM_BF16_NAME "mom_gemm_bf16f32_12x32_avx512bf16"
#define MOM_GEMM_BF16_UKR mom_gemm_bf16f32_12x32_avx512bf16
#define MOM_GEMM_BF16_FEW_UKR mom_gemm_bf16f32_few_4x32_avx512bf16
#define MOM_VECTOR 16
#define MOM_GEMM_MR 12
#define MOM_GEMM_NR 32
#define MOM_GEMM_MC 120
#define MOM_GEMM_KC 516
#define MOM_GEMM_NC 2048
#include "kernels/level.inc"
