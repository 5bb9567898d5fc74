/* Linear layers, sums of columns and products of a few rows against their definitions. */
#include <math.h>
#include <string.h>

#include "ops/gemv.h"
#include "ops/linear.h"
#include "tests/check.h"

/* Options. */
#define OUT_IN 2u /* the weight is [out, in] */
#define NO_BIAS 4u

static mom_weight_layout layout_of(const check_case *c) {
    return c->options & OUT_IN ? MOM_WEIGHT_OUT_IN : MOM_WEIGHT_IN_OUT;
}

/* Where the weight from input i to output o stands. */
static size_t weight_at(const check_case *c, size_t i, size_t o, size_t In, size_t Out) {
    return c->options & OUT_IN ? o * In + i : i * Out + o;
}

/* ------------------------------------------------------------------ linear: N, In, Out */

enum { INP, WEIGHT, BIAS, DOUT, OUT, MORE, DINP, DINP_MORE, DWEIGHT, DBIAS };

static void linear_setup(check_case *c) {
    const size_t N = c->size[0], In = c->size[1], Out = c->size[2];
    check_floats(c, INP, "inp", N * In, 1.0);
    check_floats(c, WEIGHT, "weight", In * Out, 1.0);
    check_floats(c, BIAS, "bias", Out, 1.0);
    check_floats(c, DOUT, "dout", N * Out, 1.0);
    check_result(c, OUT, "out", CHECK_F32, N * Out);
    check_result(c, MORE, "out, added to", CHECK_F32, N * Out);
    check_result(c, DINP, "dinp", CHECK_F32, N * In);
    check_result(c, DINP_MORE, "dinp, added to", CHECK_F32, N * In);
    check_result(c, DWEIGHT, "dweight", CHECK_F32, In * Out);
    check_result(c, DBIAS, "dbias", CHECK_F32, Out);
}

static void linear_define(check_case *c) {
    const size_t N = c->size[0], In = c->size[1], Out = c->size[2];
    const float *inp = check_f32(c, INP), *weight = check_f32(c, WEIGHT), *dout = check_f32(c, DOUT);
    memset(check_expected(c, DINP), 0, N * In * sizeof(double));
    for (size_t n = 0; n < N; n++)
        for (size_t o = 0; o < Out; o++) {
            const double d = (double)dout[n * Out + o];
            double sum = c->options & NO_BIAS ? 0.0 : (double)check_f32(c, BIAS)[o];
            for (size_t i = 0; i < In; i++) {
                const size_t at = weight_at(c, i, o, In, Out);
                sum += (double)inp[n * In + i] * (double)weight[at];
                check_expected(c, DINP)[n * In + i] += d * (double)weight[at];
                check_expected(c, DINP_MORE)[n * In + i] += d * (double)weight[at];
                check_expected(c, DWEIGHT)[at] += d * (double)inp[n * In + i];
            }
            check_expected(c, OUT)[n * Out + o] = sum;
            check_expected(c, MORE)[n * Out + o] += sum;
            if (!(c->options & NO_BIAS))
                check_expected(c, DBIAS)[o] += d;
        }
}

static mom_status linear_run(check_case *c, const mom_exec *x, mom_error *err) {
    const size_t N = c->size[0], In = c->size[1], Out = c->size[2];
    const mom_linear_shape shape = {layout_of(c), N, In, Out};
    const float *inp = check_f32(c, INP), *weight = check_f32(c, WEIGHT), *dout = check_f32(c, DOUT);
    const float *bias = c->options & NO_BIAS ? NULL : check_f32(c, BIAS);
    float *dbias = c->options & NO_BIAS ? NULL : check_f32(c, DBIAS);
    MOM_TRY(mom_linear_forward(x, check_f32(c, OUT), inp, weight, bias, 0, &shape, err));
    MOM_TRY(mom_linear_forward(x, check_f32(c, MORE), inp, weight, bias, 1, &shape, err));
    MOM_TRY(mom_linear_backward_input(x, check_f32(c, DINP), dout, weight, 0, &shape, err));
    MOM_TRY(mom_linear_backward_input(x, check_f32(c, DINP_MORE), dout, weight, 1, &shape, err));
    return mom_linear_backward_weight(x, check_f32(c, DWEIGHT), dbias, inp, dout, &shape, err);
}

