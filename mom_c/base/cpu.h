/* What the processor and the operating system offer: instructions, and how many CPUs.
 * Compiled without instruction-set flags, so that the check itself runs everywhere. */
#ifndef MOM_BASE_CPU_H
#define MOM_BASE_CPU_H

typedef struct {
    int avx2;       /* AVX2 and FMA */
    int avx512;     /* AVX-512 F, BW, DQ and VL */
    int avx512bf16; /* the above and BF16 */
    int amx;        /* the above, tile registers and products of bfloat16 on them */
    int neon;       /* AArch64 */
    int neonbf16;   /* the above and BF16: BFDOT and BFMMLA */
} mom_cpu_features;

/* Also looks at whether the operating system saves the wide registers. */
mom_cpu_features mom_cpu_detect(void);

/* Asks the operating system for permission to use tile registers, if mom_cpu_detect has found them. Returns 1 if it is
 * granted. The permission holds for all threads, even those that run already, and for children made by fork. From then
 * on, stacks for signal handlers must be large enough for these registers (sysconf(_SC_MINSIGSTKSZ)). Asking again
 * changes nothing. */
int mom_cpu_allow_amx(void);

/* Number of CPUs that this process can use, at least 1: the CPUs it may run on, but no more than its control groups
 * grant. */
int mom_available_cpus(void);

/* How many CPUs the control groups (cgroups, version 1 or 2) of this process grant, rounded up; 0 if there is no limit.
 * Files are read below `root`, which is "" except in tests. */
int mom_cgroup_cpus(const char *root);
/* The same from one limit, "QUOTA PERIOD" as in cpu.max: 0 for "max", for a negative quota and for anything else. */
int mom_quota_cpus(const char *limit);

#endif
