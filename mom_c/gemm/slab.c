/* Cutting a slab into tasks has no effect on the bits. */
#include "gemm/slab.h"

#define LEAST_ROW_PANELS 2 /* of a task, because each task reads the panels of b from the second cache or beyond */

/* With few rows there are more tasks of fewer columns, although each task packs a again. */
static size_t column_step(const mom_kernels *k, const mom_gemm *g, size_t columns) {
    if (g->whole_blocks)
        return k->gemm.column_block;
    return mom_has_few_rows(k, g) && g->m <= k->gemm.mr ? mom_min(k->gemm.column_unit, columns) : columns;
}

/* Columns of c that a task computes: as many as stay in the second cache from one block of k to the next, or fewer if
 * the threads would not have enough tasks. Narrow tasks pack much for few products, so they need a better reason. */
size_t mom_slab_task_columns(const mom_slab *s) {
    const mom_kernels *k = s->x->k;
    const size_t nr = k->gemm.nr, threads = (size_t)s->x->threads, wanted = threads > 1 ? 4 * threads : 1;
    size_t columns = mom_min(k->gemm.column_block, mom_round_up(s->width, nr));
    for (; columns > nr; columns = mom_round_up(columns / 2, nr)) {
        size_t tasks = 0;
        for (size_t i = 0; i < s->count; i++)
            tasks += mom_div_up(s->products[i].m, LEAST_ROW_PANELS * k->gemm.mr) *
                     mom_div_up(mom_slab_columns(s, &s->products[i]), column_step(k, &s->products[i], columns));
        if (tasks >= (columns > 8 * nr ? wanted : threads))
            break;
    }
    return columns;
}

/* Rows of the next task of a product, which has `rest` rows left: at most mc, and less when little work is left, so that
 * no thread waits long for another's last task. `left` is the work of all tasks to come, `per_row` that of a row, in
 * multiplications. */
static size_t task_rows(const mom_slab *s, const mom_gemm *g, size_t rest, double left, double per_row) {
    const mom_kernels *k = s->x->k;
    const size_t mc = k->gemm.mc, unit = mom_row_unit(k, g), least = LEAST_ROW_PANELS * k->gemm.mr;
    const double fair = s->x->threads > 1 ? left / (2.0 * s->x->threads * per_row) : (double)mc;
    const size_t most = fair < (double)mc ? (size_t)fair / unit * unit : mc;
    return mom_min(rest, mom_round_up(mom_div_up(rest, mom_div_up(rest, mom_max(most, least))), unit));
}

size_t mom_slab_blocks(const mom_slab *s, const mom_slab_product *products, mom_block_task *blocks) {
    double left = 0.0; /* multiplications */
    size_t tasks = 0;
    for (size_t i = 0; i < s->count; i++) {
        const mom_gemm *g = &s->products[i];
        left += (double)g->m * (double)mom_slab_columns(s, g) * (double)g->k;
    }
    for (size_t i = 0; i < s->count; i++) {
        const mom_gemm *g = &s->products[i];
        const size_t n = mom_slab_columns(s, g), step = column_step(s->x->k, g, s->task_columns);
        const double per_row = (double)mom_min(step, n) * (double)g->k;
        size_t rows;
        for (size_t i0 = 0; n && i0 < g->m; i0 += rows) {
            rows = task_rows(s, g, g->m - i0, left, per_row);
            for (size_t j0 = 0; j0 < n; j0 += step, tasks++)
                if (blocks)
                    blocks[tasks] = (mom_block_task){&products[i], i0, rows, s->begin + j0, mom_min(step, n - j0)};
            left -= (double)rows * (double)n * (double)g->k;
        }
    }
    const size_t unit = s->x->k->gemm.column_unit;
    for (size_t i = 0; i < s->count; i++) {
        const size_t n = s->products[i].k_sums ? mom_slab_columns(s, &s->products[i]) : 0;
        for (size_t j0 = 0; j0 < n; j0 += unit, tasks++)
            if (blocks)
                blocks[tasks] = (mom_block_task){&products[i], 0, 0, s->begin + j0, mom_min(unit, n - j0)};
    }
    return tasks;
}

/* ---- memory */

static mom_slab_sizes measure(const mom_slab *s) {
    const mom_kernels *k = s->x->k;
    mom_slab_sizes sizes = {.blocks = mom_slab_blocks(s, NULL, NULL)};
    for (size_t i = 0; i < s->count; i++) {
        const mom_gemm *g = &s->products[i];
        const size_t n = mom_slab_columns(s, g);
        const size_t depth = mom_items(k, g->precision, mom_block_depth(k, g->precision, g->k));
        const int few = mom_has_few_rows(k, g), in_place = !few && (mom_reads_rows(k, g) || mom_reads_columns(k, g));
        if (!n)
            continue;
        sizes.a = mom_max(sizes.a, (in_place ? k->gemm.mr : mom_block_rows(k, g, g->m)) * depth);
        if (g->finish) {
            const size_t columns = mom_round_up(column_step(k, g, s->task_columns), k->gemm.nr);
            sizes.sums = mom_max(sizes.sums, mom_block_rows(k, g, g->m) * columns);
        }
        if (few) {
            sizes.panel = mom_max(sizes.panel, k->gemm.nr * depth);
        } else if (!g->packed_b) {
            sizes.packs += mom_count_packs(k, g->precision, n, g->k);
            sizes.packed += mom_packed_items(k, g->precision, n, g->k);
        }
    }
    return sizes;
}

#define SPARE_TASKS 32 /* per product: another distribution cuts it into more tasks */

static mom_slab_sizes measure_any_routes(const mom_slab *s) {
    const mom_kernels *k = s->x->k;
    const mom_slab widest = {.begin = s->begin, .width = k->gemm.nc};
    mom_slab_sizes sizes = measure(s);
    size_t rows = 0, steps = 0, all = 0, here = 0;
    for (size_t i = 0; i < s->count; i++) {
        rows += s->products[i].m;
        steps += s->products[i].k;
    }
    for (size_t i = 0; i < s->count; i++) {
        const mom_gemm *g = &s->products[i];
        const size_t depth = mom_items(k, g->precision, mom_min(steps, mom_most_depth(k, g->precision)));
        const int in_place = mom_reads_rows(k, g) || mom_reads_columns(k, g);
        if (g->finish)
            sizes.sums = mom_max(sizes.sums, mom_block_rows(k, g, rows) * k->gemm.column_block);
        sizes.a = mom_max(sizes.a, (in_place ? k->gemm.mr : mom_block_rows(k, g, rows)) * depth);
        sizes.blocks += SPARE_TASKS;
        if (g->packed_b)
            continue;
        const size_t spare = mom_items(k, g->precision, 1) + 1; /* the last pair or chunk of k is not full */
        const size_t items = mom_items(k, g->precision, g->k) + spare;
        sizes.panel = mom_max(sizes.panel, k->gemm.nr * depth);
        sizes.packs += SPARE_TASKS;
        here += mom_round_up(mom_slab_columns(s, g), k->gemm.nr) * items;
        all += mom_round_up(mom_slab_columns(&widest, g), k->gemm.nr) * items;
    }
    if (s->count > 1) /* if fewer products had rows, the slab could be wider, up to this */
        sizes.packed = mom_max(here, mom_min(all, MOM_MOST_PACKED / sizeof(mom_item)));
    return sizes;
}

mom_slab_sizes mom_slab_measure(const mom_slab *s) {
    return s->x->dry_run == MOM_DRY_ANY_ROUTES ? measure_any_routes(s) : measure(s);
}
