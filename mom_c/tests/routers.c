/* Router cells, scores, choices and the straight-through sign against their definitions. */
#include "ops/forced_choices.h"
#include "ops/router.h"

#include <math.h>
#include <string.h>

#include "base/rng.h"
#include "tests/check.h"

/* ------------------------------------------------------------------ cells: N, C, R, S */

/* Options. */
#define NAIVE 2u /* two linear layers; otherwise a recurrent cell */
#define DEV 4u
#define RANDOM 8u
#define FIRST 16u /* first round: no state comes in */

#define NOISE_KEY 9u

enum { INP, STATE, DLOGITS, DSTATE_OUT, WEIGHTS, LOGITS = WEIGHTS + 6, HIDDEN, DINP, DSTATE_IN, GRADIENTS };
/* Order of the weights and of the gradients: */
enum { IN_WEIGHT, IN_BIAS, STATE_WEIGHT, STATE_BIAS, OUT_WEIGHT, OUT_BIAS };

static mom_router_spec spec_of(const check_case *c) {
    const mom_router_kind recurrent = c->options & DEV ? MOM_ROUTER_GRU_DEV : MOM_ROUTER_GRU;
    return (mom_router_spec){.kind = c->options & NAIVE ? MOM_ROUTER_NAIVE : recurrent,
                             .random = !!(c->options & RANDOM), .C = c->size[1], .R = c->size[2], .S = c->size[3]};
}

static size_t gates_of(const check_case *c) { return c->options & NAIVE ? 1 : c->options & RANDOM ? 4 : 3; }

static void cell_setup(check_case *c) {
    static const char *const names[] = {"in_weight", "in_bias", "state_weight", "state_bias", "out_weight", "out_bias"};
    static const char *const gradients[] = {"din_weight", "din_bias", "dstate_weight", "dstate_bias", "dout_weight",
                                            "dout_bias"};
    const size_t N = c->size[0], C = c->size[1], R = c->size[2], S = c->size[3], GR = gates_of(c) * R;
    const size_t counts[] = {GR * C, GR, c->options & NAIVE ? 0 : GR * R, c->options & NAIVE ? 0 : GR, S * R, S};
    check_floats(c, INP, "inp", N * C, 1.0);
    check_floats(c, STATE, "state", N * R, c->options & FIRST ? 0.0 : 1.0);
    check_floats(c, DLOGITS, "dlogits", N * S, 1.0);
    check_floats(c, DSTATE_OUT, "dstate_out", N * R, 1.0);
    for (size_t i = 0; i < 6; i++) {
        check_floats(c, WEIGHTS + i, names[i], counts[i], 0.7);
        check_result(c, GRADIENTS + i, gradients[i], CHECK_F32, counts[i]);
    }
    check_result(c, LOGITS, "logits", CHECK_F32, N * S);
    check_result(c, HIDDEN, "hidden", CHECK_F32, N * R);
    check_result(c, DINP, "dinp", CHECK_F32, N * C);
    check_result(c, DSTATE_IN, "dstate_in", CHECK_F32, N * R);
}

static double weight(const check_case *c, size_t which, size_t i) { return (double)check_f32(c, WEIGHTS + which)[i]; }

static double linear_row(const check_case *c, size_t which, size_t row, const float *x, size_t n) {
    double sum = weight(c, which + 1, row);
    for (size_t i = 0; i < n; i++)
        sum += weight(c, which, row * n + i) * (double)x[i];
    return sum;
}

/* Gradients of a linear layer's row whose output has gradient d. */
static void linear_row_backward(check_case *c, size_t which, size_t row, double d, const float *x, double *dx, size_t n) {
    for (size_t i = 0; i < n; i++) {
        check_expected(c, GRADIENTS + which)[row * n + i] += d * (double)x[i];
        dx[i] += d * weight(c, which, row * n + i);
    }
    check_expected(c, GRADIENTS + which + 1)[row] += d;
}

/* What the cell computes for component j of token t. */
typedef struct {
    double r, i, n, p, h_n, cell, state, noise, hidden;
} cell_values;

static double sigmoid(double v) { return 1.0 / (1.0 + exp(-v)); }

