/* Embedding, dropout, LayerNorm, GELU and scaling against their definitions. */
#include <math.h>

#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/gelu.h"
#include "ops/layernorm.h"
#include "tests/check.h"

#define DROPOUT 2u /* option: a quarter of the elements is dropped */

static mom_dropout dropout_of(const check_case *c) { return (mom_dropout){c->options & DROPOUT ? 0.25f : 0.0f, 11}; }

/* ------------------------------------------------------------------ embedding: N, V, P, C */

enum { TOKENS, POSITIONS, WTE, WPE, EMBEDDED, DEMBEDDED, DWTE, DWPE };

static void embedding_setup(check_case *c) {
    const size_t N = c->size[0], V = c->size[1], P = c->size[2], C = c->size[3];
    check_integers(c, TOKENS, "tokens", CHECK_I32, N, V);
    check_integers(c, POSITIONS, "positions", CHECK_I32, N, P);
    check_floats(c, WTE, "wte", V * C, 1.0);
    check_floats(c, WPE, "wpe", P * C, 1.0);
    check_floats(c, DEMBEDDED, "dout", N * C, 1.0);
    check_result(c, EMBEDDED, "out", CHECK_F32, N * C);
    check_result(c, DWTE, "dwte", CHECK_F32, V * C);
    check_result(c, DWPE, "dwpe", CHECK_F32, P * C);
}

static void embedding_define(check_case *c) {
    const size_t N = c->size[0], C = c->size[3];
    for (size_t n = 0; n < N; n++)
        for (size_t i = 0; i < C; i++) {
            const size_t token = (size_t)check_i32(c, TOKENS)[n] * C + i;
            const size_t position = (size_t)check_i32(c, POSITIONS)[n] * C + i;
            const double keep = dropout_of(c).p > 0.0f ? (double)mom_dropout_scale(dropout_of(c), n * C + i) : 1.0;
            check_expected(c, EMBEDDED)[n * C + i] =
                keep * ((double)check_f32(c, WTE)[token] + (double)check_f32(c, WPE)[position]);
            check_expected(c, DWTE)[token] += keep * (double)check_f32(c, DEMBEDDED)[n * C + i];
            check_expected(c, DWPE)[position] += keep * (double)check_f32(c, DEMBEDDED)[n * C + i];
        }
}

static mom_status embedding_run(check_case *c, const mom_exec *x, mom_error *err) {
    const size_t N = c->size[0], C = c->size[3];
    (void)err;
    mom_embedding_forward(x, check_f32(c, EMBEDDED), check_i32(c, TOKENS), check_i32(c, POSITIONS), check_f32(c, WTE),
                          check_f32(c, WPE), dropout_of(c), N, C);
    mom_embedding_backward(x, check_f32(c, DWTE), check_f32(c, DWPE), check_f32(c, DEMBEDDED), check_i32(c, TOKENS),
                           check_i32(c, POSITIONS), dropout_of(c), N, C);
    return MOM_OK;
}

static const check_sizes embedding_cases[] = {
    {{0, 4, 3, 2}, 0}, {{3, 2, 2, 0}, 0}, {{1, 1, 1, 1}, 0}, {{51, 29, 19, 37}, 0}, {{51, 29, 19, 137}, DROPOUT},
};

/* ------------------------------------------------------------------ element-wise: N */

enum { INPUT, DOUT, GELU, DGELU, DROPPED, ADDED };

static void elements_setup(check_case *c) {
    const size_t N = c->size[0];
    check_floats(c, INPUT, "inp", N, 6.0);
    check_floats(c, DOUT, "dout", N, 1.0);
    check_result(c, GELU, "gelu", CHECK_F32, N);
    check_result(c, DGELU, "gelu's gradient", CHECK_F32, N);
    check_result(c, DROPPED, "dropout", CHECK_F32, N);
    check_result(c, ADDED, "scaled and added", CHECK_F32, N);
}

static void elements_define(check_case *c) {
    const double a = sqrt(2.0 / 3.14159265358979323846), b = 0.044715;
    for (size_t i = 0; i < c->size[0]; i++) {
        const double v = (double)check_f32(c, INPUT)[i], t = tanh(a * (v + b * v * v * v));
        const double slope = 0.5 * (1.0 + t) + 0.5 * v * (1.0 - t * t) * a * (1.0 + 3.0 * b * v * v);
        check_expected(c, GELU)[i] = 0.5 * v * (1.0 + t);
        check_expected(c, DGELU)[i] = (double)check_f32(c, DOUT)[i] * slope;
        check_expected(c, DROPPED)[i] = v * (double)mom_dropout_scale((mom_dropout){0.25f, 5}, i);
        check_expected(c, ADDED)[i] += 0.5 * v;
    }
}

static mom_status elements_run(check_case *c, const mom_exec *x, mom_error *err) {
    const size_t N = c->size[0];
    (void)err;
    mom_gelu_forward(x, check_f32(c, GELU), check_f32(c, INPUT), N);
    mom_gelu_backward(x, check_f32(c, DGELU), check_f32(c, DOUT), check_f32(c, INPUT), N);
    mom_dropout_apply(x, check_f32(c, DROPPED), check_f32(c, INPUT), (mom_dropout){0.25f, 5}, N);
    mom_scaled_add(x, check_f32(c, ADDED), 0.5f, check_f32(c, INPUT), N);
    return MOM_OK;
}

