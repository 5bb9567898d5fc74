#include "gemm/packing.h"

void mom_pack_columns(const mom_kernels *k, const mom_pack_task *t) {
    const mom_matrix columns = mom_matrix_flip(*t->b);
    mom_item *dst = t->dst + mom_items(k, t->precision, t->p0) * t->columns + t->j0 * mom_items(k, t->precision, t->kc);
    k->pack.factor(dst, t->precision, k->gemm.nr, &columns, t->k_scale, t->first_column + t->j0, t->n, t->p0, t->kc);
}

size_t mom_count_packs(const mom_kernels *k, mom_dtype precision, size_t n, size_t kk) {
    return kk ? mom_div_up(n, k->gemm.column_unit) * mom_div_up(kk, mom_block_depth(k, precision, kk)) : 0;
}

size_t mom_list_packs(const mom_kernels *k, mom_pack_task *tasks, const mom_pack_task *shared, size_t n, size_t kk) {
    const size_t depth = mom_block_depth(k, shared->precision, kk);
    size_t count = 0;
    for (size_t p0 = 0; p0 < kk; p0 += depth) {
        for (size_t j0 = 0; j0 < n; j0 += k->gemm.column_unit) {
            mom_pack_task *task = &tasks[count++];
            *task = *shared;
            task->p0 = p0;
            task->kc = mom_min(depth, kk - p0);
            task->j0 = j0;
            task->n = mom_min(k->gemm.column_unit, n - j0);
            task->columns = mom_round_up(n, k->gemm.nr);
        }
    }
    return count;
}

/* ---- factors that are packed before their products */

size_t mom_gemm_packed_size(const mom_kernels *k, mom_dtype precision, size_t n, size_t kk) {
    return mom_packed_items(k, precision, n, kk) * sizeof(mom_item);
}

typedef struct {
    const mom_kernels *k;
    const mom_pack_task *tasks;
} pack_job;

static void pack_task(void *context, size_t task, int thread) {
    const pack_job *job = context;
    (void)thread;
    mom_pack_columns(job->k, &job->tasks[task]);
}

mom_status mom_gemm_pack(const mom_exec *x, const mom_gemm_packing *packings, size_t count, mom_error *err) {
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    size_t most = 0, used = 0;
    mom_pack_task *tasks;
    for (size_t i = 0; i < count; i++)
        most += mom_count_packs(x->k, packings[i].precision, packings[i].n, packings[i].k);
    MOM_ARENA_NEW(tasks, x->workspace, most, err);
    for (size_t i = 0; i < count; i++) {
        const mom_gemm_packing *p = &packings[i];
        const mom_pack_task shared = {.dst = p->dst, .b = &p->b, .k_scale = p->k_scale, .precision = p->precision};
        used += mom_list_packs(x->k, tasks + used, &shared, p->n, p->k);
    }
    pack_job job = {x->k, tasks};
    mom_parallel_for(x, used, pack_task, &job);
    mom_arena_release(x->workspace, mark);
    return MOM_OK;
}