static cell_values cell_of(const check_case *c, size_t t, size_t j) {
    const size_t C = c->size[1], R = c->size[2];
    const float *x = check_f32(c, INP) + t * C, *state = check_f32(c, STATE) + t * R;
    cell_values v = {.state = (double)state[j]};
    if (c->options & NAIVE) {
        v.hidden = fmax(linear_row(c, IN_WEIGHT, j, x, C), 0.0);
        return v;
    }
    double from_x[4], from_state[4];
    for (size_t g = 0; g < gates_of(c); g++) {
        from_x[g] = linear_row(c, IN_WEIGHT, g * R + j, x, C);
        from_state[g] = linear_row(c, STATE_WEIGHT, g * R + j, state, R);
    }
    v.r = sigmoid(from_x[0] + from_state[0]);
    v.i = sigmoid(from_x[1] + from_state[1]);
    v.h_n = from_state[2];
    v.n = tanh(from_x[2] + (c->options & DEV ? 0.0 : v.r * v.h_n));
    v.hidden = v.cell = v.n + v.i * (v.state - v.n);
    if (c->options & RANDOM) {
        v.p = sigmoid(from_x[3] + from_state[3]);
        v.noise = (double)mom_rng_uniform(NOISE_KEY, t * R + j);
        v.hidden = v.p * (v.cell - v.noise) + v.noise;
    }
    return v;
}

static void cell_backward(check_case *c, size_t t, size_t j, double dhidden) {
    const size_t C = c->size[1], R = c->size[2];
    const float *x = check_f32(c, INP) + t * C, *state = check_f32(c, STATE) + t * R;
    double *dx = check_expected(c, DINP) + t * C, *dstate = check_expected(c, DSTATE_IN) + t * R;
    const cell_values v = cell_of(c, t, j);
    if (c->options & NAIVE) {
        linear_row_backward(c, IN_WEIGHT, j, v.hidden > 0.0 ? dhidden : 0.0, x, dx, C);
        return;
    }
    const double dcell = c->options & RANDOM ? dhidden * v.p : dhidden, dn = dcell * (1.0 - v.i) * (1.0 - v.n * v.n);
    const double dr = c->options & DEV ? 0.0 : dn * v.h_n * v.r * (1.0 - v.r);
    const double di = dcell * (v.state - v.n) * v.i * (1.0 - v.i);
    const double dp = dhidden * (v.cell - v.noise) * v.p * (1.0 - v.p);
    const double by_x[4] = {dr, di, dn, dp}, by_state[4] = {dr, di, c->options & DEV ? 0.0 : dn * v.r, dp};
    for (size_t g = 0; g < gates_of(c); g++) {
        linear_row_backward(c, IN_WEIGHT, g * R + j, by_x[g], x, dx, C);
        linear_row_backward(c, STATE_WEIGHT, g * R + j, by_state[g], state, dstate, R);
    }
    dstate[j] += dcell * v.i;
}

static void cell_define(check_case *c) {
    const size_t N = c->size[0], R = c->size[2], S = c->size[3];
    const float *dlogits = check_f32(c, DLOGITS);
    if (!(c->options & (NAIVE | FIRST)))
        memset(check_expected(c, DSTATE_IN), 0, N * R * sizeof(double)); /* overwritten */
    for (size_t t = 0; t < N; t++) {
        for (size_t s = 0; s < S; s++)
            check_expected(c, LOGITS)[t * S + s] = weight(c, OUT_BIAS, s);
        for (size_t j = 0; j < R; j++) {
            const cell_values v = cell_of(c, t, j);
            double dhidden = c->options & NAIVE ? 0.0 : (double)check_f32(c, DSTATE_OUT)[t * R + j];
            check_expected(c, HIDDEN)[t * R + j] = v.hidden;
            for (size_t s = 0; s < S; s++) {
                check_expected(c, LOGITS)[t * S + s] += weight(c, OUT_WEIGHT, s * R + j) * v.hidden;
                check_expected(c, GRADIENTS + OUT_WEIGHT)[s * R + j] += (double)dlogits[t * S + s] * v.hidden;
                dhidden += (double)dlogits[t * S + s] * weight(c, OUT_WEIGHT, s * R + j);
            }
            cell_backward(c, t, j, dhidden);
        }
        for (size_t s = 0; s < S; s++)
            check_expected(c, GRADIENTS + OUT_BIAS)[s] += (double)dlogits[t * S + s];
    }
    for (size_t i = 0; i < N * R && c->options & FIRST; i++) /* nobody wants it, but the definition has added to it */
        check_expected(c, DSTATE_IN)[i] = check_input(c, DSTATE_IN, i);
}

