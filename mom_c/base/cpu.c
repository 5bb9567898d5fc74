/* The system's call for permission is not in C's standard library. */
#if defined(__linux__)
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "base/cpu.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define X86_64
#include <cpuid.h>
#endif

#ifdef X86_64
/* Bits of leaf 7, register EDX, and of XCR0: states that the system saves. */
#define AMX_BF16 (1u << 22)
#define AMX_TILE (1u << 24)
#define TILE_STATES (3u << 17)
#define OSXSAVE (1u << 27) /* leaf 1, ECX: the system has set XCR0 */

/* Not every compiler's __builtin_cpu_supports knows these names. */
static int detect_amx(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & OSXSAVE))
        return 0;
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    if ((a & TILE_STATES) != TILE_STATES)
        return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & AMX_BF16) && (d & AMX_TILE);
}
#endif

mom_cpu_features mom_cpu_detect(void) {
    mom_cpu_features f = {0, 0, 0, 0};
#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
    /* The compiler's run-time support reads CPUID and XGETBV, i.e. it asks the system as well. */
    __builtin_cpu_init();
    f.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    f.avx512 = f.avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#ifndef MOM_NO_AVX512BF16
    f.avx512bf16 = f.avx512 && __builtin_cpu_supports("avx512bf16");
#endif
#endif
#ifdef X86_64
    f.amx = f.avx512bf16 && detect_amx();
#endif
    return f;
}

#if defined(X86_64) && defined(__linux__)
/* From asm/prctl.h, which older systems have without these. */
#define REQUEST_STATE 0x1023 /* ARCH_REQ_XCOMP_PERM */
#define TILE_DATA 18

int mom_cpu_allow_amx(void) { return syscall(SYS_arch_prctl, REQUEST_STATE, TILE_DATA) == 0; }
#else
int mom_cpu_allow_amx(void) { return 0; }
#endif
