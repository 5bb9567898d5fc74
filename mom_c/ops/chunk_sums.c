#include "ops/chunk_sums.h"

typedef struct {
    size_t N;
    mom_chunk_sum of_chunk;
    const void *context;
    double *partials; /* (chunks, 2): sum, count */
} chunk_job;

static void chunk_task(void *context, size_t task, int thread) {
    const chunk_job *job = context;
    double *partial = job->partials + 2 * task;
    size_t begin, end;
    (void)thread;
    mom_range(job->N, mom_chunk_count(job->N), task, &begin, &end);
    partial[0] = partial[1] = 0.0;
    job->of_chunk(job->context, begin, end, &partial[0], &partial[1]);
}

mom_status mom_chunk_sums(const mom_exec *x, double *sum, double *count, size_t N, mom_chunk_sum of_chunk, const void *context,
                          mom_error *err) {
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    const size_t chunks = mom_chunk_count(N);
    chunk_job job = {.N = N, .of_chunk = of_chunk, .context = context};
    MOM_ARENA_NEW(job.partials, x->workspace, 2 * chunks, err);
    mom_parallel_for(x, chunks, chunk_task, &job);
    if (!x->dry_run)
        *count = 0.0;
    for (size_t chunk = 0; chunk < chunks && !x->dry_run; chunk++) {
        *sum += job.partials[2 * chunk];
        *count += job.partials[2 * chunk + 1];
    }
    mom_arena_release(x->workspace, mark);
    return MOM_OK;
}
