/* Passes over all tensors, cut into chunks of fixed size. A task is a chunk, and finds its tensor by bisection. */
#include "ops/adamw.h"

#include <math.h>
#include <string.h>

#include "base/sizes.h"

#define CHUNK ((size_t)16384) /* most elements per task; of an embedding whole rows, at least one */

size_t mom_adamw_chunk(size_t width) { return width ? (width < CHUNK ? CHUNK / width : 1) * width : CHUNK; }

static size_t chunk_of(const mom_adamw_tensor *tensor) { return mom_adamw_chunk(tensor->width); }

/* Numbers the chunks of the used tensors, and with zero_grad those of other tensors that it writes. Returns their number. */
static size_t number_chunks(mom_adamw_tensor *tensors, size_t count, int zero_grad) {
    size_t total = 0;
    for (size_t i = 0; i < count; i++) {
        tensors[i].first_chunk = total;
        if (tensors[i].used || (zero_grad && !tensors[i].leave_grad))
            total += mom_div_up(tensors[i].n, chunk_of(&tensors[i]));
    }
    return total;
}

typedef struct {
    const mom_kernels *k;
    const mom_adamw_tensor *tensors;
    size_t count, chunks;
    const mom_adamw_spec *spec;
    float factor;
    double *partial;
} tensors_job;

/* The tensor of a chunk is the last one that begins at the chunk or before; a tensor without chunks begins where the next one
 * does. *begin and *n become the chunk's range of elements. */
static const mom_adamw_tensor *find_chunk(const tensors_job *job, size_t chunk, size_t *begin, size_t *n) {
    size_t low = 0, high = job->count;
    while (high - low > 1) {
        const size_t middle = low + (high - low) / 2;
        if (job->tensors[middle].first_chunk <= chunk)
            low = middle;
        else
            high = middle;
    }
    const mom_adamw_tensor *tensor = &job->tensors[low];
    const size_t most = chunk_of(tensor);
    *begin = (chunk - tensor->first_chunk) * most;
    *n = tensor->n - *begin < most ? tensor->n - *begin : most;
    return tensor;
}

enum { TOUCHED = 1, FRESH = 2 };

static int kind_of(const mom_adamw_tensor *tensor, size_t row) {
    if (!tensor->touched || tensor->touched[row])
        return TOUCHED;
    return tensor->fresh && tensor->fresh[row] ? FRESH : 0;
}

/* Shortens *n to the elements from `begin` on that are of one kind, and returns the kind. */
static int next_run(const mom_adamw_tensor *tensor, size_t begin, size_t *n) {
    if (!tensor->width)
        return TOUCHED;
    const size_t first = begin / tensor->width, end = first + *n / tensor->width;
    const int kind = kind_of(tensor, first);
    size_t row = first + 1;
    while (row < end && kind_of(tensor, row) == kind)
        row++;
    *n = (row - first) * tensor->width;
    return kind;
}

static void step_run(const tensors_job *job, const mom_adamw_tensor *tensor, const mom_adamw_factors *f, int kind, size_t begin,
                     size_t n) {
    static const float zeros[1024];
    float *param = tensor->param + begin, *m = tensor->exp_avg + begin, *v = tensor->exp_avg_sq + begin;
    if (kind == FRESH) {
        if (f->decay != 1.0f)
            job->k->vec.scale(param, f->decay, param, n);
        return;
    }
    if (kind == TOUCHED) {
        job->k->optimizer.adamw(param, tensor->grad + begin, m, v, f, n);
        if (tensor->width && tensor->fresh)
            memset(tensor->fresh + begin / tensor->width, 0, n / tensor->width);
        return;
    }
    float *none = (float *)(uintptr_t)zeros; /* only read */
    mom_adamw_factors reading = *f;
    reading.grad_scale = 1.0f;
    reading.zero_grad = 0;
    for (size_t i = 0; i < n; i += sizeof zeros / sizeof *zeros) {
        const size_t part = n - i < sizeof zeros / sizeof *zeros ? n - i : sizeof zeros / sizeof *zeros;
        job->k->optimizer.adamw(param + i, none, m + i, v + i, &reading, part);
    }
}

/* Goes from the last chunk to the first. The norm was summed from the first to the last, so the gradients that were read last
 * are still in the caches. */
