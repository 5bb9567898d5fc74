/* Forward. Contract: attention.h; design: attention_job.h. */
#include "ops/attention_job.h"

#include <math.h>
#include <string.h>

typedef struct {
    float *keys, *values; /* all keys that are needed, in tiles: panels of mr keys, panels of mr or nr channels */
    mom_staging staging;
    float *queries; /* a panel of nr queries */
    float *scores;  /* (tile, nr) */
    float *rounded; /* the same in bfloat16 */
    float *keep;    /* the same, with dropout */
    float *out;     /* results for a panel of queries */
    float *max, *sum, *factor; /* (nr) */
    size_t size;
} forward_scratch;

static forward_scratch carve_scratch(const mom_attention_job *job, float *base) {
    const size_t T = job->spec->T, D = job->D, mr = job->k->gemm.mr, nr = job->k->gemm.nr;
    mom_carver c = {base, 0};
    forward_scratch s;
    s.keys = mom_carve(&c, mom_round_up(T, mr) * D);
    s.values = mom_carve(&c, T * mom_max(mom_packed_channels(job, 0), mom_packed_channels(job, 1)));
    s.staging.stage = mom_carve(&c, mom_max(mom_max(job->tile, nr) * D, nr * MOM_COPY_CHANNELS));
    s.staging.pairs = mom_carve(&c, mom_head_pairs_size(job, job->tile));
    s.queries = mom_carve(&c, nr * D);
    s.scores = mom_carve(&c, job->tile * nr + mr);
    s.rounded = mom_carve(&c, job->bf16 ? job->tile * nr + mr : 0);
    s.keep = mom_carve(&c, job->spec->dropout.p > 0.0f ? job->tile * nr : 0);
    s.out = mom_carve(&c, mom_result_size(job));
    s.max = mom_carve(&c, nr);
    s.sum = mom_carve(&c, nr);
    s.factor = mom_carve(&c, nr);
    s.size = c.used;
    return s;
}

/* Queries q .. q + lanes - 1, at most nr of them. */
typedef struct {
    size_t q, lanes;
    int by_query;  /* how results come */
    size_t packed; /* keys that are packed */
} query_panel;

/* The softmax of each query starts from its skipped tokens. */
static void begin_softmax(const mom_attention_job *job, const mom_head *v, const forward_scratch *s, const query_panel *p) {
    for (size_t l = 0; l < job->k->gemm.nr; l++) {
        const int32_t skipped = l < p->lanes ? v->skipped[p->q + l] : 0;
        s->max[l] = skipped ? 0.0f : -INFINITY;
        s->sum[l] = (float)skipped;
    }
}

/* Multiplies the results so far by s->factor. */
static void scale_results(const mom_attention_job *job, const forward_scratch *s, const query_panel *p) {
    const size_t channels = mom_packed_channels(job, p->by_query);
    if (!p->by_query) {
        job->k->attention.scale(s->out, s->factor, channels);
        return;
    }
    for (size_t l = 0; l < p->lanes; l++)
        job->k->vec.scale(s->out + l * channels, s->factor[l], s->out + l * channels, job->D);
}

/* Keys j .. j + n - 1 of a panel of queries: adds their weighted values to s->out. */
static void forward_tile(const mom_attention_job *job, const mom_head *v, const forward_scratch *s, const query_panel *p,
                         size_t j, size_t n) {
    const mom_kernels *k = job->k;
    mom_score_tile(job, s->scores, s->keys + j * mom_words(job, job->D), s->queries, n);
    if ((size_t)v->count[p->q] < j + n)
        mom_hide_keys(job, v, s->scores, j, n, p->q, p->lanes);
    const int risen = k->attention.softmax(s->scores, s->max, s->sum, s->factor, job->scale, n);
    if (risen && j)
        scale_results(job, s, p);
    if (job->spec->dropout.p > 0.0f) {
        mom_dropout_tile(job, v, s->keep, j, n, p->q, p->lanes);
        k->vec.multiply(s->scores, s->scores, s->keep, n * k->gemm.nr);
    }
    const float *weights = mom_tile_as_factor(job, s->scores, n, s->rounded);
    const mom_packed_tile values = {s->values + j * mom_packed_channels(job, p->by_query), mom_min(job->tile, p->packed - j)};
    mom_mix(job, s->out, p->by_query, values, weights, n, p->lanes, j > 0);
}

