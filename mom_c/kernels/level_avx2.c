/* AVX2 and FMA. A panel of b (kc x 16) takes 16 KB: half of a first cache of 32 KB. */
#define MOM_LEVEL_NAME "avx2"
#define MOM_LEVEL_TABLE mom_kernels_avx2
#define MOM_GEMM_NAME "mom_gemm_f32_6x16_avx2"
#define MOM_GEMM_F32 {.packed = mom_gemm_f32_6x16_avx2, .b_rows = mom_gemm_f32_b_rows_6x16_avx2}
#define MOM_VECTOR 8
#define MOM_GEMM_MR 6
#define MOM_GEMM_NR 16
#define MOM_GEMM_MC 96
#define MOM_GEMM_KC 252
#define MOM_GEMM_NC 2048
#include "kernels/level.inc"
