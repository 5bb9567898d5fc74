/* Routers, forward and backward. Contracts: router.h; derivation: docs/derivations/router.md.
 *
 * DESIGN  The linear maps are products over all tokens; what lies between them is one pass over chunks
 *         of tokens per direction. The backward pass also sums its chunk's bias gradients while the
 *         rows are in cache; the chunks' sums are then added in order, so CHUNK_ROWS is part of the
 *         result's bits and does not depend on the threads.
 * COST    A recurrent round multiplies 2 N G R (C + R) FLOP forward; in the first round, where the state is
 *         zero, the part with the state is left out in both directions.
 * SOURCE  Cho et al. 2014, arXiv:1406.1078 (gated recurrent unit); Shazeer et al. 2017, arXiv:1701.06538 (top-k
 *         routing); Bengio et al. 2013, arXiv:1308.3432 (straight-through estimator).
 */
#include "ops/router.h"

#include <math.h>

#include <string.h>

#include "base/parallel.h"
#include "base/rng.h"
#include "ops/gemv.h"
#include "ops/linear.h"
#include "ops/topk.h"

#define CHUNK_ROWS 32

static size_t chunk_count(size_t N) { return (N + CHUNK_ROWS - 1) / CHUNK_ROWS; }

size_t mom_router_gates(const mom_router_spec *spec) {
    if (spec->kind == MOM_ROUTER_NAIVE)
        return 0;
    return spec->random ? 4 : 3;
}

/* out (N, Out) = inp (N, In) * weight^T + bias */
static mom_status product(const mom_exec *x, float *out, const float *inp, const float *weight, const float *bias,
                          const mom_router_spec *spec, size_t N, size_t In, size_t Out, mom_error *err) {
    if (!spec->few_rows)
        return mom_linear_forward(x, out, inp, weight, bias, MOM_WEIGHT_OUT_IN, 0, N, In, Out, err);
    const mom_gemv_matrix matrix = {MOM_GEMV_F32, MOM_WEIGHT_OUT_IN, weight, NULL, In, Out};
    const mom_gemv gemv = {.out = out, .x = inp, .matrix = &matrix, .bias = bias, .rows = N};
    return mom_gemv_run(x, &gemv, 1, err);
}

/* ---- naive: logits = relu(inp * in_weight^T + in_bias) * out_weight^T + out_bias */

typedef struct {
    float *values;       /* (N, R) */
    const float *hidden; /* (N, R) or NULL: where it is not positive, values become 0; NULL: values themselves */
    size_t N, R;
} relu_context;

static void run_relu(void *context, size_t task, int thread) {
    (void)thread;
    const relu_context *run = context;
    size_t begin, end;
    mom_range(run->N, chunk_count(run->N), task, &begin, &end);
    float *values = run->values;
    if (run->hidden) {
        for (size_t i = begin * run->R; i < end * run->R; i++)
            values[i] = run->hidden[i] > 0.0f ? values[i] : 0.0f;
    } else {
        for (size_t i = begin * run->R; i < end * run->R; i++)
            values[i] = values[i] < 0.0f ? 0.0f : values[i]; /* keeps NaN */
    }
}

static mom_status naive_forward(const mom_exec *x, mom_router_saved *saved, const float *inp,
                                const mom_router_tensors *w, const mom_router_spec *spec, size_t N, mom_error *err) {
    const size_t C = spec->C, R = spec->R;
    MOM_TRY(product(x, saved->hidden, inp, w->in_weight, w->in_bias, spec, N, C, R, err));
    relu_context run = {saved->hidden, NULL, N, R};
    mom_parallel_for(x->threads, chunk_count(N), run_relu, &run);
    return MOM_OK;
}

static mom_status naive_backward(const mom_exec *x, float *dinp, mom_router_tensors *dw, float *dhidden,
                                 const float *inp, const mom_router_saved *saved, const mom_router_tensors *w,
                                 const mom_router_spec *spec, size_t N, mom_error *err) {
    const size_t C = spec->C, R = spec->R;
    relu_context run = {dhidden, saved->hidden, N, R};
    mom_parallel_for(x->threads, chunk_count(N), run_relu, &run);
    MOM_TRY(mom_linear_backward_weight(x, dw->in_weight, dw->in_bias, inp, dhidden, MOM_WEIGHT_OUT_IN, N, C, R, err));
    return mom_linear_backward_input(x, dinp, dhidden, w->in_weight, MOM_WEIGHT_OUT_IN, 1, N, C, R, err);
}

