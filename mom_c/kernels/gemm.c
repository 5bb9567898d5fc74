/* Matrix products over packed micro-kernels. Contract and definition: gemm.h.
 *
 * DESIGN  b is packed once, whole slab of nc columns at a time, by all threads (or was packed before); then tasks of some
 *         rows (x a part of the slab) run independently: each packs its block of a, a block of k at a time, into its own
 *         scratch and sweeps the slab's panels of b, whose next one is fetched meanwhile; an a that is float32 already
 *         and neither normalised nor activated is read where it lies, which saves a tenth of narrow products. A product
 *         of few rows takes each panel of b from memory once, where it lies or packed by its task just before (a third of
 *         short forward passes); with an a that is packed anyway and a b of float32, up to 192 rows are few. No barrier: a
 *         task waits until its own b is packed. Products of a group share the task list, so that small groups fill the
 *         threads, and its last tasks are small, so that none waits long at the end.
 *         A level with tiles for bfloat16 has a sweep of its own over panels of another layout; all else is the same.
 * COST    2 m n k FLOP; packing touches a once per column part and b once.
 * SOURCE  Goto and van de Geijn 2008, Van Zee and van de Geijn 2015 (BLIS).
 */
#include "kernels/gemm.h"

#include <string.h>

#include "base/sizes.h"
#include "kernels/levels.h"

static size_t parts(size_t n, size_t size) { return (n + size - 1) / size; }

/* Packed factors are counted in items of 32 bits: a float32, or two steps of k in bfloat16. */
typedef uint32_t item;

/* Of a, with b read where it lies: with more, packing b first is as fast. The second if a has to be packed anyway, which is
 * worth 1 to 2 % of a step with 160 tokens. */
#define MOST_ROWS_IN_PLACE ((size_t)12)
#define MOST_PACKED_ROWS ((size_t)192)
#define LEAST_ROWS_PACKED ((size_t)4)   /* where it cannot be: see mom_gemm_least_prepack */

static int uses_tiles(const mom_kernels *k, mom_dtype precision) { return precision == MOM_BF16 && k->tile_items; }

/* Of kk steps; tiles take whole chunks. */
static size_t items_of(const mom_kernels *k, mom_dtype precision, size_t kk) {
    const size_t items = precision == MOM_BF16 ? (kk + 1) / 2 : kk;
    return uses_tiles(k, precision) ? mom_round_up(items, k->tile_items) : items;
}

static size_t most_depth(const mom_kernels *k, mom_dtype precision) { return precision == MOM_BF16 ? k->kc_bf16 : k->kc; }

/* Steps of k per block: as few blocks as the cache allows, of nearly equal size; in items an odd multiple of 4, as kc is,
 * so that neighbouring panels do not fall on the same sets of a cache while rows are dealt out to them; on tiles whole
 * chunks. */
static size_t block_depth(const mom_kernels *k, mom_dtype precision, size_t kk) {
    const size_t steps = precision == MOM_BF16 ? 2 : 1, most = most_depth(k, precision);
    if (kk <= most)
        return kk;
    const size_t even = parts(kk, parts(kk, most)), unit = 8 * steps;
    if (uses_tiles(k, precision))
        return mom_round_up(even, steps * k->tile_items);
    return mom_min(most, mom_round_up(even + unit / 2, unit) - unit / 2);
}

/* A block of a, `depth` items deep: packed, or but for a last incomplete panel where it lies. */
typedef struct {
    const item *packed;       /* from row first_packed on */
    size_t first_packed;
    const float *const *rows; /* NULL or each row before that, at the block's first step */
    const float *columns;     /* NULL or row 0 at the first step; the next step is lda further */
    size_t lda;
} a_block;

