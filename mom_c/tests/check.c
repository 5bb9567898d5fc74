#include "tests/check.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

int check_quick;

static size_t checks;
static int failures;

#define MOST_REPORTS 40

void check_that(int condition, const char *format, ...) {
    checks++;
    if (condition)
        return;
    if (++failures <= MOST_REPORTS) {
        va_list args;
        va_start(args, format);
        fputs("FAILED  ", stderr);
        vfprintf(stderr, format, args);
        fputc('\n', stderr);
        va_end(args);
    }
}

void check_ok(mom_status status, const mom_error *err, const char *what) {
    check_that(status == MOM_OK, "%s: %s", what, status == MOM_OK ? "" : err->text);
}

int check_failures(void) { return failures; }
size_t check_count(void) { return checks; }

/* ------------------------------------------------------------------ arrays */

static size_t type_size(check_type type) {
    static const size_t sizes[] = {sizeof(float), sizeof(mom_bf16), sizeof(double), sizeof(int32_t), sizeof(int16_t), 1};
    return sizes[type];
}

static size_t array_bytes(const check_array *a) { return a->count * type_size(a->type); }

/* Tests take memory from malloc, so that it does not count as the core's. */
static void *take(size_t bytes) {
    void *block = malloc(bytes ? bytes : 1);
    if (!block) {
        fputs("out of memory\n", stderr);
        exit(2);
    }
    return block;
}

static double value_at(const check_array *a, const void *data, size_t i) {
    switch (a->type) {
    case CHECK_F32: return (double)((const float *)data)[i];
    case CHECK_BF16: return (double)mom_bf16_to_f32(((const mom_bf16 *)data)[i]);
    case CHECK_F64: return ((const double *)data)[i];
    case CHECK_I32: return ((const int32_t *)data)[i];
    case CHECK_I16: return ((const int16_t *)data)[i];
    case CHECK_U8: return ((const uint8_t *)data)[i];
    }
    return NAN;
}

static void set_value(const check_array *a, void *data, size_t i, double value) {
    switch (a->type) {
    case CHECK_F32: ((float *)data)[i] = (float)value; break;
    case CHECK_BF16: ((mom_bf16 *)data)[i] = mom_bf16_from_f32((float)value); break;
    case CHECK_F64: ((double *)data)[i] = value; break;
    case CHECK_I32: ((int32_t *)data)[i] = (int32_t)value; break;
    case CHECK_I16: ((int16_t *)data)[i] = (int16_t)value; break;
    case CHECK_U8: ((uint8_t *)data)[i] = (uint8_t)value; break;
    }
}

static check_array *make(check_case *c, size_t slot, const char *name, check_type type, check_role role, size_t count) {
    check_array *a = &c->array[slot];
    *a = (check_array){.name = name, .type = type, .role = role, .count = count};
    const size_t bytes = array_bytes(a);
    a->data = take(bytes);
    a->start = take(bytes);
    if (role == CHECK_RESULT) {
        a->one_thread = take(bytes);
        a->first_level = take(bytes);
        a->expected = take(count * sizeof(double));
    }
    return a;
}

static uint64_t array_key(const check_case *c, size_t slot) { return mom_rng_key(c->key, slot, 1); }

static void fill(check_case *c, size_t slot, const check_array *a, double scale) {
    for (size_t i = 0; i < a->count; i++) {
        const float value = (float)(scale * (2.0 * (double)mom_rng_uniform(array_key(c, slot), i) - 1.0));
        const float rounded = mom_bf16_to_f32(mom_bf16_from_f32(value));
        set_value(a, a->start, i, (double)(c->options & CHECK_BFLOAT16 ? rounded : value));
    }
    memcpy(a->data, a->start, array_bytes(a));
}

void check_floats(check_case *c, size_t slot, const char *name, size_t count, double scale) {
    fill(c, slot, make(c, slot, name, CHECK_F32, CHECK_INPUT, count), scale);
}

void check_bfloats(check_case *c, size_t slot, const char *name, size_t count, double scale) {
    fill(c, slot, make(c, slot, name, CHECK_BF16, CHECK_INPUT, count), scale);
}

double check_input(const check_case *c, size_t slot, size_t i) {
    return value_at(&c->array[slot], c->array[slot].start, i);
}

void check_set(check_case *c, size_t slot, size_t i, double value) {
    set_value(&c->array[slot], c->array[slot].start, i, value);
    set_value(&c->array[slot], c->array[slot].data, i, value);
}

