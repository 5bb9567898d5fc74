/* Runs the tasks of a slab. */
#include "gemm/slab.h"
#include "gemm/sweep.h"

/* Rows [i0, i0 + m), steps [p0, p0 + kc) of a. `packed` and `rows` are memory for them. */
static mom_gemm_block load_block(const mom_kernels *k, const mom_block_task *t, size_t p0, size_t kc, mom_item *packed,
                                 const float **rows) {
    const mom_gemm *g = t->of->g;
    const size_t mr = k->gemm.mr, i0 = t->i0, m = t->m;
    mom_gemm_block block = {.packed = packed};
    const float *data = g->a.data;
    if (mom_reads_rows(k, g) && !mom_has_few_rows(k, g)) {
        block.first_packed = m / mr * mr;
        block.rows = rows;
        for (size_t i = 0; i < block.first_packed; i++)
            rows[i] = data + (g->a.row_index ? (size_t)g->a.row_index[i0 + i] : i0 + i) * g->a.rs + p0;
    } else if (mom_reads_columns(k, g) && !mom_has_few_rows(k, g)) {
        block.first_packed = m / mr * mr;
        block.columns = data + p0 * g->a.cs + i0;
        block.lda = g->a.cs;
    }
    if (mom_uses_tiles(k, g->precision))
        k->gemm.tiles.pack((mom_bf16 *)(void *)packed, &g->a, i0, m, p0, kc);
    else if (block.first_packed < m)
        k->pack.factor(packed, g->precision, mr, &g->a, NULL, i0 + block.first_packed, m - block.first_packed, p0, kc);
    return block;
}

/* Computes a block of k. b was packed by other tasks, or before this product. */
static void sweep_packed(const mom_gemm_sweep *s, const mom_block_task *t, size_t p0, size_t kc) {
    const mom_slab_product *of = t->of;
    const mom_kernels *k = s->k;
    const size_t first = t->j0 - of->first, left = of->g->k - p0 - kc;
    const size_t next_depth = mom_items(k, s->precision, mom_min(mom_block_depth(k, s->precision, of->g->k), left));
    const mom_item *b = of->b + mom_items(k, s->precision, p0) * of->columns + first * s->depth;
    const mom_item *next = of->b + mom_items(k, s->precision, p0 + kc) * of->columns + first * next_depth;
    mom_sweep(s, b, left ? next : b);
}

/* Computes a block of k for a product of few rows. Each panel of b is read in place, or packed just before its use. */
static void sweep_few_rows(const mom_gemm_sweep *s, const mom_block_task *t, size_t p0, size_t kc, mom_item *panel) {
    const mom_gemm *g = t->of->g;
    const mom_kernels *k = s->k;
    const size_t nr = k->gemm.nr;
    const mom_matrix by_columns = mom_matrix_flip(g->b);
    const size_t in_place = mom_reads_b(k, g) ? t->n / nr * nr : 0;
    for (size_t j = 0; j < in_place; j += nr)
        mom_sweep_b_rows(s, (const float *)g->b.data + p0 * g->b.rs + t->j0 + j, g->b.rs, s->c + j);
    mom_gemm_sweep part = *s;
    for (size_t j = in_place; j < t->n; j += nr) {
        part.n = mom_min(nr, t->n - j);
        part.c = s->c + j;
        k->pack.factor(panel, g->precision, nr, &by_columns, g->k_scale, t->j0 + j, part.n, p0, kc);
        mom_sweep(&part, panel, panel);
    }
}

static void add_bias(float *c, size_t ldc, const float *bias, size_t m, size_t n) {
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++)
            c[i * ldc + j] += bias[j];
}

static void compute_block(const mom_slab_job *job, const mom_block_task *t, int thread) {
    const mom_kernels *k = job->k;
    const mom_gemm *g = t->of->g;
    const size_t depth = mom_block_depth(k, g->precision, g->k);
    const float *rows[MOM_MOST_MC];
    mom_gemm_sweep s = {.k = k, .precision = g->precision, .m = t->m, .n = t->n};
    s.c = g->finish ? job->sums + (size_t)thread * job->sums_size : g->c + t->i0 * g->ldc + t->j0;
    s.ldc = g->finish ? mom_round_up(t->n, k->gemm.nr) : g->ldc;
    for (size_t p0 = 0; p0 < g->k; p0 += depth) {
        const size_t kc = mom_min(depth, g->k - p0);
        s.depth = mom_items(k, g->precision, kc);
        s.a = load_block(k, t, p0, kc, job->a + (size_t)thread * job->a_size, rows);
        s.accumulate = g->accumulate || p0 > 0;
        if (t->of->b)
            sweep_packed(&s, t, p0, kc);
        else
            sweep_few_rows(&s, t, p0, kc, job->panel + (size_t)thread * job->panel_size);
    }
    if (g->bias && !g->accumulate)
        add_bias(s.c, s.ldc, g->bias + t->j0, t->m, t->n);
    if (g->finish)
        g->finish(k, g, s.c, s.ldc, t->i0, t->m, t->j0, t->n);
}

/* k_sums += sums over k of the packed columns [j0, j0 + n) */
static void sum_columns(const mom_kernels *k, const mom_block_task *t) {
    const mom_slab_product *of = t->of;
    const mom_gemm *g = of->g;
    const size_t nr = k->gemm.nr, depth = mom_block_depth(k, g->precision, g->k);
    for (size_t p0 = 0; p0 < g->k; p0 += depth) {
        const size_t items = mom_items(k, g->precision, mom_min(depth, g->k - p0));
        const mom_item *b = of->b + mom_items(k, g->precision, p0) * of->columns + (t->j0 - of->first) * items;
        for (size_t j = 0; j < t->n; j += nr)
            k->pack.panel_sums(g->k_sums + t->j0 + j, g->precision, b + j * items, items, mom_min(nr, t->n - j));
    }
}

void mom_slab_task(void *context, size_t task, int thread) {
    const mom_slab_job *job = context;
    if (task < job->pack_count) {
        mom_pack_columns(job->k, &job->packs[task]);
        atomic_fetch_sub_explicit(&job->packed[task]->unpacked, 1, memory_order_release);
        return;
    }
    const mom_block_task *block = &job->blocks[task - job->pack_count];
    mom_wait_until_zero(&block->of->unpacked);
    if (block->m)
        compute_block(job, block, thread);
    else
        sum_columns(job->k, block);
}