/* Of a panel's rows at least the first `rows` are computed; next: as gemm_ukr's. */
static void micro_kernel(const mom_kernels *k, mom_dtype precision, size_t depth, const a_block *a, size_t i, size_t rows,
                         const item *b, float *c, size_t ldc, int accumulate, const item *next) {
    const float *b_floats = (const float *)(const void *)b;
    if (i < a->first_packed && a->rows) {
        k->gemm_rows_ukr(depth, a->rows + i, b_floats, c, ldc, accumulate, next);
        return;
    }
    if (i < a->first_packed) {
        k->gemm_columns_ukr(depth, a->columns + i, a->lda, b_floats, c, ldc, accumulate, next);
        return;
    }
    const item *packed = a->packed + (i - a->first_packed) * depth;
    const float *a_floats = (const float *)(const void *)packed;
    const mom_bf16 *a_halves = (const mom_bf16 *)(const void *)packed, *b_halves = (const mom_bf16 *)(const void *)b;
    const int few = rows <= MOM_FEW_ROWS;
    if (precision == MOM_BF16 && few && k->gemm_bf16_few_ukr)
        k->gemm_bf16_few_ukr(depth, rows, a_halves, b_halves, c, ldc, accumulate);
    else if (precision == MOM_BF16)
        k->gemm_bf16_ukr(depth, a_halves, b_halves, c, ldc, accumulate, next);
    else if (few && k->gemm_few_ukr)
        k->gemm_few_ukr(depth, rows, a_floats, b_floats, c, ldc, accumulate);
    else
        k->gemm_ukr(depth, a_floats, b_floats, c, ldc, accumulate, next);
}

static void put_edge(float *c, size_t ldc, const float *edge, size_t nr, size_t rows, size_t columns, int accumulate) {
    for (size_t r = 0; r < rows; r++)
        for (size_t q = 0; q < columns; q++)
            c[r * ldc + q] = accumulate ? c[r * ldc + q] + edge[r * nr + q] : edge[r * nr + q];
}

/* c (m, nr) from packed a and b where it lies, which is in L1 after the first panel of a. */
static void b_rows_kernel(const mom_kernels *k, size_t kc, size_t m, const float *a, const float *b, size_t ldb, float *c,
                          size_t ldc, int accumulate) {
    float edge[MOM_GEMM_MAX_TILE] __attribute__((aligned(64)));
    size_t i = 0;
    for (; i + k->mr <= m; i += k->mr)
        k->gemm_b_rows_ukr(kc, a + i * kc, b, ldb, c + i * ldc, ldc, accumulate);
    if (i == m)
        return;
    if (m - i <= MOM_FEW_ROWS && k->gemm_b_rows_few_ukr)
        k->gemm_b_rows_few_ukr(kc, m - i, a + i * kc, b, ldb, edge, k->nr, 0);
    else
        k->gemm_b_rows_ukr(kc, a + i * kc, b, ldb, edge, k->nr, 0);
    put_edge(c + i * ldc, ldc, edge, k->nr, m - i, k->nr, accumulate);
}

/* As macro_kernel, on tiles: two panels of a at a time where there are two. Their sums begin with what is in c, at the
 * edges too, so that bits do not depend on where those are. */
static void macro_kernel_on_tiles(const mom_kernels *k, size_t m, size_t n, size_t depth, const item *a, const item *b,
                                  float *c, size_t ldc, int accumulate, const item *after) {
    float edge[2 * MOM_GEMM_MAX_TILE] __attribute__((aligned(64))) = {0};
    const size_t mr = k->mr, nr = k->nr, line = MOM_ALIGNMENT / sizeof(item), chunks = depth / k->tile_items;
    const size_t part = parts(nr * depth / line, parts(m, mr)) * line;
    k->tiles_begin();
    for (size_t j = 0; j < n; j += nr) {
        const item *bj = b + j * depth;
        const mom_bf16 *b_halves = (const mom_bf16 *)(const void *)bj;
        const size_t columns = mom_min(nr, n - j);
        const item *next = columns < n - j ? bj + nr * depth : after;
        for (size_t i = 0, panels; i < m; i += panels * mr, next += panels * part) {
            const mom_bf16 *a_halves = (const mom_bf16 *)(const void *)(a + i * depth);
            const size_t rows = mom_min(2 * mr, m - i);
            float *cij = c + i * ldc + j;
            panels = rows > mr ? 2 : 1;
            if (rows == panels * mr && columns == nr) {
                k->tiles_ukr(chunks, panels, a_halves, b_halves, cij, ldc, accumulate, next);
                continue;
            }
            if (accumulate)
                put_edge(edge, nr, cij, ldc, rows, columns, 0);
            k->tiles_ukr(chunks, panels, a_halves, b_halves, edge, nr, accumulate, next);
            put_edge(cij, ldc, edge, nr, rows, columns, 0);
        }
    }
    k->tiles_end();
}

/* c block (m, n) from a (m, depth items) and packed b (depth items, n); `after` is read after that. Each panel of a
 * fetches its part of b's next panel. */