static mom_router_tensors tensors_of(const check_case *c, size_t slot) {
    const int naive = c->options & NAIVE;
    return (mom_router_tensors){.in_weight = check_f32(c, slot + IN_WEIGHT), .in_bias = check_f32(c, slot + IN_BIAS),
                                .state_weight = naive ? NULL : check_f32(c, slot + STATE_WEIGHT),
                                .state_bias = naive ? NULL : check_f32(c, slot + STATE_BIAS),
                                .out_weight = check_f32(c, slot + OUT_WEIGHT), .out_bias = check_f32(c, slot + OUT_BIAS)};
}

static mom_status cell_run(check_case *c, const mom_exec *x, mom_error *err) {
    const size_t N = c->size[0], R = c->size[2];
    const mom_router_spec spec = spec_of(c);
    const mom_router_tensors weights = tensors_of(c, WEIGHTS);
    mom_router_tensors gradients = tensors_of(c, GRADIENTS);
    mom_router_saved saved = {.hidden = check_f32(c, HIDDEN)};
    float *gates, *h_n;
    MOM_ARENA_NEW(gates, &c->scratch, N * gates_of(c) * R, err);
    MOM_ARENA_NEW(h_n, &c->scratch, N * R, err);
    saved.gates = gates;
    saved.h_n = h_n;
    const int has_state = !(c->options & (NAIVE | FIRST));
    const float *state = has_state ? check_f32(c, STATE) : NULL;
    float *dstate_in = has_state ? check_f32(c, DSTATE_IN) : NULL;
    const float *dstate_out = c->options & NAIVE ? NULL : check_f32(c, DSTATE_OUT);
    const mom_router_inputs in = {.weights = &weights, .inp = check_f32(c, INP), .state = state, .noise_key = NOISE_KEY, .N = N};
    const mom_router_gradients out = {.dinp = check_f32(c, DINP), .dstate_in = dstate_in, .dweights = &gradients};
    MOM_TRY(mom_router_forward(x, check_f32(c, LOGITS), &saved, &in, &spec, err));
    return mom_router_backward(x, &out, check_f32(c, DLOGITS), dstate_out, &in, &saved, &spec, err);
}

static const check_sizes cell_cases[] = {
    {{0, 3, 2, 2}, 0},      {{1, 1, 1, 1}, NAIVE},       {{1, 1, 1, 1}, 0},
    {{37, 19, 21, 5}, NAIVE}, {{37, 19, 21, 5}, 0},      {{37, 19, 21, 5}, FIRST},
    {{37, 19, 21, 5}, DEV}, {{37, 19, 21, 5}, RANDOM},   {{37, 19, 21, 5}, DEV | RANDOM},
    {{90, 64, 32, 5}, 0},
};

/* ------------------------------------------------------------------ routers that hash: N, M, S */

#define HASH_ROUND 3u

enum { TOKENS, ORDER, UNTOUCHED };

static void hash_setup(check_case *c) {
    check_integers(c, TOKENS, "tokens", CHECK_I32, c->size[0], 50);
    check_result(c, ORDER, "logits", CHECK_F32, c->size[0] * c->size[2]);
    check_result(c, UNTOUCHED, "dinp", CHECK_F32, c->size[0]);
}

/* The numbers of the choices, those of the modules shuffled. */
static void hash_define(check_case *c) {
    const size_t M = c->size[1], S = c->size[2];
    for (size_t t = 0; t < c->size[0]; t++) {
        const uint64_t key = mom_rng_key((uint64_t)check_i32(c, TOKENS)[t], HASH_ROUND, 1);
        double *order = check_expected(c, ORDER) + t * S;
        for (size_t s = 0; s < S; s++)
            order[s] = (double)(S - s);
        for (size_t i = 0; i + 1 < M; i++) {
            const size_t j = i + mom_rng_u64(key, i) % (M - i);
            const double value = order[j];
            order[j] = order[i];
            order[i] = value;
        }
    }
}

static mom_status hash_run(check_case *c, const mom_exec *x, mom_error *err) {
    const mom_router_spec spec = {.kind = MOM_ROUTER_HASH, .C = 1, .S = c->size[2], .M = c->size[1]};
    mom_router_inputs in = {.tokens = check_i32(c, TOKENS), .round = HASH_ROUND, .half = 1,
                            .N = c->size[0]};
    const mom_router_gradients out = {.dinp = check_f32(c, UNTOUCHED)};
    MOM_TRY(mom_router_forward(x, check_f32(c, ORDER), NULL, &in, &spec, err));
    MOM_TRY(mom_router_backward(x, &out, check_f32(c, ORDER), NULL, &in, NULL, &spec, err));
    in.tokens = NULL;
    check_that(mom_router_forward(x, check_f32(c, ORDER), NULL, &in, &spec, err) == MOM_ERR_VALUE, "hash without tokens");
    return MOM_OK;
}