void check_result(check_case *c, size_t slot, const char *name, check_type type, size_t count) {
    const check_array *a = make(c, slot, name, type, CHECK_RESULT, count);
    for (size_t i = 0; i < count; i++) {
        set_value(a, a->start, i, type == CHECK_F32 || type == CHECK_F64 || type == CHECK_BF16
                            ? 2.0 * (double)mom_rng_uniform(array_key(c, slot), i) - 1.0 : 0.0);
        a->expected[i] = value_at(a, a->start, i);
    }
    memcpy(a->data, a->start, array_bytes(a));
}

void check_integers(check_case *c, size_t slot, const char *name, check_type type, size_t count, size_t below) {
    const check_array *a = make(c, slot, name, type, CHECK_INPUT, count);
    for (size_t i = 0; i < count; i++)
        set_value(a, a->start, i, (double)(mom_rng_u64(array_key(c, slot), i) % below));
    memcpy(a->data, a->start, array_bytes(a));
}

size_t check_random(const check_case *c, size_t i, size_t n) { return mom_rng_u64(c->key, i) % n; }

static void free_arrays(check_case *c) {
    for (size_t s = 0; s < CHECK_ARRAYS; s++) {
        check_array *a = &c->array[s];
        free(a->data);
        free(a->start);
        free(a->one_thread);
        free(a->first_level);
        free(a->expected);
    }
}

/* ------------------------------------------------------------------ comparing */

static const char *case_name(const check_case *c) {
    static char name[160];
    snprintf(name, sizeof name, "%s %zu-%zu-%zu-%zu-%zu-%zu, options %u", c->op->name, c->size[0], c->size[1], c->size[2],
             c->size[3], c->size[4], c->size[5], c->options);
    return name;
}

static int is_exact(check_type type) { return type == CHECK_I32 || type == CHECK_I16 || type == CHECK_U8; }

static double tolerance_of(const check_case *c, const check_array *a) {
    return is_exact(a->type) ? 0.0 : a->type == CHECK_BF16 ? 1.5e-2 : c->op->tolerance;
}

static void compare_with_definition(const check_case *c, const char *level) {
    for (size_t s = 0; s < CHECK_ARRAYS; s++) {
        const check_array *a = &c->array[s];
        double largest = 0.0, worst = 0.0;
        size_t where = 0;
        for (size_t i = 0; a->expected && i < a->count; i++)
            largest = fmax(largest, fabs(a->expected[i]));
        for (size_t i = 0; a->expected && i < a->count; i++) {
            const double difference = fabs(value_at(a, a->data, i) - a->expected[i]);
            if (!isnan(a->expected[i]) && !(difference <= worst)) { /* NaN as well */
                worst = difference;
                where = i;
            }
        }
        const double allowed = tolerance_of(c, a) * fmax(largest, 1e-6);
        check_that(worst <= allowed, "%s, level %s: %s[%zu] is %.9g, the definition says %.9g (off by %.2g, allowed %.2g)",
                   case_name(c), level, a->name, where, a->count ? value_at(a, a->data, where) : 0.0,
                   a->expected && a->count ? a->expected[where] : 0.0, worst, allowed);
    }
}

static void compare_with_first_level(const check_case *c, const char *level, int first) {
    for (size_t s = 0; s < CHECK_ARRAYS; s++) {
        const check_array *a = &c->array[s];
        if (a->role != CHECK_RESULT || !a->data)
            continue;
        if (first)
            memcpy(a->first_level, a->data, array_bytes(a));
        double largest = 0.0, worst = 0.0;
        for (size_t i = 0; i < a->count; i++) {
            if (isnan(a->expected[i]))
                continue;
            largest = fmax(largest, fabs(value_at(a, a->first_level, i)));
            worst = fmax(worst, fabs(value_at(a, a->data, i) - value_at(a, a->first_level, i)));
        }
        check_that(worst <= tolerance_of(c, a) * largest, "%s, level %s: %s differs by %.2g from that of level %s",
                   case_name(c), level, a->name, worst, mom_kernels_available()[0]);
    }
}

static void compare_threads(const check_case *c, const char *level, int threads) {
    for (size_t s = 0; s < CHECK_ARRAYS; s++) {
        const check_array *a = &c->array[s];
        if (!a->data)
            continue;
        if (a->role == CHECK_INPUT)
            check_that(memcmp(a->data, a->start, array_bytes(a)) == 0, "%s, level %s: input %s has changed", case_name(c),
                       level, a->name);
        if (a->role == CHECK_RESULT && threads == 1)
            memcpy(a->one_thread, a->data, array_bytes(a));
        if (a->role == CHECK_RESULT)
            check_that(memcmp(a->data, a->one_thread, array_bytes(a)) == 0,
                       "%s, level %s: %s has other bits with %d threads", case_name(c), level, a->name, threads);
    }
}