static void macro_kernel(const mom_kernels *k, mom_dtype precision, size_t m, size_t n, size_t depth, const a_block *a,
                         const item *b, float *c, size_t ldc, int accumulate, const item *after) {
    if (uses_tiles(k, precision)) {
        macro_kernel_on_tiles(k, m, n, depth, a->packed, b, c, ldc, accumulate, after);
        return;
    }
    float edge[MOM_GEMM_MAX_TILE] __attribute__((aligned(64)));
    const size_t mr = k->mr, nr = k->nr, line = MOM_ALIGNMENT / sizeof(item);
    const size_t part = parts(nr * depth / line, parts(m, mr)) * line;
    for (size_t j = 0; j < n; j += nr) {
        const item *bj = b + j * depth;
        const size_t columns = mom_min(nr, n - j);
        const item *next = columns < n - j ? bj + nr * depth : after;
        for (size_t i = 0; i < m; i += mr, next += part) {
            const size_t rows = mom_min(mr, m - i);
            float *cij = c + i * ldc + j;
            if (rows == mr && columns == nr) {
                micro_kernel(k, precision, depth, a, i, mr, bj, cij, ldc, accumulate, next);
                continue;
            }
            micro_kernel(k, precision, depth, a, i, rows, bj, edge, nr, 0, next);
            put_edge(cij, ldc, edge, nr, rows, columns, accumulate);
        }
    }
}

/* ---- packing b */

typedef struct {
    item *dst; /* of the factor (or slab): block after block of k, each `columns` wide */
    const mom_matrix *b;
    const float *k_scale;
    mom_dtype precision;
    size_t p0, kc;           /* steps of the task */
    size_t j0, n;            /* columns of the task, from first_column on; j0 is a multiple of nr */
    size_t first_column, columns; /* columns: rounded up to nr */
} pack_task;

static void pack_columns(const mom_kernels *k, const pack_task *t) {
    const mom_matrix columns = mom_matrix_flip(*t->b);
    item *dst = t->dst + items_of(k, t->precision, t->p0) * t->columns + t->j0 * items_of(k, t->precision, t->kc);
    k->pack_factor(dst, t->precision, k->nr, &columns, t->k_scale, t->first_column + t->j0, t->n, t->p0, t->kc);
}

typedef struct {
    const mom_kernels *k;
    const pack_task *packs;
} pack_run;

static void run_pack(void *context, size_t task, int thread) {
    (void)thread;
    const pack_run *run = context;
    pack_columns(run->k, &run->packs[task]);
}

#define PACK_COLUMNS ((size_t)128) /* per task: enough work to be worth one */
_Static_assert(PACK_COLUMNS % 32 == 0, "pack tasks begin at whole panels of every level");

static size_t count_packs(const mom_kernels *k, mom_dtype precision, size_t n, size_t kk) {
    return kk ? parts(n, PACK_COLUMNS) * parts(kk, block_depth(k, precision, kk)) : 0;
}

/* Tasks that pack columns [first, first + n) of b; returns how many. */
static size_t add_packs(const mom_kernels *k, pack_task *packs, item *dst, const mom_matrix *b, const float *k_scale,
                        mom_dtype precision, size_t first, size_t n, size_t kk) {
    const size_t depth = block_depth(k, precision, kk), columns = mom_round_up(n, k->nr);
    size_t count = 0;
    for (size_t p0 = 0; p0 < kk; p0 += depth)
        for (size_t j0 = 0; j0 < n; j0 += PACK_COLUMNS)
            packs[count++] = (pack_task){dst, b, k_scale, precision, p0, mom_min(depth, kk - p0), j0,
                                         mom_min(PACK_COLUMNS, n - j0), first, columns};
    return count;
}

/* Items of n packed columns; the last block of k may end in half a pair, or in a part of a chunk. */
static size_t packed_items(const mom_kernels *k, mom_dtype precision, size_t n, size_t kk) {
    return mom_round_up(n, k->nr) * items_of(k, precision, kk);
}

size_t mom_gemm_least_prepack(const mom_kernels *k, mom_dtype precision) {
    return precision == MOM_F32 && k->gemm_b_rows_ukr ? MOST_ROWS_IN_PLACE + 1 : LEAST_ROWS_PACKED;
}

size_t mom_gemm_packed_size(const mom_kernels *k, mom_dtype precision, size_t n, size_t kk) {
    return packed_items(k, precision, n, kk) * sizeof(item);
}

