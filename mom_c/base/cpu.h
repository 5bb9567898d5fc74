/* Features of the processor, including whether the operating system saves the wide registers.
 * Compiled without instruction-set flags, so that the check itself runs everywhere. */
#ifndef MOM_BASE_CPU_H
#define MOM_BASE_CPU_H

typedef struct {
    int avx2;       /* AVX2 and FMA */
    int avx512;     /* AVX-512 F, BW, DQ and VL */
    int avx512bf16; /* the above and BF16 */
    int amx;        /* the above, tile registers and products of bfloat16 on them */
} mom_cpu_features;

mom_cpu_features mom_cpu_detect(void);

/* Asks the operating system to let this process use tile registers, where mom_cpu_detect has found them: 1 if it may. The
 * permission holds for all threads, also for those that run already, and for children made by fork; with it, stacks for
 * signal handlers must be large enough for those registers (sysconf(_SC_MINSIGSTKSZ)). Asking again changes nothing. */
int mom_cpu_allow_amx(void);

#endif
