/* The functions that ask the operating system are not part of C's standard library. */
#if defined(__linux__)
#define _GNU_SOURCE
#include <sched.h>
#include <sys/syscall.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include "base/cpu.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define X86_64
#include <cpuid.h>
#endif

#ifdef X86_64
/* Bits of CPUID leaf 7, register EDX, and of register XCR0, which lists the registers that the system saves. */
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

#if defined(__aarch64__) && defined(__linux__)
/* Copied from asm/hwcap.h, since older systems have that header without this constant. */
#define HAS_BF16 (1ul << 14) /* HWCAP2_BF16 */

static int detect_neonbf16(void) { return (getauxval(AT_HWCAP2) & HAS_BF16) != 0; }
#elif defined(__aarch64__) && defined(__APPLE__)
static int detect_neonbf16(void) {
    int found = 0;
    size_t size = sizeof found;
    return sysctlbyname("hw.optional.arm.FEAT_BF16", &found, &size, NULL, 0) == 0 && found;
}
#elif defined(__aarch64__)
static int detect_neonbf16(void) { return 0; }
#endif

mom_cpu_features mom_cpu_detect(void) {
    mom_cpu_features f = {0};
#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
    /* The compiler's run-time support reads CPUID and XGETBV, so it also checks what the system saves. */
    __builtin_cpu_init();
    f.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    f.avx512 = f.avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#ifdef MOM_HAS_AVX512BF16
    f.avx512bf16 = f.avx512 && __builtin_cpu_supports("avx512bf16");
#endif
#endif
#ifdef X86_64
    f.amx = f.avx512bf16 && detect_amx();
#endif
#if defined(__aarch64__)
    f.neon = 1;
    f.neonbf16 = detect_neonbf16();
#endif
    return f;
}

#if defined(X86_64) && defined(__linux__)
/* Copied from asm/prctl.h, since older systems have that header without these constants. */
#define REQUEST_STATE 0x1023 /* ARCH_REQ_XCOMP_PERM */
#define TILE_DATA 18

int mom_cpu_allow_amx(void) { return syscall(SYS_arch_prctl, REQUEST_STATE, TILE_DATA) == 0; }
#else
int mom_cpu_allow_amx(void) { return 0; }
#endif

/* ------------------------------------------------------------------ number of CPUs */

int mom_quota_cpus(const char *limit) {
    long long quota, period;
    if (sscanf(limit, "%lld %lld", &quota, &period) != 2 || quota <= 0 || period <= 0)
        return 0;
    const long long cpus = quota / period + (quota % period != 0);
    return cpus < INT_MAX ? (int)cpus : INT_MAX;
}

#define LONGEST_PATH 4096

/* The first line of a file, without its end; "" if it cannot be read. */
static void read_line(const char *path, char *line, int size) {
    FILE *file = fopen(path, "r");
    if (!file || !fgets(line, size, file))
        line[0] = 0;
    if (file)
        fclose(file);
    line[strcspn(line, "\n")] = 0;
}

/* The limit of the control group in `folder`, or 0 if the group has none. */
static int group_cpus(const char *folder, int version) {
    char path[LONGEST_PATH + 32], quota[64], period[64], limit[2 * sizeof quota];
    if (version == 2) {
        snprintf(path, sizeof path, "%s/cpu.max", folder);
        read_line(path, limit, sizeof limit);
    } else {
        snprintf(path, sizeof path, "%s/cpu.cfs_quota_us", folder);
        read_line(path, quota, sizeof quota);
        snprintf(path, sizeof path, "%s/cpu.cfs_period_us", folder);
        read_line(path, period, sizeof period);
        snprintf(limit, sizeof limit, "%s %s", quota, period);
    }
    return mom_quota_cpus(limit);
}

static int smaller_limit(int a, int b) { return !a || (b && b < a) ? b : a; }

/* The smallest limit of a control group and of its parents, up to `mount`. In a container the group's name often exists
 * only outside the container. Then the group's own limit is found in `mount`. */
static int least_limit(const char *mount, const char *group, int version) {
    char folder[LONGEST_PATH];
    int least = 0;
    const int length = snprintf(folder, sizeof folder, "%s%s", mount, group);
    if (length < 0 || length >= (int)sizeof folder)
        return 0;
    for (;;) {
        least = smaller_limit(least, group_cpus(folder, version));
        if (strlen(folder) <= strlen(mount))
            return least;
        *strrchr(folder, '/') = 0; /* `mount` has one, too */
    }
}

/* Whether a comma-separated list contains `name`. */
static int is_listed(const char *list, const char *name) {
    const size_t length = strlen(name);
    for (const char *at = list; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
        if (strncmp(at, name, length) == 0 && (at[length] == 0 || at[length] == ','))
            return 1;
    return 0;
}

int mom_cgroup_cpus(const char *root) {
    char path[LONGEST_PATH], line[LONGEST_PATH], mount[LONGEST_PATH];
    int least = 0;
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof line, file)) { /* "ID:CONTROLLERS:GROUP"; version 2 names no controllers */
        line[strcspn(line, "\n")] = 0;
        char *controllers = strchr(line, ':'), *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group)
            continue;
        *controllers++ = *group++ = 0;
        if (!*controllers) {
            snprintf(mount, sizeof mount, "%s/sys/fs/cgroup", root);
            least = smaller_limit(least, least_limit(mount, group, 2));
        } else if (is_listed(controllers, "cpu")) { /* the folder is named after the controller or the whole list */
            snprintf(mount, sizeof mount, "%s/sys/fs/cgroup/cpu", root);
            least = smaller_limit(least, least_limit(mount, group, 1));
            snprintf(mount, sizeof mount, "%s/sys/fs/cgroup/%.64s", root, controllers);
            least = smaller_limit(least, least_limit(mount, group, 1));
        }
    }
    if (file)
        fclose(file);
    return least;
}

/* CPUs that the scheduler may run this process on; at least 1. */
static int scheduled_cpus(void) {
#if defined(__linux__)
    cpu_set_t sets[16]; /* each holds 1,024 CPUs, and the call fails if not all CPUs fit */
    if (sched_getaffinity(0, sizeof sets, sets) == 0 && CPU_COUNT_S(sizeof sets, sets) > 0)
        return CPU_COUNT_S(sizeof sets, sets);
#endif
#if defined(_SC_NPROCESSORS_ONLN)
    const long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
#else
    return 1;
#endif
}

int mom_available_cpus(void) {
    const int scheduled = scheduled_cpus(), granted = mom_cgroup_cpus("");
    return smaller_limit(scheduled, granted);
}
