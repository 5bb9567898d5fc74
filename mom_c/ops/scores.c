/* SOURCE  Bengio et al. 2013, arXiv:1308.3432 (straight-through estimator). */
#include "ops/scores.h"

#include <math.h>

#include "ops/topk.h"

#define TASK_ROWS 32 /* tokens per task */

void mom_softmax_row(const mom_kernels *k, float *out, const float *logits, float temperature, size_t n) {
    const float largest = k->vec.max(logits, n) / temperature;
    float sum = 0.0f;
    for (size_t i = 0; i < n; i++) {
        out[i] = expf(logits[i] / temperature - largest);
        sum += out[i];
    }
    const float inverse = 1.0f / sum;
    for (size_t i = 0; i < n; i++)
        out[i] *= inverse;
}

typedef struct {
    const mom_kernels *k;
    float *out;          /* scores, or dlogits in backward */
    const float *inp;    /* logits, or dscores in backward */
    const float *scores; /* backward only */
    float temperature;
    size_t S;
} scores_job;

static void softmax_task(const void *context, size_t begin, size_t end) {
    const scores_job *job = context;
    const size_t S = job->S;
    for (size_t t = begin; t < end; t++)
        mom_softmax_row(job->k, job->out + t * S, job->inp + t * S, job->temperature, S);
}

/* dlogits = scores * (dscores - <dscores, scores>) / temperature */
static void softmax_backward_task(const void *context, size_t begin, size_t end) {
    const scores_job *job = context;
    const size_t S = job->S;
    for (size_t t = begin; t < end; t++) {
        float *dlogits = job->out + t * S;
        const float *dscores = job->inp + t * S, *scores = job->scores + t * S;
        const float mean = job->k->vec.dot(dscores, scores, S);
        for (size_t m = 0; m < S; m++)
            dlogits[m] = scores[m] * (dscores[m] - mean) / job->temperature;
    }
}

void mom_router_scores_forward(const mom_exec *x, float *scores, const float *logits, int softmax, float temperature,
                               size_t N, size_t S) {
    if (!softmax) {
        if (scores != logits)
            mom_copy(x, scores, logits, N * S * sizeof *scores);
        return;
    }
    scores_job job = {x->k, scores, logits, NULL, temperature, S};
    mom_parallel_rows(x, N, TASK_ROWS, softmax_task, &job);
}

void mom_router_scores_backward(const mom_exec *x, float *dlogits, const float *dscores, const float *scores,
                                int softmax, float temperature, size_t N, size_t S) {
    if (!softmax) {
        if (dlogits != dscores)
            mom_copy(x, dlogits, dscores, N * S * sizeof *dlogits);
        return;
    }
    scores_job job = {x->k, dlogits, dscores, scores, temperature, S};
    mom_parallel_rows(x, N, TASK_ROWS, softmax_backward_task, &job);
}

/* ---- choices */

typedef struct {
    int16_t *index;
    float *weight;
    const float *scores;
    const mom_topk_spec *spec;
} topk_job;

static void topk_task(const void *context, size_t begin, size_t end) {
    const topk_job *job = context;
    const size_t S = job->spec->S, K = job->spec->K;
    for (size_t t = begin; t < end; t++) {
        const float *scores = job->scores + t * S;
        int16_t *index = job->index + t * K;
        float *weight = job->weight + t * K;
        float sum = 0.0f;
        mom_topk(index, scores, S, K);
        for (size_t k = 0; k < K; k++) {
            weight[k] = scores[index[k]];
            sum += weight[k];
        }
        for (size_t k = 0; job->spec->renormalise && k < K; k++)
            weight[k] /= sum;
    }
}

void mom_router_topk_forward(const mom_exec *x, int16_t *index, float *weight, const float *scores, const mom_topk_spec *spec) {
    MOM_ASSERT(spec->K <= spec->S && spec->S <= INT16_MAX);
    topk_job job = {index, weight, scores, spec};
    mom_parallel_rows(x, spec->N, TASK_ROWS, topk_task, &job);
}

typedef struct {
    float *dscores;
    const float *dweight;
    const int16_t *index;
    const float *weight, *scores;
    const mom_topk_spec *spec;
} topk_backward_job;

/* Kept scores only: dscore = dweight or, renormalised, (dweight - <dweight, weight>) / (sum of kept scores). Choices without
 * a score, and rows whose scores sum to 0, have no gradient (ops/forced_choices.h). */
static void topk_backward_task(const void *context, size_t begin, size_t end) {
    const topk_backward_job *job = context;
    const size_t S = job->spec->S, K = job->spec->K;
    for (size_t t = begin; t < end; t++) {
        const float *scores = job->scores + t * S, *dweight = job->dweight + t * K, *weight = job->weight + t * K;
        const int16_t *index = job->index + t * K;
        float *dscores = job->dscores + t * S;
        float sum = 0.0f, mean = 0.0f;
        for (size_t k = 0; k < K; k++) {
            sum += (size_t)index[k] < S ? scores[index[k]] : 0.0f;
            mean += dweight[k] * weight[k];
        }
        if (job->spec->renormalise && sum == 0.0f)
            continue;
        for (size_t k = 0; k < K; k++)
            if ((size_t)index[k] < S)
                dscores[index[k]] += job->spec->renormalise ? (dweight[k] - mean) / sum : dweight[k];
    }
}

void mom_router_topk_backward(const mom_exec *x, float *dscores, const float *dweight, const int16_t *index,
                              const float *weight, const float *scores, const mom_topk_spec *spec) {
    topk_backward_job job = {dscores, dweight, index, weight, scores, spec};
    mom_parallel_rows(x, spec->N, TASK_ROWS, topk_backward_task, &job);
}

/* ---- straight-through sign */

#define STE_NUMBERS ((size_t)4096) /* per task */

static void ste_task(const void *context, size_t begin, size_t end) {
    const scores_job *job = context;
    for (size_t i = begin; i < end; i++)
        job->out[i] = (float)((job->inp[i] > 0.0f) - (job->inp[i] < 0.0f));
}

void mom_router_ste_forward(const mom_exec *x, float *out, const float *weight, size_t n) {
    const scores_job job = {.out = out, .inp = weight};
    mom_parallel_rows(x, n, STE_NUMBERS, ste_task, &job);
}

static void ste_backward_task(const void *context, size_t begin, size_t end) {
    const scores_job *job = context;
    for (size_t i = begin; i < end; i++)
        job->out[i] = job->inp[i] < -1.0f ? -1.0f : job->inp[i] > 1.0f ? 1.0f : job->inp[i];
}

void mom_router_ste_backward(const mom_exec *x, float *out, const float *dweight, size_t n) {
    const scores_job job = {.out = out, .inp = dweight};
    mom_parallel_rows(x, n, STE_NUMBERS, ste_backward_task, &job);
}
