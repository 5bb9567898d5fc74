#include "ops/elementwise.h"

#include "base/sizes.h"

#define CHUNK ((size_t)16384) /* elements per task */

typedef struct {
    const mom_vec_kernels *vec;
    float *out;
    const float *in;
    float factor;
    mom_dropout dropout;
    size_t n;
} elements_job;

static void axpy_task(void *context, size_t task, int thread) {
    const elements_job *job = context;
    const size_t begin = task * CHUNK;
    (void)thread;
    job->vec->axpy(job->out + begin, job->factor, job->in + begin, mom_min(CHUNK, job->n - begin));
}

void mom_scaled_add(const mom_exec *x, float *out, float factor, const float *in, size_t n) {
    elements_job job = {.vec = &x->k->vec, .out = out, .in = in, .factor = factor, .n = n};
    mom_parallel_for(x, mom_div_up(n, CHUNK), axpy_task, &job);
}

static void dropout_task(void *context, size_t task, int thread) {
    const elements_job *job = context;
    const size_t begin = task * CHUNK;
    (void)thread;
    job->vec->dropout(job->out + begin, job->in + begin, job->dropout, begin, mom_min(CHUNK, job->n - begin));
}

void mom_dropout_apply(const mom_exec *x, float *out, const float *inp, mom_dropout dropout, size_t n) {
    elements_job job = {.vec = &x->k->vec, .out = out, .in = inp, .dropout = dropout, .n = n};
    mom_parallel_for(x, mom_div_up(n, CHUNK), dropout_task, &job);
}
