#include "ops/path_loss.h"

#include "ops/chunk_sums.h"

typedef struct {
    const mom_path *path;
    float *dscores, scale;
} backward_job;

/* The mean probability of choice s of token t. */
static float mean_of(const mom_path *path, size_t t, size_t s) {
    float sum = 0.0f;
    for (size_t round = 0; round < path->rounds; round++)
        sum += path->scores[round][t * path->S + s];
    return sum / (float)path->rounds;
}

/* Over the modules: the sum of the mean probabilities of token t, and of their squares. */
typedef struct {
    double sum, squares;
} moments;

static moments moments_of(const mom_path *path, size_t t) {
    moments m = {0.0, 0.0};
    for (size_t s = 0; s < path->M; s++) {
        const double mean = (double)mean_of(path, t, s);
        m.sum += mean;
        m.squares += mean * mean;
    }
    return m;
}

static void add_losses(const void *context, size_t begin, size_t end, double *sum, double *count) {
    const mom_path *path = context;
    for (size_t t = begin; t < end; t++) {
        if (path->mask && !path->mask[t])
            continue;
        const moments m = moments_of(path, t);
        if (m.squares > 0.0)
            *sum += (double)path->M * m.squares / (m.sum * m.sum);
        *count += 1.0;
    }
}

mom_status mom_path_loss_add(const mom_exec *x, double *sum, double *tokens, const mom_path *path, mom_error *err) {
    return mom_chunk_sums(x, sum, tokens, path->N, add_losses, path, err);
}

/* With T the sum and Q the sum of squares, d(M Q / T^2) / d(score of m in a round) = 2 M / (R T^2) * (P_m - Q / T). */
static void backward_task(void *context, size_t task, int thread) {
    const backward_job *job = context;
    const mom_path *path = job->path;
    size_t begin, end;
    (void)thread;
    mom_range(path->N, mom_chunk_count(path->N), task, &begin, &end);
    for (size_t t = begin; t < end; t++) {
        if (path->mask && !path->mask[t])
            continue;
        const moments m = moments_of(path, t);
        if (!(m.squares > 0.0))
            continue;
        const double factor = 2.0 * (double)job->scale * (double)path->M / ((double)path->rounds * m.sum * m.sum);
        for (size_t s = 0; s < path->M; s++)
            job->dscores[t * path->S + s] += (float)(factor * ((double)mean_of(path, t, s) - m.squares / m.sum));
    }
}

void mom_path_loss_backward(const mom_exec *x, float *dscores, const mom_path *path, float scale) {
    backward_job job = {.path = path, .dscores = dscores, .scale = scale};
    mom_parallel_for(x, mom_chunk_count(path->N), backward_task, &job);
}
