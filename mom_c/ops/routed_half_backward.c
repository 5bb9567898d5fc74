#include "ops/routed_half_parts.h"

#include "ops/layernorm.h"

/* Scores by slot, or NULL without scores. */
static mom_status new_slot_scale(float **slot_scale, const mom_half *half, const float *weight) {
    *slot_scale = NULL;
    if (!weight)
        return MOM_OK;
    MOM_ARENA_NEW(*slot_scale, half->exec->workspace, half->plan->slots, half->err);
    mom_routed_slot_scale(half->exec, *slot_scale, weight, half->plan);
    return MOM_OK;
}

static const float *module_scale(const mom_routing_plan *plan, const float *slot_scale, size_t m) {
    return slot_scale ? slot_scale + plan->offsets[m] : NULL;
}

/* Product g computes columns from `column` on of a weight's gradient (In, width), and of its bias' gradient. */
static void set_gradient(mom_gemm *g, const mom_half_gradient *gradient, size_t m, size_t width, size_t column) {
    g->c = gradient->weight[m] + column;
    g->ldc = width;
    g->accumulate = !gradient->overwrite || !gradient->overwrite[m];
    g->k_sums = gradient->bias[m] + column;
}

/* After the products: the gradients of modules with slots are what memory holds. */
static void gradients_are_set(const mom_exec *x, const mom_half_gradient *gradient, const mom_routing_plan *plan) {
    for (size_t m = 0; m < plan->M && gradient->overwrite && !x->dry_run; m++)
        if (mom_module_slots(plan, m))
            gradient->overwrite[m] = 0;
}

/* ---- last layer */

/* Arguments of mom_half_last_layer_backward, and what it computes from them. */
typedef struct {
    const mom_half_gradient *gradient;
    void *inner, *dinner;
    const mom_half_output *output;
    const float *dout;
    const mom_half_layer *layer;
    float *slot_scale;
    float *partial; /* of the gradients of scores, or NULL */
    float *dslots;  /* gradients of inputs by slot, if tokens have several and GELU does not take them; or NULL */
} last_layer;

static void list_last_weights(mom_half_products *list, const mom_half *half, const last_layer *l) {
    const mom_routing_plan *plan = half->plan;
    const size_t In = l->layer->In, C = l->layer->Out;
    for (size_t m = 0; m < plan->M; m++) {
        const size_t slots = mom_module_slots(plan, m);
        if (!slots || !l->gradient->weight)
            continue;
        mom_gemm *g = mom_half_add_product(list, half, m, In, C, slots);
        g->a = mom_matrix_flip(mom_rows_of(plan, m, l->inner, half->dtype, In, l->output->by_token));
        g->a.gelu = l->output->gelu;
        g->b = mom_token_rows(plan, m, l->dout, MOM_F32, C);
        g->k_scale = module_scale(plan, l->slot_scale, m);
        set_gradient(g, l->gradient, m, C, 0);
    }
}

static void list_last_inputs(mom_half_products *list, const mom_half *half, const last_layer *l) {
    const mom_routing_plan *plan = half->plan;
    const size_t In = l->layer->In, C = l->layer->Out;
    const mom_half_block shared = {.half = half, .width = In, .inner = l->inner, .weight = l->output->weight,
                                   .partial = l->partial, .blocks = mom_column_blocks(half, In),
                                   .out = l->dslots ? l->dslots : l->dinner,
                                   .out_dtype = l->dslots ? MOM_F32 : half->dtype, .by_token = !l->dslots};
    for (size_t m = 0; m < plan->M; m++) {
        if (!mom_module_slots(plan, m))
            continue;
        mom_gemm *g = mom_half_add_product(list, half, m, mom_module_slots(plan, m), In, C);
        g->a = mom_token_rows(plan, m, l->dout, MOM_F32, C);
        g->b = mom_matrix_transposed(l->layer->weight[m], C);
        g->packed_b = mom_packed_of(l->layer, m);
        mom_half_set_finish(list, g, l->output->gelu ? mom_half_finish_gelu_backward : mom_half_finish_scored, m, shared);
    }
}

