/* As avx512bf16, but products of bfloat16 run on the tile registers of AMX. Their blocks of k are short, since a panel of b
 * (32 KB) is to stay in the first cache, which could not deliver a longer one from the second in time; the panels of a are
 * what streams. Products of single panels (attention) have nothing that would fill tiles and stay as they are there. */
#define MOM_LEVEL_NAME "amx"
#define MOM_LEVEL_TABLE mom_kernels_amx
#define MOM_GEMM_NAME "mom_gemm_f32_12x32_avx512"
#define MOM_GEMM_UKR mom_gemm_f32_12x32_avx512
#define MOM_GEMM_FEW_UKR mom_gemm_f32_few_4x32_avx512
#define MOM_GEMM_ROWS_UKR mom_gemm_f32_rows_12x32_avx512
#define MOM_GEMM_B_ROWS_UKR mom_gemm_f32_b_rows_12x32_avx512
#define MOM_GEMM_B_ROWS_FEW_UKR mom_gemm_f32_b_rows_4x32_avx512
#define MOM_GEMM_COLUMNS_UKR mom_gemm_f32_columns_12x32_avx512
#ifdef MOM_AMX_EMULATED /* on any processor with AVX-512, so without the instructions of avx512bf16 */
#define MOM_GEMM_BF16_NAME "mom_tiles_bf16f32_24x32_amx, emulated"
#else
#define MOM_GEMM_BF16_NAME "mom_tiles_bf16f32_24x32_amx"
#define MOM_GEMM_BF16_UKR mom_gemm_bf16f32_12x32_avx512bf16
#define MOM_GEMM_BF16_FEW_UKR mom_gemm_bf16f32_few_4x32_avx512bf16
#endif
#define MOM_TILES_UKR mom_tiles_bf16f32_24x32_amx
#define MOM_TILES_BEGIN mom_tiles_begin_amx
#define MOM_TILES_END mom_tiles_end_amx
#define MOM_TILE_ITEMS 16
#define MOM_VECTOR 16
#define MOM_GEMM_MR 12
#define MOM_GEMM_NR 32
#define MOM_GEMM_MC 120
#define MOM_GEMM_KC 516
#define MOM_GEMM_KC_BF16 512
#define MOM_GEMM_NC 2048
#include "kernels/level.inc"
