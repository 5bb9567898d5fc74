/* AdamW, the norm of gradients, their scaling and their sums over ranks against their definitions. */
#include <math.h>

#include "ops/adamw.h"
#include "ops/add_pieces.h"
#include "ops/elementwise.h"
#include "tests/check.h"

/* ------------------------------------------------------------------ sizes: n, rows, width
 *
 * Tensor 0 has n elements and weight decay. Tensor 1 has n elements and no gradient in this step. Tensor 2 is an
 * embedding (rows, width), with every third row touched. */

enum { GRADIENT, PARAM, EXP_AVG, EXP_AVG_SQ, TENSORS_END = 12, TOUCHED = TENSORS_END, NORM, SCALED };

static size_t length(const check_case *c, size_t tensor) { return tensor == 2 ? c->size[1] * c->size[2] : c->size[0]; }
static int touched(const check_case *c, size_t tensor, size_t i) { return tensor != 2 || i / c->size[2] % 3 == 0; }

static void setup(check_case *c) {
    for (size_t t = 0; t < 3; t++) {
        const size_t slot = 4 * t, n = length(c, t);
        check_result(c, slot + GRADIENT, "gradient", CHECK_F32, n);
        check_result(c, slot + PARAM, "parameter", CHECK_F32, n);
        check_result(c, slot + EXP_AVG, "exp_avg", CHECK_F32, n);
        check_result(c, slot + EXP_AVG_SQ, "exp_avg_sq", CHECK_F32, n);
        for (size_t i = 0; i < n; i++) {
            const double square = fabs(check_input(c, slot + EXP_AVG_SQ, i)) + 0.01;
            check_set(c, slot + EXP_AVG_SQ, i, square);
            if (!touched(c, t, i))
                check_set(c, slot + GRADIENT, i, 0.0);
            for (size_t s = slot; s < slot + 4; s++)
                check_expected(c, s)[i] = check_input(c, s, i);
        }
    }
    check_integers(c, TOUCHED, "touched", CHECK_U8, c->size[1], 1);
    for (size_t r = 0; r < c->size[1]; r++)
        check_set(c, TOUCHED, r, r % 3 == 0);
    check_result(c, NORM, "norm", CHECK_F64, 1);
    check_result(c, SCALED, "scaled gradient", CHECK_F32, c->size[0]);
}

/* The third step of a tensor; gradients count a quarter. */
static void define_step(check_case *c, size_t slot, size_t i, double decay) {
    double *param = check_expected(c, slot + PARAM) + i, *m = check_expected(c, slot + EXP_AVG) + i;
    double *v = check_expected(c, slot + EXP_AVG_SQ) + i, g = 0.25 * check_expected(c, slot + GRADIENT)[i];
    *m = 0.9 * *m + 0.1 * g;
    *v = 0.95 * *v + 0.05 * g * g;
    *param *= 1.0 - 0.01 * decay;
    *param -= 0.01 * (*m / (1.0 - pow(0.9, 3.0))) / (sqrt(*v / (1.0 - pow(0.95, 3.0))) + 1e-5);
    check_expected(c, slot + GRADIENT)[i] = 0.0;
}

static void define(check_case *c) {
    double sum = 0.0;
    for (size_t t = 0; t < 3; t++)
        for (size_t i = 0; i < length(c, t); i++) {
            const double g = check_expected(c, 4 * t + GRADIENT)[i];
            if (t != 1) {
                sum += g * g;
                define_step(c, 4 * t, i, t == 0 ? 0.1 : 0.0);
            } else {
                check_expected(c, 4 * t + GRADIENT)[i] = 0.0;
            }
        }
    check_expected(c, NORM)[0] = sqrt(sum);
    for (size_t i = 0; i < c->size[0]; i++)
        check_expected(c, SCALED)[i] *= 0.5;
}

