/* DESIGN  A head of a sequence is a list of keys (real, active tokens) and a list of queries (active tokens that see a
 *         real key): what is masked or skipped is left out when packing, is never read by the rest, and costs nothing.
 *         Query i sees the first count[i] keys, whether or not there is a mask, and besides skipped[i] keys with score
 *         0 and value 0, which start its softmax off: maximum 0, sum skipped[i].
 *         Scores are computed transposed, in tiles (keys, nr queries): that is the layout of a packed right factor, so
 *         exp'd scores go into the product with the values as they are, and softmax needs nothing across a vector.
 *         Where that takes no more micro-tiles (few queries, or wide heads) the tile is the left factor of that product, read
 *         by columns, and results come by query instead of by channel, as they are stored.
 *         Forward takes nr queries at a time through the tiles of keys they see, with an online softmax. Backward
 *         takes blocks of queries; for the gradients of keys and values a tile is turned around once, or read by rows where
 *         a block is a single panel and the level can.
 * BF16    The factors of all products, weights and their gradients included, are bfloat16 in pairs, two steps of a sum
 *         in a word of 32 bits; packed panels have words where float32 has floats. Sums and softmax are float32.
 * BLIND   Rows that see no real key are the rows before the first real one. They take a path of their own
 *         with even weights. Their scores get gradients in MOM_MASKED_QUERY_REFERENCE only: there the
 *         scores were swallowed by a huge constant, which rounding hides and differentiation does not.
 * COST    forward 2, backward 5 products of D multiplications per visible pair of active tokens (7 where there are
 *         too few heads for the threads, see backward_tasks); per thread forward 2 T D floats, backward 5 T D,
 *         besides tiles of constant size.
 * BITS    Tiles and blocks depend on sizes only. Forward queries are independent of each other; gradients of keys
 *         are sums over blocks of queries in order, those of queries over tiles of keys in order, in either way of
 *         cutting a head into tasks.
 * SOURCE  Online softmax: Milakov and Gimelshein 2018, arXiv:1805.02867. Recomputation: Dao et al. 2022,
 *         arXiv:2205.14135.
 */
#include "ops/attention.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/sizes.h"

#define KEY_TILE 128       /* keys per tile, rounded down to whole micro-tiles */
#define QUERY_BLOCK 128    /* queries per block of backward, rounded down to whole micro-tiles */
#define COPY_CHANNELS 64   /* channels turned around at a time when results are stored */
#define TINY_SCALE 1e-30f  /* in place of 0, which would undo the -inf of hidden keys */
#define TASKS_PER_THREAD 4 /* forward cuts heads into about that many */

typedef struct {
    size_t row, length;   /* first row of its arrays; tokens */
    size_t keys, queries; /* entries of its lists */
    size_t first, real;   /* position of the first real token (length if there is none); number of real tokens */
    double work;          /* visible pairs */
    int rest;             /* has tokens that are no queries */
} sequence;

/* Part of a head: queries [begin, end) in panels or blocks, or tiles of keys. */
typedef struct {
    size_t head, begin, end;
    int queries, keys; /* backward: which gradients */
    double work;
} attention_task;

typedef struct {
    const mom_kernels *k;
    const mom_attention_spec *spec;
    int bf16;
    float scale; /* of scores, not 0 */
    const uint8_t *mask, *active;
    size_t D, tile, block;     /* channels of a head; keys per tile; queries per block */
    const sequence *sequences; /* (B) */
    double work;               /* visible pairs of all heads */
    /* Lists of all sequences, each from its first row on: positions within the sequence, and for every query how many
     * keys it sees and how many skipped tokens. */
    const int32_t *key, *query, *count, *skipped;
    attention_task *tasks;
    float *scratch;
    size_t scratch_size; /* floats per thread */
    void *out;           /* forward */
    float *lse;
    void *dqkv; /* backward */
    const void *dout, *saved_out;
    const float *saved_lse;
    const void *qkv;
} attention_job;

/* One head of one sequence. */
typedef struct {
    const sequence *s;
    size_t h;
    const int32_t *key, *query, *count, *skipped;
    uint64_t dropout_index; /* of query 0, key 0 */
} head_view;

static int is_real(const attention_job *job, size_t row) { return !job->mask || job->mask[row]; }
static int is_active(const attention_job *job, size_t row) { return !job->active || job->active[row]; }
static int is_wanted(const attention_job *job, size_t row) { return !job->spec->queries || job->spec->queries[row]; }
static int has_output(const attention_job *job, size_t row) { return is_active(job, row) && is_wanted(job, row); }

static mom_status lists_init(attention_job *job, const mom_exec *x, mom_error *err) {
    const mom_attention_spec *spec = job->spec;
    const int32_t *offsets = spec->offsets;
    sequence *sequences;
    int32_t *key, *query, *count, *skipped;
    const size_t N = offsets ? (size_t)offsets[spec->B] : spec->B * spec->T;
    MOM_ARENA_NEW(sequences, x->workspace, spec->B, err);
    MOM_ARENA_NEW(key, x->workspace, N, err);
    MOM_ARENA_NEW(query, x->workspace, N, err);
    MOM_ARENA_NEW(count, x->workspace, N, err);
    MOM_ARENA_NEW(skipped, x->workspace, N, err);
    for (size_t b = 0; b < spec->B; b++) {
        const size_t row = offsets ? (size_t)offsets[b] : b * spec->T;
        sequence s = {.row = row, .length = offsets ? (size_t)offsets[b + 1] - row : spec->T};
        s.first = s.length;
        if (x->dry_run) { /* as with no mask and no skipped token, without the lists */
            s.first = 0;
            s.real = s.keys = s.queries = s.length;
            s.work = 0.5 * (double)s.length * (double)(s.length + 1);
        }
        for (size_t t = 0; t < s.length && !x->dry_run; t++) {
            const int active = is_active(job, row + t);
            if (is_real(job, row + t)) {
                if (s.real++ == 0)
                    s.first = t;
                if (active)
                    key[row + s.keys++] = (int32_t)t;
            }
            if (s.real && has_output(job, row + t)) {
                query[row + s.queries] = (int32_t)t;
                count[row + s.queries] = (int32_t)s.keys;
                skipped[row + s.queries++] = (int32_t)(s.real - s.keys);
                s.work += (double)s.keys;
            }
        }
        s.rest = s.queries < s.length;
        sequences[b] = s;
        job->work += s.work * (double)spec->H;
    }
    job->sequences = sequences;
    job->key = key;
    job->query = query;
    job->count = count;
    job->skipped = skipped;
    return MOM_OK;
}

