/* Code that attention and feed-forward pools share: layers and packing. The router's part of a half is in route.c. */
#include "model/pool.h"

#include "model/sites.h"
#include "ops/elementwise.h"

mom_half mom_half_of(const mom_pass *pass, const mom_pool *pool, const mom_half_saved *saved) {
    const mom_pool_tensors *w = &pool->weight;
    return (mom_half){.exec = pass->exec, .plan = &saved->route.plan, .dtype = pass->config->dtype, .C = pass->config->C,
                      .x = saved->input, .mean = saved->mean, .rstd = saved->rstd,
                      .ln_weight = (const float *const *)w->ln_weight, .ln_bias = (const float *const *)w->ln_bias,
                      .err = pass->err};
}

mom_half_layer mom_half_in_layer(const mom_pool *pool, const mom_packed_pool *packed) {
    const mom_pool_tensors *w = &pool->weight;
    return (mom_half_layer){pool->spec.C, pool->F, (const float *const *)w->in_weight, (const float *const *)w->in_bias,
                            packed->in};
}

mom_half_layer mom_half_out_layer(const mom_pool *pool, const mom_packed_pool *packed) {
    const mom_pool_tensors *w = &pool->weight;
    const size_t C = pool->spec.C, In = pool->kind == MOM_POOL_ATTN ? C : pool->F;
    return (mom_half_layer){In, C, (const float *const *)w->out_weight, (const float *const *)w->out_bias, packed->out};
}

mom_half_gradient mom_half_in_gradient(const mom_pool_gradients *g) {
    mom_half_gradient gradient = {.ln_weight = g->tensors.ln_weight, .ln_bias = g->tensors.ln_bias};
    if (!g->frozen) {
        gradient.weight = g->tensors.in_weight;
        gradient.bias = g->tensors.in_bias;
        gradient.overwrite = g->in_overwrite;
    }
    return gradient;
}

mom_half_gradient mom_half_out_gradient(const mom_pool_gradients *g) {
    return g->frozen ? (mom_half_gradient){0}
                     : (mom_half_gradient){.weight = g->tensors.out_weight, .bias = g->tensors.out_bias,
                                           .overwrite = g->out_overwrite};
}

mom_status mom_plan_needed(const mom_pass *pass, const mom_half_round *at, mom_routing_plan *plan) {
    if (!at->unneeded)
        return mom_routing_plan_init_dense(pass->exec, plan, pass->saved, pass->N, 1, pass->err);
    /* There is one module, number 0, so choice 1 means SKIP. */
    return mom_routing_plan_init(pass->exec, plan, pass->saved, at->unneeded, pass->N, 1, 1, pass->err);
}

mom_status mom_half_start(const mom_pass *pass, const mom_half_round *at, mom_half_saved *saved, const float *state) {
    const mom_pool *pool = mom_half_round_pool(at);
    MOM_ARENA_NEW(saved->mean, pass->saved, pass->N, pass->err);
    MOM_ARENA_NEW(saved->rstd, pass->saved, pass->N, pass->err);
    if (pool->routed)
        return mom_route_forward(pass, at, saved, state);
    if (pool->kind == MOM_POOL_FFN)
        return mom_plan_needed(pass, at, &saved->route.plan);
    return mom_routing_plan_init_dense(pass->exec, &saved->route.plan, pass->saved, pass->N, 1, pass->err);
}

mom_status mom_half_end(const mom_pass *pass, mom_half_saved *saved, float **x_out) {
    saved->end = mom_arena_get_mark(pass->saved);
    if (!*x_out)
        MOM_ARENA_NEW(*x_out, pass->saved, pass->N * pass->config->C, pass->err);
    return MOM_OK;
}

/* ------------------------------------------------------------------ the last layer */

mom_status mom_half_output_forward(const mom_pass *pass, const mom_half_round *at, const mom_half *half,
                                   mom_half_output *output, float *x_out) {
    const mom_half_layer layer = mom_half_out_layer(mom_half_round_pool(at), at->packed);
    const mom_output_parts parts = {half->plan, output->weight, output->dropout};
    mom_output_visit visit;
    MOM_TRY(mom_output_visit_begin(pass, at, &parts, half->x, x_out, &visit));
    output->slots = visit.slots;
    MOM_TRY(mom_half_last_layer(half, x_out, output, &layer));
    return mom_output_visit_end(pass, at, &parts, &visit, x_out);
}

