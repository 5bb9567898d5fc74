#include "ops/forced_choices.h"

#include <math.h>

#include "base/sizes.h"
#include "ops/topk.h"

#define TASK_ROWS 32

typedef struct {
    const mom_forced_choices *in;
    int16_t *index;
    float *weight;
    int16_t *ranked; /* (threads, K) */
} forced_job;

static int is_listed(const int16_t *index, size_t K, int16_t choice) {
    for (size_t k = 0; k < K; k++)
        if (index[k] == choice)
            return 1;
    return 0;
}

static int16_t best_skip(const mom_forced_choices *in, const int16_t *index, const float *scores) {
    const size_t S = in->topk.S;
    size_t best = S;
    for (size_t s = in->M; s < S; s++)
        if (!is_listed(index, in->topk.K, (int16_t)s) && (best == S || scores[s] > scores[best]))
            best = s;
    return (int16_t)best;
}

/* ranked (K): the router's own choices in falling order. There are enough of them: a free entry passes over at most as many
 * as there are other entries. */
static void fill_row(const mom_forced_choices *in, int16_t *index, const int16_t *forced, const int16_t *ranked,
                     const float *scores, const float *outputs) {
    const size_t K = in->topk.K;
    for (size_t k = 0; k < K; k++)
        index[k] = forced ? forced[k] : MOM_FREE;
    for (size_t k = 0; k < K; k++)
        if (index[k] == MOM_SKIP)
            index[k] = best_skip(in, index, scores);
    size_t next = 0;
    for (size_t k = 0; k < K; k++) {
        if (index[k] != MOM_FREE)
            continue;
        while (next < K && is_listed(index, K, ranked[next]))
            next++;
        const int possible = next < K && !(isinf(outputs[ranked[next]]) && outputs[ranked[next]] < 0.0f);
        index[k] = possible ? ranked[next] : MOM_NONE;
    }
}

static void weigh_row(const mom_forced_choices *in, float *weight, const int16_t *index, const float *scores) {
    const size_t S = in->topk.S, K = in->topk.K;
    float sum = 0.0f;
    size_t kept = 0;
    for (size_t k = 0; k < K; k++) {
        weight[k] = index[k] >= 0 && (size_t)index[k] < S ? scores[index[k]] : 0.0f;
        sum += weight[k];
        kept += index[k] >= 0;
    }
    const int equal = !in->scored || (in->topk.renormalise && sum == 0.0f);
    for (size_t k = 0; k < K; k++) {
        if (equal)
            weight[k] = index[k] >= 0 ? 1.0f / (float)kept : 0.0f;
        else if (in->topk.renormalise)
            weight[k] /= sum;
    }
}

static void forced_task(void *context, size_t task, int thread) {
    const forced_job *job = context;
    const mom_forced_choices *in = job->in;
    const size_t N = in->topk.N, S = in->topk.S, K = in->topk.K;
    int16_t *ranked = job->ranked + (size_t)thread * K;
    size_t begin, end;
    mom_range(N, mom_div_up(N, TASK_ROWS), task, &begin, &end);
    for (size_t t = begin; t < end; t++) {
        const float *scores = in->scores + t * S;
        int16_t *index = job->index + t * K;
        const float *ranking = in->ranking ? in->ranking + t * S : scores;
        mom_topk(ranked, ranking, S, K);
        fill_row(in, index, in->forced ? in->forced + t * K : NULL, ranked, ranking, in->outputs + t * S);
        weigh_row(in, job->weight + t * K, index, scores);
    }
}

mom_status mom_forced_choices_forward(const mom_exec *x, int16_t *index, float *weight, const mom_forced_choices *in,
                                      mom_error *err) {
    MOM_ASSERT(in->topk.K <= in->topk.S && in->topk.S < INT16_MAX);
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    forced_job job = {.in = in, .index = index, .weight = weight};
    MOM_ARENA_NEW(job.ranked, x->workspace, (size_t)x->threads * in->topk.K, err);
    mom_parallel_for(x, mom_div_up(in->topk.N, TASK_ROWS), forced_task, &job);
    mom_arena_release(x->workspace, mark);
    return MOM_OK;
}