static const check_sizes elements_cases[] = {{{0}, 0}, {{1}, 0}, {{37}, 0}, {{70001}, 0}};

/* ------------------------------------------------------------------ layernorm: N, C */

enum { LN_INPUT, LN_WEIGHT, LN_BIAS, LN_DOUT, LN_OUT, LN_MEAN, LN_RSTD, LN_DINP, LN_DWEIGHT, LN_DBIAS };

#define EPS 1e-5f

static void layernorm_setup(check_case *c) {
    const size_t N = c->size[0], C = c->size[1];
    check_floats(c, LN_INPUT, "inp", N * C, 3.0);
    check_floats(c, LN_WEIGHT, "weight", C, 1.0);
    check_floats(c, LN_BIAS, "bias", C, 1.0);
    check_floats(c, LN_DOUT, "dout", N * C, 1.0);
    check_result(c, LN_OUT, "out", CHECK_F32, N * C);
    check_result(c, LN_MEAN, "mean", CHECK_F32, N);
    check_result(c, LN_RSTD, "rstd", CHECK_F32, N);
    check_result(c, LN_DINP, "dinp", CHECK_F32, N * C);
    check_result(c, LN_DWEIGHT, "dweight", CHECK_F32, C);
    check_result(c, LN_DBIAS, "dbias", CHECK_F32, C);
}

static void layernorm_define_row(check_case *c, size_t n) {
    const size_t C = c->size[1];
    const float *inp = check_f32(c, LN_INPUT) + n * C, *dout = check_f32(c, LN_DOUT) + n * C;
    const float *weight = check_f32(c, LN_WEIGHT);
    double mean = 0.0, variance = 0.0, sum_g = 0.0, sum_gx = 0.0;
    for (size_t i = 0; i < C; i++)
        mean += (double)inp[i] / (double)C;
    for (size_t i = 0; i < C; i++)
        variance += ((double)inp[i] - mean) * ((double)inp[i] - mean) / (double)C;
    const double rstd = 1.0 / sqrt(variance + (double)EPS);
    check_expected(c, LN_MEAN)[n] = mean;
    check_expected(c, LN_RSTD)[n] = rstd;
    for (size_t i = 0; i < C; i++) {
        const double xhat = ((double)inp[i] - mean) * rstd, g = (double)dout[i] * (double)weight[i];
        check_expected(c, LN_OUT)[n * C + i] = xhat * (double)weight[i] + (double)check_f32(c, LN_BIAS)[i];
        check_expected(c, LN_DWEIGHT)[i] += (double)dout[i] * xhat;
        check_expected(c, LN_DBIAS)[i] += (double)dout[i];
        sum_g += g / (double)C;
        sum_gx += g * xhat / (double)C;
    }
    for (size_t i = 0; i < C; i++) {
        const double xhat = ((double)inp[i] - mean) * rstd, g = (double)dout[i] * (double)weight[i];
        check_expected(c, LN_DINP)[n * C + i] += rstd * (g - sum_g - xhat * sum_gx);
    }
}

static void layernorm_define(check_case *c) {
    for (size_t n = 0; n < c->size[0]; n++)
        layernorm_define_row(c, n);
}

static mom_status layernorm_run(check_case *c, const mom_exec *x, mom_error *err) {
    const size_t N = c->size[0], C = c->size[1];
    const mom_layernorm norm = {check_f32(c, LN_WEIGHT), check_f32(c, LN_BIAS), EPS};
    const mom_normed_rows rows = {check_f32(c, LN_INPUT), check_f32(c, LN_MEAN), check_f32(c, LN_RSTD), N, C};
    mom_layernorm_stats(x, check_f32(c, LN_MEAN), check_f32(c, LN_RSTD), check_f32(c, LN_INPUT), EPS, N, C);
    mom_layernorm_forward(x, check_f32(c, LN_OUT), check_f32(c, LN_MEAN), check_f32(c, LN_RSTD), check_f32(c, LN_INPUT),
                          &norm, N, C);
    return mom_layernorm_backward(x, check_f32(c, LN_DINP), check_f32(c, LN_DWEIGHT), check_f32(c, LN_DBIAS),
                                  check_f32(c, LN_DOUT), check_f32(c, LN_WEIGHT), &rows, err);
}

static const check_sizes layernorm_cases[] = {{{0, 8}, 0}, {{1, 1}, 0}, {{2, 4}, 0}, {{171, 33}, 0}, {{40, 256}, 0}};

static const check_operator operators[] = {
    {"embedding", embedding_setup, embedding_define, embedding_run, 1e-6, embedding_cases, CHECK_LENGTH(embedding_cases)},
    {"elements", elements_setup, elements_define, elements_run, 4e-6, elements_cases, CHECK_LENGTH(elements_cases)},
    {"layernorm", layernorm_setup, layernorm_define, layernorm_run, 1e-5, layernorm_cases, CHECK_LENGTH(layernorm_cases)},
};

void check_layers(void) { check_operators(operators, CHECK_LENGTH(operators)); }
