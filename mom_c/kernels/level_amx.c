/* As avx512bf16, but products of bfloat16 run on the tile registers of AMX.
 *
 * Their blocks of k are short: a panel of b (24 KB) has to stay in a first cache of 48 KB while two panels of a (18 KB)
 * stream by, since the second cache cannot deliver both in time. The length has no effect on the bits. Attention
 * multiplies single panels and does not use tiles. */
#define MOM_LEVEL_NAME "amx"
#define MOM_LEVEL_TABLE mom_kernels_amx
#include "kernels/level_avx512.inc"
#ifdef MOM_AMX_EMULATED /* on any processor with AVX-512, so without the instructions of avx512bf16 */
#define MOM_GEMM_BF16_NAME "mom_tiles_bf16f32_24x32_amx, emulated"
#else
#define MOM_GEMM_BF16_NAME "mom_tiles_bf16f32_24x32_amx"
#define MOM_GEMM_BF16 MOM_GEMM_BF16_AVX512BF16
#endif
#define MOM_TILES_MULTIPLY mom_tiles_bf16f32_24x32_amx
#define MOM_TILES_BEGIN mom_tiles_begin_amx
#define MOM_TILES_END mom_tiles_end_amx
#define MOM_TILE_ITEMS 16
#define MOM_GEMM_KC_BF16 384
#include "kernels/level.inc"
