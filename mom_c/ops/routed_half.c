/* What forward and backward of a half-round share: passes over its tokens and slots, and lists of products. */
#include "ops/routed_half_parts.h"

#include <string.h>

/* ---- passes over tokens and slots */

static void mix_task(void *context, size_t task, int thread) {
    const mom_half_mix_job *job = context;
    const mom_kernels *k = job->half->exec->k;
    const mom_routing_plan *plan = job->half->plan;
    const size_t width = job->width;
    float *row = job->rows + (size_t)thread * width;
    size_t begin, end;
    mom_range(plan->N, mom_div_up(plan->N, MOM_TASK_ROWS), task, &begin, &end);
    for (size_t t = begin; t < end; t++) {
        memset(row, 0, width * sizeof *row);
        for (size_t i = t * plan->K; i < (t + 1) * plan->K; i++)
            if (plan->slot[i] >= 0)
                k->vec.axpy(row, job->weight ? job->weight[i] : 1.0f, job->y + (size_t)plan->slot[i] * width, width);
        if (job->dropout.p > 0.0f)
            k->vec.dropout(row, row, job->dropout, (uint64_t)t * width, width);
        if (job->x)
            k->vec.add(row, job->x + t * width, width);
        mom_half_store_row(k, mom_half_at(job->out, job->out_dtype, t, width, 0), job->out_dtype, row, 1.0f, width);
    }
}

mom_status mom_half_run_mix(mom_half_mix_job *job) {
    const mom_exec *x = job->half->exec;
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    MOM_ARENA_NEW(job->rows, x->workspace, (size_t)x->threads * job->width, job->half->err);
    mom_parallel_for(x, mom_div_up(job->half->plan->N, MOM_TASK_ROWS), mix_task, job);
    mom_arena_release(x->workspace, mark);
    return MOM_OK;
}

mom_status mom_half_mix(const mom_half *half, void *out, mom_dtype out_dtype, const float *y, const float *weight,
                        size_t width) {
    mom_half_mix_job job = {.half = half, .out = out, .out_dtype = out_dtype, .y = y, .weight = weight, .width = width};
    return mom_half_run_mix(&job);
}

static void score_task(const void *context, size_t begin, size_t end) {
    const mom_half_score_job *job = context;
    const mom_kernels *k = job->half->exec->k;
    const mom_routing_plan *plan = job->half->plan;
    float buffer[MOM_MOST_COLUMNS];
    size_t m = 0;
    for (size_t s = begin; s < end; s++) {
        while ((size_t)plan->offsets[m + 1] <= s)
            m++;
        const size_t t = (size_t)plan->token[s];
        float sum = 0.0f;
        for (size_t b = 0; b < job->blocks; b++)
            sum += job->partial[s * job->blocks + b];
        for (size_t j = 0; j < job->Out; j += k->gemm.column_block) {
            const size_t n = mom_min(job->Out - j, k->gemm.column_block);
            const void *row = mom_half_at(job->dout, job->dtype, job->by_token ? t : s, job->Out, j);
            sum += k->vec.dot(mom_half_load_row(k, buffer, row, job->dtype, n), job->bias[m] + j, n);
        }
        job->dscore[t * plan->K + (size_t)plan->choice[s]] += sum;
    }
}

void mom_half_run_score(const mom_half_score_job *job) {
    mom_parallel_rows(job->half->exec, job->half->plan->slots, MOM_TASK_ROWS, score_task, job);
}

/* ---- lists of products */

mom_status mom_half_products_init(mom_half_products *list, const mom_half *half, size_t most) {
    mom_arena *arena = half->exec->workspace;
    MOM_ARENA_NEW(list->products, arena, most, half->err);
    MOM_ARENA_NEW(list->blocks, arena, most, half->err);
    MOM_ARENA_NEW(list->norms, arena, most, half->err);
    list->count = 0;
    return MOM_OK;
}

/* How many slots of a module are padding's, if the pass counts its work. */
static size_t padding_slots(const mom_half *half, size_t module) {
    const mom_counts *counts = half->exec->counts;
    const mom_routing_plan *plan = half->plan;
    size_t padding = 0;
    for (int32_t s = plan->offsets[module]; counts && counts->mask && s < plan->offsets[module + 1]; s++)
        padding += !counts->mask[plan->token[s]];
    return padding;
}

mom_gemm *mom_half_add_product(mom_half_products *list, const mom_half *half, size_t module, size_t m, size_t n, size_t k) {
    mom_gemm *g = &list->products[list->count++];
    *g = (mom_gemm){.m = m, .n = n, .k = k, .precision = half->dtype,
                    .uncounted = m * n * k / mom_module_slots(half->plan, module) * padding_slots(half, module)};
    return g;
}

void mom_half_set_finish(mom_half_products *list, mom_gemm *g, mom_gemm_finish finish, size_t m, mom_half_block block) {
    mom_half_block *own = &list->blocks[g - list->products];
    block.m = m;
    block.first = (size_t)block.half->plan->offsets[m];
    *own = block;
    g->finish = finish;
    g->whole_blocks = block.partial != NULL;
    g->context = own;
}

mom_matrix mom_half_normed_rows(mom_half_products *list, const mom_gemm *g, const mom_half *half, size_t m) {
    mom_gemm_norm *own = &list->norms[g - list->products];
    *own = (mom_gemm_norm){half->mean, half->rstd, half->ln_weight[m], half->ln_bias[m]};
    mom_matrix rows = mom_token_rows(half->plan, m, half->x, MOM_F32, half->C);
    rows.norm = own;
    return rows;
}

mom_status mom_half_run_products(const mom_half *half, mom_half_products *list) {
    const size_t count = list->count;
    list->count = 0;
    return mom_gemm_run(half->exec, list->products, count, half->err);
}

void mom_split_layer(mom_layer_part parts[2], const mom_half *half, const mom_routing_plan *some, size_t columns,
                     const mom_half_layer *layer) {
    parts[0] = (mom_layer_part){*half, 0, columns};
    parts[0].half.plan = some;
    parts[1] = (mom_layer_part){*half, columns, layer->Out};
}