static mom_status last_layer_backward(const mom_half *half, last_layer *l, float *dscore) {
    const mom_exec *x = half->exec;
    const mom_routing_plan *plan = half->plan;
    const size_t In = l->layer->In, C = l->layer->Out, blocks = mom_column_blocks(half, In);
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    mom_half_products list;
    MOM_TRY(mom_half_products_init(&list, half, 2 * plan->M));
    MOM_TRY(new_slot_scale(&l->slot_scale, half, l->output->weight));
    list_last_weights(&list, half, l);
    if (l->output->gelu) /* the products below replace its inputs */
        MOM_TRY(mom_half_run_products(half, &list));
    if (dscore)
        MOM_ARENA_NEW(l->partial, x->workspace, plan->slots * blocks, half->err);
    if (plan->K > 1 && !l->output->gelu)
        MOM_ARENA_NEW(l->dslots, x->workspace, plan->slots * In, half->err);
    list_last_inputs(&list, half, l);
    MOM_TRY(mom_half_run_products(half, &list));
    gradients_are_set(x, l->gradient, plan);
    if (l->dslots)
        MOM_TRY(mom_half_mix(half, l->dinner, half->dtype, l->dslots, NULL, In));
    if (dscore) {
        const mom_half_score_job job = {half, dscore, l->partial, blocks, l->dout, MOM_F32, 1, l->layer->bias, C};
        mom_half_run_score(&job);
    }
    mom_arena_release(x->workspace, mark);
    return MOM_OK;
}

mom_status mom_half_last_layer_backward(const mom_half *half, const mom_half_gradient *gradient, float *dscore, void *inner,
                                        void *dinner, const mom_half_output *output, const float *dout,
                                        const mom_half_layer *layer) {
    last_layer l = {.gradient = gradient, .inner = inner, .dinner = dinner, .output = output, .dout = dout, .layer = layer};
    return last_layer_backward(half, &l, dscore);
}

/* ---- first layer */

/* Arguments of mom_half_first_layer_backward or its split variant, and values computed from the arguments. */
typedef struct {
    const mom_layer_part *parts;
    size_t count;
    const mom_half_gradient *gradient;
    const void *dout;
    int by_token;
    const float *weight;
    const mom_half_layer *layer;
    float *slot_scale;
    float *partial; /* of the gradients of scores, or NULL */
    float *dxn;     /* (slots, C): gradients of the normalised inputs */
} first_layer;

/* The part's columns of dout, rows of module m. */
static mom_matrix part_rows(const first_layer *f, const mom_layer_part *part, size_t m) {
    const mom_half *half = &part->half;
    const size_t width = f->layer->Out;
    return mom_rows_of(half->plan, m, mom_half_at(f->dout, half->dtype, 0, width, part->begin), half->dtype, width, f->by_token);
}

static void list_first_weights(mom_half_products *list, const first_layer *f, const mom_layer_part *part) {
    const mom_half *half = &part->half;
    for (size_t m = 0; m < half->plan->M; m++) {
        const size_t slots = mom_module_slots(half->plan, m);
        if (!slots || !f->gradient->weight)
            continue;
        mom_gemm *g = mom_half_add_product(list, half, m, f->layer->In, part->end - part->begin, slots);
        g->a = mom_matrix_flip(mom_half_normed_rows(list, g, half, m));
        g->b = part_rows(f, part, m);
        g->k_scale = module_scale(half->plan, f->slot_scale, m);
        set_gradient(g, f->gradient, m, f->layer->Out, part->begin);
    }
}