static const check_sizes hash_cases[] = {
    {{0, 2, 3}, 0}, {{1, 2, 2}, 0}, {{71, 5, 9}, 0}, {{40, 300, 301}, 0},
};

/* ------------------------------------------------------------------ routers of one linear map: N, C, S */

enum { L_INP, L_DLOGITS, L_WEIGHT, L_BIAS, L_LOGITS, L_DINP, L_DWEIGHT, L_DBIAS };

static void linear_setup(check_case *c) {
    const size_t N = c->size[0], C = c->size[1], S = c->size[2];
    check_floats(c, L_INP, "inp", N * C, 1.0);
    check_floats(c, L_DLOGITS, "dlogits", N * S, 1.0);
    check_floats(c, L_WEIGHT, "out_weight", S * C, 0.7);
    check_floats(c, L_BIAS, "out_bias", S, 0.7);
    check_result(c, L_LOGITS, "logits", CHECK_F32, N * S);
    check_result(c, L_DINP, "dinp", CHECK_F32, N * C);
    check_result(c, L_DWEIGHT, "dout_weight", CHECK_F32, S * C);
    check_result(c, L_DBIAS, "dout_bias", CHECK_F32, S);
}

static void linear_define(check_case *c) {
    const size_t N = c->size[0], C = c->size[1], S = c->size[2];
    for (size_t i = 0; i < N * S; i++) {
        const size_t t = i / S, s = i % S;
        const double d = (double)check_f32(c, L_DLOGITS)[i];
        double sum = (double)check_f32(c, L_BIAS)[s];
        for (size_t j = 0; j < C; j++) {
            const double inp = (double)check_f32(c, L_INP)[t * C + j], w = (double)check_f32(c, L_WEIGHT)[s * C + j];
            sum += w * inp;
            check_expected(c, L_DINP)[t * C + j] += d * w;
            check_expected(c, L_DWEIGHT)[s * C + j] += d * inp;
        }
        check_expected(c, L_LOGITS)[i] = sum;
        check_expected(c, L_DBIAS)[s] += d;
    }
}

static mom_status linear_run(check_case *c, const mom_exec *x, mom_error *err) {
    const mom_router_spec spec = {.kind = MOM_ROUTER_LINEAR, .C = c->size[1], .S = c->size[2]};
    const mom_router_tensors weights = {.out_weight = check_f32(c, L_WEIGHT), .out_bias = check_f32(c, L_BIAS)};
    mom_router_tensors gradients = {.out_weight = check_f32(c, L_DWEIGHT), .out_bias = check_f32(c, L_DBIAS)};
    const mom_router_inputs in = {.weights = &weights, .inp = check_f32(c, L_INP), .N = c->size[0]};
    const mom_router_gradients out = {.dinp = check_f32(c, L_DINP), .dweights = &gradients};
    mom_router_saved saved = {0};
    MOM_TRY(mom_router_forward(x, check_f32(c, L_LOGITS), &saved, &in, &spec, err));
    return mom_router_backward(x, &out, check_f32(c, L_DLOGITS), NULL, &in, &saved, &spec, err);
}

static const check_sizes linear_cases[] = {{{0, 3, 2}, 0}, {{1, 1, 1}, 0}, {{37, 19, 5}, 0}, {{90, 64, 33}, 0}};

/* ------------------------------------------------------------------ routers of lengths: N, C, R, S, M */

enum { M_INP, M_DLOGITS, M_WEIGHT, M_BIAS, M_LOGITS, M_HIDDEN, M_DINP, M_DWEIGHT, M_DBIAS };

