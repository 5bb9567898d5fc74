/* Code that the files of attention share: the lists of keys and queries, tasks, a thread's scratch memory. Public
 * functions are in attention.h. kernels/product_kernels.h explains packed panels, micro-tiles, mr and nr.
 *
 * DESIGN  A token is real if the mask keeps it, active if it has a module, and wanted if its output is needed. Each
 *         sequence has a list of keys (real, active tokens) and a list of queries (active, wanted tokens that see a real
 *         key). What is masked or skipped is in neither list: it is left out when rows are packed, is never read
 *         afterwards and costs nothing. Query i sees the first count[i] keys, with or without a mask. A query and a key
 *         that it sees are a visible pair. The query also sees skipped[i] tokens with score 0 and value 0; its softmax
 *         starts from them: maximum 0, sum skipped[i].
 *         Scores are computed transposed, in tiles (keys, nr queries). This is the layout of a packed factor b, so
 *         exponentials go into the product with the values as they are, and softmax needs no sum across a vector.
 *         The tile can also be the factor a of that product, read by columns. Then results come by query, as they are
 *         stored, and not by channel. This way is taken where it needs no more micro-tiles (few queries, wide heads) and
 *         the level has the kernel `a_columns`.
 *         Forward takes nr queries at a time through the tiles of keys they see, with an online softmax. Backward takes
 *         blocks of queries. For the gradients of keys and values it transposes a tile once, or reads it by rows if the
 *         block is a single panel and the level can.
 * BF16    The factors of all products, weights and their gradients included, are pairs of bfloat16: two steps of a sum
 *         in a word of 32 bits. Packed panels have words where float32 has floats. Sums and softmax are float32.
 * BLIND   Rows that see no real key are the rows before the first real one. They have even weights and take a path of
 *         their own (attention_rest.c).
 * COST    Forward 2, backward 5 products of D multiplications per visible pair; backward 7 where there are too few heads
 *         for the threads. Scratch memory per thread: forward about 2 T D floats, backward about 5 T D, and tiles. The
 *         sizes of tiles do not depend on T.
 * BITS    Tiles and blocks depend on sizes only. Forward queries do not depend on each other. Gradients of keys are sums
 *         over blocks of queries in order, gradients of queries are sums over tiles of keys in order, however heads are
 *         cut into tasks.
 * SOURCE  Online softmax: Milakov and Gimelshein 2018, arXiv:1805.02867. Recomputation: Dao et al. 2022,
 *         arXiv:2205.14135.
 */
#ifndef MOM_OPS_ATTENTION_JOB_H
#define MOM_OPS_ATTENTION_JOB_H

#include "base/sizes.h"
#include "ops/attention.h"

#define MOM_COPY_CHANNELS 64 /* channels that are transposed at a time when results are stored */

typedef struct {
    size_t row, length;   /* first row of its arrays; tokens */
    size_t keys, queries; /* entries of its lists */
    size_t first, real;   /* position of the first real token (length if there is none); number of real tokens */
    double work;          /* visible pairs */
    int has_nonqueries;   /* some of its tokens are no queries */
} mom_sequence;

/* A part of a head: queries [begin, end) in panels or blocks, or keys [begin, end) in tiles. A task of backward for a
 * whole head computes both kinds of gradients. Its range is that of the queries, or that of the keys if there are no
 * queries. */
typedef struct {
    size_t head, begin, end;
    int queries, keys; /* backward: which gradients are computed */
    double work;
} mom_attention_task;

typedef struct {
    const mom_kernels *k;
    const mom_attention_spec *spec;
    int bf16;
    float scale; /* of scores, not 0 */
    size_t D, tile, block;         /* channels of a head; keys per tile; queries per block */
    const mom_sequence *sequences; /* (B) */
    double work;                   /* visible pairs of all heads */
    /* Lists of all sequences. The entries of a sequence begin at its first row: positions within the sequence, and for
     * every query how many keys and how many skipped tokens it sees. */
    const int32_t *key, *query, *count, *skipped;
    mom_attention_task *tasks;
    float *scratch;
    size_t scratch_size; /* floats per thread */
    void *out;           /* forward */
    float *lse;
    void *dqkv; /* backward */
    const void *dout, *saved_out;
    const float *saved_lse;
    const void *qkv;
} mom_attention_job;

/* One head of one sequence. */
typedef struct {
    const mom_sequence *s;
    size_t h;
    const int32_t *key, *query, *count, *skipped;
    uint64_t dropout_index; /* of query 0, key 0 */
} mom_head;

