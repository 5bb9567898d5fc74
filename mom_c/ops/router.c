/* Routers, forward and backward. Contracts: router.h; derivation: docs/derivations/router.md.
 *
 * DESIGN  A recurrent router takes its tokens in blocks of BLOCK_ROWS, so that the pre-activations of a block, which
 *         several products and the cell write and read, stay in a cache; the products of a block share one list of
 *         tasks, their weights are packed once for all blocks. What lies between the products is one pass over chunks
 *         of tokens per direction. The backward pass also sums its chunk's bias gradients while the
 *         rows are in cache; the chunks' sums are then added in order, so CHUNK_ROWS and BLOCK_ROWS are part of the
 *         result's bits and do not depend on the threads.
 * COST    A recurrent round multiplies 2 N G R (C + R) FLOP forward; in the first round, where the state is
 *         zero, the part with the state is left out in both directions.
 * SOURCE  Cho et al. 2014, arXiv:1406.1078 (gated recurrent unit); Shazeer et al. 2017, arXiv:1701.06538 (top-k
 *         routing); Bengio et al. 2013, arXiv:1308.3432 (straight-through estimator).
 */
#include "ops/router.h"

#include <math.h>

#include <string.h>

#include "base/rng.h"
#include "gemm/gemm.h"
#include "ops/gemv.h"
#include "ops/linear.h"
#include "ops/topk.h"

#define CHUNK_ROWS 32
#define BLOCK_ROWS ((size_t)256)
_Static_assert(BLOCK_ROWS % CHUNK_ROWS == 0, "blocks are made of whole chunks");

static size_t block_rows(size_t N, size_t begin) { return N - begin < BLOCK_ROWS ? N - begin : BLOCK_ROWS; }

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
    mom_parallel_for(x, chunk_count(N), run_relu, &run);
    return MOM_OK;
}