static void norm_setup(check_case *c) {
    const size_t N = c->size[0], C = c->size[1], R = c->size[2], S = c->size[3];
    check_floats(c, M_INP, "inp", N * C, 1.0);
    check_floats(c, M_DLOGITS, "dlogits", N * S, 1.0);
    check_floats(c, M_WEIGHT, "in_weight", R * C, 0.7);
    check_floats(c, M_BIAS, "out_bias", S, 0.7);
    check_result(c, M_LOGITS, "logits", CHECK_F32, N * S);
    check_result(c, M_HIDDEN, "hidden", CHECK_F32, N * R);
    check_result(c, M_DINP, "dinp", CHECK_F32, N * C);
    check_result(c, M_DWEIGHT, "din_weight", CHECK_F32, R * C);
    check_result(c, M_DBIAS, "dout_bias", CHECK_F32, S);
    for (size_t j = 0; j < C && N > 2; j++) /* a token whose lengths are all 0 */
        check_set(c, M_INP, C + j, 0.0);
}

static void norm_define_hidden(check_case *c) {
    const size_t C = c->size[1], R = c->size[2];
    for (size_t i = 0; i < c->size[0] * R; i++) {
        double *hidden = check_expected(c, M_HIDDEN) + i;
        *hidden = 0.0;
        for (size_t j = 0; j < C; j++)
            *hidden += (double)check_f32(c, M_WEIGHT)[i % R * C + j] * (double)check_f32(c, M_INP)[i / R * C + j];
    }
}

/* Output m of token t, and the gradients that pass through it. */
static void norm_define_output(check_case *c, size_t t, size_t m) {
    const size_t C = c->size[1], R = c->size[2], S = c->size[3], M = c->size[4], D = R / M;
    const double *h = check_expected(c, M_HIDDEN) + t * R, d = (double)check_f32(c, M_DLOGITS)[t * S + m];
    double square = 0.0;
    for (size_t i = m * D; m < M && i < (m + 1) * D; i++)
        square += h[i] * h[i] / (double)D;
    check_expected(c, M_LOGITS)[t * S + m] = sqrt(square) + (double)check_f32(c, M_BIAS)[m];
    check_expected(c, M_DBIAS)[m] += d;
    for (size_t i = m * D; square > 0.0 && i < (m + 1) * D; i++) {
        const double dh = d * h[i] / ((double)D * sqrt(square));
        for (size_t j = 0; j < C; j++) {
            check_expected(c, M_DINP)[t * C + j] += dh * (double)check_f32(c, M_WEIGHT)[i * C + j];
            check_expected(c, M_DWEIGHT)[i * C + j] += dh * (double)check_f32(c, M_INP)[t * C + j];
        }
    }
}

static void norm_define(check_case *c) {
    norm_define_hidden(c);
    for (size_t t = 0; t < c->size[0]; t++)
        for (size_t s = 0; s < c->size[3]; s++)
            norm_define_output(c, t, s);
}

static mom_status norm_run(check_case *c, const mom_exec *x, mom_error *err) {
    const mom_router_spec spec = {.kind = MOM_ROUTER_NORM, .C = c->size[1], .R = c->size[2], .S = c->size[3], .M = c->size[4]};
    const mom_router_tensors weights = {.in_weight = check_f32(c, M_WEIGHT), .out_bias = check_f32(c, M_BIAS)};
    mom_router_tensors gradients = {.in_weight = check_f32(c, M_DWEIGHT), .out_bias = check_f32(c, M_DBIAS)};
    const mom_router_inputs in = {.weights = &weights, .inp = check_f32(c, M_INP), .N = c->size[0]};
    const mom_router_gradients out = {.dinp = check_f32(c, M_DINP), .dweights = &gradients};
    mom_router_saved saved = {.hidden = check_f32(c, M_HIDDEN)};
    MOM_TRY(mom_router_forward(x, check_f32(c, M_LOGITS), &saved, &in, &spec, err));
    return mom_router_backward(x, &out, check_f32(c, M_DLOGITS), NULL, &in, &saved, &spec, err);
}

/* Units that are left over, several SKIPs, modules of one unit, no unit for any module. */
static const check_sizes norm_cases[] = {
    {{0, 3, 4, 3, 2}, 0}, {{1, 1, 1, 1, 1}, 0}, {{37, 19, 21, 6, 5}, 0}, {{37, 19, 23, 9, 7}, 0},
    {{90, 64, 32, 5, 4}, 0}, {{40, 7, 6, 7, 6}, 0}, {{5, 4, 2, 4, 3}, 0},
};

/* ------------------------------------------------------------------ scores: N, S, K */

/* Options. */
#define NO_SOFTMAX 2u
#define RENORMALISE 4u

