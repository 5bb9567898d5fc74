#include "ops/routed_rows.h"

#include <string.h>

size_t mom_module_of_slot(const mom_routing_plan *plan, size_t slot) {
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

typedef struct {
    float *slot_scale;
    const float *weight;
    const mom_routing_plan *plan;
} slot_scale_job;

static void slot_scale_task(const void *context, size_t begin, size_t end) {
    const slot_scale_job *job = context;
    const mom_routing_plan *plan = job->plan;
    for (size_t s = begin; s < end; s++)
        job->slot_scale[s] = job->weight[(size_t)plan->token[s] * plan->K + (size_t)plan->choice[s]];
}

void mom_routed_slot_scale(const mom_exec *x, float *slot_scale, const float *weight, const mom_routing_plan *plan) {
    slot_scale_job job = {slot_scale, weight, plan};
    mom_parallel_rows(x, plan->slots, MOM_TASK_ROWS, slot_scale_task, &job);
}

/* ---- combine */

typedef struct {
    const mom_kernels *k;
    float *out;
    const float *y, *weight;
    const mom_routing_plan *plan;
    size_t C;
    int accumulate;
} combine_job;

static void combine_task(const void *context, size_t begin, size_t end) {
    const combine_job *job = context;
    const mom_routing_plan *plan = job->plan;
    const size_t C = job->C;
    for (size_t t = begin; t < end; t++) {
        float *out = job->out + t * C;
        int written = job->accumulate;
        for (size_t i = t * plan->K; i < (t + 1) * plan->K; i++) {
            if (plan->slot[i] < 0)
                continue;
            const float *y = job->y + (size_t)plan->slot[i] * C;
            const float weight = job->weight ? job->weight[i] : 1.0f;
            if (written)
                job->k->vec.axpy(out, weight, y, C);
            else
                job->k->vec.scale(out, weight, y, C);
            written = 1;
        }
        if (!written)
            memset(out, 0, C * sizeof *out);
    }
}

void mom_routed_combine_forward(const mom_exec *x, float *out, const float *y, const float *weight,
                                const mom_routing_plan *plan, size_t C, int accumulate) {
    combine_job job = {x->k, out, y, weight, plan, C, accumulate};
    mom_parallel_rows(x, plan->N, MOM_TASK_ROWS, combine_task, &job);
}

/* ---- layer normalisation */

typedef struct {
    const mom_norm_kernels *k;
    float *out;
    const mom_normed_rows *rows;
    const float *const *weight, *const *bias;
    const mom_routing_plan *plan;
} layernorm_job;

static void layernorm_task(const void *context, size_t begin, size_t end) {
    const layernorm_job *job = context;
    const mom_normed_rows *rows = job->rows;
    const mom_routing_plan *plan = job->plan;
    const size_t C = rows->C;
    for (size_t s = begin; s < end; s++) {
        const size_t t = (size_t)plan->token[s], m = mom_module_of_slot(plan, s);
        job->k->apply(job->out + s * C, rows->inp + t * C, rows->mean[t], rows->rstd[t], job->weight[m], job->bias[m], C);
    }
}

void mom_routed_layernorm_forward(const mom_exec *x, float *out, const mom_normed_rows *rows, const float *const *weight,
                                  const float *const *bias, const mom_routing_plan *plan) {
    layernorm_job job = {&x->k->norm, out, rows, weight, bias, plan};
    mom_parallel_rows(x, plan->slots, MOM_TASK_ROWS, layernorm_task, &job);
}

typedef struct {
    const mom_kernels *k;
    float *dinp;
    float *const *dweight, *const *dbias;
    float *dout;
    const mom_normed_rows *rows;
    const float *const *weight;
    const mom_routing_plan *plan;
    size_t blocks; /* of columns */
} layernorm_backward_job;

/* Tile of the parameter pass. As in a column sum, tiles of rows are summed apart and added in order. */
#define LAYERNORM_ROWS ((size_t)256)
#define LAYERNORM_COLUMNS ((size_t)128)

/* Pass 1, by module and block of columns: dweight[m] += sum of dout * xhat, dbias[m] += sum of dout. */
static void layernorm_parameters_task(void *context, size_t task, int thread) {
    const layernorm_backward_job *job = context;
    const mom_normed_rows *rows = job->rows;
    const mom_routing_plan *plan = job->plan;
    const size_t m = task / job->blocks, first = task % job->blocks * LAYERNORM_COLUMNS, C = rows->C;
    const size_t columns = mom_min(C - first, LAYERNORM_COLUMNS), last = (size_t)plan->offsets[m + 1];
    float dweight[LAYERNORM_COLUMNS], dbias[LAYERNORM_COLUMNS];
    (void)thread;
    for (size_t begin = (size_t)plan->offsets[m]; begin < last; begin += LAYERNORM_ROWS) {
        const size_t end = mom_min(last, begin + LAYERNORM_ROWS);
        memset(dweight, 0, sizeof dweight);
        memset(dbias, 0, sizeof dbias);
        for (size_t s = begin; s < end; s++) {
            const size_t t = (size_t)plan->token[s];
            const float *dout = job->dout + s * C + first, *inp = rows->inp + t * C + first;
            job->k->norm.parameters(dweight, dbias, dout, inp, rows->mean[t], rows->rstd[t], columns);
        }
        job->k->vec.add(job->dweight[m] + first, dweight, columns);
        job->k->vec.add(job->dbias[m] + first, dbias, columns);
    }
}

/* Pass 2, by token. The gradients of xhat from all slots of a token are added up in the row of the token's first slot.
 * So the costlier part of the backward formula runs once per token. */
static void layernorm_input_task(const void *context, size_t begin, size_t end) {
    const layernorm_backward_job *job = context;
    const mom_normed_rows *rows = job->rows;
    const mom_routing_plan *plan = job->plan;
    const size_t C = rows->C;
    for (size_t t = begin; t < end; t++) {
        float *dxhat = NULL;
        for (size_t i = t * plan->K; i < (t + 1) * plan->K; i++) {
            if (plan->slot[i] < 0)
                continue;
            const size_t s = (size_t)plan->slot[i];
            const float *weight = job->weight[mom_module_of_slot(plan, s)];
            float *dout = job->dout + s * C;
            if (dxhat) {
                job->k->vec.multiply_add(dxhat, weight, dout, C);
            } else {
                dxhat = dout;
                job->k->vec.multiply(dxhat, dxhat, weight, C);
            }
        }
        if (dxhat)
            job->k->norm.backward(job->dinp + t * C, dxhat, rows->inp + t * C, rows->mean[t], rows->rstd[t], C);
    }
}

void mom_routed_layernorm_backward(const mom_exec *x, float *dinp, float *const *dweight, float *const *dbias, float *dout,
                                   const mom_normed_rows *rows, const float *const *weight, const mom_routing_plan *plan) {
    const size_t blocks = mom_div_up(rows->C, LAYERNORM_COLUMNS);
    layernorm_backward_job job = {x->k, dinp, dweight, dbias, dout, rows, weight, plan, blocks};
    mom_parallel_for(x, plan->M * blocks, layernorm_parameters_task, &job);
    mom_parallel_rows(x, plan->N, MOM_TASK_ROWS, layernorm_input_task, &job);
}
