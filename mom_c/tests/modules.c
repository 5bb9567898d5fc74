/* Routing plans and the layers of a pool of modules against their definitions. */
#include <math.h>
#include <string.h>

#include "ops/layernorm.h"
#include "ops/routed_linear.h"
#include "ops/routed_rows.h"
#include "tests/check.h"

/* ------------------------------------------------------------------ sizes N, K, M, I, O */

/* Options. */
#define SCORED CHECK_ROUTED
#define UNWEIGHTED (CHECK_ROUTED | 2u) /* every output counts once */

#define EPS 1e-5f

enum {
    INDEX, INP, WEIGHT, BIAS, SCORE, DOUT, LN_WEIGHT, LN_BIAS, DNORMAL, /* inputs */
    OFFSETS, TOKEN, CHOICE, SLOT, OUT, COMBINED, DSCORE, DOUT_SLOTS, DINP_SLOTS, DWEIGHT, DBIAS,
    NORMAL, DLN_INP, DLN_WEIGHT, DLN_BIAS
};

/* Choices differ within a token and range over two more than there are modules: these mean SKIP. */
static size_t choose(check_case *c) {
    const size_t N = c->size[0], K = c->size[1], M = c->size[2];
    size_t slots = 0;
    check_integers(c, INDEX, "index", CHECK_I16, N * K, 1);
    for (size_t i = 0; i < N * K; i++) {
        const size_t choice = (check_random(c, i / K, M + 2) + i % K) % (M + 2);
        check_set(c, INDEX, i, (double)choice);
        slots += choice < M;
    }
    return slots;
}

static void setup(check_case *c) {
    const size_t N = c->size[0], K = c->size[1], M = c->size[2], I = c->size[3], O = c->size[4];
    const size_t slots = choose(c);
    check_floats(c, INP, "inp", N * I, 1.0);
    check_floats(c, WEIGHT, "weight", M * I * O, 1.0);
    check_floats(c, BIAS, "bias", M * O, 1.0);
    check_floats(c, SCORE, "score", N * K, 1.0);
    check_floats(c, DOUT, "dout", N * O, 1.0);
    check_floats(c, LN_WEIGHT, "LayerNorm's weight", M * I, 1.0);
    check_floats(c, LN_BIAS, "LayerNorm's bias", M * I, 1.0);
    check_floats(c, DNORMAL, "LayerNorm's dout", slots * I, 1.0);
    c->array[DNORMAL].role = CHECK_SCRATCH;
    check_result(c, OFFSETS, "offsets", CHECK_I32, M + 1);
    check_result(c, TOKEN, "token", CHECK_I32, slots);
    check_result(c, CHOICE, "choice", CHECK_I32, slots);
    check_result(c, SLOT, "slot", CHECK_I32, N * K);
    check_result(c, OUT, "out", CHECK_F32, slots * O);
    check_result(c, COMBINED, "combined", CHECK_F32, N * O);
    check_result(c, DSCORE, "dscore", CHECK_F32, N * K);
    check_result(c, DOUT_SLOTS, "dout by slot", CHECK_F32, slots * O);
    check_result(c, DINP_SLOTS, "dinp by slot", CHECK_F32, slots * I);
    check_result(c, DWEIGHT, "dweight", CHECK_F32, M * I * O);
    check_result(c, DBIAS, "dbias", CHECK_F32, M * O);
    check_result(c, NORMAL, "LayerNorm", CHECK_F32, slots * I);
    check_result(c, DLN_INP, "LayerNorm's dinp", CHECK_F32, N * I);
    check_result(c, DLN_WEIGHT, "LayerNorm's dweight", CHECK_F32, M * I);
    check_result(c, DLN_BIAS, "LayerNorm's dbias", CHECK_F32, M * I);
}

/* ------------------------------------------------------------------ definitions */

static double factor(const check_case *c, size_t i) {
    return c->options == UNWEIGHTED ? 1.0 : (double)check_f32(c, SCORE)[i];
}

static void define_plan(check_case *c) {
    const size_t NK = c->size[0] * c->size[1], M = c->size[2];
    size_t slots = 0;
    for (size_t i = 0; i < NK; i++)
        check_expected(c, SLOT)[i] = -1.0;
    for (size_t m = 0; m < M; m++) {
        check_expected(c, OFFSETS)[m] = (double)slots;
        for (size_t i = 0; i < NK; i++)
            if ((size_t)check_i16(c, INDEX)[i] == m) {
                check_expected(c, TOKEN)[slots] = (double)(i / c->size[1]);
                check_expected(c, CHOICE)[slots] = (double)(i % c->size[1]);
                check_expected(c, SLOT)[i] = (double)slots++;
            }
    }
    check_expected(c, OFFSETS)[M] = (double)slots;
}