static void forward_panel(const mom_attention_job *job, const mom_head *v, const forward_scratch *s, const query_panel *p) {
    const size_t width = (size_t)v->count[p->q + p->lanes - 1];
    const int32_t *positions = v->query + p->q;
    const mom_head_rows rows = mom_rows_of_qkv(job, v, job->qkv, 0);
    mom_head_pack_rows(job, v, s->queries, job->k->gemm.nr, rows, positions, p->lanes, s->staging);
    begin_softmax(job, v, s, p);
    if (!width)
        memset(s->out, 0, mom_result_size(job) * sizeof *s->out);
    for (size_t j = 0; j < width; j += job->tile)
        forward_tile(job, v, s, p, j, mom_min(job->tile, width - j));
    for (size_t l = 0; l < p->lanes; l++) {
        job->lse[(v->s->row + (size_t)positions[l]) * job->spec->H + v->h] = s->max[l] + logf(s->sum[l]);
        s->factor[l] = 1.0f / s->sum[l];
    }
    const mom_results results = {s->out, p->by_query, s->factor, 1.0f};
    mom_head_store_results(job, v, mom_rows_of_heads(job, v, job->out), positions, p->lanes, &results, s->staging.stage);
}

static void forward_task(void *context, size_t number, int thread) {
    const mom_attention_job *job = context;
    const mom_attention_task *task = &job->tasks[number];
    const mom_head v = mom_attention_head(job, task->head);
    const forward_scratch s = carve_scratch(job, job->scratch + (size_t)thread * job->scratch_size);
    const size_t mr = job->k->gemm.mr, nr = job->k->gemm.nr;
    query_panel p = {.packed = (size_t)v.count[task->end - 1], .by_query = mom_mixes_by_query(job, task->end - task->begin)};
    mom_head_pack_keys(job, &v, s.keys, 1, 0, s.staging, 0, p.packed);
    mom_head_pack_keys(job, &v, s.values, 2, p.by_query ? nr : mr, s.staging, 0, p.packed);
    for (p.q = task->begin; p.q < task->end; p.q += nr) {
        p.lanes = mom_min(nr, task->end - p.q);
        forward_panel(job, &v, &s, &p);
    }
}

static mom_status forward(const mom_exec *x, mom_attention_job *job, mom_error *err) {
    MOM_TRY(mom_attention_lists(job, x, err));
    job->scratch_size = mom_max(carve_scratch(job, NULL).size, mom_attention_rest_scratch(job));
    MOM_ARENA_NEW(job->scratch, x->workspace, (size_t)x->threads * job->scratch_size, err);
    const size_t n = mom_attention_query_tasks(job, NULL, x->k->gemm.nr, x->threads);
    MOM_ARENA_NEW(job->tasks, x->workspace, n, err);
    if (x->dry_run) /* there are no lists to make tasks from */
        return MOM_OK;
    mom_attention_count(job, x, 2);
    mom_attention_query_tasks(job, job->tasks, x->k->gemm.nr, x->threads);
    mom_attention_sort_tasks(job->tasks, n);
    mom_parallel_for(x, n, forward_task, job);
    if (job->spec->mask || job->spec->active)
        mom_parallel_for(x, job->spec->B * job->spec->H, mom_attention_forward_rest_task, job);
    return MOM_OK;
}

mom_status mom_attention_forward(const mom_exec *x, void *out, float *lse, const void *qkv, const mom_attention_spec *spec,
                                 mom_error *err) {
    if (spec->B == 0 || spec->H == 0 || spec->T == 0 || spec->C == 0)
        return MOM_OK;
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    mom_attention_job job = mom_attention_job_init(x, spec, qkv);
    job.out = out;
    job.lse = lse;
    const mom_status status = forward(x, &job, err);
    mom_arena_release(x->workspace, mark);
    return status;
}
