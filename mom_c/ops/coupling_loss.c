/* Contract: coupling_loss.h. The proxies, which are rows of a router's map, go through the first layers as tokens do that are
 * sent to every module (ops/routed_half.h). Backward computes the proxies and their results again. */
#include "ops/coupling_loss.h"

#include <math.h>
#include <string.h>

#include "base/rng.h"
#include "ops/layernorm.h"

/* What forward computes, in the workspace. Slot j * M + i of the plan stands for proxy i in module j. */
typedef struct {
    const mom_coupling *in;
    mom_exec exec; /* of the products */
    mom_half half;
    mom_routing_plan plan;
    float *rows;        /* (M, C) of the map, or of the mean of the maps */
    float *delta;       /* (M, C) random numbers that the rows are multiplied by; 1 in evaluation */
    float *proxies;     /* (M, C) */
    float *mean, *rstd; /* (M) */
    float *excited;     /* (slots, F) outputs of the first layers; in backward they become their gradients */
    double *lengths;    /* (slots) of these outputs */
    double scale;       /* backward: of the gradient of the lengths */
} coupling;

/* ------------------------------------------------------------------ proxies */

static void rows_task(const void *context, size_t begin, size_t end) {
    const coupling *s = context;
    const mom_coupling *in = s->in;
    const mom_vec_kernels *vec = &s->exec.k->vec;
    for (size_t i = begin; i < end; i++) {
        float *row = s->rows + i * in->C;
        memset(row, 0, in->C * sizeof *row);
        for (size_t r = 0; r < in->maps; r++)
            vec->add(row, in->map + (r * in->S + i) * in->C, in->C);
        vec->scale(row, 1.0f / (float)in->maps, row, in->C);
    }
}

static double square_distance(const float *a, const float *b, size_t n) {
    double sum = 0.0;
    for (size_t c = 0; c < n; c++) {
        const double difference = (double)a[c] - (double)b[c];
        sum += difference * difference;
    }
    return sum;
}

/* How far the random numbers of row i are from 1 at most: half of the way to the nearest other row, relative to the length. */
static double spread_of(const coupling *s, size_t i) {
    const size_t M = s->in->M, C = s->in->C;
    const float *row = s->rows + i * C;
    const double square = s->exec.k->vec.sum_squares(row, C);
    double nearest = INFINITY;
    for (size_t j = 0; j < M; j++)
        if (j != i)
            nearest = fmin(nearest, square_distance(row, s->rows + j * C, C));
    return square > 0.0 && M > 1 ? 0.5 * sqrt(nearest / square) : 0.0;
}

static void proxies_task(const void *context, size_t begin, size_t end) {
    const coupling *s = context;
    const size_t C = s->in->C;
    for (size_t i = begin; i < end; i++) {
        const double spread = s->in->training ? spread_of(s, i) : 0.0;
        float *delta = s->delta + i * C;
        for (size_t c = 0; c < C; c++)
            delta[c] = (float)(1.0 + spread * (2.0 * (double)mom_rng_uniform(s->in->key, i * C + c) - 1.0));
        s->exec.k->vec.multiply(s->proxies + i * C, s->rows + i * C, delta, C);
    }
}

/* ------------------------------------------------------------------ forward */

static void lengths_task(const void *context, size_t begin, size_t end) {
    const coupling *s = context;
    const size_t F = s->in->layer.Out;
    for (size_t slot = begin; slot < end; slot++)
        s->lengths[slot] = sqrt(s->exec.k->vec.sum_squares(s->excited + slot * F, F));
}

static double length(const coupling *s, size_t i, size_t j) { return s->lengths[j * s->in->M + i]; }

static mom_status allocate(coupling *s, const mom_exec *x, mom_error *err) {
    const size_t M = s->in->M, C = s->in->C;
    MOM_ARENA_NEW(s->rows, x->workspace, M * C, err);
    MOM_ARENA_NEW(s->delta, x->workspace, M * C, err);
    MOM_ARENA_NEW(s->proxies, x->workspace, M * C, err);
    MOM_ARENA_NEW(s->mean, x->workspace, M, err);
    MOM_ARENA_NEW(s->rstd, x->workspace, M, err);
    MOM_ARENA_NEW(s->excited, x->workspace, M * M * s->in->layer.Out, err);
    MOM_ARENA_NEW(s->lengths, x->workspace, M * M, err);
    return mom_routing_plan_init_dense(x, &s->plan, x->workspace, M, M, err);
}