/* The last part writes dxn; another one is added to it afterwards. */
static void list_first_inputs(mom_half_products *list, const first_layer *f, const mom_layer_part *part) {
    const mom_half *half = &part->half;
    const size_t C = f->layer->In;
    const int last = part + 1 == f->parts + f->count;
    for (size_t m = 0; m < half->plan->M; m++) {
        if (!mom_module_slots(half->plan, m))
            continue;
        mom_gemm *g = mom_half_add_product(list, half, m, mom_module_slots(half->plan, m), C, part->end - part->begin);
        g->a = part_rows(f, part, m);
        g->b = mom_matrix_transposed(f->layer->weight[m] + part->begin, f->layer->Out);
        g->packed_b = f->count > 1 ? NULL : mom_packed_of(f->layer, m);
        const mom_half_block block = {.half = half, .width = C, .out = f->dxn, .weight = f->weight, .partial = f->partial,
                                      .blocks = mom_column_blocks(half, C)};
        if (f->weight) {
            mom_half_set_finish(list, g, mom_half_finish_scored_norm, m, block);
        } else if (!last) {
            mom_half_set_finish(list, g, mom_half_finish_add, m, block);
        } else {
            g->c = f->dxn + (size_t)half->plan->offsets[m] * C;
            g->ldc = C;
        }
    }
}

static mom_status through_layernorm(const mom_half *half, const first_layer *f, float *dx) {
    const mom_routing_plan *plan = half->plan;
    const mom_normed_rows rows = {half->x, half->mean, half->rstd, plan->N, f->layer->In};
    float *const *dweight = f->gradient->ln_weight, *const *dbias = f->gradient->ln_bias;
    if (plan->M == 1 && mom_has_all_tokens(plan, 0))
        return mom_layernorm_backward(half->exec, dx, dweight[0], dbias[0], f->dxn, half->ln_weight[0], &rows, half->err);
    mom_routed_layernorm_backward(half->exec, dx, dweight, dbias, f->dxn, &rows, half->ln_weight, plan);
    return MOM_OK;
}

static mom_status first_layer_backward(first_layer *f, float *dx, float *dscore) {
    const mom_half *half = &f->parts[f->count - 1].half;
    const mom_exec *x = half->exec;
    const mom_routing_plan *plan = half->plan;
    const size_t C = f->layer->In, blocks = mom_column_blocks(half, C);
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    mom_half_products list;
    MOM_TRY(mom_half_products_init(&list, half, 2 * f->count * plan->M));
    MOM_TRY(new_slot_scale(&f->slot_scale, half, f->weight));
    for (size_t i = 0; i < f->count; i++)
        list_first_weights(&list, f, &f->parts[i]);
    MOM_ARENA_NEW(f->dxn, x->workspace, plan->slots * C, half->err);
    if (f->weight)
        MOM_ARENA_NEW(f->partial, x->workspace, plan->slots * blocks, half->err);
    for (size_t i = f->count; i-- > 0;) {
        list_first_inputs(&list, f, &f->parts[i]);
        MOM_TRY(mom_half_run_products(half, &list));
    }
    gradients_are_set(x, f->gradient, plan);
    if (f->weight) {
        const mom_half_score_job job = {half, dscore, f->partial, blocks, f->dout, half->dtype, f->by_token, f->layer->bias,
                                        f->layer->Out};
        mom_half_run_score(&job);
    }
    MOM_TRY(through_layernorm(half, f, dx));
    mom_arena_release(x->workspace, mark);
    return MOM_OK;
}

mom_status mom_half_first_layer_backward(const mom_half *half, const mom_half_gradient *gradient, float *dx, float *dscore,
                                          const void *dout, int by_token, const float *weight, const mom_half_layer *layer) {
    const mom_layer_part whole_layer = {*half, 0, layer->Out};
    first_layer f = {.parts = &whole_layer, .count = 1, .gradient = gradient, .dout = dout, .by_token = by_token,
                     .weight = weight, .layer = layer};
    return first_layer_backward(&f, dx, dscore);
}

mom_status mom_half_first_layer_split_backward(const mom_half *half, const mom_routing_plan *some, size_t columns,
                                               const mom_half_gradient *gradient, float *dx, const void *dout,
                                               const mom_half_layer *layer) {
    mom_layer_part parts[2];
    mom_split_layer(parts, half, some, columns, layer);
    first_layer f = {.parts = parts, .count = 2, .gradient = gradient, .dout = dout, .by_token = 1, .layer = layer};
    return first_layer_backward(&f, dx, NULL);
}
