/* Contracts and definition: balance_loss.h.
 *
 * Sums over tokens are made in chunks of rows. Each chunk has float64 partial sums of its own, which are then added in
 * order. The size of a chunk is part of the result's bits and does not depend on the threads.
 */
#include "ops/balance_loss.h"

#include <math.h>
#include <string.h>

#include "base/sizes.h"
#include "ops/scores.h"
#include "ops/topk.h"

#define CHUNK_ROWS 256

static size_t chunk_count(size_t N) { return mom_div_up(N, CHUNK_ROWS); }

typedef struct {
    const mom_kernels *k;
    const mom_balance_scores *in;
    double *partials; /* (chunks, 2 S + 1): counts, sums of probabilities, tokens */
    float *rows;      /* (threads, S) */
} accumulate_job;

/* Scores that are probabilities already lie even closer together after a second softmax, and many become equal in
 * float32. The count then follows the probabilities, as in the reference. */
static void accumulate_task(void *context, size_t task, int thread) {
    const accumulate_job *job = context;
    const mom_balance_scores *in = job->in;
    const size_t S = in->S;
    double *counts = job->partials + task * (2 * S + 1), *prob_sums = counts + S, *tokens = prob_sums + S;
    float *row = job->rows + (size_t)thread * S;
    size_t begin, end;
    mom_range(in->N, chunk_count(in->N), task, &begin, &end);
    memset(counts, 0, (2 * S + 1) * sizeof *counts);
    for (size_t t = begin; t < end; t++) {
        if (in->mask && !in->mask[t])
            continue;
        const float *probabilities = in->scores + t * S;
        if (in->softmax) {
            mom_softmax_row(job->k, row, probabilities, 1.0f, S);
            probabilities = row;
        }
        int16_t best;
        if (!in->used)
            mom_topk(&best, probabilities, S, 1);
        else
            best = in->used_stride ? in->used[t * in->used_stride] : -1;
        if ((size_t)best < S)
            counts[best] += 1.0;
        *tokens += 1.0;
        for (size_t m = 0; m < S; m++)
            prob_sums[m] += (double)probabilities[m];
    }
}

mom_status mom_balance_accumulate(const mom_exec *x, double *counts, double *prob_sums, double *tokens,
                                  const mom_balance_scores *in, mom_error *err) {
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    const size_t S = in->S, chunks = chunk_count(in->N);
    accumulate_job job = {.k = x->k, .in = in};
    MOM_ARENA_NEW(job.partials, x->workspace, chunks * (2 * S + 1), err);
    MOM_ARENA_NEW(job.rows, x->workspace, (size_t)x->threads * S, err);
    mom_parallel_for(x, chunks, accumulate_task, &job);
    for (size_t chunk = 0; chunk < chunks && !x->dry_run; chunk++) {
        const double *partial = job.partials + chunk * (2 * S + 1);
        for (size_t m = 0; m < S; m++) {
            counts[m] += partial[m];
            prob_sums[m] += partial[S + m];
        }
        *tokens += partial[2 * S];
    }
    mom_arena_release(x->workspace, mark);
    return MOM_OK;
}

double mom_balance_loss(const double *counts, double count_tokens, const double *prob_sums, double tokens, size_t S) {
    if (count_tokens <= 0.0 || tokens <= 0.0)
        return 0.0;
    double sum = 0.0;
    for (size_t m = 0; m < S; m++)
        sum += counts[m] / count_tokens * (prob_sums[m] / tokens);
    return (double)S * sum;
}

/* Columns of a row that are handled at a time. So any number of choices works without scratch memory. */
#define BLOCK_COLUMNS 64

typedef struct {
    const mom_kernels *k;
    float *dscores;
    const mom_balance_scores *in;
    const double *counts;
    double factor; /* times counts[m] it is the gradient of a probability of choice m */
} backward_job;

/* dscores += p * (g - <p, g>) with p = softmax(scores) and g = factor * counts */
static void add_softmax_gradient(const backward_job *job, float *dscores, const float *scores) {
    const mom_kernels *k = job->k;
    const size_t S = job->in->S;
    const float offset = k->vec.max(scores, S);
    float e[BLOCK_COLUMNS];
    double sum = 0.0, weighted = 0.0;
    for (size_t first = 0; first < S; first += BLOCK_COLUMNS) {
        const size_t columns = mom_min(S - first, BLOCK_COLUMNS);
        sum += (double)k->vec.exp_sum(e, scores + first, 1.0f, offset, columns);
        for (size_t m = 0; m < columns; m++)
            weighted += (double)e[m] * job->counts[first + m];
    }
    const double mean_count = weighted / sum, factor = job->factor / sum;
    for (size_t first = 0; first < S; first += BLOCK_COLUMNS) {
        const size_t columns = mom_min(S - first, BLOCK_COLUMNS);
        k->vec.exp_sum(e, scores + first, 1.0f, offset, columns);
        for (size_t m = 0; m < columns; m++)
            dscores[first + m] += (float)(factor * (double)e[m] * (job->counts[first + m] - mean_count));
    }
}

static void backward_task(const void *context, size_t begin, size_t end) {
    const backward_job *job = context;
    const mom_balance_scores *in = job->in;
    const size_t S = in->S;
    for (size_t t = begin; t < end; t++) {
        if (in->mask && !in->mask[t])
            continue;
        float *dscores = job->dscores + t * S;
        if (in->softmax)
            add_softmax_gradient(job, dscores, in->scores + t * S);
        else
            for (size_t m = 0; m < S; m++)
                dscores[m] += (float)(job->factor * job->counts[m]);
    }
}

void mom_balance_backward(const mom_exec *x, float *dscores, const mom_balance_scores *in, const double *counts,
                          double count_tokens, double tokens, float scale) {
    if (count_tokens <= 0.0 || tokens <= 0.0)
        return;
    const double factor = (double)scale * (double)in->S / (count_tokens * tokens);
    backward_job job = {x->k, dscores, in, counts, factor};
    mom_parallel_rows(x, in->N, CHUNK_ROWS, backward_task, &job);
}