static const check_sizes linear_cases[] = {
    {{0, 3, 2}, 0},
    {{1, 1, 1}, 0},
    {{3, 4, 2}, OUT_IN},
    {{1, 65, 130}, 0},
    {{71, 33, 47}, 0},
    {{71, 33, 47}, OUT_IN},
    {{71, 33, 47}, CHECK_BFLOAT16},
    {{70, 301, 35}, NO_BIAS},
    {{130, 128, 256}, OUT_IN},
    {{130, 530, 96}, CHECK_BFLOAT16 | OUT_IN},
};

/* ------------------------------------------------------------------ sums of columns: N, C */

enum { ROWS, SCALES, WHICH, SUM, SCALED_SUM };

static void column_sum_setup(check_case *c) {
    const size_t N = c->size[0], C = c->size[1];
    check_floats(c, ROWS, "inp", N * C, 1.0);
    check_floats(c, SCALES, "scale", N, 1.0);
    check_integers(c, WHICH, "row_index", CHECK_I32, N, N);
    check_result(c, SUM, "out", CHECK_F32, C);
    check_result(c, SCALED_SUM, "out of scaled rows", CHECK_F32, C);
}

static void column_sum_define(check_case *c) {
    const size_t N = c->size[0], C = c->size[1];
    const float *inp = check_f32(c, ROWS);
    for (size_t n = 0; n < N; n++)
        for (size_t i = 0; i < C; i++) {
            check_expected(c, SUM)[i] += (double)inp[n * C + i];
            check_expected(c, SCALED_SUM)[i] +=
                (double)check_f32(c, SCALES)[n] * (double)inp[(size_t)check_i32(c, WHICH)[n] * C + i];
        }
}

static mom_status column_sum_run(check_case *c, const mom_exec *x, mom_error *err) {
    (void)err;
    mom_column_sum(x, check_f32(c, SUM), check_f32(c, ROWS), NULL, NULL, c->size[0], c->size[1]);
    mom_column_sum(x, check_f32(c, SCALED_SUM), check_f32(c, ROWS), check_f32(c, SCALES), check_i32(c, WHICH), c->size[0],
                   c->size[1]);
    return MOM_OK;
}

static const check_sizes column_sum_cases[] = {{{0, 3}, 0}, {{1, 1}, 0}, {{3, 4}, 0}, {{71, 333}, 0}};

/* ------------------------------------------------------------------ few rows: rows, k, n */

enum { X, MATRIX, ADD, BY_FORMAT }; /* results by format: float32, bfloat16, int8 */

static void gemv_setup(check_case *c) {
    static const char *const names[] = {"float32", "bfloat16", "int8"};
    const size_t rows = c->size[0], k = c->size[1], n = c->size[2];
    check_floats(c, X, "x", rows * k, 1.0);
    check_floats(c, MATRIX, "matrix", k * n, 1.0);
    check_floats(c, ADD, "bias", n, 1.0);
    for (size_t format = 0; format < 3; format++)
        check_result(c, BY_FORMAT + format, names[format], CHECK_F32, rows * n);
}

/* A weight as each format holds it. */
static double rounded_weight(const check_case *c, mom_gemv_format format, size_t i, size_t o) {
    const size_t k = c->size[1], n = c->size[2];
    const float *matrix = check_f32(c, MATRIX), weight = matrix[weight_at(c, i, o, k, n)];
    if (format == MOM_GEMV_F32)
        return (double)weight;
    if (format == MOM_GEMV_BF16)
        return (double)mom_bf16_to_f32(mom_bf16_from_f32(weight));
    float largest = 0.0f;
    for (size_t j = 0; j < k; j++)
        largest = fmaxf(largest, fabsf(matrix[weight_at(c, j, o, k, n)]));
    const float scale = largest / 127.0f;
    return (double)scale * rint((double)(weight / scale));
}