static mom_status pack_all(const mom_exec *x, const mom_gemm_packing *packings, size_t count, mom_error *err) {
    size_t tasks = 0;
    pack_task *packs;
    for (size_t i = 0; i < count; i++)
        tasks += count_packs(x->k, packings[i].precision, packings[i].n, packings[i].k);
    MOM_ARENA_NEW(packs, x->workspace, tasks, err);
    tasks = 0;
    for (size_t i = 0; i < count; i++) {
        const mom_gemm_packing *p = &packings[i];
        if (p->k)
            tasks += add_packs(x->k, packs + tasks, p->dst, &p->b, p->k_scale, p->precision, 0, p->n, p->k);
    }
    pack_run run = {x->k, packs};
    mom_parallel_for(x, tasks, run_pack, &run);
    return MOM_OK;
}

mom_status mom_gemm_pack(const mom_exec *x, const mom_gemm_packing *packings, size_t count, mom_error *err) {
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    const mom_status status = pack_all(x, packings, count, err);
    mom_arena_release(x->workspace, mark);
    return status;
}

/* ---- computing */

/* A product's b in the slab. */
typedef struct {
    const mom_gemm *g;
    const item *b;          /* as pack_task.dst, or NULL: each task packs its columns */
    size_t columns, first;  /* packed columns, rounded up to nr, and the first one's place in c */
    atomic_size_t unpacked; /* tasks that pack it and are not done */
} product;

/* Rows [i0, i0 + m), columns [j0, j0 + n) of c; with m = 0 the sums over these columns of b. */
typedef struct {
    const product *of;
    size_t i0, m, j0, n;
} block_task;

/* Tasks that pack come first, then those that compute. */
typedef struct {
    const mom_kernels *k;
    const pack_task *packs;
    product **packed; /* by each pack */
    size_t pack_count;
    const block_task *blocks;
    item *a;     /* a_size per thread */
    item *panel; /* panel_size per thread: of b, for products of few rows */
    float *sums; /* sums_size per thread */
    size_t a_size, panel_size, sums_size;
} slab_run;

static void add_bias(float *c, size_t ldc, const float *bias, size_t m, size_t n) {
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++)
            c[i * ldc + j] += bias[j];
}

/* Lines so far apart fall on the same set of the L1 cache, which holds fewer than a micro-tile has rows. */
#define ALIASED ((size_t)1024)

/* Whether whole panels of a are read where they lie. */
static int reads_rows(const mom_kernels *k, const mom_gemm *g) {
    const mom_matrix *a = &g->a;
    return k->gemm_rows_ukr && g->precision == MOM_F32 && a->dtype == MOM_F32 && !a->norm && !a->gelu && a->cs == 1 &&
           !a->col_index && (a->row_index || a->rs % ALIASED);
}

static int reads_columns(const mom_kernels *k, const mom_gemm *g) {
    const mom_matrix *a = &g->a;
    return k->gemm_columns_ukr && g->precision == MOM_F32 && a->dtype == MOM_F32 && !a->norm && !a->gelu && a->rs == 1 &&
           !a->row_index && !a->col_index && a->cs % ALIASED;
}

/* Whether b can be read where it lies. */
static int reads_b(const mom_kernels *k, const mom_gemm *g) {
    const mom_matrix *b = &g->b;
    return k->gemm_b_rows_ukr && g->precision == MOM_F32 && b->dtype == MOM_F32 && !b->norm && !b->gelu && b->cs == 1 &&
           !b->row_index && !b->col_index && !g->k_scale;
}

/* The bytes after which addresses fall on the same set of a second cache, and how many lines it keeps of them. */
#define CACHE_WAY ((size_t)128 << 10)
#define CACHE_WAYS ((size_t)8)

/* Whether the rows of a panel of b, where they lie, stay in the second cache together. */
static int stays_cached(const mom_kernels *k, const mom_gemm *g) {
    const size_t stride = g->b.rs * sizeof(float), step = stride & (~stride + 1);
    const size_t apart = step && step < CACHE_WAY ? CACHE_WAY / step : 1; /* stride 0: b has no columns */
    return block_depth(k, g->precision, g->k) <= CACHE_WAYS * apart;
}

/* Whether b is read where it lies or packed by the tasks, since hardly anybody else would use it again. */
static int has_few_rows(const mom_kernels *k, const mom_gemm *g) {
    const int packs_a = !reads_rows(k, g) && !reads_columns(k, g);
    const size_t in_place = packs_a && stays_cached(k, g) ? MOST_PACKED_ROWS : MOST_ROWS_IN_PLACE;
    return !g->packed_b && !g->k_sums && g->m <= (reads_b(k, g) ? in_place : k->mr);
}

