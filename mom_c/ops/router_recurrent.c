/* Recurrent routers: the cell between x2h, h2h and the map to the logits. Contract: router.h; derivation:
 * docs/derivations/router.md.
 *
 * DESIGN  Tokens are taken in blocks of BLOCK_ROWS. The pre-activations of a block are written and read by several
 *         products and by the cell, and stay in a cache meanwhile. The products of a block share one list of tasks; their
 *         weights are packed once for all blocks. Between the products there is one pass over tasks of MOM_ROUTER_ROWS
 *         tokens. The backward pass also sums the bias gradients of its tokens while the rows are in cache; the sums of
 *         all tasks are then added in order. So both sizes are part of the result's bits, and the threads are not.
 * COST    A round multiplies 2 N G R (C + R) FLOP forward. In the first round the state is zero and its part is left out,
 *         in both directions.
 * SOURCE  Cho et al. 2014, arXiv:1406.1078 (gated recurrent unit).
 */
#include <string.h>

#include "base/rng.h"
#include "ops/router_functions.h"

#define BLOCK_ROWS ((size_t)256)
_Static_assert(BLOCK_ROWS % MOM_ROUTER_ROWS == 0, "blocks are made of whole tasks");

static size_t block_rows(size_t N, size_t begin) { return mom_min(N - begin, BLOCK_ROWS); }

/* Row t, of `width` columns, of an array that is kept for backward. */
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

/* The row itself, or the row as float32 in `buffer`. */
static const float *kept_values(const mom_kernels *k, float *buffer, void *data, mom_dtype dtype, size_t t, size_t width) {
    void *row = kept_row(data, dtype, t, width);
    if (dtype == MOM_F32)
        return row;
    k->vec.from_bf16(buffer, row, width);
    return buffer;
}

/* What both directions need for the cells of a block of tokens. */
typedef struct {
    const mom_kernels *k;
    const mom_router_saved *saved;
    const float *state; /* (N, R), or one row of zeros when state_stride is 0 */
    size_t state_stride;
    float *noise; /* (threads, R) or NULL */
    uint64_t noise_key;
    int dev;
    size_t first, rows; /* the block of tokens */
    size_t R, GR;
} cells;

/* The state before the first round is zero; the same row serves every token. */
static mom_status cells_init(cells *c, const mom_exec *x, const mom_router_saved *saved, const mom_router_inputs *in,
                             const mom_router_spec *spec, mom_error *err) {
    const size_t R = spec->R;
    float *zeros;
    *c = (cells){.k = x->k, .saved = saved, .state = in->state, .state_stride = in->state ? R : 0,
                 .noise_key = in->noise_key, .dev = spec->kind == MOM_ROUTER_GRU_DEV, .R = R,
                 .GR = mom_router_gates(spec) * R};
    if (!in->state) {
        MOM_ARENA_ZEROS(zeros, x, x->workspace, R, err);
        c->state = zeros;
    }
    if (spec->random)
        MOM_ARENA_NEW(c->noise, x->workspace, (size_t)x->threads * R, err);
    return MOM_OK;
}

/* One token's noise, the same in both directions. NULL if the router has no noise. */
static const float *draw_noise(const cells *c, size_t token, int thread) {
    if (!c->noise)
        return NULL;
    float *row = c->noise + (size_t)thread * c->R;
    for (size_t j = 0; j < c->R; j++)
        row[j] = mom_rng_uniform(c->noise_key, (uint64_t)(token * c->R + j));
    return row;
}

typedef struct {
    cells cells;
    float *gates;       /* (threads, G*R) rows before they are rounded, or NULL: computed where they are kept */
    const float *x_pre; /* (rows, G*R) */
    const float *h_pre; /* (rows, G*R), or one row for all tokens when h_stride is 0 */
    size_t h_stride;
} cell_job;

