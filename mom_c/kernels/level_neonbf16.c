/* AArch64 with instructions for bfloat16. Products run on BFMMLA, which multiplies 2 x 4 by 4 x 2 numbers. It does twice the
 * work of BFDOT and needs 4 steps of a row or column side by side, so both factors are packed like that (join_items in
 * pack.inc). Attention makes panels of pairs of its own and uses BFDOT. */
#define MOM_LEVEL_NAME "neonbf16"
#define MOM_LEVEL_TABLE mom_kernels_neonbf16
#include "kernels/level_neon.inc"
#define MOM_GEMM_BF16_NAME "mom_tiles_bf16f32_8x12_neonbf16"
#define MOM_GEMM_BF16 {.packed = mom_gemm_bf16f32_8x12_neonbf16}
#define MOM_TILES_MULTIPLY mom_tiles_bf16f32_8x12_neonbf16
#define MOM_TILES_BEGIN mom_tiles_begin_neonbf16
#define MOM_TILES_END mom_tiles_end_neonbf16
#define MOM_TILES_JOINED 1
#define MOM_TILE_ITEMS 2
#define MOM_GEMM_KC_BF16 1016
#include "kernels/level.inc"