/* Rows [i0, i0 + m), steps [p0, p0 + kc) of a; `packed` and `rows` are room for them. */
static a_block load_block(const mom_kernels *k, const mom_gemm *g, size_t i0, size_t m, size_t p0, size_t kc, item *packed,
                          const float **rows) {
    a_block block = {.packed = packed};
    const float *data = g->a.data;
    if (reads_rows(k, g) && !has_few_rows(k, g)) {
        block.first_packed = m / k->mr * k->mr;
        block.rows = rows;
        for (size_t i = 0; i < block.first_packed; i++)
            rows[i] = data + (g->a.row_index ? (size_t)g->a.row_index[i0 + i] : i0 + i) * g->a.rs + p0;
    } else if (reads_columns(k, g) && !has_few_rows(k, g)) {
        block.first_packed = m / k->mr * k->mr;
        block.columns = data + p0 * g->a.cs + i0;
        block.lda = g->a.cs;
    }
    if (uses_tiles(k, g->precision))
        k->tiles_pack((mom_bf16 *)(void *)packed, &g->a, i0, m, p0, kc);
    else if (block.first_packed < m)
        k->pack_factor(packed, g->precision, k->mr, &g->a, NULL, i0 + block.first_packed, m - block.first_packed, p0, kc);
    return block;
}

static void compute_block(const slab_run *run, const block_task *t, int thread) {
    const mom_kernels *k = run->k;
    const product *of = t->of;
    const mom_gemm *g = of->g;
    const size_t depth = block_depth(k, g->precision, g->k);
    const float *rows[MOM_GEMM_MAX_ROWS];
    float *c = g->finish ? run->sums + (size_t)thread * run->sums_size : g->c + t->i0 * g->ldc + t->j0;
    const size_t ldc = g->finish ? mom_round_up(t->n, k->nr) : g->ldc;
    for (size_t p0 = 0; p0 < g->k; p0 += depth) {
        const size_t kc = mom_min(depth, g->k - p0), items = items_of(k, g->precision, kc);
        const a_block a = load_block(k, g, t->i0, t->m, p0, kc, run->a + (size_t)thread * run->a_size, rows);
        const int accumulate = g->accumulate || p0 > 0;
        if (of->b) {
            const size_t first = t->j0 - of->first, left = mom_min(depth, g->k - p0 - kc);
            const item *b = of->b + items_of(k, g->precision, p0) * of->columns + first * items;
            const item *next =
                of->b + items_of(k, g->precision, p0 + kc) * of->columns + first * items_of(k, g->precision, left);
            macro_kernel(k, g->precision, t->m, t->n, items, &a, b, c, ldc, accumulate, left ? next : b);
            continue;
        }
        item *panel = run->panel + (size_t)thread * run->panel_size;
        const mom_matrix by_columns = mom_matrix_flip(g->b);
        for (size_t j = 0; j < t->n; j += k->nr) {
            const size_t columns = mom_min(k->nr, t->n - j);
            if (columns == k->nr && reads_b(k, g)) {
                const float *b = (const float *)g->b.data + p0 * g->b.rs + t->j0 + j;
                b_rows_kernel(k, kc, t->m, (const float *)(const void *)a.packed, b, g->b.rs, c + j, ldc, accumulate);
                continue;
            }
            k->pack_factor(panel, g->precision, k->nr, &by_columns, g->k_scale, t->j0 + j, columns, p0, kc);
            macro_kernel(k, g->precision, t->m, columns, items, &a, panel, c + j, ldc, accumulate, panel);
        }
    }
    if (g->bias && !g->accumulate)
        add_bias(c, ldc, g->bias + t->j0, t->m, t->n);
    if (g->finish)
        g->finish(k, g, c, ldc, t->i0, t->m, t->j0, t->n);
}

/* k = 0: nothing to sum; c is still defined. */
static void write_empty(const mom_kernels *k, const mom_gemm *g) {
    if (g->accumulate)
        return;
    float row[MOM_FINISH_COLUMNS];
    for (size_t i = 0; i < g->m; i++) {
        for (size_t j0 = 0; j0 < g->n; j0 += MOM_FINISH_COLUMNS) {
            const size_t n = mom_min(MOM_FINISH_COLUMNS, g->n - j0);
            float *c = g->finish ? row : g->c + i * g->ldc + j0;
            for (size_t j = 0; j < n; j++)
                c[j] = g->bias ? g->bias[j0 + j] : 0.0f;
            if (g->finish)
                g->finish(k, g, row, MOM_FINISH_COLUMNS, i, 1, j0, n);
        }
    }
}

