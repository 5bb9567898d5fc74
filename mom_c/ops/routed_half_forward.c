#include "ops/routed_half_parts.h"

#include <string.h>

static mom_status first_layer(const mom_layer_part *parts, size_t count, void *out, mom_dtype out_dtype, int by_token,
                              const float *weight, const mom_half_layer *layer) {
    const size_t width = layer->Out;
    const mom_arena_mark mark = mom_arena_get_mark(parts->half.exec->workspace);
    mom_half_products list;
    MOM_TRY(mom_half_products_init(&list, &parts->half, count * parts->half.plan->M));
    for (const mom_layer_part *part = parts; part < parts + count; part++) {
        const mom_half *half = &part->half;
        const mom_routing_plan *plan = half->plan;
        const size_t begin = part->begin;
        for (size_t m = 0; m < plan->M; m++) {
            if (!mom_module_slots(plan, m))
                continue;
            mom_gemm *g = mom_half_add_product(&list, half, m, mom_module_slots(plan, m), part->end - begin, layer->In);
            g->a = mom_half_normed_rows(&list, g, half, m);
            g->b = mom_matrix_rows(layer->weight[m] + begin, width);
            g->packed_b = count > 1 ? NULL : mom_packed_of(layer, m);
            g->bias = layer->bias[m] + begin;
            if (by_token || out_dtype != MOM_F32 || weight) {
                const mom_half_block block = {.half = half, .width = width, .out_dtype = out_dtype, .by_token = by_token,
                                              .out = mom_half_at(out, out_dtype, 0, width, begin), .weight = weight};
                mom_half_set_finish(&list, g, mom_half_finish_store, m, block);
            } else {
                g->c = mom_half_at(out, MOM_F32, (size_t)plan->offsets[m], width, begin);
                g->ldc = width;
            }
        }
    }
    MOM_TRY(mom_half_run_products(&parts->half, &list));
    mom_arena_release(parts->half.exec->workspace, mark);
    return MOM_OK;
}

mom_status mom_half_first_layer(const mom_half *half, void *out, mom_dtype out_dtype, int by_token, const float *weight,
                                const mom_half_layer *layer) {
    const mom_layer_part whole_layer = {*half, 0, layer->Out};
    return first_layer(&whole_layer, 1, out, out_dtype, by_token, weight, layer);
}

mom_status mom_half_first_layer_split(const mom_half *half, const mom_routing_plan *some, size_t columns, void *out,
                                      mom_dtype out_dtype, const mom_half_layer *layer) {
    mom_layer_part parts[2];
    mom_split_layer(parts, half, some, columns, layer);
    return first_layer(parts, 2, out, out_dtype, 1, NULL, layer);
}

typedef struct {
    const mom_half *half;
    float *x_out;
} copy_job;

/* Tokens without a slot keep their row of the residual stream. */
static void copy_skipped_task(const void *context, size_t begin, size_t end) {
    const copy_job *job = context;
    const mom_routing_plan *plan = job->half->plan;
    const size_t C = job->half->C;
    for (size_t t = begin; t < end; t++)
        if (!plan->K || plan->slot[t] < 0)
            memcpy(job->x_out + t * C, job->half->x + t * C, C * sizeof(float));
}

mom_status mom_half_last_layer(const mom_half *half, float *x_out, const mom_half_output *output,
                               const mom_half_layer *layer) {
    const mom_arena_mark mark = mom_arena_get_mark(half->exec->workspace);
    const mom_exec *x = half->exec;
    const mom_routing_plan *plan = half->plan;
    const size_t C = layer->Out;
    const mom_half_block residual = {.half = half, .width = C, .out = x_out, .weight = output->weight,
                                     .dropout = output->dropout, .slots = output->slots};
    mom_half_products list;
    float *y = output->slots;
    MOM_TRY(mom_half_products_init(&list, half, plan->M));
    if (plan->K > 1 && !y)
        MOM_ARENA_NEW(y, x->workspace, plan->slots * C, half->err);
    for (size_t m = 0; m < plan->M; m++) {
        if (!mom_module_slots(plan, m))
            continue;
        mom_gemm *g = mom_half_add_product(&list, half, m, mom_module_slots(plan, m), C, layer->In);
        g->a = mom_rows_of(plan, m, output->inner, half->dtype, layer->In, output->by_token);
        g->a.gelu = output->gelu;
        g->b = mom_matrix_rows(layer->weight[m], C);
        g->packed_b = mom_packed_of(layer, m);
        g->bias = layer->bias[m];
        if (plan->K > 1) {
            g->c = y + (size_t)plan->offsets[m] * C;
            g->ldc = C;
        } else {
            mom_half_set_finish(&list, g, mom_half_finish_residual, m, residual);
        }
    }
    MOM_TRY(mom_half_run_products(half, &list));
    if (plan->K > 1) {
        mom_half_mix_job job = {.half = half, .out = x_out, .x = half->x, .y = y, .weight = output->weight,
                                .dropout = output->dropout, .width = C};
        MOM_TRY(mom_half_run_mix(&job));
    } else if (x_out != half->x && plan->slots < plan->N) {
        const copy_job job = {half, x_out};
        mom_parallel_rows(x, plan->N, MOM_TASK_ROWS, copy_skipped_task, &job);
    }
    mom_arena_release(half->exec->workspace, mark);
    return MOM_OK;
}
