#include "ops/add_pieces.h"

#define CHUNK ((size_t)4096) /* most elements per task: few enough that those of several pieces stay in a cache */

typedef struct {
    const mom_kernels *k;
    float *const *pieces;
    const mom_addition *additions;
    size_t count;
} pieces_job;

static void add_task(const void *context, size_t begin, size_t end) {
    const pieces_job *job = context;
    for (size_t i = 0; i < job->count; i++)
        job->k->vec.add(job->pieces[job->additions[i].to] + begin, job->pieces[job->additions[i].from] + begin, end - begin);
}

void mom_add_pieces(const mom_exec *x, float *const *pieces, size_t n, const mom_addition *additions, size_t count) {
    const pieces_job job = {.k = x->k, .pieces = pieces, .additions = additions, .count = count};
    mom_parallel_rows(x, n, CHUNK, add_task, &job);
}