/* Choice i of all (token, choice) pairs is a slot of module m. */
static void define_linear(check_case *c, size_t i, size_t m, size_t slot) {
    const size_t I = c->size[3], O = c->size[4], t = i / c->size[1];
    const float *inp = check_f32(c, INP) + t * I, *weight = check_f32(c, WEIGHT) + m * I * O;
    double dscore = 0.0;
    for (size_t o = 0; o < O; o++) {
        const double d = (double)check_f32(c, DOUT)[t * O + o];
        double sum = (double)check_f32(c, BIAS)[m * O + o];
        for (size_t j = 0; j < I; j++) {
            sum += (double)inp[j] * (double)weight[j * O + o];
            check_expected(c, DWEIGHT)[(m * I + j) * O + o] += factor(c, i) * d * (double)inp[j];
            check_expected(c, DINP_SLOTS)[slot * I + j] += factor(c, i) * d * (double)weight[j * O + o];
        }
        dscore += d * sum;
        check_expected(c, DBIAS)[m * O + o] += factor(c, i) * d;
        check_expected(c, OUT)[slot * O + o] = sum;
        check_expected(c, COMBINED)[t * O + o] += factor(c, i) * sum;
        check_expected(c, DOUT_SLOTS)[slot * O + o] = factor(c, i) * d;
    }
    check_expected(c, DSCORE)[i] = dscore;
}

static void define_layernorm(check_case *c, size_t t, size_t m, size_t slot) {
    const size_t I = c->size[3];
    const float *inp = check_f32(c, INP) + t * I, *weight = check_f32(c, LN_WEIGHT) + m * I;
    double mean = 0.0, variance = 0.0, sum_g = 0.0, sum_gx = 0.0;
    for (size_t j = 0; j < I; j++)
        mean += (double)inp[j] / (double)I;
    for (size_t j = 0; j < I; j++)
        variance += ((double)inp[j] - mean) * ((double)inp[j] - mean) / (double)I;
    const double rstd = 1.0 / sqrt(variance + (double)EPS);
    for (size_t j = 0; j < I; j++) {
        const double xhat = ((double)inp[j] - mean) * rstd, d = check_input(c, DNORMAL, slot * I + j);
        check_expected(c, NORMAL)[slot * I + j] = xhat * (double)weight[j] + (double)check_f32(c, LN_BIAS)[m * I + j];
        check_expected(c, DLN_WEIGHT)[m * I + j] += d * xhat;
        check_expected(c, DLN_BIAS)[m * I + j] += d;
        sum_g += d * (double)weight[j] / (double)I;
        sum_gx += d * (double)weight[j] * xhat / (double)I;
    }
    for (size_t j = 0; j < I; j++) {
        const double xhat = ((double)inp[j] - mean) * rstd, d = check_input(c, DNORMAL, slot * I + j);
        check_expected(c, DLN_INP)[t * I + j] += rstd * (d * (double)weight[j] - sum_g - xhat * sum_gx);
    }
}

static void define(check_case *c) {
    const size_t N = c->size[0], K = c->size[1], M = c->size[2], I = c->size[3], O = c->size[4];
    define_plan(c);
    memset(check_expected(c, COMBINED), 0, N * O * sizeof(double));
    memset(check_expected(c, DSCORE), 0, N * K * sizeof(double));
    memset(check_expected(c, DINP_SLOTS), 0, c->array[DINP_SLOTS].count * sizeof(double));
    for (size_t i = 0; i < N * K; i++) {
        const size_t m = (size_t)check_i16(c, INDEX)[i];
        if (m < M) {
            define_linear(c, i, m, (size_t)check_expected(c, SLOT)[i]);
            define_layernorm(c, i / K, m, (size_t)check_expected(c, SLOT)[i]);
        }
    }
    (void)I;
}

/* ------------------------------------------------------------------ the operators */

/* One pointer per module into an array over modules. */
static float **by_module(const check_case *c, size_t slot, size_t width, mom_arena *arena, mom_error *err) {
    float **list = mom_arena_alloc(arena, c->size[2], sizeof *list, err);
    for (size_t m = 0; list && m < c->size[2]; m++)
        list[m] = check_f32(c, slot) + m * width;
    return list;
}

static void copy_plan(const check_case *c, const mom_exec *x, const mom_routing_plan *plan) {
    mom_copy(x, check_i32(c, OFFSETS), plan->offsets, (c->size[2] + 1) * sizeof(int32_t));
    mom_copy(x, check_i32(c, TOKEN), plan->token, c->array[TOKEN].count * sizeof(int32_t));
    mom_copy(x, check_i32(c, CHOICE), plan->choice, c->array[CHOICE].count * sizeof(int32_t));
    mom_copy(x, check_i32(c, SLOT), plan->slot, c->array[SLOT].count * sizeof(int32_t));
}