/* ------------------------------------------------------------------ running */

static void reset(const check_case *c) {
    for (size_t s = 0; s < CHECK_ARRAYS; s++)
        if (c->array[s].data)
            memcpy(c->array[s].data, c->array[s].start, array_bytes(&c->array[s]));
}

/* Runs the operator with a workspace of its own; *bytes is the most it has used. */
static mom_status run(check_case *c, mom_exec x, size_t *bytes, mom_error *err) {
    mom_arena workspace;
    mom_region region = {0}; /* just counts */
    mom_arena_init(&workspace, "workspace of a test");
    mom_arena_attach(&workspace, &region, MOM_LOWER);
    mom_arena_init(&c->scratch, "scratch memory of a test");
    workspace.dry = c->scratch.dry = x.dry_run != MOM_COMPUTE;
    x.workspace = &workspace;
    x.precision = c->options & CHECK_BFLOAT16 ? MOM_BF16 : MOM_F32;
    const mom_status status = c->op->run(c, &x, err);
    *bytes = region.peak;
    check_that(status != MOM_OK || workspace.live == 0, "%s: %zu bytes of the workspace were not released", case_name(c), workspace.live);
    mom_arena_free(&workspace);
    mom_arena_free(&c->scratch);
    return status;
}

static void check_dry_run(check_case *c, mom_exec x, size_t real) {
    size_t dry;
    mom_error err;
    x.dry_run = c->options & CHECK_ROUTED ? MOM_DRY_ANY_ROUTES : MOM_DRY;
    reset(c);
    check_ok(run(c, x, &dry, &err), &err, case_name(c));
    check_that(c->options & CHECK_ROUTED ? dry >= real : dry == real,
               "%s, level %s, %d threads: allocates %zu bytes, a dry run %zu",
               case_name(c), x.k->name, x.threads, real, dry);
    for (size_t s = 0; s < CHECK_ARRAYS; s++)
        if (c->array[s].data)
            check_that(memcmp(c->array[s].data, c->array[s].start, array_bytes(&c->array[s])) == 0,
                       "%s: a dry run has written %s", case_name(c), c->array[s].name);
}

static void check_level(check_case *c, const mom_kernels *k, int first) {
    for (int threads = 1; threads <= 3; threads++) {
        const mom_exec x = {.k = k, .threads = threads};
        size_t bytes;
        mom_error err;
        reset(c);
        check_ok(run(c, x, &bytes, &err), &err, case_name(c));
        compare_threads(c, k->name, threads);
        if (threads == 1) {
            compare_with_definition(c, k->name);
            compare_with_first_level(c, k->name, first);
        }
        check_dry_run(c, x, bytes);
    }
}

static mom_status run_again(void *context, mom_error *err) {
    check_case *c = context;
    size_t bytes;
    reset(c);
    return run(c, (mom_exec){.k = mom_kernels_best(), .threads = 2}, &bytes, err);
}

void check_failing_memory(const char *what, void (*fail_at)(long n),
                          mom_status (*attempt)(void *context, mom_error *err), void *context) {
    const size_t before = mom_memory_live_bytes();
    for (long n = 1;; n++) {
        mom_error err = {0};
        fail_at(n);
        const mom_status status = attempt(context, &err);
        fail_at(0);
        check_that(mom_memory_live_bytes() == before, "%s: %zu bytes before, %zu after allocation %ld failed", what, before,
                   mom_memory_live_bytes(), n);
        if (status == MOM_OK)
            return;
        check_that(status == MOM_ERR_MEMORY && err.code == MOM_ERR_MEMORY, "%s: allocation %ld fails, status is %d: %s",
                   what, n, (int)status, err.text);
        if (status != MOM_ERR_MEMORY)
            return;
    }
}

static void check_one_case(const check_operator *op, size_t i) {
    check_case c = {.op = op, .options = op->cases[i].options, .key = mom_rng_key(7, i, 0)};
    memcpy(c.size, op->cases[i].size, sizeof c.size);
    op->setup(&c);
    op->define(&c);
    for (const char *const *level = mom_kernels_available(); *level; level++)
        check_level(&c, mom_kernels_get(*level), level == mom_kernels_available());
    check_failing_memory(op->name, mom_memory_fail_at, run_again, &c);
    check_failing_memory(op->name, mom_arena_fail_at, run_again, &c);
    free_arrays(&c);
}

void check_operators(const check_operator *operators, size_t count) {
    for (size_t i = 0; i < count; i++)
        for (size_t n = 0; n < operators[i].count; n++)
            check_one_case(&operators[i], n);
}
