/* Linear layers and layer normalisation of a module pool. Contracts: routed_linear.h.
 *
 * DESIGN  The modules of a pool are one group of products, so that threads share small modules. Gathering
 *         happens while an operand is packed: a token's row is read in place, never copied to slot order.
 *         Modules without slots are left out, as are all SKIP choices.
 *         Passes by slot or by token own their rows; sums over slots own columns and go in slot order.
 */
#include "ops/routed_linear.h"

#include <string.h>

#include "ops/linear.h"

/* Rows per task of the passes by token or by slot. */
#define TASK_ROWS 32

static size_t row_tasks(size_t rows) { return (rows + TASK_ROWS - 1) / TASK_ROWS; }

static size_t module_slots(const mom_routing_plan *plan, size_t m) {
    return (size_t)(plan->offsets[m + 1] - plan->offsets[m]);
}

/* The module of a slot: the last one that begins at or before it (empty ones begin where the next does). */
static size_t module_of_slot(const mom_routing_plan *plan, size_t slot) {
    size_t low = 0, high = plan->M;
    while (high - low > 1) {
        const size_t middle = low + (high - low) / 2;
        if ((size_t)plan->offsets[middle] <= slot)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* Module m's rows of data (slots, width), or of data (N, width) through the tokens of its slots. */
static mom_matrix module_rows(const float *data, int gathered, size_t width, const mom_routing_plan *plan, size_t m) {
    const size_t first = (size_t)plan->offsets[m];
    mom_matrix matrix = mom_matrix_rows(gathered ? data : data + first * width, width);
    if (gathered)
        matrix.row_index = plan->token + first;
    return matrix;
}

/* ---- products; the arrays of problems live in the workspace until the caller's mark is released */

static mom_status forward_products(const mom_exec *x, float *out, const float *inp, int inp_gathered,
                                   const float *const *weight, const float *const *bias, const mom_routing_plan *plan,
                                   size_t In, size_t Out, mom_error *err) {
    mom_gemm *products;
    size_t count = 0;
    MOM_ARENA_NEW(products, x->workspace, plan->M, err);
    for (size_t m = 0; m < plan->M; m++)
        if (module_slots(plan, m))
            products[count++] = (mom_gemm){
                .m = module_slots(plan, m),
                .n = Out,
                .k = In,
                .a = module_rows(inp, inp_gathered, In, plan, m),
                .b = mom_matrix_rows(weight[m], Out),
                .c = out + (size_t)plan->offsets[m] * Out,
                .ldc = Out,
                .bias = bias ? bias[m] : NULL,
            };
    return mom_gemm_run(x, products, count, err);
}

mom_status mom_routed_linear_forward(const mom_exec *x, float *out, const float *inp, int inp_gathered,
                                     const float *const *weight, const float *const *bias,
                                     const mom_routing_plan *plan, size_t In, size_t Out, mom_error *err) {
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    const mom_status status = forward_products(x, out, inp, inp_gathered, weight, bias, plan, In, Out, err);
    mom_arena_release(x->workspace, mark);
    return status;
}

static mom_status input_products(const mom_exec *x, float *dinp, const float *dout, int dout_gathered,
                                 const float *const *weight, const mom_routing_plan *plan, size_t In, size_t Out,
                                 mom_error *err) {
    mom_gemm *products;
    size_t count = 0;
    MOM_ARENA_NEW(products, x->workspace, plan->M, err);
    for (size_t m = 0; m < plan->M; m++)
        if (module_slots(plan, m))
            products[count++] = (mom_gemm){
                .m = module_slots(plan, m),
                .n = In,
                .k = Out,
                .a = module_rows(dout, dout_gathered, Out, plan, m),
                .b = mom_matrix_transposed(weight[m], Out),
                .c = dinp + (size_t)plan->offsets[m] * In,
                .ldc = In,
            };
    return mom_gemm_run(x, products, count, err);
}

mom_status mom_routed_linear_backward_input(const mom_exec *x, float *dinp, const float *dout, int dout_gathered,
                                            const float *const *weight, const mom_routing_plan *plan, size_t In,
                                            size_t Out, mom_error *err) {
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    const mom_status status = input_products(x, dinp, dout, dout_gathered, weight, plan, In, Out, err);
    mom_arena_release(x->workspace, mark);
    return status;
}

static mom_status weight_products(const mom_exec *x, float *const *dweight, float *const *dbias, const float *inp,
                                  int inp_gathered, const float *dout, int dout_gathered, const float *slot_scale,
                                  const mom_routing_plan *plan, size_t In, size_t Out, mom_error *err) {
    mom_gemm *products;
    size_t count = 0;
    MOM_ARENA_NEW(products, x->workspace, plan->M, err);
    for (size_t m = 0; m < plan->M; m++)
        if (module_slots(plan, m))
            products[count++] = (mom_gemm){
                .m = In,
                .n = Out,
                .k = module_slots(plan, m),
                .a = mom_matrix_flip(module_rows(inp, inp_gathered, In, plan, m)),
                .b = module_rows(dout, dout_gathered, Out, plan, m),
                .c = dweight[m],
                .ldc = Out,
                .k_scale = slot_scale ? slot_scale + plan->offsets[m] : NULL,
                .k_sums = dbias ? dbias[m] : NULL,
                .accumulate = 1,
            };
    return mom_gemm_run(x, products, count, err);
}

mom_status mom_routed_linear_backward_weight(const mom_exec *x, float *const *dweight, float *const *dbias,
                                             const float *inp, int inp_gathered, const float *dout, int dout_gathered,
                                             const float *slot_scale, const mom_routing_plan *plan, size_t In,
                                             size_t Out, mom_error *err) {
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    const mom_status status =
        weight_products(x, dweight, dbias, inp, inp_gathered, dout, dout_gathered, slot_scale, plan, In, Out, err);
    mom_arena_release(x->workspace, mark);
    return status;
}

/* ---- combine: from slots back to tokens */

typedef struct {
    const mom_kernels *k;
    float *out;
    const float *y, *weight;
    const mom_routing_plan *plan;
    size_t C;
    int accumulate;
} combine_context;

static void run_combine(void *context, size_t task, int thread) {
    (void)thread;
    const combine_context *run = context;
    const mom_routing_plan *plan = run->plan;
    const size_t C = run->C;
    size_t begin, end;
    mom_range(plan->N, row_tasks(plan->N), task, &begin, &end);
    for (size_t t = begin; t < end; t++) {
        float *out = run->out + t * C;
        int written = run->accumulate;
        for (size_t i = t * plan->K; i < (t + 1) * plan->K; i++) {
            if (plan->slot[i] < 0)
                continue;
            const float *y = run->y + (size_t)plan->slot[i] * C;
            const float weight = run->weight ? run->weight[i] : 1.0f;
            if (written)
                run->k->vec.axpy(out, weight, y, C);
            else
                run->k->vec.scale(out, weight, y, C);
            written = 1;
        }
        if (!written)
            memset(out, 0, C * sizeof *out);
    }
}

void mom_routed_combine_forward(const mom_exec *x, float *out, const float *y, const float *weight,
                                const mom_routing_plan *plan, size_t C, int accumulate) {
    combine_context run = {x->k, out, y, weight, plan, C, accumulate};
    mom_parallel_for(x, row_tasks(plan->N), run_combine, &run);
}

typedef struct {
    const mom_kernels *k;
    float *dweight, *dy;
    const float *dout, *y, *weight;
    const mom_routing_plan *plan;
    size_t C;
} combine_backward_context;

static void run_combine_backward(void *context, size_t task, int thread) {
    (void)thread;
    const combine_backward_context *run = context;
    const mom_routing_plan *plan = run->plan;
    const size_t C = run->C;
    size_t begin, end;
    mom_range(plan->N, row_tasks(plan->N), task, &begin, &end);
    for (size_t t = begin; t < end; t++) {
        const float *dout = run->dout + t * C;
        for (size_t i = t * plan->K; i < (t + 1) * plan->K; i++) {
            const int skipped = plan->slot[i] < 0;
            const size_t row = skipped ? 0 : (size_t)plan->slot[i] * C;
            if (run->dweight)
                run->dweight[i] = skipped ? 0.0f : run->k->vec.dot(dout, run->y + row, C);
            if (run->dy && !skipped)
                run->k->vec.scale(run->dy + row, run->weight ? run->weight[i] : 1.0f, dout, C);
        }
    }
}

void mom_routed_combine_backward(const mom_exec *x, float *dweight, float *dy, const float *dout, const float *y,
                                 const float *weight, const mom_routing_plan *plan, size_t C) {
    combine_backward_context run = {x->k, dweight, dy, dout, y, weight, plan, C};
    mom_parallel_for(x, row_tasks(plan->N), run_combine_backward, &run);
}

typedef struct {
    float *slot_scale;
    const float *weight;
    const mom_routing_plan *plan;
} slot_scale_job;

static void slot_scale_task(void *context, size_t task, int thread) {
    const slot_scale_job *job = context;
    const mom_routing_plan *plan = job->plan;
    size_t begin, end;
    (void)thread;
    mom_range(plan->slots, row_tasks(plan->slots), task, &begin, &end);
    for (size_t s = begin; s < end; s++)
        job->slot_scale[s] = job->weight[(size_t)plan->token[s] * plan->K + (size_t)plan->choice[s]];
}

void mom_routed_slot_scale(const mom_exec *x, float *slot_scale, const float *weight, const mom_routing_plan *plan) {
    slot_scale_job job = {slot_scale, weight, plan};
    mom_parallel_for(x, row_tasks(plan->slots), slot_scale_task, &job);
}

/* ---- scores */

typedef struct {
    const mom_kernels *k;
    float *dweight, *dh;
    const float *h;
    int h_gathered;
    const float *dout;
    const float *const *bias;
    const float *weight;
    const mom_routing_plan *plan;
    size_t In, Out;
} score_context;

static void run_score_backward(void *context, size_t task, int thread) {
    (void)thread;
    const score_context *run = context;
    const mom_routing_plan *plan = run->plan;
    size_t begin, end;
    mom_range(plan->slots, row_tasks(plan->slots), task, &begin, &end);
    for (size_t s = begin; s < end; s++) {
        const size_t t = (size_t)plan->token[s], choice = t * plan->K + (size_t)plan->choice[s];
        const float *h = run->h + (run->h_gathered ? t : s) * run->In;
        float *dh = run->dh + s * run->In;
        float dweight = run->k->vec.dot(dh, h, run->In);
        if (run->bias)
            dweight += run->k->vec.dot(run->dout + t * run->Out, run->bias[module_of_slot(plan, s)], run->Out);
        run->dweight[choice] += dweight;
        if (run->weight)
            run->k->vec.scale(dh, run->weight[choice], dh, run->In);
    }
}

void mom_routed_score_backward(const mom_exec *x, float *dweight, float *dh, const float *h, int h_gathered,
                               const float *dout, const float *const *bias, const float *weight,
                               const mom_routing_plan *plan, size_t In, size_t Out) {
    score_context run = {x->k, dweight, dh, h, h_gathered, dout, bias, weight, plan, In, Out};
    mom_parallel_for(x, row_tasks(plan->slots), run_score_backward, &run);
}

/* ---- layer normalisation */

typedef struct {
    const mom_kernels *k;
    float *out;
    const float *inp, *mean, *rstd;
    const float *const *weight, *const *bias;
    const mom_routing_plan *plan;
    size_t C;
} layernorm_context;

static void run_layernorm(void *context, size_t task, int thread) {
    (void)thread;
    const layernorm_context *run = context;
    const mom_routing_plan *plan = run->plan;
    const size_t C = run->C;
    size_t begin, end;
    mom_range(plan->slots, row_tasks(plan->slots), task, &begin, &end);
    for (size_t s = begin; s < end; s++) {
        const size_t t = (size_t)plan->token[s], m = module_of_slot(plan, s);
        run->k->norm.apply(run->out + s * C, run->inp + t * C, run->mean[t], run->rstd[t], run->weight[m],
                                run->bias[m], C);
    }
}

void mom_routed_layernorm_forward(const mom_exec *x, float *out, const float *inp, const float *mean,
                                  const float *rstd, const float *const *weight, const float *const *bias,
                                  const mom_routing_plan *plan, size_t C) {
    layernorm_context run = {x->k, out, inp, mean, rstd, weight, bias, plan, C};
    mom_parallel_for(x, row_tasks(plan->slots), run_layernorm, &run);
}

typedef struct {
    const mom_kernels *k;
    float *dinp;
    float *const *dweight, *const *dbias;
    float *dout;
    const float *inp, *mean, *rstd;
    const float *const *weight;
    const mom_routing_plan *plan;
    size_t C, blocks; /* blocks of columns */
} layernorm_backward_context;

/* Tile of the parameter pass; as in a column sum, tiles of rows are summed apart and added in order. */
#define LAYERNORM_ROWS 256
#define LAYERNORM_COLUMNS 128

/* Pass 1, by module and block of columns: dweight[m] += sum of dout * xhat, dbias[m] += sum of dout. */
static void run_layernorm_parameters(void *context, size_t task, int thread) {
    (void)thread;
    const layernorm_backward_context *run = context;
    const mom_routing_plan *plan = run->plan;
    const size_t m = task / run->blocks, first = task % run->blocks * LAYERNORM_COLUMNS, C = run->C;
    const size_t columns = C - first < LAYERNORM_COLUMNS ? C - first : LAYERNORM_COLUMNS;
    const size_t last = (size_t)plan->offsets[m + 1];
    float dweight[LAYERNORM_COLUMNS], dbias[LAYERNORM_COLUMNS];
    for (size_t begin = (size_t)plan->offsets[m]; begin < last; begin += LAYERNORM_ROWS) {
        const size_t end = last - begin < LAYERNORM_ROWS ? last : begin + LAYERNORM_ROWS;
        memset(dweight, 0, sizeof dweight);
        memset(dbias, 0, sizeof dbias);
        for (size_t s = begin; s < end; s++) {
            const size_t t = (size_t)plan->token[s];
            const float *dout = run->dout + s * C + first, *inp = run->inp + t * C + first;
            const float mean = run->mean[t], rstd = run->rstd[t];
            run->k->norm.parameters(dweight, dbias, dout, inp, mean, rstd, columns);
        }
        run->k->vec.add(run->dweight[m] + first, dweight, columns);
        run->k->vec.add(run->dbias[m] + first, dbias, columns);
    }
}

/* Pass 2, by token: the gradients of xhat from all its slots are gathered in the row of its first slot, so
 * that the costlier part of the backward formula runs once per token. */
static void run_layernorm_input(void *context, size_t task, int thread) {
    (void)thread;
    const layernorm_backward_context *run = context;
    const mom_routing_plan *plan = run->plan;
    const size_t C = run->C;
    size_t begin, end;
    mom_range(plan->N, row_tasks(plan->N), task, &begin, &end);
    for (size_t t = begin; t < end; t++) {
        float *dxhat = NULL;
        for (size_t i = t * plan->K; i < (t + 1) * plan->K; i++) {
            if (plan->slot[i] < 0)
                continue;
            const size_t s = (size_t)plan->slot[i];
            const float *weight = run->weight[module_of_slot(plan, s)];
            float *dout = run->dout + s * C;
            if (dxhat) {
                run->k->vec.multiply_add(dxhat, weight, dout, C);
            } else {
                dxhat = dout;
                run->k->vec.multiply(dxhat, dxhat, weight, C);
            }
        }
        if (dxhat)
            run->k->norm.backward(run->dinp + t * C, dxhat, run->inp + t * C, run->mean[t], run->rstd[t], C);
    }
}

mom_status mom_routed_layernorm_backward(const mom_exec *x, float *dinp, float *const *dweight, float *const *dbias,
                                         float *dout, const float *inp, const float *mean, const float *rstd,
                                         const float *const *weight, const mom_routing_plan *plan, size_t C,
                                         mom_error *err) {
    (void)err; /* dout is all the scratch it needs */
    const size_t blocks = (C + LAYERNORM_COLUMNS - 1) / LAYERNORM_COLUMNS;
    layernorm_backward_context run = {x->k, dinp, dweight, dbias, dout, inp, mean, rstd, weight, plan, C, blocks};
    mom_parallel_for(x, plan->M * blocks, run_layernorm_parameters, &run);
    mom_parallel_for(x, row_tasks(plan->N), run_layernorm_input, &run);
    return MOM_OK;
}
