#include "kernels/kernels.h"

#include <string.h>

#include "base/cpu.h"
#include "kernels/levels.h"

#define MAX_LEVELS 5

/* Tables in rising order of preference; those the machine lacks are left out. */
static size_t collect(const mom_kernels **tables) {
    size_t n = 0;
    tables[n++] = &mom_kernels_baseline;
    const mom_cpu_features cpu = mom_cpu_detect();
    (void)cpu; /* if there is no other level */
#ifdef MOM_HAS_AVX2
    if (cpu.avx2)
        tables[n++] = &mom_kernels_avx2;
#endif
#ifdef MOM_HAS_AVX512
    if (cpu.avx512)
        tables[n++] = &mom_kernels_avx512;
#endif
#ifdef MOM_HAS_AVX512BF16
    if (cpu.avx512bf16)
        tables[n++] = &mom_kernels_avx512bf16;
#endif
#if defined(MOM_AMX_EMULATED)
    if (cpu.avx512)
        tables[n++] = &mom_kernels_amx;
#elif defined(MOM_HAS_AMX)
    if (cpu.amx && mom_cpu_allow_amx())
        tables[n++] = &mom_kernels_amx;
#endif
#ifdef MOM_HAS_NEON
    if (cpu.neon)
        tables[n++] = &mom_kernels_neon;
#endif
#ifdef MOM_HAS_NEONBF16
    if (cpu.neonbf16)
        tables[n++] = &mom_kernels_neonbf16;
#endif
    return n;
}

const char *const *mom_kernels_available(void) {
    /* Every caller writes the same values (unless the system has refused tiles before and allows them now), so a race
     * between first calls is harmless. */
    static const char *names[MAX_LEVELS + 1];
    const mom_kernels *tables[MAX_LEVELS];
    const size_t n = collect(tables);
    for (size_t i = 0; i < n; i++)
        names[i] = tables[i]->name;
    names[n] = NULL;
    return names;
}

const mom_kernels *mom_kernels_get(const char *level) {
    const mom_kernels *tables[MAX_LEVELS];
    const size_t n = collect(tables);
    for (size_t i = 0; i < n; i++)
        if (strcmp(tables[i]->name, level) == 0)
            return tables[i];
    return NULL;
}

const mom_kernels *mom_kernels_best(void) {
    const mom_kernels *tables[MAX_LEVELS];
    return tables[collect(tables) - 1];
}