static inline int mom_is_real(const mom_attention_job *job, size_t row) { return !job->spec->mask || job->spec->mask[row]; }
static inline int mom_is_active(const mom_attention_job *job, size_t row) {
    return !job->spec->active || job->spec->active[row];
}
static inline int mom_is_wanted(const mom_attention_job *job, size_t row) {
    return !job->spec->queries || job->spec->queries[row];
}
static inline int mom_has_output(const mom_attention_job *job, size_t row) {
    return mom_is_active(job, row) && mom_is_wanted(job, row);
}

/* ---- lists and tasks (attention_lists.c) */

mom_attention_job mom_attention_job_init(const mom_exec *x, const mom_attention_spec *spec, const void *qkv);
/* Fills in the lists; they come from the workspace. */
mom_status mom_attention_lists(mom_attention_job *job, const mom_exec *x, mom_error *err);
/* Counts `products` products of each pair of a real query and a key that it sees, if the pass counts its work. */
void mom_attention_count(const mom_attention_job *job, const mom_exec *x, size_t products);
mom_head mom_attention_head(const mom_attention_job *job, size_t head);
/* Cut the queries, or the keys, of every head into parts of about equal work: whole units of queries, whole tiles of
 * keys. With tasks NULL the tasks are only counted. */
size_t mom_attention_query_tasks(const mom_attention_job *job, mom_attention_task *tasks, size_t unit, int threads);
size_t mom_attention_key_tasks(const mom_attention_job *job, mom_attention_task *tasks, int threads);
/* Largest first, so that the last tasks to finish are small. */
void mom_attention_sort_tasks(mom_attention_task *tasks, size_t n);
/* The time at which the last task is done, if each thread takes the next task as soon as the thread is free. */
double mom_attention_finish_time(const mom_attention_task *tasks, size_t n, int threads);

/* ---- scratch memory */

/* Hands out consecutive, 64-byte aligned parts of a thread's scratch memory. With base NULL it only measures. */
typedef struct {
    float *base;
    size_t used;
} mom_carver;

static inline float *mom_carve(mom_carver *c, size_t floats) {
    float *part = c->base ? c->base + c->used : NULL;
    c->used += mom_round_up(floats, MOM_ALIGNMENT / sizeof(float));
    return part;
}

/* Scratch memory for rows of a head side by side, and for pairs of them. */
typedef struct {
    float *stage, *pairs;
} mom_staging;

/* ---- rows of a head (attention_rows.c) */

/* An array in which every token has a row of `ld` elements, and the head's part begins at `column`. */
typedef struct {
    const void *data;
    size_t ld, column;
} mom_head_rows;

/* The head's part of q (part 0), k (1) or v (2) in an array like qkv; of an array like out. */
static inline mom_head_rows mom_rows_of_qkv(const mom_attention_job *job, const mom_head *v, const void *qkv, size_t part) {
    return (mom_head_rows){qkv, 3 * job->spec->C, part * job->spec->C + v->h * job->D};
}
static inline mom_head_rows mom_rows_of_heads(const mom_attention_job *job, const mom_head *v, const void *data) {
    return (mom_head_rows){data, job->spec->C, v->h * job->D};
}

/* Words that n steps of a sum take in a packed panel. */
static inline size_t mom_words(const mom_attention_job *job, size_t n) { return job->bf16 ? mom_div_up(n, 2) : n; }

/* dst (D) = factor times the row of a token, in float32. */
void mom_head_load(const mom_attention_job *job, const mom_head *v, float *dst, mom_head_rows src, size_t position,
                   float factor);
/* The first n elements of the row of a token = factor times src, which is overwritten. */
void mom_head_store(const mom_attention_job *job, const mom_head *v, mom_head_rows dst, size_t position, float *src,
                    float factor, size_t n);
void mom_head_clear(const mom_attention_job *job, const mom_head *v, mom_head_rows dst, size_t position);

/* Packs the rows at n positions into panels of `width` rows, for sums over channels; or into panels of `width` channels,
 * for sums over rows. */
void mom_head_pack_rows(const mom_attention_job *job, const mom_head *v, float *dst, size_t width, mom_head_rows src,
                        const int32_t *positions, size_t n, mom_staging staging);
void mom_head_pack_channels(const mom_attention_job *job, const mom_head *v, float *dst, size_t width, mom_head_rows src,
                            const int32_t *positions, size_t n, mom_staging staging);
/* Packs keys (part 1) or values (2) [begin, end), tile by tile, in panels of mr keys, or of `width` channels if that is
 * not 0. */
void mom_head_pack_keys(const mom_attention_job *job, const mom_head *v, float *dst, size_t part, size_t width,
                        mom_staging staging, size_t begin, size_t end);
