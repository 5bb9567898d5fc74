#include "ops/layernorm.h"

#include <string.h>

#include "base/sizes.h"

/* Rows per task. Backward sums the gradients of weight and bias over one task's rows and then over the tasks in
 * order, so their bits follow from N alone. */
#define ROWS ((size_t)64)
#define COLUMNS ((size_t)64) /* columns per task when adding up those sums */

typedef struct {
    const mom_norm_kernels *k;
    float *out, *mean, *rstd;
    const float *inp;
    mom_layernorm norm;
    size_t C;
} forward_job;

static void stats_task(const void *context, size_t begin, size_t end) {
    const forward_job *job = context;
    for (size_t t = begin; t < end; t++)
        job->k->stats(&job->mean[t], &job->rstd[t], job->inp + t * job->C, job->norm.eps, job->C);
}

void mom_layernorm_stats(const mom_exec *x, float *mean, float *rstd, const float *inp, float eps, size_t N, size_t C) {
    forward_job job = {&x->k->norm, NULL, mean, rstd, inp, {.eps = eps}, C};
    mom_parallel_rows(x, N, ROWS, stats_task, &job);
}

static void forward_task(const void *context, size_t begin, size_t end) {
    const forward_job *job = context;
    const mom_layernorm *norm = &job->norm;
    const size_t C = job->C;
    for (size_t t = begin; t < end; t++) {
        const float *inp = job->inp + t * C;
        job->k->stats(&job->mean[t], &job->rstd[t], inp, norm->eps, C);
        job->k->apply(job->out + t * C, inp, job->mean[t], job->rstd[t], norm->weight, norm->bias, C);
    }
}

void mom_layernorm_forward(const mom_exec *x, float *out, float *mean, float *rstd, const float *inp,
                           const mom_layernorm *norm, size_t N, size_t C) {
    forward_job job = {&x->k->norm, out, mean, rstd, inp, *norm, C};
    mom_parallel_rows(x, N, ROWS, forward_task, &job);
}

typedef struct {
    const mom_kernels *k;
    float *dinp, *dweight, *dbias;
    const float *dout, *weight;
    const mom_normed_rows *rows;
    float *dxhat;   /* (threads, C) */
    float *partial; /* (chunks, 2, C): sums for dweight and dbias */
    size_t chunks;
} backward_job;

static void backward_task(void *context, size_t task, int thread) {
    const backward_job *job = context;
    const mom_normed_rows *rows = job->rows;
    const size_t C = rows->C, end = mom_min(rows->N, (task + 1) * ROWS);
    float *dxhat = job->dxhat + (size_t)thread * C;
    float *dweight = job->partial + task * 2 * C, *dbias = dweight + C;
    memset(dweight, 0, 2 * C * sizeof *dweight);
    for (size_t t = task * ROWS; t < end; t++) {
        const float *inp = rows->inp + t * C, *dout = job->dout + t * C;
        job->k->vec.multiply(dxhat, dout, job->weight, C);
        job->k->norm.parameters(dweight, dbias, dout, inp, rows->mean[t], rows->rstd[t], C);
        job->k->norm.backward(job->dinp + t * C, dxhat, inp, rows->mean[t], rows->rstd[t], C);
    }
}

static void partial_sum_task(void *context, size_t task, int thread) {
    const backward_job *job = context;
    const size_t C = job->rows->C, begin = task * COLUMNS, width = mom_min(C - begin, COLUMNS);
    (void)thread;
    for (size_t i = 0; i < job->chunks; i++) {
        const float *partial = job->partial + i * 2 * C + begin;
        job->k->vec.add(job->dweight + begin, partial, width);
        job->k->vec.add(job->dbias + begin, partial + C, width);
    }
}

mom_status mom_layernorm_backward(const mom_exec *x, float *dinp, float *dweight, float *dbias, const float *dout,
                                  const float *weight, const mom_normed_rows *rows, mom_error *err) {
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    const size_t C = rows->C, chunks = mom_div_up(rows->N, ROWS);
    float *scratch;
    MOM_ARENA_NEW(scratch, x->workspace, ((size_t)x->threads + 2 * chunks) * C, err);
    backward_job job = {x->k, dinp, dweight, dbias, dout, weight, rows, scratch, scratch + (size_t)x->threads * C, chunks};
    mom_parallel_for(x, chunks, backward_task, &job);
    mom_parallel_for(x, mom_div_up(C, COLUMNS), partial_sum_task, &job);
    mom_arena_release(x->workspace, mark);
    return MOM_OK;
}
