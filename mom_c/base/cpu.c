#include "base/cpu.h"

mom_cpu_features mom_cpu_detect(void) {
    mom_cpu_features f = {0, 0, 0};
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
    return f;
}
