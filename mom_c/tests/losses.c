/* Cross entropy, the tied head, losses of classification, balance loss, z-loss, path loss and coupling loss against their
 * definitions. */
#include <math.h>
#include <string.h>

#include "base/rng.h"
#include "ops/balance_loss.h"
#include "ops/coupling_loss.h"
#include "ops/cross_entropy.h"
#include "ops/path_loss.h"
#include "ops/z_loss.h"
#include "tests/check.h"

/* ------------------------------------------------------------------ cross entropy: N, V */

enum { LOGITS, LABELS, LOSS, LSE, DLOGITS };

static void ignore_some(check_case *c, size_t slot, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (i % 5 == 3)
            check_set(c, slot, i, MOM_IGNORED_LABEL);
}

static void cross_entropy_setup(check_case *c) {
    const size_t N = c->size[0], V = c->size[1];
    check_floats(c, LOGITS, "logits", N * V, 5.0);
    check_integers(c, LABELS, "labels", CHECK_I32, N, V);
    ignore_some(c, LABELS, N);
    check_result(c, LOSS, "loss", CHECK_F32, N);
    check_result(c, LSE, "lse", CHECK_F32, N);
    check_result(c, DLOGITS, "dlogits", CHECK_F32, N * V);
}

static void cross_entropy_define(check_case *c) {
    const size_t N = c->size[0], V = c->size[1];
    for (size_t n = 0; n < N; n++) {
        const float *logits = check_f32(c, LOGITS) + n * V;
        const int32_t label = check_i32(c, LABELS)[n];
        double sum = 0.0;
        for (size_t v = 0; v < V; v++)
            sum += exp((double)logits[v]);
        check_expected(c, LSE)[n] = log(sum);
        check_expected(c, LOSS)[n] = label < 0 ? 0.0 : log(sum) - (double)logits[label];
        for (size_t v = 0; v < V; v++)
            check_expected(c, DLOGITS)[n * V + v] =
                label < 0 ? 0.0 : 0.5 * (exp((double)logits[v]) / sum - (v == (size_t)label));
    }
}

static mom_status cross_entropy_run(check_case *c, const mom_exec *x, mom_error *err) {
    const size_t N = c->size[0], V = c->size[1];
    (void)err;
    mom_cross_entropy_forward(x, check_f32(c, LOSS), check_f32(c, LSE), check_f32(c, LOGITS), check_i32(c, LABELS), N, V);
    mom_cross_entropy_backward(x, check_f32(c, DLOGITS), check_f32(c, LOGITS), check_f32(c, LSE), check_i32(c, LABELS),
                               0.5f, N, V);
    return MOM_OK;
}

static const check_sizes cross_entropy_cases[] = {{{0, 3}, 0}, {{1, 1}, 0}, {{4, 5}, 0}, {{71, 131}, 0}, {{20, 3000}, 0}};

/* ------------------------------------------------------------------ tied head: n labelled rows, V, C */

enum { HIDDEN, WTE, WHICH, LABEL, LOSS_SUM, ROW_LSE, DHIDDEN, DWTE, LOSS_AT_ONCE, DHIDDEN_AT_ONCE, DWTE_AT_ONCE,
       LOSS_ALONE };

/* Every second row of hidden has a label. */
static size_t hidden_rows(const check_case *c) { return 2 * c->size[0] + 1; }

static void head_setup(check_case *c) {
    const size_t n = c->size[0], V = c->size[1], C = c->size[2], N = hidden_rows(c);
    check_floats(c, HIDDEN, "hidden", N * C, 1.0);
    check_floats(c, WTE, "wte", V * C, 1.0);
    check_integers(c, WHICH, "rows", CHECK_I32, n, 1);
    for (size_t i = 0; i < n; i++)
        check_set(c, WHICH, i, (double)(2 * i + 1));
    check_integers(c, LABEL, "labels", CHECK_I32, n, V);
    check_result(c, LOSS_SUM, "loss_sum", CHECK_F64, 1);
    check_result(c, ROW_LSE, "lse", CHECK_F32, n);
    check_result(c, DHIDDEN, "dhidden", CHECK_F32, N * C);
    check_result(c, DWTE, "dwte", CHECK_F32, V * C);
    check_result(c, LOSS_AT_ONCE, "loss_sum with gradients", CHECK_F64, 1);
    check_result(c, DHIDDEN_AT_ONCE, "dhidden with the loss", CHECK_F32, N * C);
    check_result(c, DWTE_AT_ONCE, "dwte with the loss", CHECK_F32, V * C);
    check_result(c, LOSS_ALONE, "loss_sum alone", CHECK_F64, 1);
}