enum { OUTPUTS, DSCORES, DWEIGHT, SCORES, DOUTPUTS, INDEX, KEPT, DCHOSEN, SIGN, DSIGN };

#define TEMPERATURE 0.5

static void scores_setup(check_case *c) {
    const size_t N = c->size[0], S = c->size[1], K = c->size[2];
    check_floats(c, OUTPUTS, "logits", N * S, 2.0);
    check_floats(c, DSCORES, "dscores", N * S, 1.0);
    check_floats(c, DWEIGHT, "dweight", N * K, 3.0);
    check_result(c, SCORES, "scores", CHECK_F32, N * S);
    check_result(c, DOUTPUTS, "dlogits", CHECK_F32, N * S);
    check_result(c, INDEX, "index", CHECK_I16, N * K);
    check_result(c, KEPT, "weight", CHECK_F32, N * K);
    check_result(c, DCHOSEN, "dscores of the choices", CHECK_F32, N * S);
    check_result(c, SIGN, "sign", CHECK_F32, N * K);
    check_result(c, DSIGN, "gradient through the sign", CHECK_F32, N * K);
}

static void softmax_row(check_case *c, size_t t) {
    const size_t S = c->size[1];
    const float *logits = check_f32(c, OUTPUTS) + t * S, *dscores = check_f32(c, DSCORES) + t * S;
    double *scores = check_expected(c, SCORES) + t * S, sum = 0.0, mean = 0.0;
    for (size_t s = 0; s < S; s++)
        sum += scores[s] = exp((double)logits[s] / TEMPERATURE);
    for (size_t s = 0; s < S; s++) {
        scores[s] = c->options & NO_SOFTMAX ? (double)logits[s] : scores[s] / sum;
        mean += scores[s] * (double)dscores[s];
    }
    for (size_t s = 0; s < S; s++)
        check_expected(c, DOUTPUTS)[t * S + s] =
            c->options & NO_SOFTMAX ? (double)dscores[s] : scores[s] * ((double)dscores[s] - mean) / TEMPERATURE;
}

static void choose_row(check_case *c, size_t t) {
    const size_t S = c->size[1], K = c->size[2];
    const float *dweight = check_f32(c, DWEIGHT) + t * K;
    const double *scores = check_expected(c, SCORES) + t * S;
    double *index = check_expected(c, INDEX) + t * K, *kept = check_expected(c, KEPT) + t * K, sum = 0.0, mean = 0.0;
    for (size_t k = 0; k < K; k++) {
        double best = -INFINITY;
        for (size_t s = 0; s < S; s++) {
            const int below = !k || scores[s] < scores[(size_t)index[k - 1]];
            if (below && scores[s] > best) {
                best = scores[s];
                index[k] = (double)s;
            }
        }
        sum += kept[k] = best;
    }
    const double divisor = c->options & RENORMALISE ? sum : 1.0;
    for (size_t k = 0; k < K; k++)
        mean += (kept[k] /= divisor) * (double)dweight[k];
    for (size_t k = 0; k < K; k++) {
        const double d = (double)dweight[k];
        check_expected(c, DCHOSEN)[t * S + (size_t)index[k]] += (d - (c->options & RENORMALISE ? mean : 0.0)) / divisor;
        check_expected(c, SIGN)[t * K + k] = (double)((d > 0.0) - (d < 0.0));
        check_expected(c, DSIGN)[t * K + k] = fmin(fmax(d, -1.0), 1.0);
    }
}

static void scores_define(check_case *c) {
    for (size_t t = 0; t < c->size[0]; t++) {
        softmax_row(c, t);
        choose_row(c, t);
    }
}

static mom_status scores_run(check_case *c, const mom_exec *x, mom_error *err) {
    const size_t N = c->size[0], S = c->size[1], K = c->size[2];
    const int softmax = !(c->options & NO_SOFTMAX);
    const mom_topk_spec spec = {N, S, K, !!(c->options & RENORMALISE)};
    (void)err;
    mom_router_scores_forward(x, check_f32(c, SCORES), check_f32(c, OUTPUTS), softmax, (float)TEMPERATURE, N, S);
    mom_router_scores_backward(x, check_f32(c, DOUTPUTS), check_f32(c, DSCORES), check_f32(c, SCORES), softmax,
                               (float)TEMPERATURE, N, S);
    mom_router_topk_forward(x, check_i16(c, INDEX), check_f32(c, KEPT), check_f32(c, SCORES), &spec);
    mom_router_topk_backward(x, check_f32(c, DCHOSEN), check_f32(c, DWEIGHT), check_i16(c, INDEX), check_f32(c, KEPT),
                             check_f32(c, SCORES), &spec);
    mom_router_ste_forward(x, check_f32(c, SIGN), check_f32(c, DWEIGHT), N * K);
    mom_router_ste_backward(x, check_f32(c, DSIGN), check_f32(c, DWEIGHT), N * K);
    return MOM_OK;
}

