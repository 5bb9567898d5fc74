/* Backward. Contract: attention.h; design: attention_job.h.
 *
 * With P the weights, M the dropout factors, row by row of queries:
 *     dV += (P M)^T dout,  dP = dout V^T,  delta = <dout, out>,  dS = P (M dP - delta),
 *     dQ = scale * dS K,  dK += scale * dS^T Q. */
#include "ops/attention_job.h"

#include <string.h>

typedef struct {
    float *keys, *values; /* in tiles of panels of mr keys, for scores and dP */
    float *key_channels;  /* in tiles of panels of mr or nr channels, for dQ */
    mom_staging staging;
    float *row;                            /* (2, D) */
    float *queries, *douts;                /* a block in panels of nr queries */
    float *query_channels, *dout_channels; /* the same in panels of nr channels */
    float *weights, *dscores;              /* (tile, nr) */
    float *keep, *rounded;                 /* the same */
    float *key_weights, *key_dscores;      /* a tile by a block, as the products for keys read them */
    float *lse, *delta;                    /* (block) */
    float *dq;                             /* results for every panel of the block */
    float *dkeys, *dvalues;                /* (T rounded up to mr, ldd), sums over the blocks */
    size_t ldd, size;
} backward_scratch;

static backward_scratch carve_scratch(const mom_attention_job *job, float *base) {
    const size_t T = job->spec->T, D = job->D, mr = job->k->gemm.mr, nr = job->k->gemm.nr;
    mom_carver c = {base, 0};
    backward_scratch s = {.ldd = mom_round_up(D, nr)};
    s.keys = mom_carve(&c, mom_round_up(T, mr) * D);
    s.values = mom_carve(&c, mom_round_up(T, mr) * D);
    s.key_channels = mom_carve(&c, T * mom_max(mom_packed_channels(job, 0), mom_packed_channels(job, 1)));
    s.staging.stage = mom_carve(&c, mom_max(mom_max(job->tile, job->block) * D, nr * MOM_COPY_CHANNELS));
    s.staging.pairs = mom_carve(&c, mom_head_pairs_size(job, mom_max(job->tile, job->block)));
    s.row = mom_carve(&c, 2 * D);
    s.queries = mom_carve(&c, job->block * D);
    s.douts = mom_carve(&c, job->block * D);
    s.query_channels = mom_carve(&c, job->block * s.ldd);
    s.dout_channels = mom_carve(&c, job->block * s.ldd);
    s.weights = mom_carve(&c, job->tile * nr);
    s.dscores = mom_carve(&c, job->tile * nr + mr);
    s.keep = mom_carve(&c, job->spec->dropout.p > 0.0f ? job->tile * nr : 0);
    s.rounded = mom_carve(&c, job->bf16 ? job->tile * nr + mr : 0);
    s.key_weights = mom_carve(&c, job->tile * job->block);
    s.key_dscores = mom_carve(&c, job->tile * job->block);
    s.lse = mom_carve(&c, job->block);
    s.delta = mom_carve(&c, job->block);
    s.dq = mom_carve(&c, job->block / nr * mom_result_size(job));
    s.dkeys = mom_carve(&c, mom_round_up(T, mr) * s.ldd);
    s.dvalues = mom_carve(&c, mom_round_up(T, mr) * s.ldd);
    s.size = c.used;
    return s;
}

/* Queries q .. q + rows - 1, against the packed keys [begin, packed); begin is on the edge of a tile. */
typedef struct {
    const mom_attention_task *task;
    size_t q, rows, begin, packed;
    int by_query; /* how results for queries come */
} query_block;

static void load_block(const mom_attention_job *job, const mom_head *v, const backward_scratch *s, const query_block *b) {
    const size_t D = job->D, nr = job->k->gemm.nr;
    const mom_head_rows queries = mom_rows_of_qkv(job, v, job->qkv, 0), douts = mom_rows_of_heads(job, v, job->dout);
    const mom_head_rows outs = mom_rows_of_heads(job, v, job->saved_out);
    float *dout = s->row, *out = s->row + D;
    const int32_t *positions = v->query + b->q;
    mom_head_pack_rows(job, v, s->queries, nr, queries, positions, b->rows, s->staging);
    mom_head_pack_channels(job, v, s->query_channels, nr, queries, positions, b->rows, s->staging);
    mom_head_pack_rows(job, v, s->douts, nr, douts, positions, b->rows, s->staging);
    mom_head_pack_channels(job, v, s->dout_channels, nr, douts, positions, b->rows, s->staging);
    memset(s->lse, 0, job->block * sizeof *s->lse);
    memset(s->delta, 0, job->block * sizeof *s->delta);
    for (size_t r = 0; r < b->rows; r++) {
        const size_t position = (size_t)positions[r];
        mom_head_load(job, v, dout, douts, position, 1.0f);
        mom_head_load(job, v, out, outs, position, 1.0f);
        s->delta[r] = job->k->vec.dot(dout, out, D);
        s->lse[r] = job->saved_lse[(v->s->row + position) * job->spec->H + v->h];
    }
}