static head_view head_view_init(const attention_job *job, size_t head) {
    const size_t T = job->spec->T;
    const sequence *s = &job->sequences[head / job->spec->H];
    return (head_view){s, head % job->spec->H, job->key + s->row, job->query + s->row, job->count + s->row,
                       job->skipped + s->row, (uint64_t)head * T * T};
}

/* Hands out consecutive, 64-byte aligned parts of a thread's scratch; called with NULL it only measures. */
typedef struct {
    float *base;
    size_t used;
} carver;

static float *carve(carver *c, size_t floats) {
    float *part = c->base ? c->base + c->used : NULL;
    c->used += mom_round_up(floats, MOM_ALIGNMENT / sizeof(float));
    return part;
}

/* ---- rows of a head; `ld` and `column` are those of the array: (3C, part * C + h * D) or (C, h * D) */

static size_t element(const head_view *v, size_t position, size_t ld, size_t column) {
    return (v->s->row + position) * ld + column;
}

/* dst (D): factor times a row, in float32. */
static void load_row(const attention_job *job, float *dst, const void *src, size_t at, float factor) {
    if (job->bf16) {
        job->k->vec.from_bf16(dst, (const mom_bf16 *)src + at, job->D);
        job->k->vec.scale(dst, factor, dst, job->D);
    } else {
        job->k->vec.scale(dst, factor, (const float *)src + at, job->D);
    }
}

/* Words that n steps of a sum take in a packed panel. */
static size_t words(const attention_job *job, size_t n) { return job->bf16 ? (n + 1) / 2 : n; }

/* dst (n, words(D)): rows at the given positions, as they are stored. */
static void load_rows(const attention_job *job, const head_view *v, float *dst, const void *src, size_t ld,
                      size_t column, const int32_t *positions, size_t n) {
    const size_t size = mom_dtype_size(job->spec->dtype), width = words(job, job->D);
    for (size_t i = 0; i < n; i++, dst += width) {
        const size_t at = element(v, (size_t)positions[i], ld, column);
        memset(dst + width - 1, 0, sizeof *dst);
        memcpy(dst, (const unsigned char *)src + at * size, job->D * size);
    }
}

/* Packs n rows of `steps` words each into panels of `width` rows. */
static void pack(const attention_job *job, float *dst, size_t width, mom_matrix rows, size_t n, size_t steps) {
    job->k->pack.factor(dst, MOM_F32, width, &rows, NULL, 0, n, 0, steps);
}

/* Room for rows of a head side by side, and for pairs of them. */
typedef struct {
    float *stage, *pairs;
} staging;

/* Rows at the given positions in panels of `width` rows, for sums over channels. */
static void pack_rows(const attention_job *job, const head_view *v, float *dst, size_t width, const void *src, size_t ld,
                      size_t column, const int32_t *positions, size_t n, staging room) {
    const size_t D = words(job, job->D), at = element(v, 0, ld, column);
    if (!job->bf16) {
        pack(job, dst, width, (mom_matrix){.data = (const float *)src + at, .rs = ld, .cs = 1, .row_index = positions}, n, D);
    } else if (job->D % 2 == 0) { /* rows of whole words */
        const void *rows = (const mom_bf16 *)src + at;
        pack(job, dst, width, (mom_matrix){.data = rows, .rs = ld / 2, .cs = 1, .row_index = positions}, n, D);
    } else {
        load_rows(job, v, room.stage, src, ld, column, positions, n);
        pack(job, dst, width, mom_matrix_rows(room.stage, D), n, D);
    }
}

/* The same in panels of `width` channels, for sums over rows. */
static void pack_channels(const attention_job *job, const head_view *v, float *dst, size_t width, const void *src, size_t ld,
                          size_t column, const int32_t *positions, size_t n, staging room) {
    const size_t D = job->D;
    if (!job->bf16) {
        const float *rows = (const float *)src + element(v, 0, ld, column);
        pack(job, dst, width, (mom_matrix){.data = rows, .rs = 1, .cs = ld, .col_index = positions}, D, n);
        return;
    }
    float *pairs = room.pairs;
    load_rows(job, v, room.stage, src, ld, column, positions, n);
    /* Whole panels only, so that pack copies words and never computes with them. */
    const size_t stride = 2 * words(job, D), whole = mom_round_up(D, width);
    const mom_bf16 *in = (const mom_bf16 *)(const void *)room.stage;
    for (size_t i = 0; i < n; i += 2) {
        mom_bf16 *out = (mom_bf16 *)(void *)(pairs + i / 2 * whole);
        const mom_bf16 *first = in + i * stride, *second = first + stride;
        memset(out, 0, 2 * whole * sizeof *out);
        for (size_t d = 0; d < D; d++)
            out[2 * d] = first[d];
        for (size_t d = 0; d < D && i + 1 < n; d++)
            out[2 * d + 1] = second[d];
    }
    pack(job, dst, width, mom_matrix_transposed(pairs, whole), whole, words(job, n));
}

static size_t pairs_size(const attention_job *job, size_t rows) {
    return job->bf16 ? words(job, rows) * (mom_round_up(job->D, job->k->gemm.nr) + job->k->gemm.nr) : 0;
}

/* c (mr, nr) = or += product of packed panels, n steps. */
static void product(const attention_job *job, size_t n, const float *a, const float *b, float *c, size_t ldc,
                    int accumulate) {
    if (job->bf16)
        job->k->gemm.bf16.packed(words(job, n), (const mom_bf16 *)(const void *)a, (const mom_bf16 *)(const void *)b, c,
                              ldc, accumulate, b);
    else
        job->k->gemm.f32.packed(n, a, b, c, ldc, accumulate, b);
}

/* A tile of n keys as the right factor of a product: itself, or rounded, in `copy`. */
static const float *tile_as_factor(const attention_job *job, const float *tile, size_t n, float *copy) {
    if (!job->bf16)
        return tile;
    job->k->attention.to_bf16((mom_bf16 *)(void *)copy, tile, n);
    return copy;
}

/* A tile of n keys as rows of a left factor: itself, or rounded, in `copy`. */
static const float *tile_by_row(const attention_job *job, const float *tile, size_t n, float *copy) {
    if (!job->bf16)
        return tile;
    job->k->vec.to_bf16((mom_bf16 *)(void *)copy, tile, n * job->k->gemm.nr);
    return copy;
}

/* A tile of n keys (whole panels of mr) turned around: panels of mr keys, nr queries each, `stride` apart. */
static void turn_tile(const attention_job *job, float *dst, size_t stride, const float *tile, size_t n, float *copy) {
    const size_t mr = job->k->gemm.mr, width = words(job, job->k->gemm.nr);
    const float *rows = tile_by_row(job, tile, n, copy);
    for (size_t i = 0; i < n; i += mr)
        pack(job, dst + i / mr * stride, mr, mom_matrix_rows(rows + i * width, width), mr, width);
}