/* ---- recurrent: the cell between x2h, h2h and the output map */

/* One token's noise, the same in forward and backward; NULL for routers without. */
static const float *draw_noise(float *row, uint64_t key, size_t token, size_t R) {
    if (!row)
        return NULL;
    for (size_t j = 0; j < R; j++)
        row[j] = mom_rng_uniform(key, (uint64_t)(token * R + j));
    return row;
}

typedef struct {
    const mom_kernels *k;
    const mom_router_saved *saved;
    const float *x_pre; /* (N, G*R) */
    const float *h_pre; /* (N, G*R), or one row for all tokens when h_stride is 0 */
    const float *state; /* (N, R), or one row when state_stride is 0 */
    size_t h_stride, state_stride;
    float *noise; /* (threads, R) or NULL */
    uint64_t noise_key;
    int dev;
    size_t N, R, G;
} cell_context;

static void run_cell(void *context, size_t task, int thread) {
    const cell_context *run = context;
    const size_t R = run->R, GR = run->G * R;
    float *noise_row = run->noise ? run->noise + (size_t)thread * R : NULL;
    size_t begin, end;
    mom_range(run->N, chunk_count(run->N), task, &begin, &end);
    for (size_t t = begin; t < end; t++) {
        const float *h_pre = run->h_pre + t * run->h_stride;
        const float *noise = draw_noise(noise_row, run->noise_key, t, R);
        run->k->gru_forward(run->saved->gates + t * GR, run->saved->hidden + t * R, run->x_pre + t * GR, h_pre,
                            run->state + t * run->state_stride, noise, run->dev, R);
        memcpy(run->saved->h_n + t * R, h_pre + 2 * R, R * sizeof(float));
    }
}

/* A row of zeros stands for the state before the first round; the same row serves every token. */
static mom_status new_zero_row(const float **row, const mom_exec *x, size_t R, mom_error *err) {
    float *zeros;
    MOM_ARENA_NEW(zeros, x->workspace, R, err);
    memset(zeros, 0, R * sizeof *zeros);
    *row = zeros;
    return MOM_OK;
}

static mom_status recurrent_forward(const mom_exec *x, mom_router_saved *saved, const float *inp, const float *state,
                                    const mom_router_tensors *w, uint64_t noise_key, const mom_router_spec *spec,
                                    size_t N, mom_error *err) {
    const size_t C = spec->C, R = spec->R, G = mom_router_gates(spec), GR = G * R;
    cell_context run = {.k = x->k, .saved = saved, .noise_key = noise_key, .dev = spec->kind == MOM_ROUTER_GRU_DEV,
                        .N = N, .R = R, .G = G};
    float *x_pre;
    MOM_ARENA_NEW(x_pre, x->workspace, N * GR, err);
    MOM_TRY(product(x, x_pre, inp, w->in_weight, w->in_bias, spec, N, C, GR, err));
    run.x_pre = x_pre;
    if (state) {
        float *h_pre;
        MOM_ARENA_NEW(h_pre, x->workspace, N * GR, err);
        MOM_TRY(product(x, h_pre, state, w->state_weight, w->state_bias, spec, N, R, GR, err));
        run.h_pre = h_pre;
        run.h_stride = GR;
        run.state = state;
        run.state_stride = R;
    } else {
        run.h_pre = w->state_bias; /* h2h of zero */
        MOM_TRY(new_zero_row(&run.state, x, R, err));
    }
    if (spec->random)
        MOM_ARENA_NEW(run.noise, x->workspace, (size_t)x->threads * R, err);
    mom_parallel_for(x->threads, chunk_count(N), run_cell, &run);
    return MOM_OK;
}

typedef struct {
    const mom_kernels *k;
    float *dx_pre, *dh_pre;   /* (N, G*R) */
    float *dx_sums, *dh_sums; /* (chunks, G*R) column sums of each chunk */
    float *dstate_in;         /* (N, R), or one row per thread when discard_dstate */
    int discard_dstate;
    float *dhidden;           /* (N, R) from the logits; dstate_out is added */
    const float *dstate_out;  /* (N, R) or NULL */
    const mom_router_saved *saved;
    const float *state;
    size_t state_stride;
    float *noise;
    uint64_t noise_key;
    int dev;
    size_t N, R, G;
} cell_backward_context;