/* ---- gradients of keys and values */

/* Whether a tile (keys, nr) for a block of so many queries is read row by row. */
static int reads_tile(const mom_attention_job *job, size_t rows) {
    const mom_gemm_kernels *gemm = &job->k->gemm;
    return rows <= gemm->nr && (job->bf16 ? gemm->bf16.a_rows != NULL : gemm->f32.a_rows != NULL);
}

/* c (mr, nr) += n steps, from step `from` on, of mr rows of a tile (keys, words(nr)) times packed b. */
static void multiply_rows(const mom_attention_job *job, size_t n, const float *tile, size_t from, const float *b, float *c,
                          size_t ldc) {
    const mom_gemm_kernels *gemm = &job->k->gemm;
    const size_t ld = mom_words(job, gemm->nr), step = mom_words(job, from);
    const mom_bf16 *pairs[MOM_MOST_MR];
    const float *rows[MOM_MOST_MR];
    for (size_t r = 0; r < gemm->mr; r++) {
        rows[r] = tile + r * ld + step;
        pairs[r] = (const mom_bf16 *)(const void *)rows[r];
    }
    if (job->bf16)
        gemm->bf16.a_rows(mom_words(job, n), pairs, (const mom_bf16 *)(const void *)b, c, ldc, 1, b);
    else
        gemm->f32.a_rows(n, rows, b, c, ldc, 1, b);
}

/* sums (n keys from key j on, ldd) += tile * channels, summed over the queries of a block. For each panel of keys the sum
 * begins with the first query that sees one of them. tile: as mom_transpose_tile leaves it or, if reads_tile, (keys,
 * words(nr)). */
static void add_to_keys(const mom_attention_job *job, const mom_head *v, const query_block *block, float *sums,
                        const float *tile, const float *channels, size_t j, size_t n) {
    const size_t mr = job->k->gemm.mr, nr = job->k->gemm.nr, ldd = mom_round_up(job->D, nr), rows = block->rows;
    for (size_t i = 0, first = 0; i < n; i += mr) {
        while ((size_t)v->count[block->q + first] <= j + i)
            first++;
        const size_t from = job->bf16 ? first / 2 * 2 : first, step = mom_words(job, from);
        for (size_t d = 0; d < job->D; d += nr) {
            const float *b = channels + d * mom_words(job, rows) + step * nr;
            float *c = sums + (j + i) * ldd + d;
            if (reads_tile(job, rows))
                multiply_rows(job, rows - from, tile + i * mom_words(job, nr), from, b, c, ldd);
            else
                mom_multiply_panels(job, rows - from, tile + i * job->block + step * mr, b, c, ldd, 1);
        }
    }
}

/* The two factors of add_to_keys. */
typedef struct {
    const float *weights, *dscores;
} key_factors;

/* ---- a block of queries */

/* Weights and gradients of scores of the block's queries p .. p + lanes - 1 with keys j .. j + n - 1, n rounded up to
 * whole panels. */
static void backward_tile(const mom_attention_job *job, const mom_head *v, const backward_scratch *s, size_t q, size_t p,
                          size_t lanes, size_t j, size_t n) {
    const mom_kernels *k = job->k;
    const size_t words = mom_words(job, job->D), whole = mom_round_up(n, k->gemm.mr);
    const int dropout = job->spec->dropout.p > 0.0f;
    mom_score_tile(job, s->weights, s->keys + j * words, s->queries + p * words, n);
    mom_score_tile(job, s->dscores, s->values + j * words, s->douts + p * words, n);
    if ((size_t)v->count[q + p] < j + whole)
        mom_hide_keys(job, v, s->weights, j, whole, q + p, lanes);
    if (dropout)
        mom_dropout_tile(job, v, s->keep, j, n, q + p, lanes);
    k->attention.softmax_backward(s->weights, s->dscores, s->lse + p, s->delta + p, dropout ? s->keep : NULL, job->scale,
                                  whole);
}