/* n channels; src is overwritten. */
static void store_row(const attention_job *job, void *dst, size_t at, float *src, float factor, size_t n) {
    if (job->bf16) {
        job->k->vec.scale(src, factor, src, n);
        job->k->vec.to_bf16((mom_bf16 *)dst + at, src, n);
    } else {
        job->k->vec.scale((float *)dst + at, factor, src, n);
    }
}

static void clear_row(const attention_job *job, void *dst, size_t at, size_t n) {
    const size_t size = mom_dtype_size(job->spec->dtype);
    memset((unsigned char *)dst + at * size, 0, n * size);
}

/* Stores results, one per query, as rows; query l is multiplied by factors[l], or all by `factor` when that is NULL. They
 * are the rows of src (n, D rounded up to nr), which are overwritten, or the columns of src (D, nr). stage: nr *
 * COPY_CHANNELS floats. */
static void store_results(const attention_job *job, const head_view *v, void *dst, size_t ld, size_t column,
                          const int32_t *positions, size_t n, int queries, float *src, const float *factors, float factor,
                          float *stage) {
    const size_t nr = job->k->gemm.nr;
    for (size_t l = 0; l < n && queries; l++)
        store_row(job, dst, element(v, (size_t)positions[l], ld, column), src + l * mom_round_up(job->D, nr),
                  factors ? factors[l] : factor, job->D);
    for (size_t d = 0; d < job->D && !queries; d += COPY_CHANNELS) {
        const size_t width = mom_min(COPY_CHANNELS, job->D - d);
        pack(job, stage, width, mom_matrix_rows(src + d * nr, nr), width, n);
        for (size_t l = 0; l < n; l++)
            store_row(job, dst, element(v, (size_t)positions[l], ld, column + d), stage + l * width,
                      factors ? factors[l] : factor, width);
    }
}

/* ---- tiles (keys, nr queries) */

/* Product of packed keys (panels of mr rows) with packed queries (a panel of nr); whole micro-tiles. */
static void score_tile(const attention_job *job, float *tile, const float *keys, const float *queries, size_t n) {
    for (size_t j = 0; j < n; j += job->k->gemm.mr)
        product(job, job->D, keys + j * words(job, job->D), queries, tile + j * job->k->gemm.nr, job->k->gemm.nr, 0);
}

/* out (D rounded up to mr, nr) = or += product of packed values and a tile of n keys; the values were packed in tiles
 * of `stored` keys, panels of mr channels. */
static void mix_tile(const attention_job *job, float *out, const float *values, size_t stored, const float *tile,
                     size_t n, int accumulate) {
    const size_t mr = job->k->gemm.mr, nr = job->k->gemm.nr;
    for (size_t d = 0; d < job->D; d += mr)
        product(job, n, values + d * words(job, stored), tile, out + d * nr, nr, accumulate);
}

/* Whether results by query, a panel of mr queries a time, take no more micro-tiles than by channel: they are stored without
 * being turned around. The bits are the same. */
static int by_query(const attention_job *job, size_t queries) {
    const size_t mr = job->k->gemm.mr, nr = job->k->gemm.nr, lanes = mom_min(queries, nr);
    if (job->bf16 ? !job->k->gemm.bf16.a_columns : !job->k->gemm.f32.a_columns)
        return 0;
    return (lanes + mr - 1) / mr * ((job->D + nr - 1) / nr) <= (job->D + mr - 1) / mr;
}

/* Channels of a key that are packed for that. */
static size_t packed_channels(const attention_job *job, int queries) {
    return mom_round_up(job->D, queries ? job->k->gemm.nr : job->k->gemm.mr);
}

/* Floats of the results for a panel of nr queries, either way. */
static size_t result_size(const attention_job *job) {
    const size_t mr = job->k->gemm.mr, nr = job->k->gemm.nr;
    return mom_max(mom_round_up(job->D, mr) * nr, mom_round_up(nr, mr) * mom_round_up(job->D, nr));
}

/* As mix_tile by query: out (lanes rounded up to mr, D rounded up to nr) = or += the tile, turned, times values in panels of
 * nr channels. Up to mr - 1 words behind the tile are read. */
static void mix_queries(const attention_job *job, float *out, const float *values, size_t stored, const float *tile,
                        size_t n, size_t lanes, int accumulate) {
    const mom_kernels *k = job->k;
    const size_t mr = k->gemm.mr, nr = k->gemm.nr, ldd = mom_round_up(job->D, nr);
    for (size_t i = 0; i < lanes; i += mr) {
        for (size_t d = 0; d < job->D; d += nr) {
            const float *b = values + d * words(job, stored);
            float *c = out + i * ldd + d;
            if (job->bf16)
                k->gemm.bf16.a_columns(words(job, n), (const mom_bf16 *)(const void *)(tile + i), nr,
                                         (const mom_bf16 *)(const void *)b, c, ldd, accumulate, b);
            else
                k->gemm.f32.a_columns(n, tile + i, nr, b, c, ldd, accumulate, b);
        }
    }
}

/* Hides from queries q .. q + lanes - 1, the columns of the tile, those of keys j .. j + n - 1 they do not see. */
static void hide_keys(const attention_job *job, const head_view *v, float *tile, size_t j, size_t n, size_t q,
                      size_t lanes) {
    const size_t nr = job->k->gemm.nr, seen_by_all = (size_t)v->count[q];
    const float never = copysignf(INFINITY, -job->scale);
    size_t hidden = 0;
    for (size_t r = seen_by_all > j ? seen_by_all - j : 0; r < n; r++) {
        while (hidden < lanes && (size_t)v->count[q + hidden] <= j + r)
            hidden++;
        const size_t columns = hidden < lanes ? hidden : nr;
        for (size_t l = 0; l < columns; l++)
            tile[r * nr + l] = never;
    }
}

static float dropout_factor(const attention_job *job, const head_view *v, size_t i, size_t j) {
    if (job->spec->dropout.p <= 0.0f)
        return 1.0f;
    return mom_dropout_scale(job->spec->dropout, v->dropout_index + (uint64_t)i * job->spec->T + j);
}

/* keep (n rounded up to mr, nr): zeros where there is no key or no query. */
static void dropout_tile(const attention_job *job, const head_view *v, float *keep, size_t j, size_t n, size_t q,
                         size_t lanes) {
    const size_t nr = job->k->gemm.nr;
    memset(keep, 0, mom_round_up(n, job->k->gemm.mr) * nr * sizeof *keep);
    for (size_t r = 0; r < n; r++) {
        for (size_t l = 0; l < lanes; l++)
            keep[r * nr + l] = dropout_factor(job, v, (size_t)v->query[q + l], (size_t)v->key[j + r]);
    }
}

