#include "ops/elementwise.h"

#define CHUNK ((size_t)16384) /* elements per task */

typedef struct {
    const mom_vec_kernels *vec;
    float *out;
    const float *in;
    float factor;
    mom_dropout dropout;
} elements_job;

static void axpy_task(const void *context, size_t begin, size_t end) {
    const elements_job *job = context;
    job->vec->axpy(job->out + begin, job->factor, job->in + begin, end - begin);
}

void mom_scaled_add(const mom_exec *x, float *out, float factor, const float *in, size_t n) {
    elements_job job = {.vec = &x->k->vec, .out = out, .in = in, .factor = factor};
    mom_parallel_rows(x, n, CHUNK, axpy_task, &job);
}

static void dropout_task(const void *context, size_t begin, size_t end) {
    const elements_job *job = context;
    job->vec->dropout(job->out + begin, job->in + begin, job->dropout, begin, end - begin);
}

void mom_dropout_apply(const mom_exec *x, float *out, const float *inp, mom_dropout dropout, size_t n) {
    elements_job job = {.vec = &x->k->vec, .out = out, .in = inp, .dropout = dropout};
    mom_parallel_rows(x, n, CHUNK, dropout_task, &job);
}
