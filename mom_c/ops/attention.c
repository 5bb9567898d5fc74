/* DESIGN  A task is one head of one sequence (forward may cut a head's queries into parts). It packs the
 *         head's keys and values once and then takes queries in blocks: scores of a block, row-wise softmax,
 *         product with the values, all on whole micro-tiles in the thread's scratch, so that no edge needs
 *         care. Masked keys are left out when packing: what a masked position holds is never read by a row
 *         that sees a real key, and the work shrinks with them. Row i then sees the first count[i] packed
 *         keys, whether or not there is a mask, and tiles beyond that are not computed.
 * BLIND   Rows that see no real key are the rows before the first real one. They take a path of their own
 *         with even weights. Their scores get gradients in MOM_MASKED_QUERY_REFERENCE only: there the
 *         scores were swallowed by a huge constant, which rounding hides and differentiation does not.
 * COST    forward 2, backward 5 products of D multiplications per visible (query, key) pair; per thread
 *         forward 2 T D + 2 block T floats, backward 5 T D + 2 block T.
 * BITS    forward rows are independent of each other; backward sums over queries in order within the task.
 */
#include "ops/attention.h"

#include <math.h>
#include <string.h>

#include "base/parallel.h"

#define BLOCK_ROWS 48      /* queries per block, rounded down to whole tiles */
#define TASKS_PER_THREAD 4 /* forward cuts heads into parts until there are that many */

static size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }
static size_t min_size(size_t a, size_t b) { return a < b ? a : b; }

/* Keys that rows may see: of each sequence with a mask, one list for all without. */
typedef struct {
    const int32_t *index; /* (B, T) positions of the real keys, in order; NULL without a mask */
    const int32_t *count; /* (B, T) or (T): how many of them are at or before a position */
} key_lists;

typedef struct {
    const mom_kernels *k;
    const mom_attention_spec *spec;
    key_lists keys;
    size_t block, parts;
    float *scratch;
    size_t scratch_size; /* floats per thread */
    float *out, *lse;    /* forward */
    float *dqkv;         /* backward */
    const float *dout, *saved_out, *saved_lse;
    const float *qkv;
} attention_job;

/* One head of one sequence. */
typedef struct {
    size_t b, h, D, ld;          /* ld: row stride of qkv */
    const float *q, *keys, *v;   /* first position of the head */
    const int32_t *index, *count;
    size_t first, real;          /* the first query that sees a real key (T if none does); number of real keys */
    uint64_t dropout_index;      /* of query 0, key 0 */
} head_view;

static mom_status key_lists_init(key_lists *keys, const mom_exec *x, const uint8_t *mask,
                                 const mom_attention_spec *spec, mom_error *err) {
    const size_t B = mask ? spec->B : 1, T = spec->T;
    int32_t *index = NULL, *count;
    MOM_ARENA_NEW(count, x->workspace, B * T, err);
    if (mask)
        MOM_ARENA_NEW(index, x->workspace, B * T, err);
    for (size_t b = 0; b < B; b++) {
        int32_t n = 0;
        for (size_t t = 0; t < T; t++) {
            if (mask && mask[b * T + t])
                index[b * T + (size_t)n++] = (int32_t)t;
            count[b * T + t] = mask ? n : (int32_t)t + 1;
        }
    }
    *keys = (key_lists){index, count};
    return MOM_OK;
}

static head_view head_view_init(const attention_job *job, size_t head) {
    const mom_attention_spec *spec = job->spec;
    const size_t T = spec->T, C = spec->C;
    head_view v = {.b = head / spec->H, .h = head % spec->H, .D = C / spec->H, .ld = 3 * C};
    v.q = job->qkv + v.b * T * v.ld + v.h * v.D;
    v.keys = v.q + C;
    v.v = v.q + 2 * C;
    v.index = job->keys.index ? job->keys.index + v.b * T : NULL;
    v.count = job->keys.index ? job->keys.count + v.b * T : job->keys.count;
    v.real = (size_t)v.count[T - 1];
    v.first = !v.real ? T : v.index ? (size_t)v.index[0] : 0;
    v.dropout_index = (uint64_t)head * T * T;
    return v;
}