/* Keys (part 1) or values (2) [begin, end) into `dst`, tile by tile, in panels of mr keys, or of `width` channels if that is
 * not 0. */
static void pack_keys(const attention_job *job, const head_view *v, float *dst, size_t part, size_t width, staging room,
                      size_t begin, size_t end) {
    const size_t C = job->spec->C, column = part * C + v->h * job->D;
    for (size_t j = begin; j < end; j += job->tile) {
        const size_t n = mom_min(job->tile, end - j);
        if (width)
            pack_channels(job, v, dst + j * mom_round_up(job->D, width), width, job->qkv, 3 * C, column, v->key + j, n, room);
        else
            pack_rows(job, v, dst + j * words(job, job->D), job->k->gemm.mr, job->qkv, 3 * C, column, v->key + j, n, room);
    }
}

/* ---- rows that see no real key */

static size_t blind_keys(const attention_job *job, const head_view *v, size_t i) {
    return i + 1 + (job->spec->masked_query == MOM_MASKED_QUERY_REFERENCE ? v->s->real : 0);
}

/* ---- tasks */

static int by_falling_work(const void *left, const void *right) {
    const attention_task *a = left, *b = right;
    if (a->work != b->work)
        return a->work < b->work ? 1 : -1;
    if (a->head != b->head)
        return a->head < b->head ? -1 : 1;
    if (a->keys != b->keys)
        return a->keys < b->keys ? -1 : 1;
    return a->begin < b->begin ? -1 : a->begin > b->begin;
}

/* When threads take tasks in order, each as soon as it is free: when the last one is done. */
static double finish_time(const attention_task *tasks, size_t n, int threads) {
    double busy[MOM_MAX_THREADS] = {0}, last = 0.0;
    for (size_t i = 0; i < n; i++) {
        int next = 0;
        for (int t = 1; t < threads; t++)
            next = busy[t] < busy[next] ? t : next;
        busy[next] += tasks[i].work;
        last = busy[next] > last ? busy[next] : last;
    }
    return last;
}

/* Into how many parts of about equal work to cut a head, at most `most`. */
static size_t parts_of(const attention_job *job, const sequence *s, size_t most, int threads) {
    const double wanted = s->work / job->work * threads * TASKS_PER_THREAD;
    return threads == 1 || !(wanted > 1.0) ? 1 : mom_max(1, mom_min(most, (size_t)ceil(wanted)));
}

/* Pairs that queries [begin, end) see. */
static double pairs_of(const attention_job *job, const sequence *s, size_t begin, size_t end) {
    double pairs = 0.0;
    for (size_t q = begin; q < end; q++)
        pairs += (double)job->count[s->row + q];
    return pairs;
}

/* Keys or queries [begin, end) of part p out of `parts`, in whole units. */
static void part_range(size_t n, size_t unit, size_t parts, size_t p, size_t *begin, size_t *end) {
    mom_range((n + unit - 1) / unit, parts, p, begin, end);
    *begin *= unit;
    *end = mom_min(*end * unit, n);
}

/* Queries of every head, cut into parts of whole units; tasks NULL: only counts them. */
static size_t query_tasks(const attention_job *job, attention_task *tasks, size_t unit, int threads) {
    size_t n = 0;
    for (size_t head = 0; head < job->spec->B * job->spec->H; head++) {
        const sequence *s = &job->sequences[head / job->spec->H];
        const size_t parts = parts_of(job, s, (s->queries + unit - 1) / unit, threads);
        for (size_t p = 0; p < parts && s->queries; p++, n++) {
            if (!tasks)
                continue;
            attention_task task = {.head = head, .queries = 1};
            part_range(s->queries, unit, parts, p, &task.begin, &task.end);
            task.work = pairs_of(job, s, task.begin, task.end);
            tasks[n] = task;
        }
    }
    return n;
}

/* ---- forward */

typedef struct {
    float *keys, *values; /* all keys that are needed, in tiles: panels of mr keys, panels of mr or nr channels */
    staging room;
    float *queries; /* a panel of nr queries */
    float *scores;  /* (tile, nr) */
    float *rounded; /* the same in bfloat16 */
    float *keep;    /* the same, with dropout */
    float *out;     /* (D rounded up to mr, nr), or by query */
    float *max, *sum, *factor; /* (nr) */
    size_t size;
} forward_scratch;

static forward_scratch forward_scratch_init(const attention_job *job, float *base) {
    const size_t T = job->spec->T, D = job->D, mr = job->k->gemm.mr, nr = job->k->gemm.nr;
    carver c = {base, 0};
    forward_scratch s;
    s.keys = carve(&c, mom_round_up(T, mr) * D);
    s.values = carve(&c, T * mom_max(packed_channels(job, 0), packed_channels(job, 1)));
    s.room.stage = carve(&c, mom_max(mom_max(job->tile, nr) * D, nr * COPY_CHANNELS));
    s.room.pairs = carve(&c, pairs_size(job, job->tile));
    s.queries = carve(&c, nr * D);
    s.scores = carve(&c, job->tile * nr + mr);
    s.rounded = carve(&c, job->bf16 ? job->tile * nr + mr : 0);
    s.keep = carve(&c, job->spec->dropout.p > 0.0f ? job->tile * nr : 0);
    s.out = carve(&c, result_size(job));
    s.max = carve(&c, nr);
    s.sum = carve(&c, nr);
    s.factor = carve(&c, nr);
    s.size = c.used;
    return s;
}