static void run_cell_backward(void *context, size_t task, int thread) {
    const cell_backward_context *run = context;
    const mom_kernels *k = run->k;
    const size_t R = run->R, GR = run->G * R;
    float *noise_row = run->noise ? run->noise + (size_t)thread * R : NULL;
    float *dx_sum = run->dx_sums + task * GR, *dh_sum = run->dh_sums + task * GR;
    size_t begin, end;
    mom_range(run->N, chunk_count(run->N), task, &begin, &end);
    memset(dx_sum, 0, GR * sizeof *dx_sum);
    memset(dh_sum, 0, GR * sizeof *dh_sum);
    for (size_t t = begin; t < end; t++) {
        float *dx = run->dx_pre + t * GR, *dh = run->dh_pre + t * GR, *dhidden = run->dhidden + t * R;
        float *dstate_in = run->dstate_in + (run->discard_dstate ? (size_t)thread : t) * R;
        const float *noise = draw_noise(noise_row, run->noise_key, t, R);
        if (run->dstate_out)
            k->add(dhidden, run->dstate_out + t * R, R);
        k->gru_backward(dx, dh, dstate_in, dhidden, run->saved->gates + t * GR, run->saved->h_n + t * R,
                        run->state + t * run->state_stride, noise, run->dev, R);
        k->add(dx_sum, dx, GR);
        k->add(dh_sum, dh, GR);
    }
}

static mom_status recurrent_backward(const mom_exec *x, float *dinp, float *dstate_in, mom_router_tensors *dw,
                                     float *dhidden, const float *dstate_out, const float *inp, const float *state,
                                     const mom_router_saved *saved, const mom_router_tensors *w, uint64_t noise_key,
                                     const mom_router_spec *spec, size_t N, mom_error *err) {
    const size_t C = spec->C, R = spec->R, G = mom_router_gates(spec), GR = G * R, chunks = chunk_count(N);
    cell_backward_context run = {.k = x->k, .dstate_in = dstate_in, .discard_dstate = !dstate_in, .dhidden = dhidden,
                                 .dstate_out = dstate_out, .saved = saved, .state = state,
                                 .state_stride = state ? R : 0, .noise_key = noise_key,
                                 .dev = spec->kind == MOM_ROUTER_GRU_DEV, .N = N, .R = R, .G = G};
    MOM_ARENA_NEW(run.dx_pre, x->workspace, N * GR, err);
    MOM_ARENA_NEW(run.dh_pre, x->workspace, N * GR, err);
    MOM_ARENA_NEW(run.dx_sums, x->workspace, chunks * GR, err);
    MOM_ARENA_NEW(run.dh_sums, x->workspace, chunks * GR, err);
    if (!state)
        MOM_TRY(new_zero_row(&run.state, x, R, err));
    if (!dstate_in)
        MOM_ARENA_NEW(run.dstate_in, x->workspace, (size_t)x->threads * R, err);
    if (spec->random)
        MOM_ARENA_NEW(run.noise, x->workspace, (size_t)x->threads * R, err);

    /* pass 1: through the cell */
    mom_parallel_for(x->threads, chunks, run_cell_backward, &run);
    mom_column_sum(x, dw->in_bias, run.dx_sums, MOM_F32, NULL, NULL, chunks, GR);
    mom_column_sum(x, dw->state_bias, run.dh_sums, MOM_F32, NULL, NULL, chunks, GR);

    /* pass 2: through x2h and h2h */
    MOM_TRY(mom_linear_backward_weight(x, dw->in_weight, NULL, inp, run.dx_pre, MOM_WEIGHT_OUT_IN, N, C, GR, err));
    MOM_TRY(mom_linear_backward_input(x, dinp, run.dx_pre, w->in_weight, MOM_WEIGHT_OUT_IN, 1, N, C, GR, err));
    if (state)
        MOM_TRY(mom_linear_backward_weight(x, dw->state_weight, NULL, state, run.dh_pre, MOM_WEIGHT_OUT_IN, N, R, GR,
                                           err));
    if (dstate_in)
        MOM_TRY(mom_linear_backward_input(x, dstate_in, run.dh_pre, w->state_weight, MOM_WEIGHT_OUT_IN, 1, N, R, GR,
                                          err));
    return MOM_OK;
}

/* ---- both kinds */

