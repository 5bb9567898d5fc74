#include "ops/gelu.h"

#define CHUNK ((size_t)16384) /* elements per task */

typedef struct {
    const mom_vec_kernels *vec;
    float *out;
    const float *dout, *inp;
} gelu_job;

static void forward_task(const void *context, size_t begin, size_t end) {
    const gelu_job *job = context;
    job->vec->gelu_forward(job->out + begin, job->inp + begin, end - begin);
}

void mom_gelu_forward(const mom_exec *x, float *out, const float *inp, size_t n) {
    gelu_job job = {&x->k->vec, out, NULL, inp};
    mom_parallel_rows(x, n, CHUNK, forward_task, &job);
}

static void backward_task(const void *context, size_t begin, size_t end) {
    const gelu_job *job = context;
    job->vec->gelu_backward(job->out + begin, job->dout + begin, job->inp + begin, end - begin);
}

void mom_gelu_backward(const mom_exec *x, float *dinp, const float *dout, const float *inp, size_t n) {
    gelu_job job = {&x->k->vec, dinp, dout, inp};
    mom_parallel_rows(x, n, CHUNK, backward_task, &job);
}