static double logit(const check_case *c, size_t row, size_t v) {
    const size_t C = c->size[2];
    double sum = 0.0;
    for (size_t i = 0; i < C; i++)
        sum += (double)check_f32(c, HIDDEN)[row * C + i] * (double)check_f32(c, WTE)[v * C + i];
    return sum;
}

static void head_define_row(check_case *c, size_t i) {
    const size_t V = c->size[1], C = c->size[2], row = (size_t)check_i32(c, WHICH)[i];
    const size_t label = (size_t)check_i32(c, LABEL)[i];
    double sum = 0.0;
    for (size_t v = 0; v < V; v++)
        sum += exp(logit(c, row, v));
    check_expected(c, ROW_LSE)[i] = log(sum);
    check_expected(c, LOSS_SUM)[0] += log(sum) - logit(c, row, label);
    for (size_t v = 0; v < V; v++) {
        const double d = exp(logit(c, row, v)) / sum - (v == label);
        for (size_t j = 0; j < C; j++) {
            const double hidden = (double)check_f32(c, HIDDEN)[row * C + j], weight = (double)check_f32(c, WTE)[v * C + j];
            check_expected(c, DHIDDEN)[row * C + j] += 0.25 * d * weight;
            check_expected(c, DWTE)[v * C + j] += 0.25 * d * hidden;
            check_expected(c, DHIDDEN_AT_ONCE)[row * C + j] += d * weight;
            check_expected(c, DWTE_AT_ONCE)[v * C + j] += d * hidden;
        }
    }
}

static void head_define(check_case *c) {
    const size_t n = c->size[0], V = c->size[1], C = c->size[2];
    check_expected(c, LOSS_SUM)[0] = 0.0;
    for (size_t i = 0; i < n; i++)
        memset(check_expected(c, DHIDDEN_AT_ONCE) + (size_t)check_i32(c, WHICH)[i] * C, 0, C * sizeof(double));
    if (n)
        memset(check_expected(c, DWTE_AT_ONCE), 0, V * C * sizeof(double));
    for (size_t i = 0; i < n; i++)
        head_define_row(c, i);
    check_expected(c, LOSS_AT_ONCE)[0] = check_expected(c, LOSS_ALONE)[0] = check_expected(c, LOSS_SUM)[0];
}

static mom_status head_run(check_case *c, const mom_exec *x, mom_error *err) {
    const mom_lm_head head = {.hidden = check_f32(c, HIDDEN), .wte = check_f32(c, WTE), .rows = check_i32(c, WHICH),
                              .labels = check_i32(c, LABEL), .n = c->size[0], .V = c->size[1], .C = c->size[2]};
    float *lse = check_f32(c, ROW_LSE);
    double sum[3];
    MOM_TRY(mom_lm_head_forward(x, &sum[0], lse, &head, err));
    MOM_TRY(mom_lm_head_backward(x, check_f32(c, DHIDDEN), check_f32(c, DWTE), &head, lse, 0.25f, err));
    MOM_TRY(mom_lm_head_gradient(x, &sum[1], check_f32(c, DHIDDEN_AT_ONCE), check_f32(c, DWTE_AT_ONCE), &head, err));
    MOM_TRY(mom_lm_head_gradient(x, &sum[2], NULL, NULL, &head, err));
    mom_copy(x, check_f64(c, LOSS_SUM), &sum[0], sizeof *sum);
    mom_copy(x, check_f64(c, LOSS_AT_ONCE), &sum[1], sizeof *sum);
    mom_copy(x, check_f64(c, LOSS_ALONE), &sum[2], sizeof *sum);
    return MOM_OK;
}

static const check_sizes head_cases[] = {{{0, 3, 2}, 0}, {{1, 1, 1}, 0}, {{4, 5, 3}, 0}, {{35, 131, 33}, 0},
                                         {{20, 513, 19}, 0}, {{9, 2100, 24}, 0}};