/* Queries q .. q + lanes - 1, at most nr of them; `packed` keys are there, their values for results by query or not. */
static void forward_panel(const attention_job *job, const head_view *v, const forward_scratch *s, size_t q,
                          size_t lanes, size_t packed, int queries) {
    const mom_kernels *k = job->k;
    const size_t D = job->D, C = job->spec->C, H = job->spec->H, nr = k->gemm.nr, channels = packed_channels(job, queries);
    const size_t width = (size_t)v->count[q + lanes - 1];

    pack_rows(job, v, s->queries, nr, job->qkv, 3 * C, v->h * D, v->query + q, lanes, s->room);
    for (size_t l = 0; l < nr; l++) {
        const int32_t skipped = l < lanes ? v->skipped[q + l] : 0;
        s->max[l] = skipped ? 0.0f : -INFINITY;
        s->sum[l] = (float)skipped;
    }
    if (!width)
        memset(s->out, 0, result_size(job) * sizeof *s->out);
    for (size_t j = 0; j < width; j += job->tile) {
        const size_t n = mom_min(job->tile, width - j);
        score_tile(job, s->scores, s->keys + j * words(job, D), s->queries, n);
        if ((size_t)v->count[q] < j + n)
            hide_keys(job, v, s->scores, j, n, q, lanes);
        const int risen = k->attention.softmax(s->scores, s->max, s->sum, s->factor, job->scale, n);
        if (risen && j && !queries)
            k->attention.scale(s->out, s->factor, channels);
        for (size_t l = 0; l < lanes && risen && j && queries; l++)
            k->vec.scale(s->out + l * channels, s->factor[l], s->out + l * channels, D);
        if (job->spec->dropout.p > 0.0f) {
            dropout_tile(job, v, s->keep, j, n, q, lanes);
            for (size_t i = 0; i < n * nr; i++)
                s->scores[i] *= s->keep[i];
        }
        const float *weights = tile_as_factor(job, s->scores, n, s->rounded), *values = s->values + j * channels;
        const size_t stored = mom_min(job->tile, packed - j);
        if (queries)
            mix_queries(job, s->out, values, stored, weights, n, lanes, j > 0);
        else
            mix_tile(job, s->out, values, stored, weights, n, j > 0);
    }
    for (size_t l = 0; l < lanes; l++) {
        job->lse[(v->s->row + (size_t)v->query[q + l]) * H + v->h] = s->max[l] + logf(s->sum[l]);
        s->factor[l] = 1.0f / s->sum[l];
    }
    store_results(job, v, job->out, C, v->h * D, v->query + q, lanes, queries, s->out, s->factor, 1.0f, s->room.stage);
}

static void forward_task(void *context, size_t number, int thread) {
    const attention_job *job = context;
    const attention_task *task = &job->tasks[number];
    const head_view v = head_view_init(job, task->head);
    const forward_scratch s = forward_scratch_init(job, job->scratch + (size_t)thread * job->scratch_size);
    const size_t packed = (size_t)v.count[task->end - 1];
    const int queries = by_query(job, task->end - task->begin);
    pack_keys(job, &v, s.keys, 1, 0, s.room, 0, packed);
    pack_keys(job, &v, s.values, 2, queries ? job->k->gemm.nr : job->k->gemm.mr, s.room, 0, packed);
    for (size_t q = task->begin; q < task->end; q += job->k->gemm.nr)
        forward_panel(job, &v, &s, q, mom_min(job->k->gemm.nr, task->end - q), packed, queries);
}

/* The rows of a head that are no queries: zeros for inactive tokens, the even mean for blind ones. */
static void forward_rest(void *context, size_t head, int thread) {
    const attention_job *job = context;
    const head_view v = head_view_init(job, head);
    const size_t C = job->spec->C, D = job->D;
    float *sum = job->scratch + (size_t)thread * job->scratch_size, *value = sum + D;
    for (size_t t = 0; t < v.s->length && v.s->rest; t++) {
        const size_t row = v.s->row + t, at = element(&v, t, C, v.h * D);
        if (!is_wanted(job, row) || (is_active(job, row) && t >= v.s->first))
            continue;
        job->lse[row * job->spec->H + v.h] = 0.0f;
        if (!is_active(job, row)) {
            clear_row(job, job->out, at, D);
            continue;
        }
        const size_t seen = blind_keys(job, &v, t);
        const size_t future = job->spec->masked_query == MOM_MASKED_QUERY_REFERENCE ? v.s->keys : 0;
        memset(sum, 0, D * sizeof *sum);
        for (size_t j = 0; j < t + 1 + future; j++) {
            const size_t position = j <= t ? j : (size_t)v.key[j - t - 1];
            if (!is_active(job, v.s->row + position))
                continue;
            load_row(job, value, job->qkv, element(&v, position, 3 * C, 2 * C + v.h * D), 1.0f);
            job->k->vec.axpy(sum, dropout_factor(job, &v, t, position) / (float)seen, value, D);
        }
        store_row(job, job->out, at, sum, 1.0f, D);
    }
}

static attention_job job_init(const mom_exec *x, const mom_attention_spec *spec, const void *qkv, const uint8_t *mask,
                              const uint8_t *active) {
    const mom_kernels *k = x->k;
    return (attention_job){.k = k,
                           .spec = spec,
                           .bf16 = spec->dtype == MOM_BF16,
                           .scale = spec->scale != 0.0f ? spec->scale : TINY_SCALE,
                           .mask = mask,
                           .active = active,
                           .D = spec->C / spec->H,
                           .tile = mom_max(KEY_TILE / k->gemm.mr, 1) * k->gemm.mr,
                           .block = mom_max(QUERY_BLOCK / k->gemm.nr, 1) * k->gemm.nr,
                           .qkv = qkv};
}

static mom_status forward(const mom_exec *x, attention_job *job, mom_error *err) {
    MOM_TRY(lists_init(job, x, err));
    job->scratch_size = mom_max(forward_scratch_init(job, NULL).size, mom_round_up(2 * job->D, 16));
    MOM_ARENA_NEW(job->scratch, x->workspace, (size_t)x->threads * job->scratch_size, err);
    const size_t n = query_tasks(job, NULL, x->k->gemm.nr, x->threads);
    MOM_ARENA_NEW(job->tasks, x->workspace, n, err);
    query_tasks(job, job->tasks, x->k->gemm.nr, x->threads);
    qsort(job->tasks, n, sizeof *job->tasks, by_falling_work);
    mom_parallel_for(x, n, forward_task, job);
    if (job->mask || job->active)
        mom_parallel_for(x, job->spec->B * job->spec->H, forward_rest, job);
    return MOM_OK;
}

mom_status mom_attention_forward(const mom_exec *x, void *out, float *lse, const void *qkv, const uint8_t *mask,
                                 const uint8_t *active, const mom_attention_spec *spec, mom_error *err) {
    if (spec->B == 0 || spec->H == 0 || spec->T == 0 || spec->C == 0)
        return MOM_OK;
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    attention_job job = job_init(x, spec, qkv, mask, active);
    job.out = out;
    job.lse = lse;
    const mom_status status = forward(x, &job, err);
    mom_arena_release(x->workspace, mark);
    return status;
}

/* ---- backward
 *
 * With P the weights, M the dropout factors, row by row of queries:
 *     dV += (P M)^T dout,  dP = dout V^T,  delta = <dout, out>,  dS = P (M dP - delta),
 *     dQ = scale * dS K,  dK += scale * dS^T Q. */