static size_t key_position(const head_view *v, size_t j) { return v->index ? (size_t)v->index[j] : j; }

/* Hands out consecutive, 64-byte aligned parts of a thread's scratch; called with NULL it only measures. */
typedef struct {
    float *base;
    size_t used;
} carver;

static float *carve(carver *c, size_t floats) {
    float *part = c->base ? c->base + c->used : NULL;
    c->used += round_up(floats, MOM_ALIGNMENT / sizeof(float));
    return part;
}

/* c[r][j] = <row r of a, row j of b> on whole tiles, where a tile is needed at all: row r sees count[r] columns.
 * a: rows in panels of mr, b: panels of nr, both packed with D columns. */
static void score_tiles(const mom_kernels *k, float *c, size_t ldc, const float *a, const float *b,
                        const int32_t *count, size_t rows, size_t D) {
    const size_t columns = (size_t)count[rows - 1];
    for (size_t j = 0; j < columns; j += k->nr) {
        for (size_t i = 0; i < rows; i += k->mr) {
            if ((size_t)count[min_size(i + k->mr, rows) - 1] > j)
                k->gemm_ukr(D, a + i * D, b + j * D, c + i * ldc + j, ldc, 0);
        }
    }
}

/* c (mr, D rounded up to nr) = or += a (kk, mr) * b, b in panels of nr columns that hold b_rows rows each. */
static void row_of_tiles(const mom_kernels *k, float *c, size_t ldc, const float *a, const float *b, size_t b_rows,
                         size_t kk, size_t D, int accumulate) {
    for (size_t d = 0; d < D; d += k->nr)
        k->gemm_ukr(kk, a, b + d * b_rows, c + d, ldc, accumulate);
}

/* Scaled queries i0 .. i0 + rows - 1 in panels of mr rows. */
static void pack_queries(const mom_kernels *k, float *dst, const head_view *v, float scale, size_t i0, size_t rows) {
    k->pack(dst, k->mr, v->q + i0 * v->ld, v->ld, 1, NULL, NULL, NULL, rows, v->D);
    k->scale(dst, scale, dst, round_up(rows, k->mr) * v->D);
}

/* The j-th key a blind row sees is j up to its own position, then the real keys of the future. */
static size_t blind_keys(const attention_job *job, const head_view *v, size_t i) {
    return i + 1 + (job->spec->masked_query == MOM_MASKED_QUERY_REFERENCE ? v->real : 0);
}

static size_t blind_key_position(const head_view *v, size_t i, size_t j) {
    return j <= i ? j : (size_t)v->index[j - i - 1];
}

static float dropout_factor(const attention_job *job, const head_view *v, size_t i, size_t position) {
    if (job->spec->dropout.p <= 0.0f)
        return 1.0f;
    return mom_dropout_scale(job->spec->dropout, v->dropout_index + (uint64_t)i * job->spec->T + position);
}

/* ---- forward */

typedef struct {
    float *keys;       /* all keys, panels of nr keys */
    float *values;     /* all values, panels of nr channels */
    float *queries;    /* a block of scaled queries, panels of mr */
    float *scores;     /* (block, lds) */
    float *weights;    /* one panel of mr rows of exp(score - max) */
    float *out;        /* (mr, ldo) */
    float *normaliser; /* (mr) what the rows of out are still to be multiplied by */
    size_t lds, ldo, size;
} forward_scratch;

static forward_scratch forward_scratch_init(const attention_job *job, float *base) {
    const size_t T = job->spec->T, D = job->spec->C / job->spec->H, mr = job->k->mr, nr = job->k->nr;
    carver c = {base, 0};
    forward_scratch s = {.lds = round_up(T, nr), .ldo = round_up(D, nr)};
    s.keys = carve(&c, s.lds * D);
    s.values = carve(&c, s.ldo * T);
    s.queries = carve(&c, job->block * D);
    s.scores = carve(&c, job->block * s.lds);
    s.weights = carve(&c, mr * T);
    s.out = carve(&c, mr * s.ldo);
    s.normaliser = carve(&c, mr);
    s.size = c.used;
    return s;
}