static mom_status run_linear(check_case *c, const mom_exec *x, const mom_routing_plan *plan, mom_error *err) {
    const size_t I = c->size[3], O = c->size[4];
    const float *score = c->options == UNWEIGHTED ? NULL : check_f32(c, SCORE);
    float **weight = by_module(c, WEIGHT, I * O, &c->scratch, err), **bias = by_module(c, BIAS, O, &c->scratch, err);
    float **dweight = by_module(c, DWEIGHT, I * O, &c->scratch, err), **dbias = by_module(c, DBIAS, O, &c->scratch, err);
    float *scale = NULL, *dscore;
    if (!weight || !bias || !dweight || !dbias)
        return MOM_ERR_MEMORY;
    if (score) {
        MOM_ARENA_NEW(scale, &c->scratch, plan->slots, err);
        mom_routed_slot_scale(x, scale, score, plan);
    }
    const mom_routed_layer layer = {(const float *const *)weight, (const float *const *)bias, I, O};
    const mom_routed_gradient gradient = {dweight, dbias, I, O};
    const mom_routed_rows inp = {check_f32(c, INP), 1}, dout = {check_f32(c, DOUT), 1};
    MOM_ARENA_NEW(dscore, &c->scratch, c->size[0] * c->size[1], err);
    mom_zero(x, dscore, c->size[0] * c->size[1] * sizeof *dscore);
    MOM_TRY(mom_routed_linear_forward(x, check_f32(c, OUT), inp, &layer, plan, err));
    mom_routed_combine_forward(x, check_f32(c, COMBINED), check_f32(c, OUT), score, plan, O, 0);
    mom_routed_combine_backward(x, check_f32(c, DSCORE), check_f32(c, DOUT_SLOTS), check_f32(c, DOUT), check_f32(c, OUT),
                                score, plan, O);
    MOM_TRY(mom_routed_linear_backward_weight(x, &gradient, inp, dout, scale, plan, err));
    MOM_TRY(mom_routed_linear_backward_input(x, check_f32(c, DINP_SLOTS), dout, &layer, plan, err));
    mom_routed_score_backward(x, dscore, check_f32(c, DINP_SLOTS), inp, check_f32(c, DOUT), &layer, score, plan);
    for (size_t i = 0; i < c->size[0] * c->size[1] && !x->dry_run; i++) /* the same gradient by two ways */
        check_that(fabsf(dscore[i] - check_f32(c, DSCORE)[i]) < 1e-3f, "routed_score_backward: %g and %g",
                   (double)dscore[i], (double)check_f32(c, DSCORE)[i]);
    return MOM_OK;
}

static mom_status run_layernorm(check_case *c, const mom_exec *x, const mom_routing_plan *plan, mom_error *err) {
    const size_t N = c->size[0], I = c->size[3];
    float **weight = by_module(c, LN_WEIGHT, I, &c->scratch, err), **bias = by_module(c, LN_BIAS, I, &c->scratch, err);
    float **dweight = by_module(c, DLN_WEIGHT, I, &c->scratch, err);
    float **dbias = by_module(c, DLN_BIAS, I, &c->scratch, err);
    float *mean, *rstd;
    if (!weight || !bias || !dweight || !dbias)
        return MOM_ERR_MEMORY;
    MOM_ARENA_NEW(mean, &c->scratch, N, err);
    MOM_ARENA_NEW(rstd, &c->scratch, N, err);
    const mom_normed_rows rows = {check_f32(c, INP), mean, rstd, N, I};
    mom_layernorm_stats(x, mean, rstd, check_f32(c, INP), EPS, N, I);
    mom_routed_layernorm_forward(x, check_f32(c, NORMAL), &rows, (const float *const *)weight, (const float *const *)bias,
                                 plan);
    mom_routed_layernorm_backward(x, check_f32(c, DLN_INP), dweight, dbias, check_f32(c, DNORMAL), &rows,
                                  (const float *const *)weight, plan);
    return MOM_OK;
}

static mom_status run(check_case *c, const mom_exec *x, mom_error *err) {
    mom_routing_plan plan;
    MOM_TRY(mom_routing_plan_init(x, &plan, &c->scratch, check_i16(c, INDEX), c->size[0], c->size[1], c->size[2], err));
    copy_plan(c, x, &plan);
    MOM_TRY(run_linear(c, x, &plan, err));
    return run_layernorm(c, x, &plan, err);
}

static const check_sizes cases[] = {
    {{0, 1, 2, 2, 3}, SCORED},        {{1, 1, 1, 1, 1}, SCORED},     {{5, 0, 2, 2, 3}, SCORED},
    {{4, 2, 3, 4, 2}, SCORED},        {{71, 2, 5, 33, 47}, SCORED},  {{71, 2, 5, 33, 47}, UNWEIGHTED},
    {{130, 3, 4, 64, 48}, SCORED},    {{60, 1, 4, 17, 80}, SCORED},
};

static const check_operator operators[] = {{"modules", setup, define, run, 1e-5, cases, CHECK_LENGTH(cases)}};

void check_modules(void) { check_operators(operators, CHECK_LENGTH(operators)); }