static mom_status naive_backward(const mom_exec *x, float *dinp, mom_router_tensors *dw, float *dhidden,
                                 const float *inp, const mom_router_saved *saved, const mom_router_tensors *w,
                                 const mom_router_spec *spec, size_t N, mom_error *err) {
    const size_t C = spec->C, R = spec->R;
    relu_context run = {dhidden, saved->hidden, N, R};
    mom_parallel_for(x, chunk_count(N), run_relu, &run);
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

/* Row t of what is kept for backward, of `width` columns. */
static void *kept_row(void *data, mom_dtype dtype, size_t t, size_t width) {
    return (unsigned char *)data + t * width * mom_dtype_size(dtype);
}

static void keep_row(const mom_kernels *k, void *data, mom_dtype dtype, size_t t, const float *row, size_t width) {
    void *out = kept_row(data, dtype, t, width);
    if (dtype == MOM_BF16)
        k->vec.to_bf16(out, row, width);
    else if (out != row)
        memcpy(out, row, width * sizeof *row);
}

/* The row itself or its conversion in `buffer`. */
static const float *kept_values(const mom_kernels *k, float *buffer, void *data, mom_dtype dtype, size_t t, size_t width) {
    void *row = kept_row(data, dtype, t, width);
    if (dtype == MOM_F32)
        return row;
    k->vec.from_bf16(buffer, row, width);
    return buffer;
}

typedef struct {
    const mom_kernels *k;
    const mom_router_saved *saved;
    float *gates;       /* (threads, G*R) rows before they are rounded, or NULL: computed where they are kept */
    const float *x_pre; /* (rows, G*R) */
    const float *h_pre; /* (rows, G*R), or one row for all tokens when h_stride is 0 */
    const float *state; /* (N, R), or one row when state_stride is 0 */
    size_t h_stride, state_stride;
    float *noise; /* (threads, R) or NULL */
    uint64_t noise_key;
    int dev;
    size_t first, rows; /* the block of tokens */
    size_t R, G;
} cell_context;

static void run_cell(void *context, size_t task, int thread) {
    const cell_context *run = context;
    const mom_router_saved *saved = run->saved;
    const size_t R = run->R, GR = run->G * R;
    float *noise_row = run->noise ? run->noise + (size_t)thread * R : NULL;
    size_t begin, end;
    mom_range(run->rows, chunk_count(run->rows), task, &begin, &end);
    for (size_t i = begin; i < end; i++) {
        const size_t t = run->first + i;
        const float *h_pre = run->h_pre + i * run->h_stride;
        const float *noise = draw_noise(noise_row, run->noise_key, t, R);
        float *gates = run->gates ? run->gates + (size_t)thread * GR : kept_row(saved->gates, saved->dtype, t, GR);
        run->k->gru.forward(gates, saved->hidden + t * R, run->x_pre + i * GR, h_pre, run->state + t * run->state_stride,
                            noise, run->dev, R);
        keep_row(run->k, saved->gates, saved->dtype, t, gates, GR);
        keep_row(run->k, saved->h_n, saved->dtype, t, h_pre + 2 * R, R);
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

static mom_gemm_packing factor(const float *weight, size_t In, size_t Out, mom_dtype precision, int transposed) {
    return transposed ? (mom_gemm_packing){.b = mom_matrix_rows(weight, In), .n = In, .k = Out, .precision = precision}
                      : (mom_gemm_packing){.b = mom_matrix_transposed(weight, In), .n = Out, .k = In, .precision = precision};
}

mom_gemm_packing mom_router_in_factor(const mom_router_tensors *weights, const mom_router_spec *spec, mom_dtype precision,
                                      int transposed) {
    return factor(weights->in_weight, spec->C, mom_router_gates(spec) * spec->R, precision, transposed);
}

mom_gemm_packing mom_router_state_factor(const mom_router_tensors *weights, const mom_router_spec *spec,
                                         mom_dtype precision, int transposed) {
    return factor(weights->state_weight, spec->R, mom_router_gates(spec) * spec->R, precision, transposed);
}

/* out (rows, n) = or += inp (rows, k) * b + bias, for any rows; b is packed for several blocks of them. */
static mom_status product_with(mom_gemm *product, const mom_exec *x, mom_gemm_packing b, const void *packed,
                               const float *bias, int accumulate, int several, mom_error *err) {
    *product = (mom_gemm){.n = b.n, .k = b.k, .b = b.b, .ldc = b.n, .bias = bias, .accumulate = accumulate,
                          .precision = b.precision, .packed_b = packed};
    if (packed || !several)
        return MOM_OK;
    unsigned char *dst;
    MOM_ARENA_NEW(dst, x->workspace, mom_gemm_packed_size(x->k, b.precision, b.n, b.k), err);
    b.dst = dst;
    product->packed_b = dst;
    return mom_gemm_pack(x, &b, 1, err);
}

static mom_gemm on_rows(mom_gemm product, float *out, const float *inp, size_t ld, size_t rows) {
    product.m = rows;
    product.a = mom_matrix_rows(inp, ld);
    product.c = out;
    return product;
}

static mom_status recurrent_forward(const mom_exec *x, mom_router_saved *saved, const float *inp, const float *state,
                                    const mom_router_tensors *w, uint64_t noise_key, const mom_router_spec *spec,
                                    size_t N, mom_error *err) {
    const size_t C = spec->C, R = spec->R, G = mom_router_gates(spec), GR = G * R, most = block_rows(N, 0);
    cell_context run = {.k = x->k, .saved = saved, .state = state, .state_stride = R, .h_stride = GR,
                        .noise_key = noise_key, .dev = spec->kind == MOM_ROUTER_GRU_DEV, .R = R, .G = G};
    float *x_pre, *h_pre;
    MOM_ARENA_NEW(x_pre, x->workspace, most * GR, err);
    MOM_ARENA_NEW(h_pre, x->workspace, state ? most * GR : 0, err);
    run.x_pre = x_pre;
    run.h_pre = h_pre;
    if (!state) {
        run.h_pre = w->state_bias; /* h2h of zero */
        run.h_stride = run.state_stride = 0;
        MOM_TRY(new_zero_row(&run.state, x, R, err));
    }
    if (spec->random)
        MOM_ARENA_NEW(run.noise, x->workspace, (size_t)x->threads * R, err);
    if (saved->dtype != MOM_F32)
        MOM_ARENA_NEW(run.gates, x->workspace, (size_t)x->threads * GR, err);
    const int several = N > most && !spec->few_rows;
    mom_gemm of_inp, of_state = {0};
    MOM_TRY(product_with(&of_inp, x, mom_router_in_factor(w, spec, x->precision, 0), w->packed_in, w->in_bias, 0, several,
                         err));
    if (state)
        MOM_TRY(product_with(&of_state, x, mom_router_state_factor(w, spec, x->precision, 0), w->packed_state,
                             w->state_bias, 0, several, err));
    for (size_t begin = 0; begin < N; begin += most) {
        const size_t rows = run.rows = block_rows(N, begin);
        run.first = begin;
        if (spec->few_rows) {
            MOM_TRY(product(x, x_pre, inp + begin * C, w->in_weight, w->in_bias, spec, rows, C, GR, err));
            if (state)
                MOM_TRY(product(x, h_pre, state + begin * R, w->state_weight, w->state_bias, spec, rows, R, GR, err));
        } else {
            const mom_gemm products[2] = {on_rows(of_inp, x_pre, inp + begin * C, C, rows),
                                          on_rows(of_state, h_pre, state ? state + begin * R : NULL, R, rows)};
            MOM_TRY(mom_gemm_run(x, products, state ? 2 : 1, err));
        }
        mom_parallel_for(x, chunk_count(rows), run_cell, &run);
    }
    return MOM_OK;
}

typedef struct {
    const mom_kernels *k;
    float *dx_pre, *dh_pre;   /* (rows, G*R) */
    float *dx_sums, *dh_sums; /* (chunks of all tokens, G*R) column sums of each chunk */
    float *dstate_in;         /* (N, R), or one row per thread when discard_dstate */
    int discard_dstate;
    float *dhidden;           /* (N, R) from the logits; dstate_out is added */
    const float *dstate_out;  /* (N, R) or NULL */
    const mom_router_saved *saved;
    float *kept; /* (threads, (G+1)*R): a row of gates and of h_n as float32; or NULL if they are that already */
    const float *state;
    size_t state_stride;
    float *noise;
    uint64_t noise_key;
    int dev;
    size_t first, rows; /* the block of tokens */
    size_t R, G;
} cell_backward_context;

static void run_cell_backward(void *context, size_t task, int thread) {
    const cell_backward_context *run = context;
    const mom_router_saved *saved = run->saved;
    const mom_kernels *k = run->k;
    const size_t R = run->R, GR = run->G * R, chunk = run->first / CHUNK_ROWS + task;
    float *noise_row = run->noise ? run->noise + (size_t)thread * R : NULL;
    float *dx_sum = run->dx_sums + chunk * GR, *dh_sum = run->dh_sums + chunk * GR;
    size_t begin, end;
    mom_range(run->rows, chunk_count(run->rows), task, &begin, &end);
    memset(dx_sum, 0, GR * sizeof *dx_sum);
    memset(dh_sum, 0, GR * sizeof *dh_sum);
    for (size_t i = begin; i < end; i++) {
        const size_t t = run->first + i;
        float *dx = run->dx_pre + i * GR, *dh = run->dh_pre + i * GR, *dhidden = run->dhidden + t * R;
        float *dstate_in = run->dstate_in + (run->discard_dstate ? (size_t)thread : t) * R;
        const float *noise = draw_noise(noise_row, run->noise_key, t, R);
        if (run->dstate_out)
            k->vec.add(dhidden, run->dstate_out + t * R, R);
        float *buffer = run->kept ? run->kept + (size_t)thread * (GR + R) : NULL, *h_buffer = buffer ? buffer + GR : NULL;
        const float *gates = kept_values(k, buffer, saved->gates, saved->dtype, t, GR);
        const float *h_n = kept_values(k, h_buffer, saved->h_n, saved->dtype, t, R);
        const mom_gru_saved cell = {gates, h_n, run->state + t * run->state_stride, noise};
        k->gru.backward(dx, dh, dstate_in, dhidden, &cell, run->dev, R);
        k->vec.add(dx_sum, dx, GR);
        k->vec.add(dh_sum, dh, GR);
    }
}

/* dweight (Out, In) += dout^T (Out, rows) * inp (rows, In) */
static mom_gemm gradient_to_weight(const mom_exec *x, float *dweight, const float *dout, const float *inp, size_t rows,
                                   size_t In, size_t Out) {
    return (mom_gemm){.m = Out, .n = In, .k = rows, .a = mom_matrix_transposed(dout, Out), .b = mom_matrix_rows(inp, In),
                      .c = dweight, .ldc = In, .accumulate = 1, .precision = x->precision};
}

static mom_status recurrent_backward(const mom_exec *x, float *dinp, float *dstate_in, mom_router_tensors *dw,
                                     float *dhidden, const float *dstate_out, const float *inp, const float *state,
                                     const mom_router_saved *saved, const mom_router_tensors *w, uint64_t noise_key,
                                     const mom_router_spec *spec, size_t N, mom_error *err) {
    const size_t C = spec->C, R = spec->R, G = mom_router_gates(spec), GR = G * R, chunks = chunk_count(N);
    const size_t most = block_rows(N, 0);
    cell_backward_context run = {.k = x->k, .dstate_in = dstate_in, .discard_dstate = !dstate_in, .dhidden = dhidden,
                                 .dstate_out = dstate_out, .saved = saved, .state = state,
                                 .state_stride = state ? R : 0, .noise_key = noise_key,
                                 .dev = spec->kind == MOM_ROUTER_GRU_DEV, .R = R, .G = G};
    MOM_ARENA_NEW(run.dx_pre, x->workspace, most * GR, err);
    MOM_ARENA_NEW(run.dh_pre, x->workspace, most * GR, err);
    MOM_ARENA_NEW(run.dx_sums, x->workspace, chunks * GR, err);
    MOM_ARENA_NEW(run.dh_sums, x->workspace, chunks * GR, err);
    if (!state)
        MOM_TRY(new_zero_row(&run.state, x, R, err));
    if (!dstate_in)
        MOM_ARENA_NEW(run.dstate_in, x->workspace, (size_t)x->threads * R, err);
    if (spec->random)
        MOM_ARENA_NEW(run.noise, x->workspace, (size_t)x->threads * R, err);
    if (saved->dtype != MOM_F32)
        MOM_ARENA_NEW(run.kept, x->workspace, (size_t)x->threads * (GR + R), err);
    mom_gemm to_inp, to_state = {0};
    MOM_TRY(product_with(&to_inp, x, mom_router_in_factor(w, spec, x->precision, 1), w->packed_in, NULL, 1, N > most, err));
    if (dstate_in)
        MOM_TRY(product_with(&to_state, x, mom_router_state_factor(w, spec, x->precision, 1), w->packed_state, NULL, 1,
                             N > most, err));
    for (size_t begin = 0; begin < N; begin += most) {
        const size_t rows = run.rows = block_rows(N, begin);
        run.first = begin;
        mom_parallel_for(x, chunk_count(rows), run_cell_backward, &run);
        mom_gemm products[4];
        size_t count = 0;
        products[count++] = gradient_to_weight(x, dw->in_weight, run.dx_pre, inp + begin * C, rows, C, GR);
        products[count++] = on_rows(to_inp, dinp + begin * C, run.dx_pre, GR, rows);
        if (state)
            products[count++] = gradient_to_weight(x, dw->state_weight, run.dh_pre, state + begin * R, rows, R, GR);
        if (dstate_in)
            products[count++] = on_rows(to_state, dstate_in + begin * R, run.dh_pre, GR, rows);
        MOM_TRY(mom_gemm_run(x, products, count, err));
    }
    mom_column_sum(x, dw->in_bias, run.dx_sums, NULL, NULL, chunks, GR);
    mom_column_sum(x, dw->state_bias, run.dh_sums, NULL, NULL, chunks, GR);
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
        const float largest = run->k->vec.max(logits, S) / run->temperature;
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
        const float mean = run->k->vec.dot(dscores, scores, S);
        for (size_t m = 0; m < S; m++)
            dlogits[m] = scores[m] * (dscores[m] - mean) / run->temperature;
    }
}

void mom_router_scores_forward(const mom_exec *x, float *scores, const float *logits, int softmax, float temperature,
                               size_t N, size_t S) {
    if (!softmax) {
        if (scores != logits)
            mom_copy(x, scores, logits, N * S * sizeof *scores);
        return;
    }
    scores_context run = {x->k, scores, logits, NULL, temperature, N, S};
    mom_parallel_for(x, chunk_count(N), run_softmax, &run);
}

void mom_router_scores_backward(const mom_exec *x, float *dlogits, const float *dscores, const float *scores,
                                int softmax, float temperature, size_t N, size_t S) {
    if (!softmax) {
        if (dlogits != dscores)
            mom_copy(x, dlogits, dscores, N * S * sizeof *dlogits);
        return;
    }
    scores_context run = {x->k, dlogits, dscores, scores, temperature, N, S};
    mom_parallel_for(x, chunk_count(N), run_softmax_backward, &run);
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
    mom_parallel_for(x, chunk_count(N), run_topk, &run);
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
    mom_parallel_for(x, chunk_count(N), run_topk_backward, &run);
}

void mom_router_ste_forward(float *out, const float *weight, size_t n) {
    for (size_t i = 0; i < n; i++)
        out[i] = (float)((weight[i] > 0.0f) - (weight[i] < 0.0f));
}

void mom_router_ste_backward(float *out, const float *dweight, size_t n) {
    for (size_t i = 0; i < n; i++)
        out[i] = dweight[i] < -1.0f ? -1.0f : dweight[i] > 1.0f ? 1.0f : dweight[i];
}
