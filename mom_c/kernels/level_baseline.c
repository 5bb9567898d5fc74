/* What the platform guarantees, vectorised by the compiler. */
#define MOM_LEVEL_NAME "baseline"
#define MOM_LEVEL_TABLE mom_kernels_baseline
#define MOM_GEMM_NAME "mom_gemm_f32_4x8_baseline"
#define MOM_GEMM_F32 {.packed = mom_gemm_f32_4x8_baseline}
#define MOM_VECTOR 4
#define MOM_GEMM_MR 4
#define MOM_GEMM_NR 8
#define MOM_GEMM_MC 128
#define MOM_GEMM_KC 508
#define MOM_GEMM_NC 2048
#include "kernels/level.inc"
