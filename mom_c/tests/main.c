/* Runs all tests of the core, or the suites that the command line names: test [--quick] [SUITE...]
 * test --levels only names the levels of this machine. */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "tests/check.h"

typedef struct {
    const char *name;
    void (*run)(void);
} suite;

static const suite suites[] = {
    {"parallel", check_parallel}, {"layers", check_layers},   {"products", check_products}, {"attention", check_attention},
    {"routers", check_routers}, {"modules", check_modules},   {"losses", check_losses},
    {"training", check_training}, {"network", check_network}, {"decoder", check_decoder},
};

/* Names that come after --quick or alone. */
static int wanted(const char *name, int argc, char **argv) {
    const int first = 1 + check_quick;
    for (int i = first; i < argc; i++)
        if (strcmp(argv[i], name) == 0)
            return 1;
    return argc == first;
}

int main(int argc, char **argv) {
    check_quick = argc > 1 && strcmp(argv[1], "--quick") == 0;
    printf("levels:");
    for (const char *const *level = mom_kernels_available(); *level; level++)
        printf(" %s", *level);
    printf("\n");
    if (argc == 2 && strcmp(argv[1], "--levels") == 0)
        return 0;
    size_t ran = 0;
    for (size_t i = 0; i < CHECK_LENGTH(suites); i++) {
        if (!wanted(suites[i].name, argc, argv))
            continue;
        const size_t before = check_count();
        const int failed = check_failures();
        const clock_t start = clock();
        suites[i].run();
        ran++;
        printf("%-10s %7zu checks, %d failed, %.1f s of processor time\n", suites[i].name, check_count() - before,
               check_failures() - failed, (double)(clock() - start) / CLOCKS_PER_SEC);
        fflush(stdout);
    }
    check_that(mom_memory_live_bytes() == 0, "%zu bytes are still allocated at the end", mom_memory_live_bytes());
    return check_failures() || !ran;
}
