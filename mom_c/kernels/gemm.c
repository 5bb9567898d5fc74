/* Matrix products over packed micro-kernels. Contract and definition: gemm.h.
 *
 * DESIGN  b is packed once, whole slab of nc columns at a time, by all threads; then tasks of mc rows (x a
 *         part of the slab) run independently: each packs its block of a, kc columns at a time, into its
 *         own scratch (which stays in L2) and sweeps the slab's panels (each stays in L1 while the block's
 *         panels stream past). No barrier but the one between packing b and computing.
 *         Products of a group share the task list, so that small groups fill the threads.
 * COST    2 m n k FLOP; packing touches a once per column part and b once.
 * SOURCE  Goto and van de Geijn 2008, Van Zee and van de Geijn 2015 (BLIS).
 */
#include "kernels/gemm.h"

#include <string.h>

#include "base/parallel.h"
#include "kernels/levels.h"

static size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }
static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* b's columns [j0, j0 + n), rows [p0, p0 + k) into panels of nr columns. */
static void pack_b(const mom_kernels *k, float *dst, const mom_gemm *g, size_t p0, size_t kc, size_t j0, size_t n) {
    const mom_matrix *b = &g->b;
    const float *src = b->data + (b->col_index ? 0 : j0 * b->cs) + (b->row_index ? 0 : p0 * b->rs);
    k->pack(dst, k->nr, src, b->cs, b->rs, b->col_index ? b->col_index + j0 : NULL,
            b->row_index ? b->row_index + p0 : NULL, g->k_scale ? g->k_scale + p0 : NULL, n, kc);
}

static void pack_a(const mom_kernels *k, float *dst, const mom_gemm *g, size_t i0, size_t m, size_t p0, size_t kc) {
    const mom_matrix *a = &g->a;
    const float *src = a->data + (a->row_index ? 0 : i0 * a->rs) + (a->col_index ? 0 : p0 * a->cs);
    k->pack(dst, k->mr, src, a->rs, a->cs, a->row_index ? a->row_index + i0 : NULL,
            a->col_index ? a->col_index + p0 : NULL, NULL, m, kc);
}

/* c block (m, n) from packed a (m, kc) and packed b (kc, n). */
static void macro_kernel(const mom_kernels *k, size_t m, size_t n, size_t kc, const float *a, const float *b, float *c,
                         size_t ldc, int accumulate) {
    float edge[MOM_GEMM_MAX_TILE] __attribute__((aligned(64)));
    const size_t mr = k->mr, nr = k->nr;
    for (size_t j = 0; j < n; j += nr) {
        const float *bj = b + j * kc;
        const size_t columns = smaller(nr, n - j);
        for (size_t i = 0; i < m; i += mr) {
            const size_t rows = smaller(mr, m - i);
            float *cij = c + i * ldc + j;
            if (rows == mr && columns == nr) {
                k->gemm_ukr(kc, a + i * kc, bj, cij, ldc, accumulate);
                continue;
            }
            k->gemm_ukr(kc, a + i * kc, bj, edge, nr, 0);
            for (size_t r = 0; r < rows; r++)
                for (size_t q = 0; q < columns; q++)
                    cij[r * ldc + q] = accumulate ? cij[r * ldc + q] + edge[r * nr + q] : edge[r * nr + q];
        }
    }
}

static void add_bias(float *c, size_t ldc, const float *bias, size_t m, size_t n) {
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++)
            c[i * ldc + j] += bias[j];
}

/* k = 0: nothing to sum; c is still defined. */
static void write_empty(const mom_gemm *g) {
    if (g->accumulate)
        return;
    for (size_t i = 0; i < g->m; i++)
        for (size_t j = 0; j < g->n; j++)
            g->c[i * g->ldc + j] = g->bias ? g->bias[j] : 0.0f;
}

typedef struct {
    const mom_gemm *g;
    float *packed_b;      /* current slab: blocks of kc rows one after another, each round_up(n, nr) wide */
    size_t i0, m;         /* rows of the task */
    size_t j0, n;         /* columns of the task, from the slab's first column; j0 is a multiple of nr */
    size_t slab_columns;  /* round_up(columns in the slab, nr) */
    size_t slab_begin;    /* first column of the slab */
} block_task;