static void forward_blind_rows(const attention_job *job, const head_view *v) {
    const size_t T = job->spec->T, C = job->spec->C, D = v->D;
    for (size_t i = 0; i < v->first; i++) {
        float *out = job->out + (v->b * T + i) * C + v->h * D;
        const size_t n = blind_keys(job, v, i);
        memset(out, 0, D * sizeof *out);
        for (size_t j = 0; j < n; j++) {
            const size_t position = blind_key_position(v, i, j);
            job->k->axpy(out, dropout_factor(job, v, i, position) / (float)n, v->v + position * v->ld, D);
        }
        job->lse[(v->b * job->spec->H + v->h) * T + i] = 0.0f;
    }
}

static void forward_block(const attention_job *job, const head_view *v, const forward_scratch *s, size_t i0,
                          size_t rows, size_t packed_keys) {
    const mom_kernels *k = job->k;
    const size_t T = job->spec->T, C = job->spec->C, D = v->D, mr = k->mr;
    const int32_t *count = v->count + i0;
    float *lse = job->lse + (v->b * job->spec->H + v->h) * T + i0;
    float *out = job->out + (v->b * T + i0) * C + v->h * D;

    pack_queries(k, s->queries, v, job->spec->scale, i0, rows);
    score_tiles(k, s->scores, s->lds, s->queries, s->keys, count, rows, D);
    for (size_t p0 = 0; p0 < rows; p0 += mr) {
        const size_t p1 = min_size(p0 + mr, rows), width = (size_t)count[p1 - 1];
        for (size_t r = p0; r < p1; r++) {
            float *row = s->scores + r * s->lds;
            const size_t n = (size_t)count[r];
            const float max = k->max(row, n), sum = k->exp_sum(row, row, 1.0f, max, n);
            lse[r] = max + logf(sum);
            s->normaliser[r - p0] = 1.0f / sum;
            if (job->spec->dropout.p > 0.0f) {
                for (size_t j = 0; j < n; j++)
                    row[j] *= dropout_factor(job, v, i0 + r, key_position(v, j));
            }
            memset(row + n, 0, (width - n) * sizeof *row);
        }
        k->pack(s->weights, mr, s->scores + p0 * s->lds, s->lds, 1, NULL, NULL, NULL, p1 - p0, width);
        row_of_tiles(k, s->out, s->ldo, s->weights, s->values, packed_keys, width, D, 0);
        for (size_t r = p0; r < p1; r++)
            k->scale(out + r * C, s->normaliser[r - p0], s->out + (r - p0) * s->ldo, D);
    }
}

static void forward_task(void *context, size_t task, int thread) {
    const attention_job *job = context;
    const mom_kernels *k = job->k;
    const size_t T = job->spec->T, part = task % job->parts;
    const head_view v = head_view_init(job, task / job->parts);
    const forward_scratch s = forward_scratch_init(job, job->scratch + (size_t)thread * job->scratch_size);
    size_t begin, end;
    mom_range((T - v.first + job->block - 1) / job->block, job->parts, part, &begin, &end);
    begin = v.first + begin * job->block;
    end = min_size(v.first + end * job->block, T);
    if (part == 0)
        forward_blind_rows(job, &v);
    if (begin >= end)
        return;
    const size_t packed_keys = (size_t)v.count[end - 1];
    k->pack(s.keys, k->nr, v.keys, v.ld, 1, v.index, NULL, NULL, packed_keys, v.D);
    k->pack(s.values, k->nr, v.v, 1, v.ld, NULL, v.index, NULL, v.D, packed_keys);
    for (size_t i0 = begin; i0 < end; i0 += job->block)
        forward_block(job, &v, &s, i0, min_size(job->block, end - i0), packed_keys);
}

static size_t block_rows(const mom_kernels *k, size_t T) {
    const size_t tiles = BLOCK_ROWS / k->mr;
    return min_size((tiles ? tiles : 1) * k->mr, round_up(T, k->mr));
}