/* ------------------------------------------------------------------ classification: B, L, kind */

enum { OUTPUTS, CLASSES, VALUES, MEAN_LOSS, DOUTPUTS };

static void labels_setup(check_case *c) {
    const size_t B = c->size[0], L = c->size[1];
    check_floats(c, OUTPUTS, "logits", B * L, 3.0);
    check_integers(c, CLASSES, "classes", CHECK_I32, B, L);
    ignore_some(c, CLASSES, B);
    check_floats(c, VALUES, "values", B * L, 1.0);
    for (size_t i = 0; i < B * L; i++)
        check_set(c, VALUES, i, fabs(check_input(c, VALUES, i)));
    check_result(c, MEAN_LOSS, "loss", CHECK_F64, 1);
    check_result(c, DOUTPUTS, "dlogits", CHECK_F32, B * L);
}

static void labels_define(check_case *c) {
    const size_t B = c->size[0], L = c->size[1];
    const mom_label_loss kind = (mom_label_loss)c->size[2];
    size_t counted = 0;
    for (size_t b = 0; b < B; b++)
        counted += check_i32(c, CLASSES)[b] >= 0;
    const double terms = kind == MOM_LOSS_CROSS_ENTROPY ? (double)counted : (double)(B * L);
    double loss = 0.0;
    for (size_t i = 0; i < B * L; i++) {
        const double v = (double)check_f32(c, OUTPUTS)[i], target = (double)check_f32(c, VALUES)[i];
        const int32_t label = check_i32(c, CLASSES)[i / L];
        double d = 2.0 * (v - target), sum = 0.0;
        for (size_t j = 0; j < L; j++)
            sum += exp((double)check_f32(c, OUTPUTS)[i / L * L + j]);
        if (kind == MOM_LOSS_MSE)
            loss += (v - target) * (v - target) / terms;
        if (kind == MOM_LOSS_BCE) {
            loss += (log(1.0 + exp(v)) - target * v) / terms;
            d = 1.0 / (1.0 + exp(-v)) - target;
        }
        if (kind == MOM_LOSS_CROSS_ENTROPY) {
            const int right = (size_t)label == i % L;
            loss += label >= 0 && right ? (log(sum) - v) / terms : 0.0;
            d = label >= 0 ? exp(v) / sum - right : 0.0;
        }
        check_expected(c, DOUTPUTS)[i] = 2.0 * d / terms;
    }
    check_expected(c, MEAN_LOSS)[0] = loss;
}

static mom_status labels_run(check_case *c, const mom_exec *x, mom_error *err) {
    const size_t B = c->size[0], L = c->size[1];
    const mom_label_loss kind = (mom_label_loss)c->size[2];
    (void)err;
    if (x->dry_run)
        return MOM_OK; /* a serial loop of its caller's */
    check_f64(c, MEAN_LOSS)[0] = mom_label_loss_compute(x, check_f32(c, DOUTPUTS), check_f32(c, OUTPUTS),
                                                        check_i32(c, CLASSES), check_f32(c, VALUES), kind, 2.0f, B, L);
    return MOM_OK;
}

static const check_sizes labels_cases[] = {
    {{1, 1, MOM_LOSS_MSE}, 0},           {{5, 3, MOM_LOSS_MSE}, 0}, {{1, 1, MOM_LOSS_CROSS_ENTROPY}, 0},
    {{5, 3, MOM_LOSS_CROSS_ENTROPY}, 0}, {{1, 1, MOM_LOSS_BCE}, 0}, {{5, 3, MOM_LOSS_BCE}, 0},
};

/* ------------------------------------------------------------------ balance: N, S */

/* Options. */
#define SOFTMAX 2u
#define MASK 4u
#define USED 8u           /* first choices are given, every third of them none */
#define NOTHING_USED 16u  /* no token has made a choice */

enum { SCORES, COUNTED, CHOICES, COUNTS, PROB_SUMS, TOKENS, BALANCE, DSCORES };