mom_status mom_router_forward(const mom_exec *x, float *logits, mom_router_saved *saved, const float *inp,
                              const float *state, const mom_router_tensors *weights, uint64_t noise_key,
                              const mom_router_spec *spec, size_t N, mom_error *err) {
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    const mom_status status = spec->kind == MOM_ROUTER_NAIVE
                                  ? naive_forward(x, saved, inp, weights, spec, N, err)
                                  : recurrent_forward(x, saved, inp, state, weights, noise_key, spec, N, err);
    mom_arena_release(x->workspace, mark);
    MOM_TRY(status);
    return product(x, logits, saved->hidden, weights->out_weight, weights->out_bias, spec, N, spec->R, spec->S, err);
}

static mom_status backward(const mom_exec *x, float *dinp, float *dstate_in, mom_router_tensors *dw,
                           const float *dlogits, const float *dstate_out, const float *inp, const float *state,
                           const mom_router_saved *saved, const mom_router_tensors *w, uint64_t noise_key,
                           const mom_router_spec *spec, size_t N, mom_error *err) {
    const size_t R = spec->R, S = spec->S;
    float *dhidden;
    MOM_ARENA_NEW(dhidden, x->workspace, N * R, err);
    MOM_TRY(mom_linear_backward_input(x, dhidden, dlogits, w->out_weight, MOM_WEIGHT_OUT_IN, 0, N, R, S, err));
    MOM_TRY(mom_linear_backward_weight(x, dw->out_weight, dw->out_bias, saved->hidden, dlogits, MOM_WEIGHT_OUT_IN, N, R,
                                       S, err));
    if (spec->kind == MOM_ROUTER_NAIVE)
        return naive_backward(x, dinp, dw, dhidden, inp, saved, w, spec, N, err);
    return recurrent_backward(x, dinp, dstate_in, dw, dhidden, dstate_out, inp, state, saved, w, noise_key, spec, N,
                              err);
}

mom_status mom_router_backward(const mom_exec *x, float *dinp, float *dstate_in, mom_router_tensors *dweights,
                               const float *dlogits, const float *dstate_out, const float *inp, const float *state,
                               const mom_router_saved *saved, const mom_router_tensors *weights, uint64_t noise_key,
                               const mom_router_spec *spec, size_t N, mom_error *err) {
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    const mom_status status = backward(x, dinp, dstate_in, dweights, dlogits, dstate_out, inp, state, saved, weights,
                                       noise_key, spec, N, err);
    mom_arena_release(x->workspace, mark);
    return status;
}

/* ---- scores */

typedef struct {
    const mom_kernels *k;
    float *out;          /* scores, or dlogits in backward */
    const float *inp;    /* logits, or dscores in backward */
    const float *scores; /* backward only */
    float temperature;
    size_t N, S;
} scores_context;

/* Few numbers that decide where everything else goes. The C library's exponential rounds almost every result
 * correctly, and the order of operations is PyTorch's: 99 % of the scores then have the same bits as there, so that
 * recorded runs can be followed through the near-ties that fresh routers produce in every batch. */
static void run_softmax(void *context, size_t task, int thread) {
    (void)thread;
    const scores_context *run = context;
    const size_t S = run->S;
    size_t begin, end;
    mom_range(run->N, chunk_count(run->N), task, &begin, &end);
    for (size_t t = begin; t < end; t++) {
        float *scores = run->out + t * S;
        const float *logits = run->inp + t * S;
        const float largest = run->k->max(logits, S) / run->temperature;
        float sum = 0.0f;
        for (size_t m = 0; m < S; m++) {
            scores[m] = expf(logits[m] / run->temperature - largest);
            sum += scores[m];
        }
        const float inverse = 1.0f / sum;
        for (size_t m = 0; m < S; m++)
            scores[m] *= inverse;
    }
}

/* dlogits = scores * (dscores - <dscores, scores>) / temperature */
static void run_softmax_backward(void *context, size_t task, int thread) {
    (void)thread;
    const scores_context *run = context;
    const size_t S = run->S;
    size_t begin, end;
    mom_range(run->N, chunk_count(run->N), task, &begin, &end);
    for (size_t t = begin; t < end; t++) {
        float *dlogits = run->out + t * S;
        const float *dscores = run->inp + t * S, *scores = run->scores + t * S;
        const float mean = run->k->dot(dscores, scores, S);
        for (size_t m = 0; m < S; m++)
            dlogits[m] = scores[m] * (dscores[m] - mean) / run->temperature;
    }
}