static const check_sizes scores_cases[] = {
    {{0, 2, 1}, 0}, {{3, 1, 1}, 0}, {{3, 4, 0}, 0}, {{4, 3, 3}, RENORMALISE},
    {{71, 9, 2}, 0}, {{71, 9, 2}, RENORMALISE}, {{71, 9, 2}, NO_SOFTMAX}, {{500, 70, 3}, RENORMALISE},
};

/* ------------------------------------------------------------------ forced choices: N, S, K, M */

/* Options, beside RENORMALISE. */
#define UNSCORED 8u
#define FORBIDDEN 16u /* half of the choices, never the first one */
#define ALL_FREE 32u

enum { F_SCORES, F_OUTPUTS, F_FORCED, F_DWEIGHT, F_INDEX, F_WEIGHT, F_DSCORES };

/* Row t of the forced entries: names and numbers, none twice. */
static void draw_forced(check_case *c, size_t t) {
    const size_t S = c->size[1], K = c->size[2], M = c->size[3], choices = S > M ? S : S + 1;
    for (size_t k = 0; k < K; k++) {
        double entry = (double)check_random(c, t * K + k, choices + 3) - 3.0;
        for (size_t other = 0; other < k; other++)
            if (entry >= 0.0 && entry == (double)check_i16(c, F_FORCED)[t * K + other])
                entry = MOM_FREE;
        check_set(c, F_FORCED, t * K + k, entry);
    }
}

static void forced_setup(check_case *c) {
    const size_t N = c->size[0], S = c->size[1], K = c->size[2];
    check_floats(c, F_SCORES, "scores", N * S, 1.0);
    check_floats(c, F_OUTPUTS, "outputs", N * S, 1.0);
    check_integers(c, F_FORCED, "forced", CHECK_I16, N * K, 1);
    check_floats(c, F_DWEIGHT, "dweight", N * K, 1.0);
    check_result(c, F_INDEX, "index", CHECK_I16, N * K);
    check_result(c, F_WEIGHT, "weight", CHECK_F32, N * K);
    check_result(c, F_DSCORES, "dscores", CHECK_F32, N * S);
    for (size_t i = 0; i < N * S; i++) {
        const int forbidden = c->options & FORBIDDEN && i % S && check_random(c, i, 2);
        check_set(c, F_SCORES, i, forbidden ? 0.0 : (double)(float)(0.01 + fabs(check_input(c, F_SCORES, i))));
        if (forbidden)
            check_set(c, F_OUTPUTS, i, -INFINITY);
    }
    for (size_t t = 0; t < N; t++)
        draw_forced(c, t);
}

/* The best choice from `first` on that is not in the row yet. */
static double best_left(check_case *c, size_t t, size_t first, int allowed_only, double otherwise) {
    const size_t S = c->size[1], K = c->size[2];
    const float *scores = check_f32(c, F_SCORES) + t * S, *outputs = check_f32(c, F_OUTPUTS) + t * S;
    const double *index = check_expected(c, F_INDEX) + t * K;
    double best = otherwise, most = -1.0;
    for (size_t s = first; s < S; s++) {
        int possible = !allowed_only || outputs[s] > -INFINITY;
        for (size_t k = 0; k < K; k++)
            possible &= index[k] != (double)s;
        if (possible && (double)scores[s] > most) {
            most = (double)scores[s];
            best = (double)s;
        }
    }
    return best;
}

static double score_of(check_case *c, size_t t, double choice) {
    const size_t S = c->size[1];
    return choice >= 0.0 && choice < (double)S ? (double)check_f32(c, F_SCORES)[t * S + (size_t)choice] : 0.0;
}

