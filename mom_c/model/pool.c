/* What attention and feed-forward pools share: the router's part of a half. */
#include "model/pool.h"

#include <string.h>

#include "ops/balance_loss.h"

mom_dropout mom_run_dropout(const mom_run *run, float p, uint64_t stream) {
    return (mom_dropout){run->training ? p : 0.0f, mom_rng_key(run->seed, run->counter, stream)};
}

/* Whether the balance loss takes probabilities from the softmax of the scores. */
static int balance_softmax(const mom_config *c) { return c->balance_reference || !c->router_softmax; }

static int balance_wanted(const mom_config *c) {
    return c->balance_enabled && !(c->balance_reference && c->num_attn == 1);
}

mom_half mom_half_of(const mom_run *run, const mom_pool *pool, const mom_half_saved *saved) {
    const mom_pool_tensors *w = &pool->weight;
    return (mom_half){run->exec, &saved->route.plan, run->config->dtype, run->config->C, saved->input, saved->mean,
                      saved->rstd, (const float *const *)w->ln_weight, (const float *const *)w->ln_bias, run->err,
                      run->apart};
}

mom_half_layer mom_half_in_layer(const mom_pool *pool) {
    const mom_pool_tensors *w = &pool->weight;
    return (mom_half_layer){pool->spec.C, pool->F, (const float *const *)w->in_weight, (const float *const *)w->in_bias,
                            pool->packed_in};
}

mom_half_layer mom_half_out_layer(const mom_pool *pool) {
    const mom_pool_tensors *w = &pool->weight;
    const size_t C = pool->spec.C;
    return (mom_half_layer){pool->kind == MOM_POOL_ATTN ? C : pool->F, C, (const float *const *)w->out_weight,
                            (const float *const *)w->out_bias, pool->packed_out};
}

mom_half_gradient mom_half_in_gradient(const mom_pool *pool) {
    return pool->frozen ? (mom_half_gradient){0}
                        : (mom_half_gradient){pool->grad.in_weight, pool->grad.in_bias, pool->unset_in};
}

mom_half_gradient mom_half_out_gradient(const mom_pool *pool) {
    return pool->frozen ? (mom_half_gradient){0}
                        : (mom_half_gradient){pool->grad.out_weight, pool->grad.out_bias, pool->unset_out};
}

mom_status mom_plan_needed(const mom_run *run, mom_routing_plan *plan) {
    if (!run->unneeded)
        return mom_routing_plan_init_dense(run->exec, plan, run->saved, run->N, 1, run->err);
    /* 1 is the choice after the only module's: SKIP */
    return mom_routing_plan_init(run->exec, plan, run->saved, run->unneeded, run->N, 1, 1, run->err);
}

mom_status mom_half_start(const mom_run *run, const mom_pool *pool, mom_half_saved *saved, const float *state) {
    MOM_ARENA_NEW(saved->mean, run->saved, run->N, run->err);
    MOM_ARENA_NEW(saved->rstd, run->saved, run->N, run->err);
    if (pool->routed)
        return mom_route_forward(run, pool, saved, state);
    if (pool->kind == MOM_POOL_FFN)
        return mom_plan_needed(run, &saved->route.plan);
    return mom_routing_plan_init_dense(run->exec, &saved->route.plan, run->saved, run->N, 1, run->err);
}

mom_status mom_half_end(const mom_run *run, mom_half_saved *saved, float **x_out) {
    saved->end = mom_arena_get_mark(run->saved);
    if (!*x_out)
        MOM_ARENA_NEW(*x_out, run->saved, run->N * run->config->C, run->err);
    return MOM_OK;
}

static mom_status pack_layer(const mom_run *run, const void ***packed, mom_gemm_packing *packings, size_t M,
                             const mom_half_layer *layer, int transposed) {
    const mom_exec *x = run->exec;
    const mom_dtype precision = run->config->dtype;
    const size_t n = transposed ? layer->In : layer->Out, k = transposed ? layer->Out : layer->In;
    const void **pointers;
    MOM_ARENA_NEW(pointers, x->workspace, M, run->err);
    for (size_t m = 0; m < M; m++) {
        void *dst = mom_arena_alloc(x->workspace, mom_gemm_packed_size(x->k, precision, n, k), 1, run->err);
        if (!dst)
            return MOM_ERR_MEMORY;
        const mom_matrix weight = mom_matrix_rows(layer->weight[m], layer->Out);
        packings[m] = (mom_gemm_packing){dst, transposed ? mom_matrix_flip(weight) : weight, NULL, n, k, precision};
        pointers[m] = dst;
    }
    *packed = pointers;
    return MOM_OK;
}