static void cell_task(void *context, size_t task, int thread) {
    const cell_job *job = context;
    const cells *c = &job->cells;
    const mom_router_saved *saved = c->saved;
    const size_t R = c->R, GR = c->GR;
    size_t begin, end;
    mom_range(c->rows, mom_router_tasks(c->rows), task, &begin, &end);
    for (size_t i = begin; i < end; i++) {
        const size_t t = c->first + i;
        const float *h_pre = job->h_pre + i * job->h_stride;
        float *gates = job->gates ? job->gates + (size_t)thread * GR : kept_row(saved->gates, saved->dtype, t, GR);
        c->k->gru.forward(gates, saved->hidden + t * R, job->x_pre + i * GR, h_pre, c->state + t * c->state_stride,
                          draw_noise(c, t, thread), c->dev, R);
        keep_row(c->k, saved->gates, saved->dtype, t, gates, GR);
        keep_row(c->k, saved->h_n, saved->dtype, t, h_pre + 2 * R, R);
    }
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

/* *product: out (rows, n) = inp (rows, k) * b, to be completed by on_rows. If it serves several blocks of rows, b is
 * packed unless it is already. */
static mom_status product_with(mom_gemm *product, const mom_exec *x, mom_gemm_packing b, const void *packed, int several,
                               mom_error *err) {
    *product = (mom_gemm){.n = b.n, .k = b.k, .b = b.b, .ldc = b.n, .precision = b.precision, .packed_b = packed};
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

/* The products before the cell: what the map of inputs and the map of the state write for one block of tokens. */
typedef struct {
    float *x_pre, *h_pre; /* (rows, G*R) */
    mom_gemm of_inp, of_state;
} cell_products;

static mom_status products_init(cell_products *p, const mom_exec *x, const mom_router_inputs *in, const mom_router_spec *spec,
                                mom_error *err) {
    const mom_router_tensors *w = in->weights;
    const size_t GR = mom_router_gates(spec) * spec->R, most = block_rows(in->N, 0);
    const int several = in->N > most && !spec->few_rows;
    *p = (cell_products){0};
    MOM_TRY(product_with(&p->of_inp, x, mom_router_in_factor(w, spec, x->precision, 0), w->packed_in, several, err));
    if (in->state)
        MOM_TRY(product_with(&p->of_state, x, mom_router_state_factor(w, spec, x->precision, 0), w->packed_state, several,
                             err));
    p->of_state.part = MOM_PART_STATE;
    p->of_inp.bias = w->in_bias;
    p->of_state.bias = w->state_bias;
    MOM_ARENA_NEW(p->x_pre, x->workspace, most * GR, err);
    MOM_ARENA_NEW(p->h_pre, x->workspace, in->state ? most * GR : 0, err);
    return MOM_OK;
}

/* Tokens [begin, begin + rows). */
static mom_status run_products(const cell_products *p, const mom_exec *x, const mom_router_inputs *in,
                               const mom_router_spec *spec, size_t begin, size_t rows, mom_error *err) {
    const mom_router_tensors *w = in->weights;
    const size_t C = spec->C, R = spec->R, GR = mom_router_gates(spec) * R;
    const float *inp = in->inp + begin * C, *state = in->state ? in->state + begin * R : NULL;
    if (!spec->few_rows) {
        const mom_gemm products[2] = {on_rows(p->of_inp, p->x_pre, inp, C, rows), on_rows(p->of_state, p->h_pre, state, R, rows)};
        return mom_gemm_run(x, products, state ? 2 : 1, err);
    }
    const mom_router_map x2h = {w->in_weight, w->in_bias, C, GR}, h2h = {w->state_weight, w->state_bias, R, GR};
    MOM_TRY(mom_router_apply(x, p->x_pre, inp, &x2h, 1, rows, err));
    if (!state)
        return MOM_OK;
    mom_count_part(x, MOM_PART_STATE);
    MOM_TRY(mom_router_apply(x, p->h_pre, state, &h2h, 1, rows, err));
    mom_count_part(x, MOM_PART_ROUTER);
    return MOM_OK;
}

mom_status mom_recurrent_forward(const mom_exec *x, mom_router_saved *saved, const mom_router_inputs *in,
                                 const mom_router_spec *spec, mom_error *err) {
    const size_t most = block_rows(in->N, 0);
    cell_products products;
    MOM_TRY(products_init(&products, x, in, spec, err));
    cell_job job = {.x_pre = products.x_pre, .h_pre = products.h_pre};
    cells *c = &job.cells;
    MOM_TRY(cells_init(c, x, saved, in, spec, err));
    job.h_stride = c->GR;
    if (!in->state) {
        job.h_pre = in->weights->state_bias; /* h2h of zero */
        job.h_stride = 0;
    }
    if (saved->dtype != MOM_F32)
        MOM_ARENA_NEW(job.gates, x->workspace, (size_t)x->threads * c->GR, err);
    for (; c->first < in->N; c->first += most) {
        c->rows = block_rows(in->N, c->first);
        MOM_TRY(run_products(&products, x, in, spec, c->first, c->rows, err));
        mom_parallel_for(x, mom_router_tasks(c->rows), cell_task, &job);
    }
    return MOM_OK;
}

/* ---- backward */

typedef struct {
    cells cells;
    float *dx_pre, *dh_pre;   /* (rows, G*R) */
    float *dx_sums, *dh_sums; /* (chunks of all tokens, G*R) column sums of each chunk */
    float *dstate_in;         /* (N, R), or one row per thread when discard_dstate */
    int discard_dstate;
    float *dhidden;           /* (N, R) from the logits; dstate_out is added */
    const float *dstate_out;  /* (N, R) or NULL */
    float *kept; /* (threads, (G+1)*R): a row of gates and of h_n as float32; or NULL if they are that already */
} cell_backward_job;

static void cell_backward_task(void *context, size_t task, int thread) {
    const cell_backward_job *job = context;
    const cells *c = &job->cells;
    const mom_router_saved *saved = c->saved;
    const mom_kernels *k = c->k;
    const size_t R = c->R, GR = c->GR, chunk = c->first / MOM_ROUTER_ROWS + task;
    float *dx_sum = job->dx_sums + chunk * GR, *dh_sum = job->dh_sums + chunk * GR;
    size_t begin, end;
    mom_range(c->rows, mom_router_tasks(c->rows), task, &begin, &end);
    memset(dx_sum, 0, GR * sizeof *dx_sum);
    memset(dh_sum, 0, GR * sizeof *dh_sum);
    for (size_t i = begin; i < end; i++) {
        const size_t t = c->first + i;
        float *dx = job->dx_pre + i * GR, *dh = job->dh_pre + i * GR, *dhidden = job->dhidden + t * R;
        float *dstate_in = job->dstate_in + (job->discard_dstate ? (size_t)thread : t) * R;
        if (job->dstate_out)
            k->vec.add(dhidden, job->dstate_out + t * R, R);
        float *buffer = job->kept ? job->kept + (size_t)thread * (GR + R) : NULL, *h_buffer = buffer ? buffer + GR : NULL;
        const float *gates = kept_values(k, buffer, saved->gates, saved->dtype, t, GR);
        const float *h_n = kept_values(k, h_buffer, saved->h_n, saved->dtype, t, R);
        const mom_gru_saved cell = {gates, h_n, c->state + t * c->state_stride, draw_noise(c, t, thread)};
        k->gru.backward(dx, dh, dstate_in, dhidden, &cell, c->dev, R);
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

static mom_status allocate_backward(cell_backward_job *job, const mom_exec *x, size_t N, mom_error *err) {
    const size_t R = job->cells.R, GR = job->cells.GR, tasks = mom_router_tasks(N), most = block_rows(N, 0);
    MOM_ARENA_NEW(job->dx_pre, x->workspace, most * GR, err);
    MOM_ARENA_NEW(job->dh_pre, x->workspace, most * GR, err);
    MOM_ARENA_NEW(job->dx_sums, x->workspace, tasks * GR, err);
    MOM_ARENA_NEW(job->dh_sums, x->workspace, tasks * GR, err);
    if (job->discard_dstate)
        MOM_ARENA_NEW(job->dstate_in, x->workspace, (size_t)x->threads * R, err);
    if (job->cells.saved->dtype != MOM_F32)
        MOM_ARENA_NEW(job->kept, x->workspace, (size_t)x->threads * (GR + R), err);
    return MOM_OK;
}

/* dhidden (N, R): the gradient of the new state from the outputs. */
mom_status mom_recurrent_backward(const mom_exec *x, const mom_router_gradients *out, float *dhidden,
                                  const float *dstate_out, const mom_router_inputs *in, const mom_router_saved *saved,
                                  const mom_router_spec *spec, mom_error *err) {
    const size_t N = in->N, C = spec->C, R = spec->R, most = block_rows(N, 0);
    const mom_router_tensors *w = in->weights;
    mom_router_tensors *dw = out->dweights;
    cell_backward_job job = {.dstate_in = out->dstate_in, .discard_dstate = !out->dstate_in, .dhidden = dhidden,
                             .dstate_out = dstate_out};
    MOM_TRY(cells_init(&job.cells, x, saved, in, spec, err));
    MOM_TRY(allocate_backward(&job, x, N, err));
    const size_t GR = job.cells.GR;
    mom_gemm to_inp, to_state = {0};
    MOM_TRY(product_with(&to_inp, x, mom_router_in_factor(w, spec, x->precision, 1), w->packed_in, N > most, err));
    if (out->dstate_in)
        MOM_TRY(product_with(&to_state, x, mom_router_state_factor(w, spec, x->precision, 1), w->packed_state, N > most, err));
    to_inp.accumulate = to_state.accumulate = 1;
    to_state.part = MOM_PART_STATE;
    for (size_t begin = 0; begin < N; begin += most) {
        const size_t rows = block_rows(N, begin);
        job.cells.first = begin;
        job.cells.rows = rows;
        mom_parallel_for(x, mom_router_tasks(rows), cell_backward_task, &job);
        mom_gemm products[4];
        size_t count = 0;
        products[count++] = gradient_to_weight(x, dw->in_weight, job.dx_pre, in->inp + begin * C, rows, C, GR);
        products[count++] = on_rows(to_inp, out->dinp + begin * C, job.dx_pre, GR, rows);
        if (in->state) {
            products[count] = gradient_to_weight(x, dw->state_weight, job.dh_pre, in->state + begin * R, rows, R, GR);
            products[count++].part = MOM_PART_STATE;
        }
        if (out->dstate_in)
            products[count++] = on_rows(to_state, out->dstate_in + begin * R, job.dh_pre, GR, rows);
        MOM_TRY(mom_gemm_run(x, products, count, err));
    }
    mom_column_sum(x, dw->in_bias, job.dx_sums, NULL, NULL, mom_router_tasks(N), GR);
    mom_column_sum(x, dw->state_bias, job.dh_sums, NULL, NULL, mom_router_tasks(N), GR);
    return MOM_OK;
}
