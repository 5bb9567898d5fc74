/* AVX-512 F, BW, DQ, VL and BF16: as avx512, with instructions for products of bfloat16. Panels of bfloat16 hold twice
 * the steps of k in the same bytes. */
#define MOM_LEVEL_NAME "avx512bf16"
#define MOM_LEVEL_TABLE mom_kernels_avx512bf16
#include "kernels/level_avx512.inc"
#define MOM_GEMM_BF16_NAME "mom_gemm_bf16f32_12x32_avx512bf16"
#define MOM_GEMM_BF16 MOM_GEMM_BF16_AVX512BF16
#include "kernels/level.inc"