static mom_status run(check_case *c, const mom_exec *x, mom_error *err) {
    mom_adamw_tensor tensors[3], scaled = {.grad = check_f32(c, SCALED), .n = c->size[0], .used = 1};
    for (size_t t = 0; t < 3; t++)
        tensors[t] = (mom_adamw_tensor){.param = check_f32(c, 4 * t + PARAM), .grad = check_f32(c, 4 * t + GRADIENT),
                                        .exp_avg = check_f32(c, 4 * t + EXP_AVG),
                                        .exp_avg_sq = check_f32(c, 4 * t + EXP_AVG_SQ),
                                        .n = length(c, t), .step = 2.0, .decay = t == 0, .used = t != 1};
    tensors[2].width = c->size[2];
    tensors[2].touched = check_u8(c, TOUCHED);
    const mom_adamw_spec spec = {.lr = 0.01, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-5, .weight_decay = 0.1,
                                 .grad_scale = 0.25f, .zero_grad = 1};
    double norm;
    MOM_TRY(mom_grad_norm(x, &norm, tensors, 3, err));
    mom_copy(x, check_f64(c, NORM), &norm, sizeof norm);
    mom_adamw_step(x, tensors, 3, &spec);
    check_that(tensors[0].step == 3.0 && tensors[1].step == 2.0 && tensors[2].step == 3.0, "adamw: wrong numbers of steps");
    mom_grad_scale(x, &scaled, 1, 0.5f);
    return MOM_OK;
}

/* ------------------------------------------------------------------ sums of pieces, and copies in bfloat16; size: n */

enum { PIECES = 3, WIDE = PIECES, NARROW, BACK, SENT };

static void setup_pieces(check_case *c) {
    for (size_t piece = 0; piece < PIECES; piece++)
        check_result(c, piece, "piece", CHECK_F32, c->size[0]);
    check_floats(c, WIDE, "numbers", c->size[0], 3.0);
    check_result(c, NARROW, "copies", CHECK_BF16, c->size[0]);
    check_bfloats(c, SENT, "sent", c->size[0], 3.0);
    check_result(c, BACK, "received", CHECK_F32, c->size[0]);
}

static void define_pieces(check_case *c) {
    for (size_t i = 0; i < c->size[0]; i++) {
        check_expected(c, 1)[i] += check_expected(c, 2)[i];
        check_expected(c, 0)[i] += check_expected(c, 1)[i];
        check_expected(c, NARROW)[i] = mom_bf16_to_f32(mom_bf16_from_f32((float)check_input(c, WIDE, i)));
        check_expected(c, BACK)[i] = check_input(c, SENT, i);
    }
}

static mom_status run_pieces(check_case *c, const mom_exec *x, mom_error *err) {
    float *pieces[PIECES] = {check_f32(c, 0), check_f32(c, 1), check_f32(c, 2)};
    const mom_addition additions[] = {{1, 2}, {0, 1}};
    (void)err;
    mom_add_pieces(x, pieces, c->size[0], additions, CHECK_LENGTH(additions));
    mom_to_bf16(x, c->array[NARROW].data, check_f32(c, WIDE), c->size[0]);
    mom_from_bf16(x, check_f32(c, BACK), c->array[SENT].data, c->size[0]);
    return MOM_OK;
}

static const check_sizes cases[] = {{{0, 1, 1}, 0}, {{1, 1, 1}, 0}, {{37, 5, 3}, 0}, {{70001, 301, 33}, 0}};

static const check_sizes lengths[] = {{{0}, 0}, {{1}, 0}, {{4097}, 0}, {{70001}, 0}};

static const check_operator operators[] = {
    {"adamw", setup, define, run, 1e-5, cases, CHECK_LENGTH(cases)},
    {"pieces", setup_pieces, define_pieces, run_pieces, 1e-6, lengths, CHECK_LENGTH(lengths)},
};

void check_training(void) {
    check_operators(operators, CHECK_LENGTH(operators));
    check_that(mom_clip_factor(0.5, 1.0) == 1.0f, "a small norm is not clipped");
    check_that(fabsf(mom_clip_factor(4.0, 1.0) - 0.25f) < 1e-6f, "a norm of 4 is clipped to 1");
    check_that(mom_clip_factor((double)INFINITY, 1.0) == 1.0f, "an infinite norm is not clipped");
}