/* Floats of mom_staging.pairs for so many rows. */
size_t mom_head_pairs_size(const mom_attention_job *job, size_t rows);

/* Results for a panel of queries, in the order of mom_mix. */
typedef struct {
    float *data;    /* by query: (queries, D rounded up to nr); by channel: (D, nr). Overwritten when it is stored. */
    int by_query;
    const float *factors; /* NULL, or a factor for the result of each query */
    float factor;         /* factor of all results if `factors` is NULL */
} mom_results;

/* Stores n results as rows at the given positions. stage: nr * MOM_COPY_CHANNELS floats. */
void mom_head_store_results(const mom_attention_job *job, const mom_head *v, mom_head_rows dst, const int32_t *positions,
                            size_t n, const mom_results *results, float *stage);

/* ---- tiles (keys, nr queries) (attention_tiles.c) */

/* Packs n rows of `steps` words into panels of `width` rows. */
void mom_pack_words(const mom_attention_job *job, float *dst, size_t width, mom_matrix rows, size_t n, size_t steps);
/* c (mr, nr) = or += product of packed panels, n steps. */
void mom_multiply_panels(const mom_attention_job *job, size_t n, const float *a, const float *b, float *c, size_t ldc,
                         int accumulate);
/* tile (n, nr) = product of n packed keys (panels of mr rows) with packed queries (a panel of nr); n is rounded up to
 * whole micro-tiles. */
void mom_score_tile(const mom_attention_job *job, float *tile, const float *keys, const float *queries, size_t n);
/* A tile of n keys as the factor b of a product, or as rows of a factor a: itself, or rounded to bfloat16 in `copy`. */
const float *mom_tile_as_factor(const mom_attention_job *job, const float *tile, size_t n, float *copy);
const float *mom_tile_by_row(const mom_attention_job *job, const float *tile, size_t n, float *copy);
/* Transposes a tile of n keys (whole panels of mr): panels of mr keys, nr queries each, `stride` apart. */
void mom_transpose_tile(const mom_attention_job *job, float *dst, size_t stride, const float *tile, size_t n, float *copy);

/* Whether results for so many queries come by query (see DESIGN). The bits are the same either way. */
int mom_mixes_by_query(const mom_attention_job *job, size_t queries);
/* Packed channels of a key, for results by query or by channel. The second function: floats of the results for a panel of
 * nr queries, in either case. */
size_t mom_packed_channels(const mom_attention_job *job, int by_query);
size_t mom_result_size(const mom_attention_job *job);
/* Packed values, stored in tiles of `stored` keys. */
typedef struct {
    const float *data;
    size_t stored;
} mom_packed_tile;
/* out = or += values times a tile of n keys and `lanes` queries (mom_tile_as_factor).
 * By channel: out (D rounded up to mr, nr), values in panels of mr channels.
 * By query: out (lanes rounded up to mr, D rounded up to nr), values in panels of nr channels. Up to mr - 1 words behind
 * the tile are read. */
void mom_mix(const mom_attention_job *job, float *out, int by_query, mom_packed_tile values, const float *tile, size_t n,
             size_t lanes, int accumulate);
/* Hides keys j .. j + n - 1, the rows of the tile, from the queries among q .. q + lanes - 1 that do not see them. */
void mom_hide_keys(const mom_attention_job *job, const mom_head *v, float *tile, size_t j, size_t n, size_t q, size_t lanes);
/* Dropout factor of the weight of one key in the row of one query, by their positions. */
float mom_attention_dropout(const mom_attention_job *job, const mom_head *v, size_t query, size_t key);
/* The same for a tile: keep (n rounded up to mr, nr), 0 where there is no key or no query. */
void mom_dropout_tile(const mom_attention_job *job, const mom_head *v, float *keep, size_t j, size_t n, size_t q, size_t lanes);

/* ---- rows that the tasks above do not write (attention_rest.c): tokens that are not active, see no real key or are no
 *      keys */

size_t mom_attention_rest_scratch(const mom_attention_job *job); /* floats per thread */
/* Tasks by head. */
void mom_attention_forward_rest_task(void *context, size_t head, int thread);
void mom_attention_backward_rest_task(void *context, size_t head, int thread);
/* Adds the contribution of rows without a real key to the gradients of the values of keys [begin, end) in their future.
 * dvalues has row stride ldd; row: D floats of scratch memory. */
void mom_attention_add_blind(const mom_attention_job *job, const mom_head *v, float *dvalues, size_t ldd, float *row,
                             size_t begin, size_t end);

#endif