typedef struct {
    float *keys, *values; /* in tiles of panels of mr keys, for scores and dP */
    float *key_channels;  /* in tiles of panels of mr or nr channels, for dQ */
    staging room;
    float *row;                            /* (2, D) */
    float *queries, *douts;                /* a block in panels of nr queries */
    float *query_channels, *dout_channels; /* the same in panels of nr channels */
    float *weights, *dscores;              /* (tile, nr) */
    float *keep, *rounded;                 /* the same */
    float *weights_turned, *dscores_turned; /* a tile by a block in panels of mr keys */
    float *lse, *delta;                     /* (block) */
    float *dq;                              /* (D rounded up to mr, nr), or by query, per panel of the block */
    float *dkeys, *dvalues;                 /* (T rounded up to mr, ldd), sums over the blocks */
    size_t ldd, size;
} backward_scratch;

static backward_scratch backward_scratch_init(const attention_job *job, float *base) {
    const size_t T = job->spec->T, D = job->D, mr = job->k->gemm.mr, nr = job->k->gemm.nr;
    carver c = {base, 0};
    backward_scratch s = {.ldd = mom_round_up(D, nr)};
    s.keys = carve(&c, mom_round_up(T, mr) * D);
    s.values = carve(&c, mom_round_up(T, mr) * D);
    s.key_channels = carve(&c, T * mom_max(packed_channels(job, 0), packed_channels(job, 1)));
    s.room.stage = carve(&c, mom_max(mom_max(job->tile, job->block) * D, nr * COPY_CHANNELS));
    s.room.pairs = carve(&c, pairs_size(job, mom_max(job->tile, job->block)));
    s.row = carve(&c, 2 * D);
    s.queries = carve(&c, job->block * D);
    s.douts = carve(&c, job->block * D);
    s.query_channels = carve(&c, job->block * s.ldd);
    s.dout_channels = carve(&c, job->block * s.ldd);
    s.weights = carve(&c, job->tile * nr);
    s.dscores = carve(&c, job->tile * nr + mr);
    s.keep = carve(&c, job->spec->dropout.p > 0.0f ? job->tile * nr : 0);
    s.rounded = carve(&c, job->bf16 ? job->tile * nr + mr : 0);
    s.weights_turned = carve(&c, job->tile * job->block);
    s.dscores_turned = carve(&c, job->tile * job->block);
    s.lse = carve(&c, job->block);
    s.delta = carve(&c, job->block);
    s.dq = carve(&c, job->block / nr * result_size(job));
    s.dkeys = carve(&c, mom_round_up(T, mr) * s.ldd);
    s.dvalues = carve(&c, mom_round_up(T, mr) * s.ldd);
    s.size = c.used;
    return s;
}

static void load_block(const attention_job *job, const head_view *v, const backward_scratch *s, size_t q,
                       size_t rows) {
    const mom_kernels *k = job->k;
    const size_t D = job->D, C = job->spec->C;
    float *dout = s->row, *out = s->row + D;
    const int32_t *positions = v->query + q;
    pack_rows(job, v, s->queries, k->gemm.nr, job->qkv, 3 * C, v->h * D, positions, rows, s->room);
    pack_channels(job, v, s->query_channels, k->gemm.nr, job->qkv, 3 * C, v->h * D, positions, rows, s->room);
    pack_rows(job, v, s->douts, k->gemm.nr, job->dout, C, v->h * D, positions, rows, s->room);
    pack_channels(job, v, s->dout_channels, k->gemm.nr, job->dout, C, v->h * D, positions, rows, s->room);
    memset(s->lse, 0, job->block * sizeof *s->lse);
    memset(s->delta, 0, job->block * sizeof *s->delta);
    for (size_t r = 0; r < rows; r++) {
        const size_t position = (size_t)v->query[q + r], at = element(v, position, C, v->h * D);
        load_row(job, dout, job->dout, at, 1.0f);
        load_row(job, out, job->saved_out, at, 1.0f);
        s->delta[r] = k->vec.dot(dout, out, D);
        s->lse[r] = job->saved_lse[(v->s->row + position) * job->spec->H + v->h];
    }
}

/* Whether a tile (keys, nr) for a block of so many queries is read row by row for the gradients of keys. */
static int reads_tile(const attention_job *job, size_t rows) {
    return rows <= job->k->gemm.nr && (job->bf16 ? job->k->gemm.bf16.a_rows != NULL : job->k->gemm.f32.a_rows != NULL);
}

/* c (mr, nr) += product of mr rows of a tile (keys, words(nr)), from that of its step `from` on, with packed b. */
static void product_of_rows(const attention_job *job, size_t n, const float *tile, size_t from, const float *b, float *c,
                            size_t ldc) {
    const mom_kernels *k = job->k;
    const size_t ld = words(job, k->gemm.nr), step = words(job, from);
    const mom_bf16 *pairs[MOM_MOST_MR];
    const float *rows[MOM_MOST_MR];
    for (size_t r = 0; r < k->gemm.mr; r++) {
        rows[r] = tile + r * ld + step;
        pairs[r] = (const mom_bf16 *)(const void *)rows[r];
    }
    if (job->bf16)
        k->gemm.bf16.a_rows(words(job, n), pairs, (const mom_bf16 *)(const void *)b, c, ldc, 1, b);
    else
        k->gemm.f32.a_rows(n, rows, b, c, ldc, 1, b);
}

/* sums (n keys, ldd) += tile * channels over the queries of a block, for each panel of keys from the first query that
 * sees one of them on. tile: as turn_tile leaves it or, if reads_tile, (keys, words(nr)). */
static void add_to_keys(const attention_job *job, const head_view *v, const backward_scratch *s, float *sums,
                        const float *tile, const float *channels, size_t j, size_t n, size_t q, size_t rows) {
    const size_t mr = job->k->gemm.mr, nr = job->k->gemm.nr;
    for (size_t i = 0, first = 0; i < n; i += mr) {
        while ((size_t)v->count[q + first] <= j + i)
            first++;
        const size_t from = job->bf16 ? first / 2 * 2 : first, step = words(job, from);
        for (size_t d = 0; d < job->D; d += nr) {
            const float *b = channels + d * words(job, rows) + step * nr;
            float *c = sums + (j + i) * s->ldd + d;
            if (reads_tile(job, rows))
                product_of_rows(job, rows - from, tile + i * words(job, nr), from, b, c, s->ldd);
            else
                product(job, rows - from, tile + i * job->block + step * mr, b, c, s->ldd, 1);
        }
    }
}

