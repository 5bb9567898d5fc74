/* Features of the processor, including whether the operating system saves the wide registers.
 * Compiled without instruction-set flags, so that the check itself runs everywhere. */
#ifndef MOM_BASE_CPU_H
#define MOM_BASE_CPU_H

typedef struct {
    int avx2;       /* AVX2 and FMA */
    int avx512;     /* AVX-512 F, BW, DQ and VL */
    int avx512bf16; /* the above and BF16 */
} mom_cpu_features;

mom_cpu_features mom_cpu_detect(void);

#endif