mom_status mom_attention_forward(const mom_exec *x, float *out, float *lse, const float *qkv, const uint8_t *mask,
                                 const mom_attention_spec *spec, mom_error *err) {
    const size_t heads = spec->B * spec->H;
    if (heads == 0 || spec->T == 0 || spec->C == 0)
        return MOM_OK;
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    attention_job job = {.k = x->k, .spec = spec, .block = block_rows(x->k, spec->T), .out = out, .lse = lse,
                         .qkv = qkv};
    const size_t wanted = (size_t)x->threads * TASKS_PER_THREAD;
    job.parts = x->threads == 1 || heads >= wanted ? 1 : (wanted + heads - 1) / heads;
    job.scratch_size = forward_scratch_init(&job, NULL).size;
    mom_status status = key_lists_init(&job.keys, x, mask, spec, err);
    if (status == MOM_OK) {
        job.scratch = mom_arena_alloc(x->workspace, (size_t)x->threads * job.scratch_size, sizeof(float), err);
        status = job.scratch ? MOM_OK : MOM_ERR_MEMORY;
    }
    if (status == MOM_OK)
        mom_parallel_for(x->threads, heads * job.parts, forward_task, &job);
    mom_arena_release(x->workspace, mark);
    return status;
}

/* ---- backward
 *
 * With P the weights, M the dropout factors, q already scaled, row by row of queries:
 *     dV += (P M)^T dout,  dP = dout V^T,  delta = <dout, out>,  dS = P (M dP - delta),
 *     dQ = scale * dS K,  dK += dS^T q. */

typedef struct {
    float *keys, *values;   /* panels of nr keys, for scores and dP */
    float *key_channels;    /* panels of nr channels, for dQ */
    float *queries, *douts; /* a block in panels of mr rows */
    float *query_channels, *dout_channels; /* the same in panels of nr channels */
    float *weights, *dscores; /* (block, lds) */
    float *panel;             /* of mr rows, or mr columns, of one of those */
    float *dq;                /* (mr, ldd) */
    float *dkeys, *dvalues;   /* (T rounded up to mr, ldd), sums over the blocks */
    size_t lds, ldd, size;
} backward_scratch;

static backward_scratch backward_scratch_init(const attention_job *job, float *base) {
    const size_t T = job->spec->T, D = job->spec->C / job->spec->H, mr = job->k->mr, nr = job->k->nr;
    carver c = {base, 0};
    backward_scratch s = {.lds = round_up(T, nr), .ldd = round_up(D, nr)};
    s.keys = carve(&c, s.lds * D);
    s.values = carve(&c, s.lds * D);
    s.key_channels = carve(&c, s.ldd * T);
    s.queries = carve(&c, job->block * D);
    s.douts = carve(&c, job->block * D);
    s.query_channels = carve(&c, job->block * s.ldd);
    s.dout_channels = carve(&c, job->block * s.ldd);
    s.weights = carve(&c, job->block * s.lds);
    s.dscores = carve(&c, job->block * s.lds);
    s.panel = carve(&c, mr * (T > job->block ? T : job->block));
    s.dq = carve(&c, mr * s.ldd);
    s.dkeys = carve(&c, round_up(T, mr) * s.ldd);
    s.dvalues = carve(&c, round_up(T, mr) * s.ldd);
    s.size = c.used;
    return s;
}

static void dscores_row(float *restrict dscores, const float *restrict weights, float delta, size_t n) {
    for (size_t j = 0; j < n; j++)
        dscores[j] = weights[j] * (dscores[j] - delta);
}

static void dscores_row_dropout(const attention_job *job, const head_view *v, float *restrict dscores,
                                float *restrict weights, float delta, size_t i, size_t n) {
    for (size_t j = 0; j < n; j++) {
        const float factor = dropout_factor(job, v, i, key_position(v, j));
        dscores[j] = weights[j] * (factor * dscores[j] - delta);
        weights[j] *= factor;
    }
}

/* sums (keys, ldd) += w^T * b, w (rows, lds); row r of w is zero from count[r] on, and rows that do not reach a
 * panel of keys are passed over. b: panels of nr channels of `rows` rows. */
