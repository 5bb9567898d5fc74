#include "ops/attention_probabilities.h"

#include <string.h>

#include "base/sizes.h"
#include "ops/scores.h"

typedef struct {
    const mom_kernels *k;
    const mom_attention_spec *spec;
    const void *qkv;
    const int32_t *rows;
    float *out;
    float *buffers; /* (threads, 2 D + T): a query and a key as float32, and the scores of the keys that are seen */
} probabilities_job;

static size_t first_row(const mom_attention_spec *spec, size_t b) {
    return spec->offsets ? (size_t)spec->offsets[b] : b * spec->T;
}

/* Part 0 (query) or 1 (key) of a row and head; an inactive token has zeros. */
static const float *part_of(const probabilities_job *job, float *buffer, size_t row, size_t part, size_t head) {
    const mom_attention_spec *s = job->spec;
    const size_t D = s->C / s->H, at = row * 3 * s->C + part * s->C + head * D;
    if (s->active && !s->active[row]) {
        memset(buffer, 0, D * sizeof *buffer);
        return buffer;
    }
    if (s->dtype == MOM_F32)
        return (const float *)job->qkv + at;
    job->k->vec.from_bf16(buffer, (const mom_bf16 *)job->qkv + at, D);
    return buffer;
}

/* Whether any key up to query i is real. */
static int sees_past(const mom_attention_spec *s, size_t first, size_t i) {
    for (size_t j = 0; s->mask && j <= i; j++)
        if (s->mask[first + j])
            return 1;
    return !s->mask;
}

/* A query that sees no real key attends evenly. */
static void even_row(const mom_attention_spec *s, float *out, size_t first, size_t length, size_t i) {
    size_t seen = 0;
    for (size_t j = 0; j < length; j++) {
        const int future = s->masked_query == MOM_MASKED_QUERY_REFERENCE && s->mask[first + j];
        out[j] = j <= i || future ? 1.0f : 0.0f;
        seen += out[j] != 0.0f;
    }
    for (size_t j = 0; j < length; j++)
        out[j] /= (float)seen;
}

static void query_row(const probabilities_job *job, float *out, float *buffer, size_t first, size_t i, size_t head) {
    const mom_attention_spec *s = job->spec;
    const size_t D = s->C / s->H;
    float *scores = buffer + 2 * D;
    const float *q = part_of(job, buffer, first + i, 0, head);
    size_t seen = 0;
    for (size_t j = 0; j <= i; j++)
        if (!s->mask || s->mask[first + j])
            scores[seen++] = s->scale * job->k->vec.dot(q, part_of(job, buffer + D, first + j, 1, head), D);
    mom_softmax_row(job->k, scores, scores, 1.0f, seen);
    for (size_t j = i + 1; j-- > 0;)
        out[j] = !s->mask || s->mask[first + j] ? scores[--seen] : 0.0f;
}

/* One head of one sequence. */
static void probabilities_task(void *context, size_t task, int thread) {
    const probabilities_job *job = context;
    const mom_attention_spec *s = job->spec;
    const size_t T = s->T, head = task % s->H, b = (size_t)job->rows[task / s->H], first = first_row(s, b);
    const size_t length = first_row(s, b + 1) - first;
    float *buffer = job->buffers + (size_t)thread * (2 * (s->C / s->H) + T), *out = job->out + task * T * T;
    memset(out, 0, T * T * sizeof *out);
    for (size_t i = 0; i < length; i++) {
        if (s->active && !s->active[first + i])
            continue;
        if (sees_past(s, first, i))
            query_row(job, out + i * T, buffer, first, i, head);
        else
            even_row(s, out + i * T, first, length, i);
    }
}

mom_status mom_attention_probabilities(const mom_exec *x, float *out, const void *qkv, const mom_attention_spec *spec,
                                       const int32_t *rows, size_t count, mom_error *err) {
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    probabilities_job job = {.k = x->k, .spec = spec, .qkv = qkv, .rows = rows, .out = out};
    MOM_ARENA_NEW(job.buffers, x->workspace, (size_t)x->threads * (2 * (spec->C / spec->H) + spec->T), err);
    mom_parallel_for(x, count * spec->H, probabilities_task, &job);
    mom_arena_release(x->workspace, mark);
    return MOM_OK;
}
