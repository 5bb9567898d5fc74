/* AVX-512 F, BW, DQ, VL.
 *
 * Blocks of a (mc x kc, 242 KB) and c (mc x 512, 240 KB) and two panels of b (kc x 32, 65 KB each) stay in a second cache
 * of 1 MB. Panels need not fit the first cache: a step takes 24 cycles and reads 176 bytes of them. Deep blocks need
 * fewer passes over c. Against kc = 196, where a panel of b takes 32 KB, they save 3 to 5 % of a train step. Still deeper
 * blocks would save one more percent and round more: chains of 512 err by 4.0e-7, chains of 768 by 4.9e-7, NumPy's by
 * 3.5e-7. */
#define MOM_LEVEL_NAME "avx512"
#define MOM_LEVEL_TABLE mom_kernels_avx512
#include "kernels/level_avx512.inc"
#include "kernels/level.inc"