static void add_transposed_product(const mom_kernels *k, float *sums, size_t ldd, float *panel, const float *w,
                                   size_t lds, const float *b, const int32_t *count, size_t rows, size_t D) {
    const size_t columns = (size_t)count[rows - 1];
    for (size_t j = 0, r = 0; j < columns; j += k->mr) {
        while ((size_t)count[r] <= j)
            r++;
        k->pack(panel, k->mr, w + r * lds + j, 1, lds, NULL, NULL, NULL, min_size(k->mr, columns - j), rows - r);
        row_of_tiles(k, sums + j * ldd, ldd, panel, b + r * k->nr, rows, rows - r, D, 1);
    }
}

static void backward_block(const attention_job *job, const head_view *v, const backward_scratch *s, size_t i0,
                           size_t rows) {
    const mom_kernels *k = job->k;
    const size_t T = job->spec->T, C = job->spec->C, D = v->D, mr = k->mr;
    const int32_t *count = v->count + i0;
    const size_t width = (size_t)count[rows - 1];
    const float *lse = job->saved_lse + (v->b * job->spec->H + v->h) * T + i0;
    const float *dout = job->dout + (v->b * T + i0) * C + v->h * D;
    const float *out = job->saved_out + (v->b * T + i0) * C + v->h * D;
    float *dq = job->dqkv + (v->b * T + i0) * v->ld + v->h * D;
    const float scale = job->spec->scale;

    pack_queries(k, s->queries, v, scale, i0, rows);
    k->pack(s->query_channels, k->nr, v->q + i0 * v->ld, 1, v->ld, NULL, NULL, NULL, D, rows);
    k->scale(s->query_channels, scale, s->query_channels, s->ldd * rows);
    k->pack(s->douts, mr, dout, C, 1, NULL, NULL, NULL, rows, D);
    k->pack(s->dout_channels, k->nr, dout, 1, C, NULL, NULL, NULL, D, rows);

    score_tiles(k, s->weights, s->lds, s->queries, s->keys, count, rows, D);
    score_tiles(k, s->dscores, s->lds, s->douts, s->values, count, rows, D);
    for (size_t r = 0; r < rows; r++) {
        float *weights = s->weights + r * s->lds, *dscores = s->dscores + r * s->lds;
        const size_t n = (size_t)count[r];
        const float delta = k->dot(dout + r * C, out + r * C, D);
        k->exp_sum(weights, weights, 1.0f, lse[r], n);
        if (job->spec->dropout.p > 0.0f)
            dscores_row_dropout(job, v, dscores, weights, delta, i0 + r, n);
        else
            dscores_row(dscores, weights, delta, n);
        memset(weights + n, 0, (width - n) * sizeof *weights);
        memset(dscores + n, 0, (width - n) * sizeof *dscores);
    }

    add_transposed_product(k, s->dvalues, s->ldd, s->panel, s->weights, s->lds, s->dout_channels, count, rows, D);
    add_transposed_product(k, s->dkeys, s->ldd, s->panel, s->dscores, s->lds, s->query_channels, count, rows, D);
    for (size_t p0 = 0; p0 < rows; p0 += mr) {
        const size_t p1 = min_size(p0 + mr, rows), n = (size_t)count[p1 - 1];
        k->pack(s->panel, mr, s->dscores + p0 * s->lds, s->lds, 1, NULL, NULL, NULL, p1 - p0, n);
        row_of_tiles(k, s->dq, s->ldd, s->panel, s->key_channels, v->real, n, D, 0);
        for (size_t r = p0; r < p1; r++)
            k->scale(dq + r * v->ld, scale, s->dq + (r - p0) * s->ldd, D);
    }
}