static void weigh_forced(check_case *c, size_t t) {
    const size_t S = c->size[1], K = c->size[2];
    const double *index = check_expected(c, F_INDEX) + t * K;
    const float *dweight = check_f32(c, F_DWEIGHT) + t * K;
    double *weight = check_expected(c, F_WEIGHT) + t * K, sum = 0.0, kept = 0.0, mean = 0.0;
    const int renormalise = !!(c->options & RENORMALISE);
    for (size_t k = 0; k < K; k++) {
        sum += score_of(c, t, index[k]);
        kept += index[k] >= 0.0;
    }
    for (size_t k = 0; k < K; k++) {
        weight[k] = renormalise ? score_of(c, t, index[k]) / sum : score_of(c, t, index[k]);
        if (c->options & UNSCORED || (renormalise && sum == 0.0))
            weight[k] = index[k] >= 0.0 ? 1.0 / kept : 0.0;
        mean += weight[k] * (double)dweight[k];
    }
    for (size_t k = 0; k < K; k++)
        if (index[k] >= 0.0 && index[k] < (double)S && !(renormalise && sum == 0.0))
            check_expected(c, F_DSCORES)[t * S + (size_t)index[k]] +=
                renormalise ? ((double)dweight[k] - mean) / sum : (double)dweight[k];
}

static void forced_define(check_case *c) {
    const size_t S = c->size[1], K = c->size[2], M = c->size[3];
    for (size_t t = 0; t < c->size[0]; t++) {
        double *index = check_expected(c, F_INDEX) + t * K;
        for (size_t k = 0; k < K; k++)
            index[k] = c->options & ALL_FREE ? (double)MOM_FREE : (double)check_i16(c, F_FORCED)[t * K + k];
        for (size_t k = 0; k < K; k++)
            if (index[k] == (double)MOM_SKIP)
                index[k] = best_left(c, t, M, 0, (double)S);
        for (size_t k = 0; k < K; k++)
            if (index[k] == (double)MOM_FREE)
                index[k] = best_left(c, t, 0, 1, (double)MOM_NONE);
        weigh_forced(c, t);
    }
}

static mom_status forced_run(check_case *c, const mom_exec *x, mom_error *err) {
    const mom_forced_choices in = {.topk = {c->size[0], c->size[1], c->size[2], !!(c->options & RENORMALISE)},
                                   .M = c->size[3], .scores = check_f32(c, F_SCORES), .outputs = check_f32(c, F_OUTPUTS),
                                   .forced = c->options & ALL_FREE ? NULL : check_i16(c, F_FORCED),
                                   .scored = !(c->options & UNSCORED)};
    MOM_TRY(mom_forced_choices_forward(x, check_i16(c, F_INDEX), check_f32(c, F_WEIGHT), &in, err));
    mom_router_topk_backward(x, check_f32(c, F_DSCORES), check_f32(c, F_DWEIGHT), check_i16(c, F_INDEX),
                             check_f32(c, F_WEIGHT), in.scores, &in.topk);
    return MOM_OK;
}

static const check_sizes forced_cases[] = {
    {{0, 3, 2, 2}, 0},  {{3, 3, 0, 2}, RENORMALISE},           {{5, 2, 2, 2}, RENORMALISE},
    {{37, 4, 3, 3}, 0}, {{171, 9, 4, 6}, RENORMALISE},         {{71, 9, 4, 6}, FORBIDDEN},
    {{71, 1, 1, 0}, 0}, {{71, 5, 3, 5}, FORBIDDEN | RENORMALISE}, {{71, 9, 4, 6}, FORBIDDEN | RENORMALISE | ALL_FREE},
    {{71, 9, 4, 6}, ALL_FREE}, {{40, 70, 3, 68}, UNSCORED},
};

static const check_operator operators[] = {
    {"router", cell_setup, cell_define, cell_run, 1e-5, cell_cases, CHECK_LENGTH(cell_cases)},
    {"router of one linear map", linear_setup, linear_define, linear_run, 1e-5, linear_cases, CHECK_LENGTH(linear_cases)},
    {"router of lengths", norm_setup, norm_define, norm_run, 1e-5, norm_cases, CHECK_LENGTH(norm_cases)},
    {"router that hashes", hash_setup, hash_define, hash_run, 0.0, hash_cases, CHECK_LENGTH(hash_cases)},
    {"forced choices", forced_setup, forced_define, forced_run, 1e-5, forced_cases, CHECK_LENGTH(forced_cases)},
    {"scores", scores_setup, scores_define, scores_run, 1e-5, scores_cases, CHECK_LENGTH(scores_cases)},
};

void check_routers(void) { check_operators(operators, CHECK_LENGTH(operators)); }