static mom_status pack_router(const mom_run *run, mom_pool *pool, int transposed) {
    const mom_exec *x = run->exec;
    const mom_dtype precision = run->config->dtype;
    mom_router_tensors *w = &pool->router_weight;
    mom_gemm_packing packings[2] = {mom_router_in_factor(w, &pool->spec, precision, transposed),
                                    mom_router_state_factor(w, &pool->spec, precision, transposed)};
    for (size_t i = 0; i < 2; i++) {
        mom_gemm_packing *p = &packings[i];
        p->dst = mom_arena_alloc(x->workspace, mom_gemm_packed_size(x->k, precision, p->n, p->k), 1, run->err);
        if (!p->dst)
            return MOM_ERR_MEMORY;
    }
    MOM_TRY(mom_gemm_pack(x, packings, 2, run->err));
    w->packed_in = packings[0].dst;
    w->packed_state = packings[1].dst;
    return MOM_OK;
}

mom_status mom_pool_pack(const mom_run *run, mom_pool *pool, size_t rounds, int transposed) {
    const size_t M = pool->M;
    mom_pool_unpack(pool);
    if (rounds < 2 || run->N < mom_gemm_least_prepack(run->exec->k, run->config->dtype))
        return MOM_OK;
    mom_gemm_packing *packings;
    const void **in, **out;
    const mom_half_layer in_layer = mom_half_in_layer(pool), out_layer = mom_half_out_layer(pool);
    MOM_ARENA_NEW(packings, run->exec->workspace, 2 * M, run->err);
    MOM_TRY(pack_layer(run, &in, packings, M, &in_layer, transposed));
    MOM_TRY(pack_layer(run, &out, packings + M, M, &out_layer, transposed));
    MOM_TRY(mom_gemm_pack(run->exec, packings, 2 * M, run->err));
    pool->packed_in = in;
    pool->packed_out = out;
    return pool->routed && mom_router_gates(&pool->spec) ? pack_router(run, pool, transposed) : MOM_OK;
}

void mom_pool_unpack(mom_pool *pool) {
    pool->packed_in = pool->packed_out = NULL;
    pool->router_weight.packed_in = pool->router_weight.packed_state = NULL;
}

mom_status mom_route_room(const mom_run *run, const mom_pool *pool, mom_route *r) {
    const size_t N = run->N, S = pool->S, K = pool->K;
    *r = (mom_route){0};
    MOM_ARENA_NEW(r->scores, run->saved, N * S, run->err);
    MOM_ARENA_NEW(r->index, run->saved, N * K, run->err);
    MOM_ARENA_NEW(r->kept, run->saved, N * K, run->err);
    MOM_ARENA_NEW(r->reached, run->saved, pool->M, run->err);
    if (balance_wanted(run->config) && !run->few_rows) {
        MOM_ARENA_NEW(r->counts, run->saved, S, run->err);
        MOM_ARENA_NEW(r->prob_sums, run->saved, S, run->err);
    }
    return MOM_OK;
}