/* k_sums += sums over k of the packed columns [j0, j0 + n). */
static void sum_columns(const mom_kernels *k, const block_task *t) {
    const product *of = t->of;
    const mom_gemm *g = of->g;
    const size_t depth = block_depth(k, g->precision, g->k);
    for (size_t p0 = 0; p0 < g->k; p0 += depth) {
        const size_t items = items_of(k, g->precision, mom_min(depth, g->k - p0));
        const item *b = of->b + items_of(k, g->precision, p0) * of->columns + (t->j0 - of->first) * items;
        for (size_t j = 0; j < t->n; j += k->nr)
            k->panel_sums(g->k_sums + t->j0 + j, g->precision, b + j * items, items, mom_min(k->nr, t->n - j));
    }
}

static void run_slab_task(void *context, size_t task, int thread) {
    const slab_run *run = context;
    if (task < run->pack_count) {
        pack_columns(run->k, &run->packs[task]);
        atomic_fetch_sub_explicit(&run->packed[task]->unpacked, 1, memory_order_release);
        return;
    }
    const block_task *block = &run->blocks[task - run->pack_count];
    mom_wait_until_zero(&block->of->unpacked);
    if (block->m)
        compute_block(run, block, thread);
    else
        sum_columns(run->k, block);
}

#define LEAST_ROW_PANELS 2 /* of a task; panels of b come from the second cache or beyond for each */
#define FEW_ROWS_COLUMNS ((size_t)128) /* of a task: a is packed again by each */

static size_t column_step(const mom_kernels *k, const mom_gemm *g, size_t columns) {
    if (g->whole_blocks)
        return MOM_FINISH_COLUMNS;
    return has_few_rows(k, g) && g->m <= k->mr ? mom_min(FEW_ROWS_COLUMNS, columns) : columns;
}

/* What the micro-kernel takes at a time: on tiles two panels. */
static size_t row_unit(const mom_kernels *k, const mom_gemm *g) { return uses_tiles(k, g->precision) ? 2 * k->mr : k->mr; }

static size_t block_rows(const mom_kernels *k, const mom_gemm *g, size_t m) {
    return mom_min(k->mc, mom_round_up(m, row_unit(k, g)));
}

static size_t columns_in_slab(const mom_gemm *g, size_t begin, size_t slab) {
    return g->k && g->m && g->n > begin ? mom_min(slab, g->n - begin) : 0;
}

/* Columns of a task: of c no more than stays in the second cache from one block of k to the next, fewer where there would
 * not be enough tasks for the threads. */
static size_t choose_columns(const mom_exec *x, const mom_gemm *problems, size_t count, size_t begin, size_t slab) {
    const mom_kernels *k = x->k;
    const size_t wanted = x->threads > 1 ? 4 * (size_t)x->threads : 1;
    size_t columns = mom_min(MOM_FINISH_COLUMNS, mom_round_up(slab, k->nr));
    for (; columns > k->nr; columns = mom_round_up(columns / 2, k->nr)) {
        size_t tasks = 0;
        for (size_t i = 0; i < count; i++)
            tasks += parts(problems[i].m, LEAST_ROW_PANELS * k->mr) *
                     parts(columns_in_slab(&problems[i], begin, slab), column_step(k, &problems[i], columns));
        if (tasks >= (columns > 8 * k->nr ? wanted : (size_t)x->threads)) /* narrow tasks pack much for few products */
            break;
    }
    return columns;
}

/* Cuts the columns [begin, begin + slab) of all products into tasks, blocks of at most mc rows; towards the end smaller
 * ones, so that no thread waits long for the last of another. Writes them to `blocks` if that is not NULL and returns how
 * many they are. Has no effect on the bits. */
