/* Running a group of products. Contract and definition: gemm.h.
 *
 * DESIGN  The columns of all products are taken slab by slab. Within a slab, all threads first pack b, unless it was
 *         packed before. Then tasks run independently: each has some rows and a part of the slab's columns. A task packs
 *         its block of a, one block of k at a time, into its thread's scratch memory and sweeps over the panels of b.
 *         Three cases do without packing. An a that is plain float32 is read where it lies, which saves a tenth of
 *         narrow products. If there are few rows, each task reads its panels of b in place or packs them itself. This
 *         saves a third of short forward passes. Up to 192 rows count as few if a has to be packed anyway, b is plain
 *         float32 and the second cache holds the rows of a panel of b.
 *         Products of a group share the list of tasks, so that small groups keep the threads busy too.
 *         A level with tiles for bfloat16 sweeps over panels of another layout; all else is the same.
 * COST    2 m n k FLOP. Packing reads a once per part of the columns, and b once.
 * SOURCE  Goto and van de Geijn 2008; Van Zee and van de Geijn 2015 (BLIS).
 */
#include "gemm/slab.h"

/* k = 0: there is nothing to sum, but c is still defined. */
static void write_empty(const mom_kernels *k, const mom_gemm *g) {
    if (g->accumulate)
        return;
    const size_t block = k->gemm.column_block;
    float row[MOM_MOST_COLUMNS];
    for (size_t i = 0; i < g->m; i++) {
        for (size_t j0 = 0; j0 < g->n; j0 += block) {
            const size_t n = mom_min(block, g->n - j0);
            float *c = g->finish ? row : g->c + i * g->ldc + j0;
            for (size_t j = 0; j < n; j++)
                c[j] = g->bias ? g->bias[j0 + j] : 0.0f;
            if (g->finish)
                g->finish(k, g, row, block, i, 1, j0, n);
        }
    }
}

/* Arrays of the tasks of a slab, which its job only reads. */
typedef struct {
    mom_pack_task *packs;
    mom_block_task *blocks;
    mom_slab_product *products;
    mom_item *b; /* packed columns of all products, one product after the other */
} slab_arrays;

static mom_status allocate(const mom_slab *s, const mom_slab_sizes *sizes, mom_slab_job *job, slab_arrays *arrays,
                           mom_error *err) {
    mom_arena *arena = s->x->workspace;
    const size_t threads = (size_t)s->x->threads, line = MOM_ALIGNMENT / sizeof(mom_item);
    *job = (mom_slab_job){.k = s->x->k, .pack_count = sizes->packs, .a_size = mom_round_up(sizes->a, line),
                          .panel_size = mom_round_up(sizes->panel, line), .sums_size = mom_round_up(sizes->sums, line)};
    MOM_ARENA_NEW(arrays->packs, arena, sizes->packs, err);
    MOM_ARENA_NEW(job->packed, arena, sizes->packs, err);
    MOM_ARENA_NEW(arrays->products, arena, s->count, err);
    MOM_ARENA_NEW(arrays->blocks, arena, sizes->blocks, err);
    MOM_ARENA_NEW(arrays->b, arena, sizes->packed, err);
    MOM_ARENA_NEW(job->a, arena, threads * job->a_size, err);
    MOM_ARENA_NEW(job->panel, arena, threads * job->panel_size, err);
    MOM_ARENA_NEW(job->sums, arena, threads * job->sums_size, err);
    job->packs = arrays->packs;
    job->blocks = arrays->blocks;
    return MOM_OK;
}

/* Fills the lists of tasks. */
static void list_tasks(const mom_slab *s, const mom_slab_job *job, const slab_arrays *arrays) {
    const mom_kernels *k = s->x->k;
    mom_item *b = arrays->b;
    size_t packs = 0;
    mom_slab_blocks(s, arrays->products, arrays->blocks);
    for (size_t i = 0; i < s->count; i++) {
        const mom_gemm *g = &s->products[i];
        const size_t n = mom_slab_columns(s, g);
        mom_slab_product *of = &arrays->products[i];
        *of = (mom_slab_product){.g = g};
        if (g->packed_b) {
            of->b = g->packed_b;
            of->columns = mom_round_up(g->n, k->gemm.nr);
        } else if (n && !mom_has_few_rows(k, g)) {
            const mom_pack_task shared = {.dst = b, .b = &g->b, .k_scale = g->k_scale, .precision = g->precision,
                                          .first_column = s->begin};
            const size_t count = mom_list_packs(k, arrays->packs + packs, &shared, n, g->k);
            for (size_t q = packs; q < packs + count; q++)
                job->packed[q] = of;
            packs += count;
            atomic_init(&of->unpacked, count);
            of->b = b;
            of->columns = mom_round_up(n, k->gemm.nr);
            of->first = s->begin;
            b += mom_packed_items(k, g->precision, n, g->k);
        }
    }
}

static mom_status run_slab(const mom_slab *all, mom_error *err) {
    mom_slab s = *all;
    size_t widest = 0;
    for (size_t i = 0; i < s.count; i++)
        widest = mom_max(widest, mom_slab_columns(&s, &s.products[i]));
    if (!widest)
        return MOM_OK;
    s.width = widest;
    s.task_columns = mom_slab_task_columns(&s);
    const mom_slab_sizes sizes = mom_slab_measure(&s);
    mom_slab_job job;
    slab_arrays arrays;
    MOM_TRY(allocate(&s, &sizes, &job, &arrays, err));
    if (s.x->dry_run)
        return MOM_OK;
    list_tasks(&s, &job, &arrays);
    mom_parallel_for_in_order(s.x, sizes.packs + sizes.blocks, mom_slab_task, &job);
    return MOM_OK;
}

/* Columns of a slab: as many as the level likes, and fewer where long sums (gradients of weights) would make a packed
 * slab large. Has no effect on the bits. */
static size_t slab_width(const mom_kernels *k, const mom_gemm *products, size_t count) {
    mom_slab slab = {.width = k->gemm.nc};
    for (; slab.width % (2 * k->gemm.column_block) == 0; slab.width /= 2) {
        size_t packed = 0;
        for (size_t i = 0; i < count; i++)
            if (!products[i].packed_b)
                packed += mom_packed_items(k, products[i].precision, mom_slab_columns(&slab, &products[i]), products[i].k);
        if (packed * sizeof(mom_item) <= MOM_MOST_PACKED)
            break;
    }
    return slab.width;
}

static void count_products(mom_counts *counts, const mom_gemm *products, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const mom_gemm *g = &products[i];
        mom_counts_add(counts, g->part ? g->part : counts->part, g->m * g->n * g->k - g->uncounted);
    }
}

mom_status mom_gemm_run(const mom_exec *x, const mom_gemm *products, size_t count, mom_error *err) {
    if (x->counts)
        count_products(x->counts, products, count);
    mom_slab slab = {.x = x, .products = products, .count = count, .width = slab_width(x->k, products, count)};
    size_t widest = 0;
    for (size_t i = 0; i < count; i++) {
        widest = mom_max(widest, products[i].n);
        if (!products[i].k)
            write_empty(x->k, &products[i]);
    }
    for (; slab.begin < widest; slab.begin += slab.width) {
        MOM_TRY(mom_check_stop(x, err));
        const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
        MOM_TRY(run_slab(&slab, err));
        mom_arena_release(x->workspace, mark);
    }
    return MOM_OK;
}
