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

typedef struct {
    const mom_vec_kernels *vec;
    float *wide;
    const float *wide_in;
    mom_bf16 *narrow;
    const mom_bf16 *narrow_in;
} bf16_job;

static void to_bf16_task(const void *context, size_t begin, size_t end) {
    const bf16_job *job = context;
    job->vec->to_bf16(job->narrow + begin, job->wide_in + begin, end - begin);
}

void mom_to_bf16(const mom_exec *x, mom_bf16 *out, const float *in, size_t n) {
    const bf16_job job = {.vec = &x->k->vec, .narrow = out, .wide_in = in};
    mom_parallel_rows(x, n, CHUNK, to_bf16_task, &job);
}

static void from_bf16_task(const void *context, size_t begin, size_t end) {
    const bf16_job *job = context;
    job->vec->from_bf16(job->wide + begin, job->narrow_in + begin, end - begin);
}

void mom_from_bf16(const mom_exec *x, float *out, const mom_bf16 *in, size_t n) {
    const bf16_job job = {.vec = &x->k->vec, .wide = out, .narrow_in = in};
    mom_parallel_rows(x, n, CHUNK, from_bf16_task, &job);
}