static void balance_setup(check_case *c) {
    const size_t N = c->size[0], S = c->size[1];
    check_floats(c, SCORES, "scores", N * S, 1.0);
    check_integers(c, COUNTED, "mask", CHECK_U8, N, 2);
    check_integers(c, CHOICES, "used", CHECK_I16, 2 * N, S + 1); /* two of each token; S has no score */
    for (size_t i = 0; i < N; i += 3)
        check_set(c, CHOICES, 2 * i, -2.0);
    check_result(c, COUNTS, "counts", CHECK_F64, S);
    check_result(c, PROB_SUMS, "prob_sums", CHECK_F64, S);
    check_result(c, TOKENS, "tokens", CHECK_F64, 1);
    check_result(c, BALANCE, "loss", CHECK_F64, 1);
    check_result(c, DSCORES, "dscores", CHECK_F32, N * S);
    for (size_t s = 0; s < S; s++) {
        check_set(c, COUNTS, s, check_expected(c, COUNTS)[s] = 1.0 + (double)s);
        check_set(c, PROB_SUMS, s, check_expected(c, PROB_SUMS)[s] = 0.5);
    }
    check_set(c, TOKENS, 0, check_expected(c, TOKENS)[0] = 2.0);
}

/* The probability of choice s for a token. */
static double probability(const check_case *c, size_t n, size_t s) {
    const size_t S = c->size[1];
    const float *scores = check_f32(c, SCORES) + n * S;
    double sum = 0.0;
    for (size_t i = 0; i < S; i++)
        sum += exp((double)scores[i]);
    return c->options & SOFTMAX ? exp((double)scores[s]) / sum : (double)scores[s];
}

static void balance_define(check_case *c) {
    const size_t N = c->size[0], S = c->size[1];
    double *counts = check_expected(c, COUNTS), *sums = check_expected(c, PROB_SUMS), *tokens = check_expected(c, TOKENS);
    double total = 0.0, loss = 0.0;
    for (size_t n = 0; n < N; n++) {
        size_t best = 0;
        if (c->options & MASK && !check_u8(c, COUNTED)[n])
            continue;
        for (size_t s = 0; s < S; s++) {
            best = check_f32(c, SCORES)[n * S + s] > check_f32(c, SCORES)[n * S + best] ? s : best;
            sums[s] += probability(c, n, s);
        }
        if (c->options & USED)
            best = (size_t)check_i16(c, CHOICES)[2 * n];
        if (best < S && !(c->options & NOTHING_USED))
            counts[best] += 1.0;
        tokens[0] += 1.0;
    }
    for (size_t s = 0; s < S; s++)
        total += counts[s];
    for (size_t s = 0; s < S; s++)
        loss += (double)S * counts[s] / total * sums[s] / tokens[0];
    check_expected(c, BALANCE)[0] = loss;
    for (size_t n = 0; n < N; n++) {
        double mean = 0.0;
        if (c->options & MASK && !check_u8(c, COUNTED)[n])
            continue;
        for (size_t s = 0; s < S; s++)
            mean += probability(c, n, s) * counts[s] / total;
        for (size_t s = 0; s < S; s++) {
            const double share = counts[s] / total, p = probability(c, n, s);
            check_expected(c, DSCORES)[n * S + s] +=
                3.0 * (double)S / tokens[0] * (c->options & SOFTMAX ? p * (share - mean) : share);
        }
    }
}

static mom_status balance_run(check_case *c, const mom_exec *x, mom_error *err) {
    const size_t S = c->size[1];
    const mom_balance_scores in = {.scores = check_f32(c, SCORES), .mask = c->options & MASK ? check_u8(c, COUNTED) : NULL,
                                   .softmax = !!(c->options & SOFTMAX), .N = c->size[0], .S = S,
                                   .used = c->options & (USED | NOTHING_USED) ? check_i16(c, CHOICES) : NULL,
                                   .used_stride = c->options & USED ? 2 : 0};
    double *counts = check_f64(c, COUNTS), *tokens = check_f64(c, TOKENS), total = 0.0;
    MOM_TRY(mom_balance_accumulate(x, counts, check_f64(c, PROB_SUMS), tokens, &in, err));
    for (size_t s = 0; s < S; s++)
        total += counts[s];
    if (!x->dry_run)
        check_f64(c, BALANCE)[0] = mom_balance_loss(counts, total, check_f64(c, PROB_SUMS), tokens[0], S);
    mom_balance_backward(x, check_f32(c, DSCORES), &in, counts, total, tokens[0], 3.0f);
    return MOM_OK;
}