/* Queries q .. q + rows - 1 (a block) with the packed keys [begin, packed), begin on the edge of a tile. */
static void backward_block(const attention_job *job, const head_view *v, const backward_scratch *s,
                           const attention_task *task, size_t q, size_t rows, size_t begin, size_t packed) {
    const mom_kernels *k = job->k;
    const size_t D = job->D, mr = k->gemm.mr, nr = k->gemm.nr, dq_size = result_size(job);
    const int queries = task->queries && by_query(job, task->end - task->begin);
    const size_t channels = packed_channels(job, queries);
    const int dropout = job->spec->dropout.p > 0.0f;
    const size_t end = mom_min(packed, (size_t)v->count[q + rows - 1]);
    if (task->queries && begin >= end)
        memset(s->dq, 0, job->block / nr * dq_size * sizeof *s->dq);
    if (begin >= end)
        return;
    load_block(job, v, s, q, rows);
    for (size_t j = begin; j < end; j += job->tile) {
        const size_t stored = mom_min(job->tile, packed - j);
        const float *key_weights = s->weights_turned, *key_dscores = s->dscores_turned;
        for (size_t p = 0; p < rows; p += nr) {
            const size_t lanes = mom_min(nr, rows - p), seen = (size_t)v->count[q + p + lanes - 1];
            float *dq = s->dq + p / nr * dq_size;
            if (seen <= j) {
                if (task->queries && !j)
                    memset(dq, 0, dq_size * sizeof *dq);
                continue;
            }
            const size_t n = mom_min(job->tile, seen - j), whole = mom_round_up(n, mr);
            score_tile(job, s->weights, s->keys + j * words(job, D), s->queries + p * words(job, D), n);
            score_tile(job, s->dscores, s->values + j * words(job, D), s->douts + p * words(job, D), n);
            if ((size_t)v->count[q + p] < j + whole)
                hide_keys(job, v, s->weights, j, whole, q + p, lanes);
            if (dropout)
                dropout_tile(job, v, s->keep, j, n, q + p, lanes);
            k->attention.softmax_backward(s->weights, s->dscores, s->lse + p, s->delta + p, dropout ? s->keep : NULL,
                                     job->scale, whole);
            const float *keys = s->key_channels + j * channels;
            const float *factor = task->queries ? tile_as_factor(job, s->dscores, n, s->rounded) : NULL;
            if (queries)
                mix_queries(job, dq, keys, stored, factor, n, lanes, j > 0);
            else if (task->queries)
                mix_tile(job, dq, keys, stored, factor, n, j > 0);
            if (task->keys && reads_tile(job, rows)) {
                key_weights = tile_by_row(job, s->weights, whole, s->weights_turned);
                key_dscores = tile_by_row(job, s->dscores, whole, s->dscores_turned);
            } else if (task->keys) {
                const size_t at = words(job, p) * mr, stride = mr * job->block;
                turn_tile(job, s->weights_turned + at, stride, s->weights, whole, s->rounded);
                turn_tile(job, s->dscores_turned + at, stride, s->dscores, whole, s->rounded);
            }
        }
        if (task->keys) {
            const size_t n = mom_min(job->tile, end - j);
            add_to_keys(job, v, s, s->dvalues, key_weights, s->dout_channels, j, n, q, rows);
            add_to_keys(job, v, s, s->dkeys, key_dscores, s->query_channels, j, n, q, rows);
        }
    }
}

/* What blind rows add to the values of the keys in their future. */
static void add_blind_to_values(const attention_job *job, const head_view *v, const backward_scratch *s, size_t begin,
                                size_t end) {
    const size_t C = job->spec->C, D = job->D;
    if (job->spec->masked_query != MOM_MASKED_QUERY_REFERENCE)
        return;
    for (size_t i = 0; i < v->s->first; i++) {
        if (!has_output(job, v->s->row + i))
            continue;
        load_row(job, s->row, job->dout, element(v, i, C, v->h * D), 1.0f / (float)blind_keys(job, v, i));
        for (size_t j = begin; j < end; j++)
            job->k->vec.axpy(s->dvalues + j * s->ldd, dropout_factor(job, v, i, (size_t)v->key[j]), s->row, D);
    }
}

static void backward_task(void *context, size_t number, int thread) {
    const attention_job *job = context;
    const attention_task *task = &job->tasks[number];
    const head_view v = head_view_init(job, task->head);
    const backward_scratch s = backward_scratch_init(job, job->scratch + (size_t)thread * job->scratch_size);
    const size_t C = job->spec->C, D = job->D, nr = job->k->gemm.nr, column = v.h * D;
    /* [begin, end) are keys in tasks for keys only, queries otherwise */
    const int by_keys = !task->queries;
    const size_t q_end = by_keys ? v.s->queries : task->end;
    const size_t key_begin = by_keys ? task->begin : 0;
    const size_t key_end = by_keys ? task->end : task->keys ? v.s->keys : (size_t)v.count[q_end - 1];

    const int queries = task->queries && by_query(job, task->end - task->begin);
    pack_keys(job, &v, s.keys, 1, 0, s.room, key_begin, key_end);
    pack_keys(job, &v, s.values, 2, 0, s.room, key_begin, key_end);
    if (task->queries)
        pack_keys(job, &v, s.key_channels, 1, queries ? nr : job->k->gemm.mr, s.room, 0, key_end);
    if (task->keys) {
        const size_t size = (mom_round_up(key_end, job->k->gemm.mr) - key_begin) * s.ldd * sizeof(float);
        memset(s.dkeys + key_begin * s.ldd, 0, size);
        memset(s.dvalues + key_begin * s.ldd, 0, size);
    }
    for (size_t q = by_keys ? 0 : task->begin; q < q_end; q += job->block) {
        const size_t rows = mom_min(job->block, q_end - q);
        backward_block(job, &v, &s, task, q, rows, key_begin, key_end);
        for (size_t p = 0; p < rows && task->queries; p += nr)
            store_results(job, &v, job->dqkv, 3 * C, column, v.query + q + p, mom_min(nr, rows - p), queries,
                          s.dq + p / nr * result_size(job), NULL, job->spec->scale, s.room.stage);
    }
    if (task->keys)
        add_blind_to_values(job, &v, &s, key_begin, key_end);
    for (size_t j = key_begin; j < key_end && task->keys; j++) {
        const size_t at = element(&v, (size_t)v.key[j], 3 * C, column);
        store_row(job, job->dqkv, at + C, s.dkeys + j * s.ldd, job->spec->scale, D);
        store_row(job, job->dqkv, at + 2 * C, s.dvalues + j * s.ldd, 1.0f, D);
    }
}

/* Gradient of the score of key j in the row of blind query i: 0 but in the reference's way of seeing it. */
static float blind_dscore(const attention_job *job, const head_view *v, float *scratch, size_t i, size_t j) {
    const size_t C = job->spec->C, D = job->D, column = v->h * D;
    float *dout = scratch, *other = scratch + D;
    load_row(job, dout, job->dout, element(v, i, C, column), 1.0f);
    load_row(job, other, job->saved_out, element(v, i, C, column), 1.0f);
    const float delta = job->k->vec.dot(dout, other, D);
    float dweight = 0.0f;
    if (is_active(job, v->s->row + j)) {
        load_row(job, other, job->qkv, element(v, j, 3 * C, 2 * C + column), 1.0f);
        dweight = dropout_factor(job, v, i, j) * job->k->vec.dot(dout, other, D);
    }
    return job->spec->scale / (float)blind_keys(job, v, i) * (dweight - delta);
}