static void gemv_define(check_case *c) {
    const size_t rows = c->size[0], k = c->size[1], n = c->size[2];
    for (mom_gemv_format format = MOM_GEMV_F32; format <= MOM_GEMV_INT8; format++)
        for (size_t o = 0; o < n; o++) {
            for (size_t r = 0; r < rows; r++)
                check_expected(c, BY_FORMAT + format)[r * n + o] = (double)check_f32(c, ADD)[o];
            for (size_t i = 0; i < k; i++) {
                const double weight = rounded_weight(c, format, i, o);
                for (size_t r = 0; r < rows; r++)
                    check_expected(c, BY_FORMAT + format)[r * n + o] += (double)check_f32(c, X)[r * k + i] * weight;
            }
        }
}

static mom_status gemv_run(check_case *c, const mom_exec *x, mom_error *err) {
    const size_t rows = c->size[0], k = c->size[1], n = c->size[2];
    for (mom_gemv_format format = MOM_GEMV_F32; format <= MOM_GEMV_INT8; format++) {
        mom_gemv_matrix matrix = {MOM_GEMV_F32, layout_of(c), check_f32(c, MATRIX), NULL, k, n};
        if (format != MOM_GEMV_F32) {
            unsigned char *copy;
            MOM_ARENA_NEW(copy, &c->scratch, mom_gemv_packed_bytes(format, k, n), err);
            mom_gemv_pack(x, &matrix, copy, format, check_f32(c, MATRIX), layout_of(c), k, n);
        }
        const mom_gemv product = {check_f32(c, BY_FORMAT + format), check_f32(c, X), &matrix, check_f32(c, ADD), rows, 0};
        MOM_TRY(mom_gemv_run(x, &product, 1, err));
    }
    return MOM_OK;
}

static const check_sizes gemv_cases[] = {
    {{0, 3, 2}, 0}, {{1, 1, 1}, 0}, {{1, 33, 70}, 0}, {{3, 64, 129}, OUT_IN}, {{9, 100, 200}, 0}, {{2, 257, 64}, OUT_IN},
};

static const check_operator operators[] = {
    {"linear", linear_setup, linear_define, linear_run, 5e-6, linear_cases, CHECK_LENGTH(linear_cases)},
    {"column_sum", column_sum_setup, column_sum_define, column_sum_run, 5e-6, column_sum_cases,
     CHECK_LENGTH(column_sum_cases)},
    {"gemv", gemv_setup, gemv_define, gemv_run, 1e-5, gemv_cases, CHECK_LENGTH(gemv_cases)},
};

#if defined(__SSE2__) || defined(__aarch64__)
static void halve_task(void *context, size_t task, int thread) {
    volatile float *numbers = context;
    (void)thread;
    numbers[task] *= 0.5f;
}

/* While tasks run, a denormal number counts as zero, as a factor and as a result. The caller's mode stays. */
static void check_denormals(void) {
    for (int threads = 1; threads <= 2; threads++) {
        volatile float numbers[] = {1e-40f, 1.5e-38f, 1.0f}, outside = 1.5e-38f;
        mom_parallel_run(threads, CHECK_LENGTH(numbers), halve_task, (void *)(uintptr_t)numbers);
        check_that(numbers[0] == 0.0f && numbers[1] == 0.0f && numbers[2] == 0.5f,
                   "%d threads: halves of 1e-40, 1.5e-38 and 1 are %g, %g and %g", threads, (double)numbers[0],
                   (double)numbers[1], (double)numbers[2]);
        outside *= 0.5f;
        check_that(outside > 0.0f, "%d threads: denormal numbers are still switched off after the tasks", threads);
    }
}
#else
static void check_denormals(void) {}
#endif

void check_products(void) {
    check_operators(operators, CHECK_LENGTH(operators));
    check_denormals();
}
