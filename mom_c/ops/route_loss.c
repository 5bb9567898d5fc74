/* Contracts: route_loss.h. Sums over tokens are made in chunks of rows, each with float64 partial sums of its own, which are
 * then added in order. The size of a chunk is part of the result's bits. */
#include "ops/route_loss.h"

#include <math.h>

#include "base/sizes.h"

#define CHUNK_ROWS 256

static size_t chunk_count(size_t N) { return mom_div_up(N, CHUNK_ROWS); }

typedef struct {
    const mom_made_choices *in;
    double *partials;       /* forward: (chunks, 2): sum of losses, tokens */
    float *doutputs, scale; /* backward */
} route_job;

/* Choices of token t that the router has; 0 if the token is masked. */
static size_t choices_of(const mom_made_choices *in, size_t t) {
    size_t count = 0;
    for (size_t k = 0; k < in->K && !(in->mask && !in->mask[t]); k++)
        count += (size_t)in->index[t * in->K + k] < in->S;
    return count;
}

static double log_sum_exp(const mom_made_choices *in, const float *outputs) {
    double most = -INFINITY, sum = 0.0;
    for (size_t s = 0; s < in->S; s++)
        most = fmax(most, (double)outputs[s] / (double)in->temperature);
    for (size_t s = 0; s < in->S; s++)
        sum += exp((double)outputs[s] / (double)in->temperature - most);
    return most + log(sum);
}

static void add_task(void *context, size_t task, int thread) {
    const route_job *job = context;
    const mom_made_choices *in = job->in;
    double *partial = job->partials + 2 * task;
    size_t begin, end;
    (void)thread;
    mom_range(in->N, chunk_count(in->N), task, &begin, &end);
    partial[0] = partial[1] = 0.0;
    for (size_t t = begin; t < end; t++) {
        const size_t count = choices_of(in, t);
        const float *outputs = in->outputs + t * in->S;
        double sum = 0.0;
        if (!count)
            continue;
        for (size_t k = t * in->K; k < (t + 1) * in->K; k++)
            if ((size_t)in->index[k] < in->S)
                sum += (double)outputs[in->index[k]] / (double)in->temperature;
        partial[0] += log_sum_exp(in, outputs) - sum / (double)count;
        partial[1] += 1.0;
    }
}

mom_status mom_route_loss_add(const mom_exec *x, double *sum, double *tokens, const mom_made_choices *in, mom_error *err) {
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    const size_t chunks = chunk_count(in->N);
    route_job job = {.in = in};
    MOM_ARENA_NEW(job.partials, x->workspace, 2 * chunks, err);
    mom_parallel_for(x, chunks, add_task, &job);
    for (size_t chunk = 0; chunk < chunks && !x->dry_run; chunk++) {
        *sum += job.partials[2 * chunk];
        *tokens += job.partials[2 * chunk + 1];
    }
    mom_arena_release(x->workspace, mark);
    return MOM_OK;
}

/* (softmax(outputs / temperature) - share of the made choices) / temperature; a forbidden choice has probability 0 */
static void backward_task(void *context, size_t task, int thread) {
    const route_job *job = context;
    const mom_made_choices *in = job->in;
    const size_t S = in->S;
    size_t begin, end;
    (void)thread;
    mom_range(in->N, chunk_count(in->N), task, &begin, &end);
    for (size_t t = begin; t < end; t++) {
        const size_t count = choices_of(in, t);
        const float *outputs = in->outputs + t * S;
        float *doutputs = job->doutputs + t * S;
        if (!count)
            continue;
        const double all = log_sum_exp(in, outputs), factor = (double)job->scale / (double)in->temperature;
        for (size_t s = 0; s < S; s++)
            doutputs[s] += (float)(factor * exp((double)outputs[s] / (double)in->temperature - all));
        for (size_t k = t * in->K; k < (t + 1) * in->K; k++)
            if ((size_t)in->index[k] < S)
                doutputs[in->index[k]] -= (float)(factor / (double)count);
    }
}

void mom_route_loss_backward(const mom_exec *x, float *doutputs, const mom_made_choices *in, float scale) {
    route_job job = {.in = in, .doutputs = doutputs, .scale = scale};
    mom_parallel_for(x, chunk_count(in->N), backward_task, &job);
}