static void step_task(void *context, size_t task, int thread) {
    const tensors_job *job = context;
    const mom_adamw_spec *spec = job->spec;
    size_t begin, n;
    const mom_adamw_tensor *tensor = find_chunk(job, job->chunks - 1 - task, &begin, &n);
    const double t = tensor->step + 1.0;
    const mom_adamw_factors factors = {
        .grad_scale = spec->grad_scale,
        .beta1 = (float)spec->beta1,
        .beta2 = (float)spec->beta2,
        .eps = (float)spec->eps,
        .step_size = (float)(spec->lr / (1.0 - pow(spec->beta1, t))),
        .inv_bias2 = (float)(1.0 / sqrt(1.0 - pow(spec->beta2, t))),
        .decay = tensor->decay ? (float)(1.0 - spec->lr * spec->weight_decay) : 1.0f,
        .zero_grad = spec->zero_grad && !tensor->leave_grad,
    };
    (void)thread;
    for (size_t end = begin + n, size; begin < end; begin += size) {
        size = end - begin;
        const int kind = next_run(tensor, begin, &size);
        if (tensor->used)
            step_run(job, tensor, &factors, kind, begin, size);
        else if (kind == TOUCHED)
            memset(tensor->grad + begin, 0, size * sizeof(float));
    }
}

void mom_adamw_step(const mom_exec *x, mom_adamw_tensor *tensors, size_t count, const mom_adamw_spec *spec) {
    const size_t chunks = number_chunks(tensors, count, spec->zero_grad);
    tensors_job job = {.k = x->k, .tensors = tensors, .count = count, .chunks = chunks, .spec = spec};
    mom_parallel_for(x, chunks, step_task, &job);
    for (size_t i = 0; i < count; i++) {
        if (tensors[i].used)
            tensors[i].step += 1.0;
    }
}

static void norm_task(void *context, size_t task, int thread) {
    const tensors_job *job = context;
    size_t begin, n;
    const mom_adamw_tensor *tensor = find_chunk(job, task, &begin, &n);
    (void)thread;
    if (!tensor->width) {
        job->partial[task] = job->k->vec.sum_squares(tensor->grad + begin, n);
        return;
    }
    double sum = 0.0; /* row by row, so that rows of zeros make no difference */
    for (size_t end = begin + n; begin < end; begin += tensor->width)
        if (kind_of(tensor, begin / tensor->width) == TOUCHED)
            sum += job->k->vec.sum_squares(tensor->grad + begin, tensor->width);
    job->partial[task] = sum;
}

size_t mom_grad_chunks(mom_adamw_tensor *tensors, size_t count) { return number_chunks(tensors, count, 0); }

void mom_grad_squares(const mom_exec *x, double *partial, mom_adamw_tensor *tensors, size_t count) {
    const size_t chunks = number_chunks(tensors, count, 0);
    tensors_job job = {.k = x->k, .tensors = tensors, .count = count, .chunks = chunks, .partial = partial};
    mom_parallel_for(x, chunks, norm_task, &job);
}

double mom_norm_of_squares(const double *partial, size_t chunks) {
    double sum = 0.0;
    for (size_t i = 0; i < chunks; i++)
        sum += partial[i];
    return sqrt(sum);
}

mom_status mom_grad_norm(const mom_exec *x, double *norm, mom_adamw_tensor *tensors, size_t count, mom_error *err) {
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    const size_t chunks = mom_grad_chunks(tensors, count);
    double *partial;
    MOM_ARENA_NEW(partial, x->workspace, chunks, err);
    mom_grad_squares(x, partial, tensors, count);
    *norm = mom_norm_of_squares(partial, chunks);
    mom_arena_release(x->workspace, mark);
    return MOM_OK;
}

float mom_clip_factor(double norm, double max_norm) {
    const double factor = max_norm / (norm + 1e-6);
    return isfinite(norm) && factor < 1.0 ? (float)factor : 1.0f;
}

static void scale_task(void *context, size_t task, int thread) {
    const tensors_job *job = context;
    size_t begin, n;
    const mom_adamw_tensor *tensor = find_chunk(job, task, &begin, &n);
    (void)thread;
    job->k->vec.scale(tensor->grad + begin, job->factor, tensor->grad + begin, n);
}

void mom_grad_scale(const mom_exec *x, mom_adamw_tensor *tensors, size_t count, float factor) {
    const size_t chunks = number_chunks(tensors, count, 0);
    tensors_job job = {.k = x->k, .tensors = tensors, .count = count, .chunks = chunks, .factor = factor};
    mom_parallel_for(x, chunks, scale_task, &job);
}