/* Fills *s, but for scale. */
static mom_status excite(coupling *s, const mom_exec *x, const mom_coupling *in, mom_error *err) {
    *s = (coupling){.in = in, .exec = *x};
    s->exec.counts = NULL;
    s->exec.dry_run = x->dry_run ? MOM_DRY : MOM_COMPUTE; /* every module has every proxy, so other routes do not occur */
    MOM_TRY(allocate(s, x, err));
    s->half = (mom_half){.exec = &s->exec, .plan = &s->plan, .dtype = MOM_F32, .C = in->C, .x = s->proxies, .mean = s->mean,
                         .rstd = s->rstd, .ln_weight = in->ln_weight, .ln_bias = in->ln_bias, .err = err};
    mom_parallel_rows(x, in->M, 1, rows_task, s);
    mom_parallel_rows(x, in->M, 1, proxies_task, s);
    mom_layernorm_stats(x, s->mean, s->rstd, s->proxies, in->ln_eps, in->M, in->C);
    MOM_TRY(mom_half_first_layer(&s->half, s->excited, MOM_F32, 0, NULL, &in->layer));
    mom_parallel_rows(x, s->plan.slots, 1, lengths_task, s);
    return MOM_OK;
}

/* max(a - b, 0). What is not a number stays so, unlike with fmax. */
static double excess(double a, double b) { return a <= b ? 0.0 : a - b; }

static double loss_of(const coupling *s) {
    const size_t M = s->in->M;
    double sum = 0.0;
    for (size_t i = 0; i < M; i++)
        for (size_t j = 0; j < M; j++)
            if (j != i)
                sum += excess(length(s, i, j), length(s, i, i)) + excess(length(s, j, i), length(s, i, i));
    return sum / (double)(M * M);
}

mom_status mom_coupling_loss_add(const mom_exec *x, double *sum, const mom_coupling *in, mom_error *err) {
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    coupling s;
    MOM_TRY(excite(&s, x, in, err));
    if (!x->dry_run)
        *sum += loss_of(&s);
    mom_arena_release(x->workspace, mark);
    return MOM_OK;
}

/* ------------------------------------------------------------------ backward */

/* M^2 times the derivative of the loss by the length of proxy i in module j. */
static double slope(const coupling *s, size_t i, size_t j) {
    double sum = 0.0;
    if (i != j)
        return (double)((length(s, i, j) > length(s, i, i)) + (length(s, i, j) > length(s, j, j)));
    for (size_t k = 0; k < s->in->M; k++)
        sum -= (double)((length(s, i, k) > length(s, i, i)) + (length(s, k, i) > length(s, i, i)));
    return sum;
}

/* The outputs of the first layers become the gradients of these outputs. */
static void excited_backward_task(const void *context, size_t begin, size_t end) {
    const coupling *s = context;
    const size_t M = s->in->M, F = s->in->layer.Out;
    for (size_t slot = begin; slot < end; slot++) {
        const double factor = s->lengths[slot] > 0.0 ? s->scale * slope(s, slot % M, slot / M) / s->lengths[slot] : 0.0;
        s->exec.k->vec.scale(s->excited + slot * F, (float)factor, s->excited + slot * F, F);
    }
}

typedef struct {
    const coupling *s;
    float *dmap, *dproxies;
} rows_backward_job;

static void rows_backward_task(const void *context, size_t begin, size_t end) {
    const rows_backward_job *job = context;
    const mom_coupling *in = job->s->in;
    const mom_vec_kernels *vec = &job->s->exec.k->vec;
    for (size_t i = begin; i < end; i++) {
        float *row = job->dproxies + i * in->C;
        vec->multiply(row, row, job->s->delta + i * in->C, in->C);
        for (size_t r = 0; r < in->maps; r++)
            vec->axpy(job->dmap + (r * in->S + i) * in->C, 1.0f / (float)in->maps, row, in->C);
    }
}

mom_status mom_coupling_loss_backward(const mom_exec *x, float *dmap, const mom_half_gradient *gradient,
                                      const mom_coupling *in, float scale, mom_error *err) {
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    coupling s;
    float *dproxies;
    MOM_TRY(excite(&s, x, in, err));
    s.scale = (double)scale / (double)(in->M * in->M);
    MOM_ARENA_ZEROS(dproxies, x, x->workspace, in->M * in->C, err);
    mom_parallel_rows(x, s.plan.slots, 1, excited_backward_task, &s);
    MOM_TRY(mom_half_first_layer_backward(&s.half, gradient, dproxies, NULL, s.excited, 0, NULL, &in->layer));
    const rows_backward_job job = {&s, dmap, dproxies};
    mom_parallel_rows(x, in->M, 1, rows_backward_task, &job);
    mom_arena_release(x->workspace, mark);
    return MOM_OK;
}