/* Rows of dqkv of a head that no task writes: of inactive and of masked tokens. What blind rows (i) add to the rows
 * up to their own (t) is gathered here. */
static void backward_rest(void *context, size_t head, int thread) {
    const attention_job *job = context;
    const mom_kernels *k = job->k;
    const head_view v = head_view_init(job, head);
    const size_t C = job->spec->C, D = job->D, row = v.s->row, first = v.s->first;
    const int scores_matter = job->spec->masked_query == MOM_MASKED_QUERY_REFERENCE;
    float *dq = job->scratch + (size_t)thread * job->scratch_size;
    float *dkey = dq + D, *dvalue = dkey + D, *other = dvalue + D, *scratch = other + D;
    for (size_t t = 0; t < v.s->length; t++) {
        const size_t at = element(&v, t, 3 * C, v.h * D);
        if (is_active(job, row + t) && is_real(job, row + t))
            continue;
        memset(dq, 0, 3 * D * sizeof *dq);
        for (size_t i = 0; i < first && t < first && is_active(job, row + t); i++) {
            if (i <= t && scores_matter && is_active(job, row + i) && is_wanted(job, row + t)) {
                load_row(job, other, job->qkv, element(&v, i, 3 * C, C + v.h * D), 1.0f);
                k->vec.axpy(dq, blind_dscore(job, &v, scratch, t, i), other, D);
            }
            if (i < t || !has_output(job, row + i))
                continue;
            load_row(job, other, job->dout, element(&v, i, C, v.h * D), 1.0f);
            k->vec.axpy(dvalue, dropout_factor(job, &v, i, t) / (float)blind_keys(job, &v, i), other, D);
            if (scores_matter) {
                load_row(job, other, job->qkv, element(&v, i, 3 * C, v.h * D), 1.0f);
                k->vec.axpy(dkey, blind_dscore(job, &v, scratch, i, t), other, D);
            }
        }
        if (!is_active(job, row + t) || t < first)
            store_row(job, job->dqkv, at, dq, 1.0f, D);
        store_row(job, job->dqkv, at + C, dkey, 1.0f, D);
        store_row(job, job->dqkv, at + 2 * C, dvalue, 1.0f, D);
    }
}

/* Keys of every head, cut into parts of whole tiles; tasks NULL: only counts them. Columns of the triangle of keys are cut
 * like the rows of that of the queries. */
static size_t key_tasks(const attention_job *job, attention_task *tasks, int threads) {
    size_t n = 0;
    for (size_t head = 0; head < job->spec->B * job->spec->H; head++) {
        const sequence *s = &job->sequences[head / job->spec->H];
        const size_t parts = parts_of(job, s, (s->keys + job->tile - 1) / job->tile, threads);
        for (size_t p = 0; p < parts && s->keys; p++, n++) {
            if (!tasks)
                continue;
            attention_task task = {.head = head, .keys = 1};
            part_range(s->keys, job->tile, parts, p, &task.begin, &task.end);
            const double before = (double)(s->keys - task.begin), after = (double)(s->keys - task.end);
            task.work = s->work * (before * before - after * after) / ((double)s->keys * (double)s->keys);
            tasks[n] = task;
        }
    }
    return n;
}

/* A task per head, which computes all three gradients from the same weights. With too few heads to keep the threads
 * busy the queries' and the keys' gradients are computed apart, in parts, from weights that are computed twice. */
static mom_status backward_tasks(attention_job *job, const mom_exec *x, size_t *number, mom_error *err) {
    const size_t heads = job->spec->B * job->spec->H;
    attention_task *whole, *cut;
    size_t n = 0;
    MOM_ARENA_NEW(whole, x->workspace, heads, err);
    for (size_t head = 0; head < heads; head++) {
        const sequence *s = &job->sequences[head / job->spec->H];
        if (s->queries)
            whole[n++] = (attention_task){head, 0, s->queries, 1, s->keys > 0, 5.0 * s->work};
        else if (s->keys) /* none of its queries is wanted */
            whole[n++] = (attention_task){head, 0, s->keys, 0, 1, 0.0};
    }
    qsort(whole, n, sizeof *whole, by_falling_work);
    job->tasks = whole;
    *number = n;
    if (x->threads == 1)
        return MOM_OK;

    const size_t queries = query_tasks(job, NULL, job->block, x->threads), keys = key_tasks(job, NULL, x->threads);
    MOM_ARENA_NEW(cut, x->workspace, queries + keys, err);
    query_tasks(job, cut, job->block, x->threads);
    key_tasks(job, cut + queries, x->threads);
    for (size_t i = 0; i < queries + keys; i++)
        cut[i].work *= cut[i].queries ? 3.0 : 4.0;
    qsort(cut, queries + keys, sizeof *cut, by_falling_work);
    if (finish_time(cut, queries + keys, x->threads) < finish_time(whole, n, x->threads)) {
        job->tasks = cut;
        *number = queries + keys;
    }
    return MOM_OK;
}

static mom_status backward(const mom_exec *x, attention_job *job, mom_error *err) {
    size_t n;
    MOM_TRY(lists_init(job, x, err));
    job->scratch_size = mom_max(backward_scratch_init(job, NULL).size, mom_round_up(6 * job->D, 16));
    MOM_ARENA_NEW(job->scratch, x->workspace, (size_t)x->threads * job->scratch_size, err);
    MOM_TRY(backward_tasks(job, x, &n, err));
    mom_parallel_for(x, n, backward_task, job);
    if (job->mask || job->active)
        mom_parallel_for(x, job->spec->B * job->spec->H, backward_rest, job);
    return MOM_OK;
}

mom_status mom_attention_backward(const mom_exec *x, void *dqkv, const void *dout, const void *qkv, const void *out,
                                  const float *lse, const uint8_t *mask, const uint8_t *active,
                                  const mom_attention_spec *spec, mom_error *err) {
    if (spec->B == 0 || spec->H == 0 || spec->T == 0 || spec->C == 0)
        return MOM_OK;
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    attention_job job = job_init(x, spec, qkv, mask, active);
    job.dqkv = dqkv;
    job.dout = dout;
    job.saved_out = out;
    job.saved_lse = lse;
    const mom_status status = backward(x, &job, err);
    mom_arena_release(x->workspace, mark);
    return status;
}
