#include "ops/z_loss.h"

#include <math.h>

#include "ops/chunk_sums.h"

#define BLOCK_COLUMNS 64

typedef struct {
    const mom_kernels *k;
    const mom_router_outputs *in;
    float *doutputs, scale; /* backward */
} z_job;

static double log_sum_exp(const mom_kernels *k, const float *outputs, size_t S) {
    const float offset = k->vec.max(outputs, S);
    float e[BLOCK_COLUMNS];
    double sum = 0.0;
    for (size_t first = 0; first < S; first += BLOCK_COLUMNS)
        sum += (double)k->vec.exp_sum(e, outputs + first, 1.0f, offset, mom_min(S - first, BLOCK_COLUMNS));
    return (double)offset + log(sum);
}

static void add_squares(const void *context, size_t begin, size_t end, double *sum, double *count) {
    const z_job *job = context;
    const mom_router_outputs *in = job->in;
    for (size_t t = begin; t < end; t++) {
        if (in->mask && !in->mask[t])
            continue;
        const double y = log_sum_exp(job->k, in->outputs + t * in->S, in->S);
        *sum += y * y;
        *count += 1.0;
    }
}

mom_status mom_z_loss_add(const mom_exec *x, double *sum, double *tokens, const mom_router_outputs *in, mom_error *err) {
    const z_job job = {.k = x->k, .in = in};
    return mom_chunk_sums(x, sum, tokens, in->N, add_squares, &job, err);
}

/* doutputs += 2 scale y p with p = softmax(outputs) = exp(outputs - y) */
static void z_backward_task(void *context, size_t task, int thread) {
    const z_job *job = context;
    const mom_router_outputs *in = job->in;
    const size_t S = in->S;
    float p[BLOCK_COLUMNS];
    size_t begin, end;
    (void)thread;
    mom_range(in->N, mom_chunk_count(in->N), task, &begin, &end);
    for (size_t t = begin; t < end; t++) {
        if (in->mask && !in->mask[t])
            continue;
        const float y = (float)log_sum_exp(job->k, in->outputs + t * S, S), factor = 2.0f * job->scale * y;
        for (size_t first = 0; first < S; first += BLOCK_COLUMNS) {
            const size_t columns = mom_min(S - first, BLOCK_COLUMNS);
            job->k->vec.exp_sum(p, in->outputs + t * S + first, 1.0f, y, columns);
            for (size_t m = 0; m < columns; m++)
                job->doutputs[t * S + first + m] += factor * p[m];
        }
    }
}

void mom_z_loss_backward(const mom_exec *x, float *doutputs, const mom_router_outputs *in, float scale) {
    z_job job = {.k = x->k, .in = in, .doutputs = doutputs, .scale = scale};
    mom_parallel_for(x, mom_chunk_count(in->N), z_backward_task, &job);
}
