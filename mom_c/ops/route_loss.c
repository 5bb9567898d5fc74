#include "ops/route_loss.h"

#include <math.h>

#include "ops/chunk_sums.h"

typedef struct {
    const mom_made_choices *in;
    float *doutputs, scale;
} backward_job;

/* Choices of token t that the router has; 0 if the token is masked. */
static size_t choices_of(const mom_made_choices *in, size_t t) {
    size_t count = 0;
    for (size_t k = 0; k < in->K && !(in->mask && !in->mask[t]); k++)
        count += (size_t)in->index[t * in->K + k] < in->S;
    return count;
}

static double log_sum_exp(const mom_made_choices *in, const float *outputs) {
    double most = -INFINITY, sum = 0.0;
    for (size_t s = 0; s < in->S; s++) { /* GCC 12 fails with an internal error here on AArch64 if this calls fmax */
        const double value = (double)outputs[s] / (double)in->temperature;
        most = value > most ? value : most;
    }
    for (size_t s = 0; s < in->S; s++)
        sum += exp((double)outputs[s] / (double)in->temperature - most);
    return most + log(sum);
}

static void add_losses(const void *context, size_t begin, size_t end, double *sum, double *count) {
    const mom_made_choices *in = context;
    for (size_t t = begin; t < end; t++) {
        const size_t made = choices_of(in, t);
        const float *outputs = in->outputs + t * in->S;
        double chosen = 0.0;
        if (!made)
            continue;
        for (size_t k = t * in->K; k < (t + 1) * in->K; k++)
            if ((size_t)in->index[k] < in->S)
                chosen += (double)outputs[in->index[k]] / (double)in->temperature;
        *sum += log_sum_exp(in, outputs) - chosen / (double)made;
        *count += 1.0;
    }
}

mom_status mom_route_loss_add(const mom_exec *x, double *sum, double *tokens, const mom_made_choices *in, mom_error *err) {
    double count = 0.0;
    MOM_TRY(mom_chunk_sums(x, sum, &count, in->N, add_losses, in, err));
    *tokens += count;
    return MOM_OK;
}

/* (softmax(outputs / temperature) - share of the made choices) / temperature; a forbidden choice has probability 0 */
static void backward_task(void *context, size_t task, int thread) {
    const backward_job *job = context;
    const mom_made_choices *in = job->in;
    const size_t S = in->S;
    size_t begin, end;
    (void)thread;
    mom_range(in->N, mom_chunk_count(in->N), task, &begin, &end);
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
    backward_job job = {.in = in, .doutputs = doutputs, .scale = scale};
    mom_parallel_for(x, mom_chunk_count(in->N), backward_task, &job);
}