typedef struct {
    const mom_gemm *g;
    float *packed_b;
    size_t p0, kc, j0, n, slab_begin, slab_columns;
} pack_task;

typedef struct {
    const mom_kernels *k;
    const pack_task *packs;
    const block_task *blocks;
    float *scratch; /* mc * kc per thread */
} run_context;

static void run_pack(void *context, size_t task, int thread) {
    (void)thread;
    const run_context *run = context;
    const pack_task *t = &run->packs[task];
    float *dst = t->packed_b + t->p0 * t->slab_columns + (t->j0 - t->slab_begin) * t->kc;
    pack_b(run->k, dst, t->g, t->p0, t->kc, t->j0, t->n);
}

static void run_block(void *context, size_t task, int thread) {
    const run_context *run = context;
    const mom_kernels *k = run->k;
    const block_task *t = &run->blocks[task];
    const mom_gemm *g = t->g;
    float *a = run->scratch + (size_t)thread * k->mc * k->kc;
    float *c = g->c + t->i0 * g->ldc + t->slab_begin + t->j0;
    for (size_t p0 = 0; p0 < g->k; p0 += k->kc) {
        const size_t kc = smaller(k->kc, g->k - p0);
        pack_a(k, a, g, t->i0, t->m, p0, kc);
        const float *b = t->packed_b + p0 * t->slab_columns + t->j0 * kc;
        macro_kernel(k, t->m, t->n, kc, a, b, c, g->ldc, g->accumulate || p0 > 0);
    }
    if (g->bias && !g->accumulate)
        add_bias(c, g->ldc, g->bias + t->slab_begin + t->j0, t->m, t->n);
}

/* Columns per pack task: enough work to be worth a task. */
#define PACK_COLUMNS 256

typedef struct {
    size_t row_step, column_step; /* block sizes of the tasks */
} task_shape;

/* Whole mc x slab blocks unless there would be too few of them for the threads. The shape has no effect
 * on the bits. */
static task_shape choose_shape(const mom_exec *x, const mom_gemm *problems, size_t count, size_t slab) {
    const mom_kernels *k = x->k;
    task_shape shape = {k->mc, round_up(slab, k->nr)};
    const size_t wanted = x->threads > 1 ? 6 * (size_t)x->threads : 1;
    for (;;) {
        size_t tasks = 0;
        for (size_t i = 0; i < count; i++)
            if (problems[i].n)
                tasks += (problems[i].m + shape.row_step - 1) / shape.row_step *
                         ((smaller(problems[i].n, slab) + shape.column_step - 1) / shape.column_step);
        if (tasks >= wanted)
            return shape;
        if (shape.column_step > 8 * k->nr)
            shape.column_step = round_up(shape.column_step / 2, k->nr);
        else if (shape.row_step > 4 * k->mr)
            shape.row_step = round_up(shape.row_step / 2, k->mr);
        else
            return shape;
    }
}