static const check_sizes balance_cases[] = {{{0, 2}, 0}, {{1, 1}, SOFTMAX}, {{4, 3}, 0}, {{701, 7}, SOFTMAX},
                                            {{701, 7}, MASK}, {{301, 5}, MASK | SOFTMAX},
                                            {{301, 5}, USED | MASK}, {{40, 3}, NOTHING_USED}};

/* ------------------------------------------------------------------ z-loss: N, S; options as above */

enum { ROUTED, REAL, SUM, ROWS, DROUTED };

static void z_setup(check_case *c) {
    const size_t N = c->size[0], S = c->size[1];
    check_floats(c, ROUTED, "outputs", N * S, 5.0);
    check_integers(c, REAL, "mask", CHECK_U8, N, 2);
    check_result(c, SUM, "sum", CHECK_F64, 1);
    check_result(c, ROWS, "tokens", CHECK_F64, 1);
    check_result(c, DROUTED, "doutputs", CHECK_F32, N * S);
    check_set(c, SUM, 0, check_expected(c, SUM)[0] = 4.0);
}

static void z_define(check_case *c) {
    const size_t N = c->size[0], S = c->size[1];
    check_expected(c, ROWS)[0] = 0.0;
    for (size_t n = 0; n < N; n++) {
        const float *outputs = check_f32(c, ROUTED) + n * S;
        double sum = 0.0;
        if (c->options & MASK && !check_u8(c, REAL)[n])
            continue;
        for (size_t s = 0; s < S; s++)
            sum += exp((double)outputs[s]);
        check_expected(c, SUM)[0] += log(sum) * log(sum);
        check_expected(c, ROWS)[0] += 1.0;
        for (size_t s = 0; s < S; s++)
            check_expected(c, DROUTED)[n * S + s] += 3.0 * 2.0 * log(sum) * exp((double)outputs[s]) / sum;
    }
}

static mom_status z_run(check_case *c, const mom_exec *x, mom_error *err) {
    const mom_router_outputs in = {check_f32(c, ROUTED), c->options & MASK ? check_u8(c, REAL) : NULL, c->size[0], c->size[1]};
    MOM_TRY(mom_z_loss_add(x, check_f64(c, SUM), check_f64(c, ROWS), &in, err));
    mom_z_loss_backward(x, check_f32(c, DROUTED), &in, 3.0f);
    return MOM_OK;
}

static const check_sizes z_cases[] = {{{0, 2}, 0}, {{1, 1}, 0}, {{4, 3}, 0}, {{701, 7}, MASK}, {{301, 131}, 0}};

/* ------------------------------------------------------------------ path loss: N, S, M, rounds; options as above */

#define MOST_ROUNDS 4

enum { MARKED, LOSSES, MARKS, DPATH, BY_ROUND };

static void path_setup(check_case *c) {
    static const char *const names[MOST_ROUNDS] = {"scores of round 0", "scores of round 1", "scores of round 2",
                                                   "scores of round 3"};
    const size_t N = c->size[0], S = c->size[1], M = c->size[2];
    check_integers(c, MARKED, "mask", CHECK_U8, N, 2);
    check_result(c, LOSSES, "sum", CHECK_F64, 1);
    check_result(c, MARKS, "tokens", CHECK_F64, 1);
    check_result(c, DPATH, "dscores", CHECK_F32, N * S);
    check_set(c, LOSSES, 0, check_expected(c, LOSSES)[0] = 4.0);
    for (size_t r = 0; r < c->size[3]; r++) {
        check_floats(c, BY_ROUND + r, names[r], N * S, 1.0);
        for (size_t i = 0; i < N * S; i++) /* every seventh token is at SKIP in all rounds */
            check_set(c, BY_ROUND + r, i, i / S % 7 == 6 && i % S < M ? 0.0 : fabs(check_input(c, BY_ROUND + r, i)));
    }
}

static double path_mean(const check_case *c, size_t n, size_t s) {
    double sum = 0.0;
    for (size_t r = 0; r < c->size[3]; r++)
        sum += (double)check_f32(c, BY_ROUND + r)[n * c->size[1] + s];
    return sum / (double)c->size[3];
}