mom_status mom_route_forward(const mom_run *run, const mom_pool *pool, mom_half_saved *saved, const float *state) {
    const mom_config *c = run->config;
    mom_route *r = &saved->route;
    mom_error *err = run->err;
    const size_t N = run->N, S = pool->S, K = pool->K, R = pool->spec.R, gates = mom_router_gates(&pool->spec);

    if (!r->scores)
        MOM_TRY(mom_route_room(run, pool, r));
    MOM_ARENA_NEW(r->router.hidden, run->saved, N * R, err);
    if (gates) {
        const size_t size = mom_dtype_size(r->router.dtype = c->dtype);
        if (!(r->router.gates = mom_arena_alloc(run->saved, N * gates * R, size, err)) ||
            !(r->router.h_n = mom_arena_alloc(run->saved, N * R, size, err)))
            return MOM_ERR_MEMORY;
    }

    const uint64_t noise = mom_rng_key(run->seed, run->counter, saved->site + MOM_STREAM_NOISE);
    mom_router_spec spec = pool->spec;
    spec.few_rows = run->few_rows;
    MOM_TRY(mom_router_forward(run->exec, r->scores, &r->router, saved->input, state, &pool->router_weight, noise, &spec,
                               N, err));
    mom_router_scores_forward(run->exec, r->scores, r->scores, c->router_softmax, c->temperature, N, S);
    mom_router_topk_forward(run->exec, r->index, r->kept, r->scores, c->router_softmax, N, S, K);

    if (c->all_paths) {
        MOM_TRY(mom_routing_plan_init_dense(run->exec, &r->plan, run->saved, N, pool->M, err));
        MOM_ARENA_NEW(r->used, run->saved, N * pool->M, err);
        mom_copy_rows(run->exec, r->used, pool->M * sizeof(float), r->scores, S * sizeof(float), N, pool->M * sizeof(float));
    } else {
        MOM_TRY(mom_routing_plan_init(run->exec, &r->plan, run->saved, r->index, N, K, pool->M, err));
        r->used = r->kept;
    }
    for (size_t m = 0; m < pool->M; m++)
        r->reached[m] = r->plan.offsets[m + 1] > r->plan.offsets[m];
    if (c->use_ste) {
        const size_t n = N * r->plan.K;
        const float *scores = r->used;
        MOM_ARENA_NEW(r->used, run->saved, n, err);
        if (!run->exec->dry_run)
            mom_router_ste_forward(r->used, scores, n);
    }

    r->tokens = 0.0;
    if (r->counts) {
        memset(r->counts, 0, S * sizeof *r->counts);
        memset(r->prob_sums, 0, S * sizeof *r->prob_sums);
        MOM_TRY(mom_balance_accumulate(run->exec, r->counts, r->prob_sums, &r->tokens, r->scores, run->mask,
                                       balance_softmax(c), N, S, err));
    }
    return MOM_OK;
}

/* dused (n): the gradients of both uses of a weight, each clamped first by the straight-through sign. dused2 may be NULL. */
static void join_uses(const mom_exec *x, float *dused, float *dused2, int straight_through, size_t n) {
    if (straight_through) {
        mom_router_ste_backward(dused, dused, n);
        if (dused2)
            mom_router_ste_backward(dused2, dused2, n);
    }
    if (dused2)
        x->k->vec.add(dused, dused2, n);
}

mom_status mom_route_backward(const mom_run *run, mom_pool *pool, const mom_half_saved *saved, float *dx, float *dused,
                              float *dused2, const float *state, float *dstate, int has_dstate,
                              const mom_balance_terms *balance) {
    const mom_config *c = run->config;
    const mom_route *r = &saved->route;
    const mom_exec *x = run->exec;
    const size_t N = run->N, S = pool->S, n = N * r->plan.K;
    mom_error *err = run->err;

    if (!x->dry_run)
        join_uses(x, dused, dused2, c->use_ste, n);

    float *dscores;
    MOM_ARENA_NEW(dscores, x->workspace, N * S, err);
    mom_zero(x, dscores, N * S * sizeof *dscores);
    if (c->all_paths) {
        mom_copy_rows(x, dscores, S * sizeof(float), dused, pool->M * sizeof(float), N, pool->M * sizeof(float));
    } else {
        mom_router_topk_backward(x, dscores, dused, r->index, r->kept, r->scores, c->router_softmax, N, S, pool->K);
    }
    if (balance->active)
        mom_balance_backward(x, dscores, r->scores, run->mask, balance->counts, balance->count_tokens, balance->tokens,
                             balance->scale, balance_softmax(c), N, S);
    mom_router_scores_backward(x, dscores, dscores, r->scores, c->router_softmax, c->temperature, N, S);

    const uint64_t noise = mom_rng_key(run->seed, run->counter, saved->site + MOM_STREAM_NOISE);
    return mom_router_backward(x, dx, state ? dstate : NULL, &pool->router_grad, dscores, has_dstate ? dstate : NULL,
                               saved->input, state, &r->router, &pool->router_weight, noise, &pool->spec, N, err);
}