/* All products' columns [slab_begin, slab_begin + slab). */
static mom_status run_slab(const mom_exec *x, const mom_gemm *problems, size_t count, size_t slab_begin, size_t slab,
                           mom_error *err) {
    const mom_kernels *k = x->k;
    size_t widest = 0, pack_count = 0, block_count = 0, packed_floats = 0;
    for (size_t i = 0; i < count; i++)
        if (problems[i].n > slab_begin && problems[i].m)
            widest = problems[i].n - slab_begin > widest ? problems[i].n - slab_begin : widest;
    if (!widest)
        return MOM_OK;
    const task_shape shape = choose_shape(x, problems, count, smaller(widest, slab));
    for (size_t i = 0; i < count; i++) {
        const mom_gemm *g = &problems[i];
        if (g->n <= slab_begin || !g->m || !g->k)
            continue;
        const size_t n = smaller(slab, g->n - slab_begin);
        pack_count += (n + PACK_COLUMNS - 1) / PACK_COLUMNS * ((g->k + k->kc - 1) / k->kc);
        block_count += (g->m + shape.row_step - 1) / shape.row_step * ((n + shape.column_step - 1) / shape.column_step);
        packed_floats += round_up(n, k->nr) * g->k;
    }
    if (!block_count)
        return MOM_OK;

    pack_task *packs;
    block_task *blocks;
    float *packed, *scratch;
    MOM_ARENA_NEW(packs, x->workspace, pack_count, err);
    MOM_ARENA_NEW(blocks, x->workspace, block_count, err);
    MOM_ARENA_NEW(packed, x->workspace, packed_floats, err);
    MOM_ARENA_NEW(scratch, x->workspace, (size_t)x->threads * k->mc * k->kc, err);

    size_t pack = 0, block = 0;
    for (size_t i = 0; i < count; i++) {
        const mom_gemm *g = &problems[i];
        if (g->n <= slab_begin || !g->m || !g->k)
            continue;
        const size_t n = smaller(slab, g->n - slab_begin), columns = round_up(n, k->nr);
        for (size_t p0 = 0; p0 < g->k; p0 += k->kc)
            for (size_t j0 = 0; j0 < n; j0 += PACK_COLUMNS)
                packs[pack++] = (pack_task){g, packed, p0, smaller(k->kc, g->k - p0), slab_begin + j0,
                                            smaller(PACK_COLUMNS, n - j0), slab_begin, columns};
        for (size_t i0 = 0; i0 < g->m; i0 += shape.row_step)
            for (size_t j0 = 0; j0 < n; j0 += shape.column_step)
                blocks[block++] = (block_task){g, packed, i0, smaller(shape.row_step, g->m - i0), j0,
                                               smaller(shape.column_step, n - j0), columns, slab_begin};
        packed += columns * g->k;
    }
    run_context run = {k, packs, blocks, scratch};
    mom_parallel_for(x->threads, pack_count, run_pack, &run);
    mom_parallel_for(x->threads, block_count, run_block, &run);
    return MOM_OK;
}

_Static_assert(PACK_COLUMNS % 32 == 0, "pack tasks begin at whole panels of every level");

mom_status mom_gemm_run(const mom_exec *x, const mom_gemm *problems, size_t count, mom_error *err) {
    size_t widest = 0;
    for (size_t i = 0; i < count; i++) {
        if (problems[i].n > widest)
            widest = problems[i].n;
        if (!problems[i].k)
            write_empty(&problems[i]);
    }
    for (size_t slab_begin = 0; slab_begin < widest; slab_begin += x->k->nc) {
        const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
        const mom_status status = run_slab(x, problems, count, slab_begin, x->k->nc, err);
        mom_arena_release(x->workspace, mark);
        MOM_TRY(status);
    }
    return MOM_OK;
}

/* Rows of a packed at once by the serial product. */
static size_t serial_rows(const mom_kernels *k) { return smaller(k->mc, 8 * k->mr); }

size_t mom_gemm_scratch(const mom_kernels *k, size_t n, size_t kk) {
    const size_t kc = smaller(k->kc, kk);
    return round_up(round_up(n, k->nr) * kc, 16) + serial_rows(k) * kc;
}

void mom_gemm_serial(const mom_kernels *k, const mom_gemm *g, float *scratch) {
    if (!g->k) {
        write_empty(g);
        return;
    }
    const size_t rows = serial_rows(k);
    float *a = scratch + round_up(round_up(g->n, k->nr) * smaller(k->kc, g->k), 16);
    for (size_t p0 = 0; p0 < g->k; p0 += k->kc) {
        const size_t kc = smaller(k->kc, g->k - p0);
        pack_b(k, scratch, g, p0, kc, 0, g->n);
        for (size_t i0 = 0; i0 < g->m; i0 += rows) {
            const size_t m = smaller(rows, g->m - i0);
            pack_a(k, a, g, i0, m, p0, kc);
            macro_kernel(k, m, g->n, kc, a, scratch, g->c + i0 * g->ldc, g->ldc, g->accumulate || p0 > 0);
        }
    }
    if (g->bias && !g->accumulate)
        add_bias(g->c, g->ldc, g->bias, g->m, g->n);
}