static size_t cut_blocks(const mom_exec *x, const mom_gemm *problems, size_t count, size_t begin, size_t slab,
                         size_t columns, const product *products, block_task *blocks) {
    const mom_kernels *k = x->k;
    double left = 0.0; /* multiplications */
    size_t tasks = 0;
    for (size_t i = 0; i < count; i++)
        left += (double)problems[i].m * (double)columns_in_slab(&problems[i], begin, slab) * (double)problems[i].k;
    for (size_t i = 0; i < count; i++) {
        const mom_gemm *g = &problems[i];
        const size_t n = columns_in_slab(g, begin, slab), step = column_step(k, g, columns), unit = row_unit(k, g);
        const double per_row = (double)mom_min(step, n) * (double)g->k;
        size_t rows;
        for (size_t i0 = 0; n && i0 < g->m; i0 += rows) {
            const double fair = x->threads > 1 ? left / (2.0 * x->threads * per_row) : (double)k->mc;
            const size_t most = fair < (double)k->mc ? (size_t)fair / unit * unit : k->mc;
            const size_t least = LEAST_ROW_PANELS * k->mr, rest = g->m - i0;
            rows = mom_round_up(parts(rest, parts(rest, most > least ? most : least)), unit);
            rows = mom_min(rows, rest);
            for (size_t j0 = 0; j0 < n; j0 += step, tasks++)
                if (blocks)
                    blocks[tasks] = (block_task){&products[i], i0, rows, begin + j0, mom_min(step, n - j0)};
            left -= (double)rows * (double)n * (double)g->k;
        }
    }
    for (size_t i = 0; i < count; i++) {
        const size_t n = problems[i].k_sums ? columns_in_slab(&problems[i], begin, slab) : 0;
        for (size_t j0 = 0; j0 < n; j0 += PACK_COLUMNS, tasks++)
            if (blocks)
                blocks[tasks] = (block_task){&products[i], 0, 0, begin + j0, mom_min(PACK_COLUMNS, n - j0)};
    }
    return tasks;
}

/* What a slab needs room for: items per thread, packed items, tasks. */
typedef struct {
    size_t a, panel, sums, packed, packs, blocks;
} slab_room;

static slab_room room_for(const mom_exec *x, const mom_gemm *problems, size_t count, size_t begin, size_t slab, size_t columns) {
    const mom_kernels *k = x->k;
    slab_room room = {.blocks = cut_blocks(x, problems, count, begin, slab, columns, NULL, NULL)};
    for (size_t i = 0; i < count; i++) {
        const mom_gemm *g = &problems[i];
        const size_t n = columns_in_slab(g, begin, slab), depth = items_of(k, g->precision, block_depth(k, g->precision, g->k));
        const int few = has_few_rows(k, g), in_place = !few && (reads_rows(k, g) || reads_columns(k, g));
        if (!n)
            continue;
        room.a = mom_max(room.a, (in_place ? k->mr : block_rows(k, g, g->m)) * depth);
        if (g->finish)
            room.sums = mom_max(room.sums, block_rows(k, g, g->m) * mom_round_up(column_step(k, g, columns), k->nr));
        if (few) {
            room.panel = mom_max(room.panel, k->nr * depth);
        } else if (!g->packed_b) {
            room.packs += count_packs(k, g->precision, n, g->k);
            room.packed += packed_items(k, g->precision, n, g->k);
        }
    }
    return room;
}

#define MOST_PACKED ((size_t)16 << 20) /* bytes of b at a time, but for the narrowest slabs: see choose_slab */

/* The same in a dry run: rows, or steps of k, may be distributed over a group's products in any other way then. */
static slab_room room_for_any(const mom_exec *x, const mom_gemm *problems, size_t count, size_t begin, size_t slab,
                              size_t columns) {
    const mom_kernels *k = x->k;
    slab_room room = room_for(x, problems, count, begin, slab, columns);
    size_t rows = 0, steps = 0, all = 0, here = 0;
    for (size_t i = 0; i < count; i++) {
        rows += problems[i].m;
        steps += problems[i].k;
    }
    for (size_t i = 0; i < count; i++) {
        const mom_gemm *g = &problems[i];
        const size_t depth = items_of(k, g->precision, mom_min(steps, most_depth(k, g->precision)));
        const size_t spare = items_of(k, g->precision, 1) + 1; /* the last pair or chunk of k is not full */
        if (g->finish)
            room.sums = mom_max(room.sums, block_rows(k, g, rows) * MOM_FINISH_COLUMNS);
        room.a = mom_max(room.a, (reads_rows(k, g) || reads_columns(k, g) ? k->mr : block_rows(k, g, rows)) * depth);
        room.blocks += 32;
        if (g->packed_b)
            continue;
        room.panel = mom_max(room.panel, k->nr * depth);
        room.packs += 32;
        here += mom_round_up(columns_in_slab(g, begin, slab), k->nr) * (items_of(k, g->precision, g->k) + spare);
        all += mom_round_up(columns_in_slab(g, begin, k->nc), k->nr) * (items_of(k, g->precision, g->k) + spare);
    }
    if (count > 1) /* with fewer products the slab may be wider, up to this */
        room.packed = mom_max(here, mom_min(all, MOST_PACKED / sizeof(item)));
    return room;
}