static void path_define(check_case *c) {
    const size_t N = c->size[0], S = c->size[1], M = c->size[2];
    check_expected(c, MARKS)[0] = 0.0;
    for (size_t n = 0; n < N; n++) {
        double sum = 0.0, squares = 0.0;
        if (c->options & MASK && !check_u8(c, MARKED)[n])
            continue;
        check_expected(c, MARKS)[0] += 1.0;
        for (size_t m = 0; m < M; m++) {
            sum += path_mean(c, n, m);
            squares += path_mean(c, n, m) * path_mean(c, n, m);
        }
        if (sum == 0.0)
            continue;
        check_expected(c, LOSSES)[0] += (double)M * squares / (sum * sum);
        for (size_t m = 0; m < M; m++)
            check_expected(c, DPATH)[n * S + m] += 3.0 * (double)M / (double)c->size[3] *
                                                   (2.0 * path_mean(c, n, m) / (sum * sum) - 2.0 * squares / (sum * sum * sum));
    }
}

static mom_status path_run(check_case *c, const mom_exec *x, mom_error *err) {
    const float *scores[MOST_ROUNDS] = {NULL};
    for (size_t r = 0; r < c->size[3]; r++)
        scores[r] = check_f32(c, BY_ROUND + r);
    const mom_path path = {scores, c->size[3], c->options & MASK ? check_u8(c, MARKED) : NULL, c->size[0], c->size[1], c->size[2]};
    MOM_TRY(mom_path_loss_add(x, check_f64(c, LOSSES), check_f64(c, MARKS), &path, err));
    mom_path_loss_backward(x, check_f32(c, DPATH), &path, 3.0f);
    return MOM_OK;
}

static const check_sizes path_cases[] = {{{0, 2, 1, 1}, 0}, {{1, 1, 1, 1}, 0}, {{4, 3, 3, 2}, 0}, {{701, 7, 5, 4}, MASK},
                                         {{301, 131, 130, 3}, 0}};

/* ------------------------------------------------------------------ coupling loss: maps, S, M, C, F; options */

#define TRAINING 1u
#define FROZEN 2u /* matrices and their biases get no gradient */
#define EQUAL 4u  /* all rows of the map are zero */
#define MOST_MODULES 9

enum { MAP, NORM_WEIGHT, NORM_BIAS, WEIGHT, BIAS, COUPLED, DMAP, DNORM_WEIGHT, DNORM_BIAS, DWEIGHT, DBIAS };

static const uint64_t coupling_key = 77;

static void coupling_setup(check_case *c) {
    const size_t S = c->size[1], M = c->size[2], C = c->size[3], F = c->size[4], maps = c->size[0] * S * C;
    check_floats(c, MAP, "map", maps, c->options & EQUAL ? 0.0 : 1.0);
    check_floats(c, NORM_WEIGHT, "weights of LayerNorms", M * C, 1.0);
    check_floats(c, NORM_BIAS, "biases of LayerNorms", M * C, 0.2);
    check_floats(c, WEIGHT, "weights", M * C * F, 1.0);
    check_floats(c, BIAS, "biases", M * F, 0.5);
    check_result(c, COUPLED, "sum", CHECK_F64, 1);
    check_result(c, DMAP, "dmap", CHECK_F32, maps);
    check_result(c, DNORM_WEIGHT, "gradients of weights of LayerNorms", CHECK_F32, M * C);
    check_result(c, DNORM_BIAS, "gradients of biases of LayerNorms", CHECK_F32, M * C);
    check_result(c, DWEIGHT, "gradients of weights", CHECK_F32, M * C * F);
    check_result(c, DBIAS, "gradients of biases", CHECK_F32, M * F);
    check_set(c, COUPLED, 0, check_expected(c, COUPLED)[0] = 4.0);
}

/* Component k of row i of the mean of the maps. */
static double coupling_row(const check_case *c, size_t i, size_t k) {
    double sum = 0.0;
    for (size_t r = 0; r < c->size[0]; r++)
        sum += (double)check_f32(c, MAP)[(r * c->size[1] + i) * c->size[3] + k];
    return sum / (double)c->size[0];
}