/* Adds to the gradients of keys and values, which are complete but for these rows. */
static void backward_blind_rows(const attention_job *job, const head_view *v) {
    const mom_kernels *k = job->k;
    const size_t T = job->spec->T, C = job->spec->C, D = v->D;
    const int scores_matter = job->spec->masked_query == MOM_MASKED_QUERY_REFERENCE;
    float *dq = job->dqkv + v->b * T * v->ld + v->h * D, *dkeys = dq + C, *dvalues = dq + 2 * C;
    for (size_t i = 0; i < v->first; i++) {
        const float *dout = job->dout + (v->b * T + i) * C + v->h * D;
        const size_t n = blind_keys(job, v, i);
        const float weight = 1.0f / (float)n;
        const float delta = k->dot(dout, job->saved_out + (v->b * T + i) * C + v->h * D, D);
        for (size_t j = 0; j < n; j++) {
            const size_t position = blind_key_position(v, i, j);
            const float factor = dropout_factor(job, v, i, position);
            k->axpy(dvalues + position * v->ld, weight * factor, dout, D);
            if (scores_matter && position <= i) {
                const float dweight = factor * k->dot(dout, v->v + position * v->ld, D);
                const float dscore = job->spec->scale * weight * (dweight - delta);
                k->axpy(dq + i * v->ld, dscore, v->keys + position * v->ld, D);
                k->axpy(dkeys + position * v->ld, dscore, v->q + i * v->ld, D);
            }
        }
    }
}

static void backward_task(void *context, size_t task, int thread) {
    const attention_job *job = context;
    const mom_kernels *k = job->k;
    const size_t T = job->spec->T, C = job->spec->C;
    const head_view v = head_view_init(job, task);
    const backward_scratch s = backward_scratch_init(job, job->scratch + (size_t)thread * job->scratch_size);
    const size_t D = v.D;

    k->pack(s.keys, k->nr, v.keys, v.ld, 1, v.index, NULL, NULL, v.real, D);
    k->pack(s.values, k->nr, v.v, v.ld, 1, v.index, NULL, NULL, v.real, D);
    k->pack(s.key_channels, k->nr, v.keys, 1, v.ld, NULL, v.index, NULL, D, v.real);
    memset(s.dkeys, 0, round_up(v.real, k->mr) * s.ldd * sizeof(float));
    memset(s.dvalues, 0, round_up(v.real, k->mr) * s.ldd * sizeof(float));
    for (size_t i0 = v.first; i0 < T; i0 += job->block)
        backward_block(job, &v, &s, i0, min_size(job->block, T - i0));

    float *dhead = job->dqkv + v.b * T * v.ld + v.h * D;
    for (size_t t = 0, j = 0; t < T; t++) {
        float *dq = dhead + t * v.ld, *dkey = dq + C, *dvalue = dq + 2 * C;
        if (t < v.first)
            memset(dq, 0, D * sizeof *dq);
        if (j < v.real && key_position(&v, j) == t) {
            memcpy(dkey, s.dkeys + j * s.ldd, D * sizeof *dkey);
            memcpy(dvalue, s.dvalues + j * s.ldd, D * sizeof *dvalue);
            j++;
        } else {
            memset(dkey, 0, D * sizeof *dkey);
            memset(dvalue, 0, D * sizeof *dvalue);
        }
    }
    backward_blind_rows(job, &v);
}

mom_status mom_attention_backward(const mom_exec *x, float *dqkv, const float *dout, const float *qkv,
                                  const float *out, const float *lse, const uint8_t *mask,
                                  const mom_attention_spec *spec, mom_error *err) {
    if (spec->B == 0 || spec->H == 0 || spec->T == 0 || spec->C == 0)
        return MOM_OK;
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    attention_job job = {.k = x->k, .spec = spec, .block = block_rows(x->k, spec->T), .dqkv = dqkv, .dout = dout,
                         .saved_out = out, .saved_lse = lse, .qkv = qkv};
    job.scratch_size = backward_scratch_init(&job, NULL).size;
    mom_status status = key_lists_init(&job.keys, x, mask, spec, err);
    if (status == MOM_OK) {
        job.scratch = mom_arena_alloc(x->workspace, (size_t)x->threads * job.scratch_size, sizeof(float), err);
        status = job.scratch ? MOM_OK : MOM_ERR_MEMORY;
    }
    if (status == MOM_OK)
        mom_parallel_for(x->threads, spec->B * spec->H, backward_task, &job);
    mom_arena_release(x->workspace, mark);
    return status;
}
