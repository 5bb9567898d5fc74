#include "ops/gelu.h"

#include "base/sizes.h"

#define CHUNK ((size_t)16384) /* elements per task */

typedef struct {
    const mom_kernels *k;
    float *out;
    const float *dout, *inp;
    size_t n;
} gelu_job;

static size_t chunk_size(size_t n, size_t begin) { return n - begin < CHUNK ? n - begin : CHUNK; }

static void forward_task(void *context, size_t task, int thread) {
    const gelu_job *job = context;
    const size_t begin = task * CHUNK;
    (void)thread;
    job->k->vec.gelu_forward(job->out + begin, job->inp + begin, chunk_size(job->n, begin));
}

void mom_gelu_forward(const mom_exec *x, float *out, const float *inp, size_t n) {
    gelu_job job = {x->k, out, NULL, inp, n};
    mom_parallel_for(x, mom_div_up(n, CHUNK), forward_task, &job);
}

static void backward_task(void *context, size_t task, int thread) {
    const gelu_job *job = context;
    const size_t begin = task * CHUNK;
    (void)thread;
    job->k->vec.gelu_backward(job->out + begin, job->dout + begin, job->inp + begin, chunk_size(job->n, begin));
}

void mom_gelu_backward(const mom_exec *x, float *dinp, const float *dout, const float *inp, size_t n) {
    gelu_job job = {x->k, dinp, dout, inp, n};
    mom_parallel_for(x, mom_div_up(n, CHUNK), backward_task, &job);
}