/* The distance of rows i and j; the length of row i if they are the same. */
static double coupling_distance(const check_case *c, size_t i, size_t j) {
    double sum = 0.0;
    for (size_t k = 0; k < c->size[3]; k++)
        sum += pow(coupling_row(c, i, k) - (i == j ? 0.0 : coupling_row(c, j, k)), 2.0);
    return sqrt(sum);
}

static double coupling_delta(const check_case *c, size_t i, size_t k) {
    const double u = (double)mom_rng_uniform(coupling_key, i * c->size[3] + k), length = coupling_distance(c, i, i);
    double nearest = INFINITY;
    for (size_t j = 0; j < c->size[2]; j++)
        nearest = j == i ? nearest : fmin(nearest, coupling_distance(c, i, j));
    return !(c->options & TRAINING) || length == 0.0 ? 1.0 : 1.0 + nearest / (2.0 * length) * (2.0 * u - 1.0);
}

#define EPS 1e-5
#define MOST_WIDTH 64

/* One proxy in one module. */
typedef struct {
    double xhat[MOST_WIDTH], rstd, out[MOST_WIDTH], length;
} coupling_pair;

static coupling_pair coupling_excite(const check_case *c, size_t i, size_t j) {
    const size_t C = c->size[3], F = c->size[4];
    coupling_pair p = {.length = 0.0};
    double mean = 0.0, square = 0.0;
    for (size_t k = 0; k < C; k++) {
        p.xhat[k] = coupling_row(c, i, k) * coupling_delta(c, i, k);
        mean += p.xhat[k] / (double)C;
    }
    for (size_t k = 0; k < C; k++)
        square += pow(p.xhat[k] - mean, 2.0) / (double)C;
    p.rstd = 1.0 / sqrt(square + EPS);
    for (size_t k = 0; k < C; k++)
        p.xhat[k] = (p.xhat[k] - mean) * p.rstd;
    for (size_t f = 0; f < F; f++) {
        p.out[f] = (double)check_f32(c, BIAS)[j * F + f];
        for (size_t k = 0; k < C; k++)
            p.out[f] += (p.xhat[k] * (double)check_f32(c, NORM_WEIGHT)[j * C + k] + (double)check_f32(c, NORM_BIAS)[j * C + k]) *
                        (double)check_f32(c, WEIGHT)[(j * C + k) * F + f];
        p.length += p.out[f] * p.out[f];
    }
    p.length = sqrt(p.length);
    return p;
}

/* Adds the gradients of `slope` times the length of proxy i in module j. */
static void coupling_define_pair(check_case *c, size_t i, size_t j, double slope) {
    const size_t C = c->size[3], F = c->size[4];
    const coupling_pair p = coupling_excite(c, i, j);
    double dxhat[MOST_WIDTH], sum = 0.0, along = 0.0;
    for (size_t f = 0; f < F && !(c->options & FROZEN); f++)
        check_expected(c, DBIAS)[j * F + f] += slope * p.out[f] / p.length;
    for (size_t k = 0; k < C; k++) {
        const double weight = (double)check_f32(c, NORM_WEIGHT)[j * C + k];
        const double normed = p.xhat[k] * weight + (double)check_f32(c, NORM_BIAS)[j * C + k];
        double dnormed = 0.0;
        for (size_t f = 0; f < F; f++) {
            const double dout = slope * p.out[f] / p.length;
            dnormed += dout * (double)check_f32(c, WEIGHT)[(j * C + k) * F + f];
            if (!(c->options & FROZEN))
                check_expected(c, DWEIGHT)[(j * C + k) * F + f] += dout * normed;
        }
        check_expected(c, DNORM_WEIGHT)[j * C + k] += dnormed * p.xhat[k];
        check_expected(c, DNORM_BIAS)[j * C + k] += dnormed;
        dxhat[k] = dnormed * weight;
        sum += dxhat[k] / (double)C;
        along += dxhat[k] * p.xhat[k] / (double)C;
    }
    for (size_t k = 0; k < C; k++)
        for (size_t r = 0; r < c->size[0]; r++)
            check_expected(c, DMAP)[(r * c->size[1] + i) * C + k] +=
                p.rstd * (dxhat[k] - sum - p.xhat[k] * along) * coupling_delta(c, i, k) / (double)c->size[0];
}

