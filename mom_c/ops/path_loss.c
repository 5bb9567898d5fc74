/* Contracts: path_loss.h. Sums over tokens are made in chunks of rows, each with a float64 partial sum of its own, which are
 * then added in order. The size of a chunk is part of the result's bits. */
#include "ops/path_loss.h"

#include "base/sizes.h"

#define CHUNK_ROWS 256

static size_t chunk_count(size_t N) { return mom_div_up(N, CHUNK_ROWS); }

typedef struct {
    const mom_path *path;
    double *partials;      /* forward: (chunks, 2): sum of losses, tokens */
    float *dscores, scale; /* backward */
} path_job;

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

static void add_task(void *context, size_t task, int thread) {
    const path_job *job = context;
    const mom_path *path = job->path;
    double *partial = job->partials + 2 * task;
    size_t begin, end;
    (void)thread;
    mom_range(path->N, chunk_count(path->N), task, &begin, &end);
    partial[0] = partial[1] = 0.0;
    for (size_t t = begin; t < end; t++) {
        if (path->mask && !path->mask[t])
            continue;
        const moments m = moments_of(path, t);
        if (m.squares > 0.0)
            partial[0] += (double)path->M * m.squares / (m.sum * m.sum);
        partial[1] += 1.0;
    }
}

mom_status mom_path_loss_add(const mom_exec *x, double *sum, double *tokens, const mom_path *path, mom_error *err) {
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    const size_t chunks = chunk_count(path->N);
    path_job job = {.path = path};
    MOM_ARENA_NEW(job.partials, x->workspace, 2 * chunks, err);
    mom_parallel_for(x, chunks, add_task, &job);
    if (!x->dry_run)
        *tokens = 0.0;
    for (size_t chunk = 0; chunk < chunks && !x->dry_run; chunk++) {
        *sum += job.partials[2 * chunk];
        *tokens += job.partials[2 * chunk + 1];
    }
    mom_arena_release(x->workspace, mark);
    return MOM_OK;
}

/* With T the sum and Q the sum of squares, d(M Q / T^2) / d(score of m in a round) = 2 M / (R T^2) * (P_m - Q / T). */
static void backward_task(void *context, size_t task, int thread) {
    const path_job *job = context;
    const mom_path *path = job->path;
    size_t begin, end;
    (void)thread;
    mom_range(path->N, chunk_count(path->N), task, &begin, &end);
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
    path_job job = {.path = path, .dscores = dscores, .scale = scale};
    mom_parallel_for(x, chunk_count(path->N), backward_task, &job);
}