void mom_router_scores_forward(const mom_exec *x, float *scores, const float *logits, int softmax, float temperature,
                               size_t N, size_t S) {
    if (!softmax) {
        if (!mom_rehearsing())
            memmove(scores, logits, N * S * sizeof *scores);
        return;
    }
    scores_context run = {x->k, scores, logits, NULL, temperature, N, S};
    mom_parallel_for(x->threads, chunk_count(N), run_softmax, &run);
}

void mom_router_scores_backward(const mom_exec *x, float *dlogits, const float *dscores, const float *scores,
                                int softmax, float temperature, size_t N, size_t S) {
    if (!softmax) {
        if (!mom_rehearsing())
            memmove(dlogits, dscores, N * S * sizeof *dlogits);
        return;
    }
    scores_context run = {x->k, dlogits, dscores, scores, temperature, N, S};
    mom_parallel_for(x->threads, chunk_count(N), run_softmax_backward, &run);
}

/* ---- choices */

typedef struct {
    int16_t *index;
    float *weight;
    const float *scores;
    int renormalise;
    size_t N, S, K;
} topk_context;

static void run_topk(void *context, size_t task, int thread) {
    (void)thread;
    const topk_context *run = context;
    const size_t S = run->S, K = run->K;
    size_t begin, end;
    mom_range(run->N, chunk_count(run->N), task, &begin, &end);
    for (size_t t = begin; t < end; t++) {
        const float *scores = run->scores + t * S;
        int16_t *index = run->index + t * K;
        float *weight = run->weight + t * K;
        float sum = 0.0f;
        mom_topk(index, scores, S, K);
        for (size_t k = 0; k < K; k++) {
            weight[k] = scores[index[k]];
            sum += weight[k];
        }
        for (size_t k = 0; run->renormalise && k < K; k++)
            weight[k] /= sum;
    }
}

void mom_router_topk_forward(const mom_exec *x, int16_t *index, float *weight, const float *scores, int renormalise,
                             size_t N, size_t S, size_t K) {
    MOM_ASSERT(K <= S && S <= INT16_MAX);
    topk_context run = {index, weight, scores, renormalise, N, S, K};
    mom_parallel_for(x->threads, chunk_count(N), run_topk, &run);
}

typedef struct {
    float *dscores;
    const float *dweight;
    const int16_t *index;
    const float *weight, *scores;
    int renormalise;
    size_t N, S, K;
} topk_backward_context;

/* Kept scores only: dscore = dweight or, renormalised, (dweight - <dweight, weight>) / (sum of kept scores). */
static void run_topk_backward(void *context, size_t task, int thread) {
    (void)thread;
    const topk_backward_context *run = context;
    const size_t S = run->S, K = run->K;
    size_t begin, end;
    mom_range(run->N, chunk_count(run->N), task, &begin, &end);
    for (size_t t = begin; t < end; t++) {
        const float *scores = run->scores + t * S, *dweight = run->dweight + t * K, *weight = run->weight + t * K;
        const int16_t *index = run->index + t * K;
        float *dscores = run->dscores + t * S;
        float sum = 0.0f, mean = 0.0f;
        for (size_t k = 0; k < K; k++) {
            sum += scores[index[k]];
            mean += dweight[k] * weight[k];
        }
        for (size_t k = 0; k < K; k++)
            dscores[index[k]] += run->renormalise ? (dweight[k] - mean) / sum : dweight[k];
    }
}

void mom_router_topk_backward(const mom_exec *x, float *dscores, const float *dweight, const int16_t *index,
                              const float *weight, const float *scores, int renormalise, size_t N, size_t S, size_t K) {
    topk_backward_context run = {dscores, dweight, index, weight, scores, renormalise, N, S, K};
    mom_parallel_for(x->threads, chunk_count(N), run_topk_backward, &run);
}

void mom_router_ste_forward(float *out, const float *weight, size_t n) {
    for (size_t i = 0; i < n; i++)
        out[i] = (float)((weight[i] > 0.0f) - (weight[i] < 0.0f));
}

void mom_router_ste_backward(float *out, const float *dweight, size_t n) {
    for (size_t i = 0; i < n; i++)
        out[i] = dweight[i] < -1.0f ? -1.0f : dweight[i] > 1.0f ? 1.0f : dweight[i];
}