/* All panels of a block with the tile of keys that begins at j: adds to s->dq, and returns what add_to_keys needs. */
static key_factors backward_panels(const mom_attention_job *job, const mom_head *v, const backward_scratch *s,
                                   const query_block *b, size_t j) {
    const size_t mr = job->k->gemm.mr, nr = job->k->gemm.nr, dq_size = mom_result_size(job);
    const mom_packed_tile keys = {s->key_channels + j * mom_packed_channels(job, b->by_query),
                                  mom_min(job->tile, b->packed - j)};
    key_factors factors = {s->key_weights, s->key_dscores};
    for (size_t p = 0; p < b->rows; p += nr) {
        const size_t lanes = mom_min(nr, b->rows - p), seen = (size_t)v->count[b->q + p + lanes - 1];
        float *dq = s->dq + p / nr * dq_size;
        if (seen <= j) {
            if (b->task->queries && !j)
                memset(dq, 0, dq_size * sizeof *dq);
            continue;
        }
        const size_t n = mom_min(job->tile, seen - j), whole = mom_round_up(n, mr);
        backward_tile(job, v, s, b->q, p, lanes, j, n);
        if (b->task->queries)
            mom_mix(job, dq, b->by_query, keys, mom_tile_as_factor(job, s->dscores, n, s->rounded), n, lanes, j > 0);
        if (b->task->keys && reads_tile(job, b->rows)) {
            factors.weights = mom_tile_by_row(job, s->weights, whole, s->key_weights);
            factors.dscores = mom_tile_by_row(job, s->dscores, whole, s->key_dscores);
        } else if (b->task->keys) {
            const size_t at = mom_words(job, p) * mr, stride = mr * job->block;
            mom_transpose_tile(job, s->key_weights + at, stride, s->weights, whole, s->rounded);
            mom_transpose_tile(job, s->key_dscores + at, stride, s->dscores, whole, s->rounded);
        }
    }
    return factors;
}

static void backward_block(const mom_attention_job *job, const mom_head *v, const backward_scratch *s, const query_block *b) {
    const size_t end = mom_min(b->packed, (size_t)v->count[b->q + b->rows - 1]);
    if (b->begin >= end) {
        if (b->task->queries)
            memset(s->dq, 0, job->block / job->k->gemm.nr * mom_result_size(job) * sizeof *s->dq);
        return;
    }
    load_block(job, v, s, b);
    for (size_t j = b->begin; j < end; j += job->tile) {
        const key_factors factors = backward_panels(job, v, s, b, j);
        const size_t n = mom_min(job->tile, end - j);
        if (b->task->keys) {
            add_to_keys(job, v, b, s->dvalues, factors.weights, s->dout_channels, j, n);
            add_to_keys(job, v, b, s->dkeys, factors.dscores, s->query_channels, j, n);
        }
    }
}

static void store_queries(const mom_attention_job *job, const mom_head *v, const backward_scratch *s, const query_block *b) {
    const size_t nr = job->k->gemm.nr;
    for (size_t p = 0; p < b->rows; p += nr) {
        const mom_results dq = {s->dq + p / nr * mom_result_size(job), b->by_query, NULL, job->spec->scale};
        mom_head_store_results(job, v, mom_rows_of_qkv(job, v, job->dqkv, 0), v->query + b->q + p, mom_min(nr, b->rows - p),
                               &dq, s->staging.stage);
    }
}

static void store_keys(const mom_attention_job *job, const mom_head *v, const backward_scratch *s, size_t begin, size_t end) {
    const mom_head_rows dkeys = mom_rows_of_qkv(job, v, job->dqkv, 1), dvalues = mom_rows_of_qkv(job, v, job->dqkv, 2);
    for (size_t j = begin; j < end; j++) {
        const size_t position = (size_t)v->key[j];
        mom_head_store(job, v, dkeys, position, s->dkeys + j * s->ldd, job->spec->scale, job->D);
        mom_head_store(job, v, dvalues, position, s->dvalues + j * s->ldd, 1.0f, job->D);
    }
}

