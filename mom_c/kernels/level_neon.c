/* AArch64, of which NEON is a part.
 *
 * Blocks of a (mc x kc, 222 KB) and c (mc x 480, 210 KB) stay in a second cache of 512 KB or more. A panel of b (kc x 12,
 * 24 KB) and two panels of a (8 x kc, 16 KB each) stay in a first cache of 64 KB. With one of 32 KB the panels of a come
 * from the second cache: 32 bytes in the 6 to 12 cycles that a step takes. Deep blocks need fewer passes over c. */
#define MOM_LEVEL_NAME "neon"
#define MOM_LEVEL_TABLE mom_kernels_neon
#include "kernels/level_neon.inc"
#include "kernels/level.inc"
