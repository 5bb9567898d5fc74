/* One pass over all tensors, cut into chunks of fixed size; a task finds its chunk by walking the list, which
 * costs little beside the chunk itself and needs no memory. */
#include "ops/adamw.h"

#include <math.h>

#include "base/parallel.h"

#define CHUNK ((size_t)16384) /* elements per task */

static size_t tensor_chunks(const mom_adamw_tensor *tensor) {
    return tensor->used ? (tensor->n + CHUNK - 1) / CHUNK : 0;
}

static size_t total_chunks(const mom_adamw_tensor *tensors, size_t count) {
    size_t total = 0;
    for (size_t i = 0; i < count; i++)
        total += tensor_chunks(&tensors[i]);
    return total;
}

/* The tensor of a chunk; *begin and *n are its range of elements. */
static const mom_adamw_tensor *find_chunk(const mom_adamw_tensor *tensor, size_t chunk, size_t *begin, size_t *n) {
    for (size_t chunks; chunk >= (chunks = tensor_chunks(tensor)); tensor++)
        chunk -= chunks;
    *begin = chunk * CHUNK;
    *n = tensor->n - *begin < CHUNK ? tensor->n - *begin : CHUNK;
    return tensor;
}

typedef struct {
    const mom_kernels *k;
    const mom_adamw_tensor *tensors;
    const mom_adamw_spec *spec;
    float factor;
    double *partial;
} tensors_job;

static void step_task(void *context, size_t task, int thread) {
    const tensors_job *job = context;
    const mom_adamw_spec *spec = job->spec;
    size_t begin, n;
    const mom_adamw_tensor *tensor = find_chunk(job->tensors, task, &begin, &n);
    const double t = tensor->step + 1.0;
    const double step_size = spec->lr / (1.0 - pow(spec->beta1, t));
    const double inv_bias2 = 1.0 / sqrt(1.0 - pow(spec->beta2, t));
    const double decay = tensor->decay ? 1.0 - spec->lr * spec->weight_decay : 1.0;
    (void)thread;
    job->k->adamw(tensor->param + begin, tensor->grad + begin, tensor->exp_avg + begin, tensor->exp_avg_sq + begin,
                  1.0f, (float)spec->beta1, (float)spec->beta2, (float)spec->eps, (float)step_size, (float)inv_bias2,
                  (float)decay, n);
}

void mom_adamw_step(const mom_exec *x, mom_adamw_tensor *tensors, size_t count, const mom_adamw_spec *spec) {
    tensors_job job = {x->k, tensors, spec, 1.0f, NULL};
    mom_parallel_for(x->threads, total_chunks(tensors, count), step_task, &job);
    for (size_t i = 0; i < count; i++) {
        if (tensors[i].used)
            tensors[i].step += 1.0;
    }
}

static void norm_task(void *context, size_t task, int thread) {
    const tensors_job *job = context;
    size_t begin, n;
    const mom_adamw_tensor *tensor = find_chunk(job->tensors, task, &begin, &n);
    (void)thread;
    job->partial[task] = job->k->sum_squares(tensor->grad + begin, n);
}

mom_status mom_grad_norm(const mom_exec *x, double *norm, const mom_adamw_tensor *tensors, size_t count,
                         mom_error *err) {
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    const size_t chunks = total_chunks(tensors, count);
    tensors_job job = {x->k, tensors, NULL, 1.0f, NULL};
    MOM_ARENA_NEW(job.partial, x->workspace, chunks, err);
    mom_parallel_for(x->threads, chunks, norm_task, &job);
    double sum = 0.0;
    for (size_t i = 0; i < chunks; i++)
        sum += job.partial[i];
    mom_arena_release(x->workspace, mark);
    *norm = sqrt(sum);
    return MOM_OK;
}

static void scale_task(void *context, size_t task, int thread) {
    const tensors_job *job = context;
    size_t begin, n;
    const mom_adamw_tensor *tensor = find_chunk(job->tensors, task, &begin, &n);
    (void)thread;
    job->k->scale(tensor->grad + begin, job->factor, tensor->grad + begin, n);
}

void mom_grad_scale(const mom_exec *x, mom_adamw_tensor *tensors, size_t count, float factor) {
    tensors_job job = {x->k, tensors, NULL, factor, NULL};
    mom_parallel_for(x->threads, total_chunks(tensors, count), scale_task, &job);
}