static void coupling_define(check_case *c) {
    const size_t M = c->size[2];
    double length[MOST_MODULES][MOST_MODULES], slopes[MOST_MODULES][MOST_MODULES] = {{0.0}};
    for (size_t i = 0; i < M; i++)
        for (size_t j = 0; j < M; j++)
            length[i][j] = coupling_excite(c, i, j).length;
    for (size_t i = 0; i < M; i++)
        for (size_t j = 0; j < M; j++) {
            const double by_row = length[i][j] - length[i][i], by_module = length[j][i] - length[i][i];
            if (by_row > 1e-12) {
                check_expected(c, COUPLED)[0] += by_row / (double)(M * M);
                slopes[i][j] += 1.0;
                slopes[i][i] -= 1.0;
            }
            if (by_module > 1e-12) {
                check_expected(c, COUPLED)[0] += by_module / (double)(M * M);
                slopes[j][i] += 1.0;
                slopes[i][i] -= 1.0;
            }
        }
    for (size_t i = 0; i < M; i++)
        for (size_t j = 0; j < M; j++)
            coupling_define_pair(c, i, j, 3.0 * slopes[i][j] / (double)(M * M));
}

static mom_status coupling_run(check_case *c, const mom_exec *x, mom_error *err) {
    const size_t M = c->size[2], C = c->size[3], F = c->size[4];
    const float *values[4][MOST_MODULES];
    float *gradients[4][MOST_MODULES];
    const size_t sizes[4] = {C, C, C * F, F};
    for (size_t t = 0; t < 4; t++)
        for (size_t m = 0; m < M; m++) {
            values[t][m] = check_f32(c, NORM_WEIGHT + t) + m * sizes[t];
            gradients[t][m] = check_f32(c, DNORM_WEIGHT + t) + m * sizes[t];
        }
    const mom_coupling in = {.map = check_f32(c, MAP), .maps = c->size[0], .S = c->size[1], .M = M, .C = C,
                             .ln_weight = values[0], .ln_bias = values[1], .ln_eps = (float)EPS,
                             .layer = {C, F, values[2], values[3], NULL}, .training = !!(c->options & TRAINING),
                             .key = coupling_key};
    mom_half_gradient gradient = {.ln_weight = gradients[0], .ln_bias = gradients[1]};
    if (!(c->options & FROZEN)) {
        gradient.weight = gradients[2];
        gradient.bias = gradients[3];
    }
    MOM_TRY(mom_coupling_loss_add(x, check_f64(c, COUPLED), &in, err));
    return mom_coupling_loss_backward(x, check_f32(c, DMAP), &gradient, &in, 3.0f, err);
}

static const check_sizes coupling_cases[] = {{{1, 2, 2, 1, 1}, 0},         {{1, 3, 2, 4, 5}, TRAINING},
                                             {{3, 6, 4, 17, 33}, TRAINING}, {{1, 9, 9, 31, 64}, FROZEN},
                                             {{2, 5, 5, 24, 40}, TRAINING | FROZEN}, {{1, 4, 3, 16, 20}, EQUAL | TRAINING}};

static const check_operator operators[] = {
    {"cross_entropy", cross_entropy_setup, cross_entropy_define, cross_entropy_run, 1e-5, cross_entropy_cases,
     CHECK_LENGTH(cross_entropy_cases)},
    {"lm_head", head_setup, head_define, head_run, 1e-5, head_cases, CHECK_LENGTH(head_cases)},
    {"label_loss", labels_setup, labels_define, labels_run, 1e-5, labels_cases, CHECK_LENGTH(labels_cases)},
    {"balance_loss", balance_setup, balance_define, balance_run, 1e-5, balance_cases, CHECK_LENGTH(balance_cases)},
    {"z_loss", z_setup, z_define, z_run, 1e-5, z_cases, CHECK_LENGTH(z_cases)},
    {"path_loss", path_setup, path_define, path_run, 1e-5, path_cases, CHECK_LENGTH(path_cases)},
    {"coupling_loss", coupling_setup, coupling_define, coupling_run, 1e-5, coupling_cases, CHECK_LENGTH(coupling_cases)},
};

void check_losses(void) { check_operators(operators, CHECK_LENGTH(operators)); }
