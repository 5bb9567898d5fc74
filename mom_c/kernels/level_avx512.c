/* AVX-512 F, BW, DQ, VL. Blocks of a (mc x kc, 242 KB) and c (mc x 512, 240 KB) and two panels of b (kc x 32, 65 KB
 * each) stay in a second cache of 1 MB. Panels need not fit the first one: a step takes 24 cycles and 176 bytes of them.
 * Deep blocks spare passes over c (3 to 5 % of a train step, against kc = 196 with b's panel in 32 KB); still deeper ones
 * gain one more, for more rounding: chains of 512 err by 4.0e-7, of 768 by 4.9e-7, NumPy's by 3.5e-7. */
#define MOM_LEVEL_NAME "avx512"
#define MOM_LEVEL_TABLE mom_kernels_avx512
#include "kernels/level_avx512.inc"
#include "kernels/level.inc"