static void backward_task(void *context, size_t number, int thread) {
    const mom_attention_job *job = context;
    const mom_attention_task *task = &job->tasks[number];
    const mom_head v = mom_attention_head(job, task->head);
    const backward_scratch s = carve_scratch(job, job->scratch + (size_t)thread * job->scratch_size);
    const size_t mr = job->k->gemm.mr, nr = job->k->gemm.nr;
    /* [begin, end) are keys in tasks for keys only, queries otherwise. */
    const int by_keys = !task->queries;
    const size_t q_begin = by_keys ? 0 : task->begin, q_end = by_keys ? v.s->queries : task->end;
    const size_t key_begin = by_keys ? task->begin : 0;
    const size_t key_end = by_keys ? task->end : task->keys ? v.s->keys : (size_t)v.count[q_end - 1];
    query_block b = {.task = task, .begin = key_begin, .packed = key_end,
                     .by_query = task->queries && mom_mixes_by_query(job, task->end - task->begin)};

    mom_head_pack_keys(job, &v, s.keys, 1, 0, s.staging, key_begin, key_end);
    mom_head_pack_keys(job, &v, s.values, 2, 0, s.staging, key_begin, key_end);
    if (task->queries)
        mom_head_pack_keys(job, &v, s.key_channels, 1, b.by_query ? nr : mr, s.staging, 0, key_end);
    if (task->keys) {
        const size_t size = (mom_round_up(key_end, mr) - key_begin) * s.ldd * sizeof(float);
        memset(s.dkeys + key_begin * s.ldd, 0, size);
        memset(s.dvalues + key_begin * s.ldd, 0, size);
    }
    for (b.q = q_begin; b.q < q_end; b.q += job->block) {
        b.rows = mom_min(job->block, q_end - b.q);
        backward_block(job, &v, &s, &b);
        if (task->queries)
            store_queries(job, &v, &s, &b);
    }
    if (task->keys) {
        mom_attention_add_blind(job, &v, s.dvalues, s.ldd, s.row, key_begin, key_end);
        store_keys(job, &v, &s, key_begin, key_end);
    }
}

/* ---- tasks */

/* A task per head computes all three gradients from the same weights. If there are too few heads to keep the threads
 * busy, separate tasks compute the gradients of queries and of keys in parts, and the weights are computed twice. */
static mom_status list_tasks(mom_attention_job *job, const mom_exec *x, size_t *number, mom_error *err) {
    const size_t heads = job->spec->B * job->spec->H;
    mom_attention_task *whole, *cut;
    size_t n = 0;
    MOM_ARENA_NEW(whole, x->workspace, heads, err);
    for (size_t head = 0; head < heads; head++) {
        const mom_sequence *s = &job->sequences[head / job->spec->H];
        if (s->queries)
            whole[n++] = (mom_attention_task){head, 0, s->queries, 1, s->keys > 0, 5.0 * s->work};
        else if (s->keys) /* none of its queries is wanted */
            whole[n++] = (mom_attention_task){head, 0, s->keys, 0, 1, 0.0};
    }
    mom_attention_sort_tasks(whole, n);
    job->tasks = whole;
    *number = n;
    if (x->threads == 1)
        return MOM_OK;

    const size_t queries = mom_attention_query_tasks(job, NULL, job->block, x->threads);
    const size_t all = queries + mom_attention_key_tasks(job, NULL, x->threads);
    MOM_ARENA_NEW(cut, x->workspace, all, err);
    if (x->dry_run) /* there are no lists to make tasks from */
        return MOM_OK;
    mom_attention_query_tasks(job, cut, job->block, x->threads);
    mom_attention_key_tasks(job, cut + queries, x->threads);
    for (size_t i = 0; i < all; i++)
        cut[i].work *= cut[i].queries ? 3.0 : 4.0;
    mom_attention_sort_tasks(cut, all);
    if (mom_attention_finish_time(cut, all, x->threads) < mom_attention_finish_time(whole, n, x->threads)) {
        job->tasks = cut;
        *number = all;
    }
    return MOM_OK;
}

static mom_status backward(const mom_exec *x, mom_attention_job *job, mom_error *err) {
    size_t n;
    MOM_TRY(mom_attention_lists(job, x, err));
    job->scratch_size = mom_max(carve_scratch(job, NULL).size, mom_attention_rest_scratch(job));
    MOM_ARENA_NEW(job->scratch, x->workspace, (size_t)x->threads * job->scratch_size, err);
    MOM_TRY(list_tasks(job, x, &n, err));
    mom_attention_count(job, x, 4);
    const mom_work work = mom_count_work(x, MOM_WORK_AGAIN); /* the scores */
    mom_attention_count(job, x, 1);
    mom_count_work(x, work);
    mom_parallel_for(x, n, backward_task, job);
    if (job->spec->mask || job->spec->active)
        mom_parallel_for(x, job->spec->B * job->spec->H, mom_attention_backward_rest_task, job);
    return MOM_OK;
}

mom_status mom_attention_backward(const mom_exec *x, void *dqkv, const void *dout, const void *qkv, const void *out,
                                  const float *lse, const mom_attention_spec *spec, mom_error *err) {
    if (spec->B == 0 || spec->H == 0 || spec->T == 0 || spec->C == 0)
        return MOM_OK;
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    mom_attention_job job = mom_attention_job_init(x, spec, qkv);
    job.dqkv = dqkv;
    job.dout = dout;
    job.saved_out = out;
    job.saved_lse = lse;
    const mom_status status = backward(x, &job, err);
    mom_arena_release(x->workspace, mark);
    return status;
}