/* *dout: the gradient of a half's output before dropout. It is dx itself without dropout, else it is in the workspace. */
static mom_status output_gradient(const mom_pass *pass, const float **dout, const float *dx, mom_dropout dropout) {
    const size_t n = pass->N * pass->config->C;
    float *masked;
    *dout = dx;
    if (!(dropout.p > 0.0f))
        return MOM_OK;
    MOM_ARENA_NEW(masked, pass->exec->workspace, n, pass->err);
    mom_dropout_apply(pass->exec, masked, dx, dropout, n);
    *dout = masked;
    return MOM_OK;
}

mom_status mom_half_output_backward(const mom_pass *pass, const mom_half_round *at, const mom_half *half,
                                    mom_half_output *output, const mom_half_backward *b, float *dused, void *inner,
                                    void *dinner) {
    const mom_exec *x = pass->exec;
    const mom_half_layer layer = mom_half_out_layer(mom_half_round_pool(at), at->packed);
    const mom_half_gradient gradient = mom_half_out_gradient(b->pool);
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    mom_output_parts parts = {half->plan, output->weight, output->dropout};
    const float *factor, *dout;
    MOM_TRY(mom_output_visit_backward(pass, at, &parts, b->dx, &factor));
    output->weight = parts.weight;
    MOM_TRY(output_gradient(pass, &dout, b->dx, output->dropout));
    MOM_TRY(mom_half_last_layer_backward(half, &gradient, dused, inner, dinner, output, dout, &layer));
    if (dused && factor && !x->dry_run)
        x->k->vec.multiply(dused, dused, factor, pass->N * half->plan->K);
    mom_arena_release(x->workspace, mark);
    return MOM_OK;
}

/* ------------------------------------------------------------------ packing */

static mom_status pack_layer(const mom_pass *pass, const void ***packed, mom_gemm_packing *packings, size_t M,
                             const mom_half_layer *layer, int transposed) {
    const mom_exec *x = pass->exec;
    const mom_dtype precision = pass->config->dtype;
    const size_t n = transposed ? layer->In : layer->Out, k = transposed ? layer->Out : layer->In;
    const void **pointers;
    MOM_ARENA_NEW(pointers, x->workspace, M, pass->err);
    for (size_t m = 0; m < M; m++) {
        void *dst;
        MOM_ARENA_NEW_SIZED(dst, x->workspace, mom_gemm_packed_size(x->k, precision, n, k), 1, pass->err);
        const mom_matrix weight = mom_matrix_rows(layer->weight[m], layer->Out);
        packings[m] = (mom_gemm_packing){dst, transposed ? mom_matrix_flip(weight) : weight, NULL, n, k, precision};
        pointers[m] = dst;
    }
    *packed = pointers;
    return MOM_OK;
}

static mom_status pack_router(const mom_pass *pass, const mom_pool *pool, int transposed, mom_packed_pool *packed) {
    const mom_exec *x = pass->exec;
    const mom_dtype precision = pass->config->dtype;
    const mom_router_tensors *w = &pool->router_weight;
    mom_gemm_packing packings[2] = {mom_router_in_factor(w, &pool->spec, precision, transposed),
                                    mom_router_state_factor(w, &pool->spec, precision, transposed)};
    for (size_t i = 0; i < 2; i++) {
        mom_gemm_packing *p = &packings[i];
        MOM_ARENA_NEW_SIZED(p->dst, x->workspace, mom_gemm_packed_size(x->k, precision, p->n, p->k), 1, pass->err);
    }
    MOM_TRY(mom_gemm_pack(x, packings, 2, pass->err));
    packed->router_in = packings[0].dst;
    packed->router_state = packings[1].dst;
    return MOM_OK;
}

mom_status mom_pool_pack(const mom_pass *pass, const mom_pool *pool, size_t rounds, int transposed, mom_packed_pool *packed) {
    const size_t M = pool->M;
    if (rounds < 2 || pass->N < mom_gemm_least_prepack(pass->exec->k, pass->config->dtype))
        return MOM_OK;
    mom_packed_pool own = {0};
    const mom_half_layer in_layer = mom_half_in_layer(pool, &own), out_layer = mom_half_out_layer(pool, &own);
    mom_gemm_packing *packings;
    MOM_ARENA_NEW(packings, pass->exec->workspace, 2 * M, pass->err);
    MOM_TRY(pack_layer(pass, &own.in, packings, M, &in_layer, transposed));
    MOM_TRY(pack_layer(pass, &own.out, packings + M, M, &out_layer, transposed));
    MOM_TRY(mom_gemm_pack(pass->exec, packings, 2 * M, pass->err));
    if (pool->routed && mom_router_gates(&pool->spec))
        MOM_TRY(pack_router(pass, pool, transposed, &own));
    *packed = own;
    return MOM_OK;
}
