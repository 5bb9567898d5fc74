/* Load-balancing loss. Contracts and definition: balance_loss.h.
 *
 * Sums over tokens are made in chunks of rows, each into float64 partial sums of its own, which are then
 * added in order; the size of a chunk is part of the result's bits and does not depend on the threads.
 */
#include "ops/balance_loss.h"

#include <math.h>
#include <string.h>

#include "ops/topk.h"

#define CHUNK_ROWS 256

static size_t chunk_count(size_t N) { return (N + CHUNK_ROWS - 1) / CHUNK_ROWS; }

typedef struct {
    const mom_kernels *k;
    double *partials; /* (chunks, 2 S + 1): counts, sums of probabilities, tokens */
    float *rows;      /* (threads, S) */
    const float *scores;
    const uint8_t *mask;
    int softmax;
    size_t N, S;
} accumulate_context;

/* Scores that are probabilities lie closer together still after a second softmax, and many become equal in float32.
 * The count then follows the probabilities, as in the reference; see run_softmax in router.c for the rounding. */
static void softmax_row(float *out, const float *scores, size_t S) {
    float largest = scores[0], sum = 0.0f;
    for (size_t m = 1; m < S; m++)
        largest = scores[m] > largest ? scores[m] : largest;
    for (size_t m = 0; m < S; m++) {
        out[m] = expf(scores[m] - largest);
        sum += out[m];
    }
    const float inverse = 1.0f / sum;
    for (size_t m = 0; m < S; m++)
        out[m] *= inverse;
}

static void run_accumulate(void *context, size_t task, int thread) {
    const accumulate_context *run = context;
    const size_t S = run->S;
    double *counts = run->partials + task * (2 * S + 1), *prob_sums = counts + S, *tokens = prob_sums + S;
    float *row = run->rows + (size_t)thread * S;
    size_t begin, end;
    mom_range(run->N, chunk_count(run->N), task, &begin, &end);
    memset(counts, 0, (2 * S + 1) * sizeof *counts);
    for (size_t t = begin; t < end; t++) {
        if (run->mask && !run->mask[t])
            continue;
        const float *scores = run->scores + t * S;
        const float *probabilities = scores;
        if (run->softmax) {
            softmax_row(row, scores, S);
            probabilities = row;
        }
        int16_t best;
        mom_topk(&best, probabilities, S, 1);
        counts[best] += 1.0;
        *tokens += 1.0;
        for (size_t m = 0; m < S; m++)
            prob_sums[m] += (double)probabilities[m];
    }
}

static mom_status accumulate(const mom_exec *x, double *counts, double *prob_sums, double *tokens,
                             accumulate_context *run, mom_error *err) {
    const size_t S = run->S, chunks = chunk_count(run->N);
    MOM_ARENA_NEW(run->partials, x->workspace, chunks * (2 * S + 1), err);
    MOM_ARENA_NEW(run->rows, x->workspace, (size_t)x->threads * S, err);
    mom_parallel_for(x, chunks, run_accumulate, run);
    for (size_t chunk = 0; chunk < chunks; chunk++) {
        const double *partial = run->partials + chunk * (2 * S + 1);
        for (size_t m = 0; m < S; m++) {
            counts[m] += partial[m];
            prob_sums[m] += partial[S + m];
        }
        *tokens += partial[2 * S];
    }
    return MOM_OK;
}

mom_status mom_balance_accumulate(const mom_exec *x, double *counts, double *prob_sums, double *tokens,
                                  const float *scores, const uint8_t *mask, int softmax, size_t N, size_t S,
                                  mom_error *err) {
    accumulate_context run = {.k = x->k, .scores = scores, .mask = mask, .softmax = softmax, .N = N, .S = S};
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    const mom_status status = accumulate(x, counts, prob_sums, tokens, &run, err);
    mom_arena_release(x->workspace, mark);
    return status;
}

double mom_balance_loss(const double *counts, double count_tokens, const double *prob_sums, double tokens, size_t S) {
    if (count_tokens <= 0.0 || tokens <= 0.0)
        return 0.0;
    double sum = 0.0;
    for (size_t m = 0; m < S; m++)
        sum += counts[m] / count_tokens * (prob_sums[m] / tokens);
    return (double)S * sum;
}

/* Columns of a row handled at a time, so that any number of choices works without scratch memory. */
#define BLOCK_COLUMNS 64

typedef struct {
    const mom_kernels *k;
    float *dscores;
    const float *scores;
    const uint8_t *mask;
    const double *counts;
    double factor; /* times counts[m]: the gradient of a probability of choice m */
    int softmax;
    size_t N, S;
} backward_context;

/* dscores += p * (g - <p, g>) with p = softmax(scores) and g = factor * counts */
static void add_softmax_gradient(const backward_context *run, float *dscores, const float *scores) {
    const mom_kernels *k = run->k;
    const size_t S = run->S;
    const float offset = k->vec.max(scores, S);
    float e[BLOCK_COLUMNS];
    double sum = 0.0, weighted = 0.0;
    for (size_t first = 0; first < S; first += BLOCK_COLUMNS) {
        const size_t columns = S - first < BLOCK_COLUMNS ? S - first : BLOCK_COLUMNS;
        sum += (double)k->vec.exp_sum(e, scores + first, 1.0f, offset, columns);
        for (size_t m = 0; m < columns; m++)
            weighted += (double)e[m] * run->counts[first + m];
    }
    const double mean_count = weighted / sum, factor = run->factor / sum;
    for (size_t first = 0; first < S; first += BLOCK_COLUMNS) {
        const size_t columns = S - first < BLOCK_COLUMNS ? S - first : BLOCK_COLUMNS;
        k->vec.exp_sum(e, scores + first, 1.0f, offset, columns);
        for (size_t m = 0; m < columns; m++)
            dscores[first + m] += (float)(factor * (double)e[m] * (run->counts[first + m] - mean_count));
    }
}

static void run_backward(void *context, size_t task, int thread) {
    (void)thread;
    const backward_context *run = context;
    const size_t S = run->S;
    size_t begin, end;
    mom_range(run->N, chunk_count(run->N), task, &begin, &end);
    for (size_t t = begin; t < end; t++) {
        if (run->mask && !run->mask[t])
            continue;
        float *dscores = run->dscores + t * S;
        if (run->softmax)
            add_softmax_gradient(run, dscores, run->scores + t * S);
        else
            for (size_t m = 0; m < S; m++)
                dscores[m] += (float)(run->factor * run->counts[m]);
    }
}

void mom_balance_backward(const mom_exec *x, float *dscores, const float *scores, const uint8_t *mask,
                          const double *counts, double count_tokens, double tokens, float scale, int softmax, size_t N,
                          size_t S) {
    if (count_tokens <= 0.0 || tokens <= 0.0)
        return;
    const double factor = (double)scale * (double)S / (count_tokens * tokens);
    backward_context run = {x->k, dscores, scores, mask, counts, factor, softmax, N, S};
    mom_parallel_for(x, chunk_count(N), run_backward, &run);
}