/* All products' columns [begin, begin + slab). */
static mom_status run_slab(const mom_exec *x, const mom_gemm *problems, size_t count, size_t begin, size_t slab,
                           mom_error *err) {
    const mom_kernels *k = x->k;
    size_t widest = 0;
    for (size_t i = 0; i < count; i++)
        widest = mom_max(widest, columns_in_slab(&problems[i], begin, slab));
    if (!widest)
        return MOM_OK;
    const size_t columns = choose_columns(x, problems, count, begin, widest);
    const slab_room room =
        (x->dry_run == MOM_DRY_ANY_ROUTES ? room_for_any : room_for)(x, problems, count, begin, slab, columns);
    slab_run run = {.k = k, .pack_count = room.packs, .a_size = room.a, .panel_size = room.panel, .sums_size = room.sums};
    run.a_size = mom_round_up(run.a_size, MOM_ALIGNMENT / sizeof(item));
    run.panel_size = mom_round_up(run.panel_size, MOM_ALIGNMENT / sizeof(item));
    run.sums_size = mom_round_up(run.sums_size, MOM_ALIGNMENT / sizeof(float));

    pack_task *packs;
    block_task *blocks;
    product *products;
    item *b;
    MOM_ARENA_NEW(packs, x->workspace, run.pack_count, err);
    MOM_ARENA_NEW(run.packed, x->workspace, run.pack_count, err);
    MOM_ARENA_NEW(products, x->workspace, count, err);
    MOM_ARENA_NEW(blocks, x->workspace, room.blocks, err);
    MOM_ARENA_NEW(b, x->workspace, room.packed, err);
    MOM_ARENA_NEW(run.a, x->workspace, (size_t)x->threads * run.a_size, err);
    MOM_ARENA_NEW(run.panel, x->workspace, (size_t)x->threads * run.panel_size, err);
    MOM_ARENA_NEW(run.sums, x->workspace, (size_t)x->threads * run.sums_size, err);

    if (x->dry_run)
        return MOM_OK;
    cut_blocks(x, problems, count, begin, slab, columns, products, blocks);
    size_t pack = 0;
    for (size_t i = 0; i < count; i++) {
        const mom_gemm *g = &problems[i];
        const size_t n = columns_in_slab(g, begin, slab);
        product *of = &products[i];
        *of = (product){.g = g};
        if (g->packed_b) {
            of->b = g->packed_b;
            of->columns = mom_round_up(g->n, k->nr);
        } else if (n && !has_few_rows(k, g)) {
            const size_t first = pack;
            pack += add_packs(k, packs + pack, b, &g->b, g->k_scale, g->precision, begin, n, g->k);
            for (size_t q = first; q < pack; q++)
                run.packed[q] = of;
            atomic_init(&of->unpacked, pack - first);
            of->b = b;
            of->columns = mom_round_up(n, k->nr);
            of->first = begin;
            b += packed_items(k, g->precision, n, g->k);
        }
    }
    run.packs = packs;
    run.blocks = blocks;
    mom_parallel_for(x, run.pack_count + room.blocks, run_slab_task, &run);
    return MOM_OK;
}

/* Columns packed at a time: as many as the level likes, fewer where long sums (gradients of weights) would make that
 * large. No effect on the bits. */
static size_t choose_slab(const mom_kernels *k, const mom_gemm *problems, size_t count) {
    size_t slab = k->nc;
    for (; slab % (2 * MOM_FINISH_COLUMNS) == 0; slab /= 2) {
        size_t packed = 0;
        for (size_t i = 0; i < count; i++)
            if (!problems[i].packed_b)
                packed += packed_items(k, problems[i].precision, columns_in_slab(&problems[i], 0, slab), problems[i].k);
        if (packed * sizeof(item) <= MOST_PACKED)
            break;
    }
    return slab;
}

mom_status mom_gemm_run(const mom_exec *x, const mom_gemm *problems, size_t count, mom_error *err) {
    const size_t slab = choose_slab(x->k, problems, count);
    size_t widest = 0;
    for (size_t i = 0; i < count; i++) {
        if (problems[i].n > widest)
            widest = problems[i].n;
        if (!problems[i].k)
            write_empty(x->k, &problems[i]);
    }
    for (size_t begin = 0; begin < widest; begin += slab) {
        const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
        const mom_status status = run_slab(x, problems, count, begin, slab, err);
        mom_arena_release(x->workspace, mark);
        MOM_TRY(status);
    }
    return MOM_OK;
}
