/* Attention half: route, mix q, k, v of the chosen modules, one attention over the whole sequence, project the heads
 * by the chosen modules, add to the residual stream.
 *
 * Shapes  x (N, C); slots are (token, module) pairs, see routing_plan.h
 * Maths   qkv[t] = sum over chosen m of (w_tm if weighted_qkv) (LN_m(x_t) W_m + b_m)
 *         x[t]  += sum over chosen m of w_tm (heads_t P_m + p_m)
 * Backward uses the same pass names in reverse. LayerNorm outputs are computed again, not kept.
 */
#include <string.h>

#include "model/pool.h"
#include "ops/attention.h"
#include "ops/embedding.h"
#include "ops/layernorm.h"
#include "ops/linear.h"

#include <math.h>

static mom_attention_spec attention_spec(const mom_run *run, const mom_half_saved *saved) {
    const mom_config *c = run->config;
    const float scale = c->scale_attention ? 1.0f / sqrtf((float)(c->C / c->H)) : 1.0f;
    return (mom_attention_spec){.B = run->B, .T = run->T, .C = c->C, .H = c->H, .scale = scale,
                                .masked_query = c->masked_query,
                                .dropout = mom_run_dropout(run, c->attn_pdrop, saved->site + MOM_STREAM_ATTENTION)};
}

/* saved->active: tokens with a slot; the others take no part in attention but for their share of the softmax. */
static mom_status find_active(const mom_run *run, mom_half_saved *saved) {
    const mom_routing_plan *plan = &saved->route.plan;
    if (plan->slots == plan->N * plan->K)
        return MOM_OK;
    MOM_ARENA_NEW(saved->active, run->saved, plan->N, run->err);
    memset(saved->active, 0, plan->N);
    for (size_t s = 0; s < plan->slots; s++)
        saved->active[plan->token[s]] = 1;
    return MOM_OK;
}

#define CONST_ARRAY(p) ((const float *const *)(p))

/* mixed q, k, v (N, 3C) of the chosen modules */
static mom_status mix_qkv(const mom_run *run, const mom_pool *pool, mom_half_saved *saved) {
    const mom_exec *x = run->exec;
    const mom_pool_tensors *w = &pool->weight;
    const size_t N = run->N, C = run->config->C;
    float *xn, *y;
    if (!pool->routed) {
        MOM_ARENA_NEW(xn, x->workspace, N * C, run->err);
        mom_layernorm_forward(x, xn, saved->mean, saved->rstd, saved->input, w->ln_weight[0], w->ln_bias[0],
                              run->config->ln_eps, N, C);
        return mom_linear_forward(x, saved->inner, xn, w->in_weight[0], w->in_bias[0], MOM_WEIGHT_IN_OUT, 0, N, C,
                                  3 * C, run->err);
    }
    const mom_route *r = &saved->route;
    mom_layernorm_stats(x, saved->mean, saved->rstd, saved->input, run->config->ln_eps, N, C);
    MOM_ARENA_NEW(xn, x->workspace, r->plan.slots * C, run->err);
    MOM_ARENA_NEW(y, x->workspace, r->plan.slots * 3 * C, run->err);
    mom_routed_layernorm_forward(x, xn, saved->input, saved->mean, saved->rstd, CONST_ARRAY(w->ln_weight),
                                 CONST_ARRAY(w->ln_bias), &r->plan, C);
    MOM_TRY(mom_routed_linear_forward(x, y, xn, 0, CONST_ARRAY(w->in_weight), CONST_ARRAY(w->in_bias), &r->plan, C,
                                      3 * C, run->err));
    mom_routed_combine_forward(x, saved->inner, y, run->config->weighted_qkv ? r->used : NULL, &r->plan, 3 * C, 0);
    return MOM_OK;
}

/* out (N, C) += projection of the heads */
static mom_status project(const mom_run *run, const mom_pool *pool, const mom_half_saved *saved, float *out) {
    const mom_exec *x = run->exec;
    const mom_pool_tensors *w = &pool->weight;
    const size_t N = run->N, C = run->config->C;
    if (!pool->routed)
        return mom_linear_forward(x, out, saved->heads, w->out_weight[0], w->out_bias[0], MOM_WEIGHT_IN_OUT, 1, N, C, C,
                                  run->err);
    const mom_route *r = &saved->route;
    float *y;
    MOM_ARENA_NEW(y, x->workspace, r->plan.slots * C, run->err);
    MOM_TRY(mom_routed_linear_forward(x, y, saved->heads, 1, CONST_ARRAY(w->out_weight), CONST_ARRAY(w->out_bias),
                                      &r->plan, C, C, run->err));
    mom_routed_combine_forward(x, out, y, r->used, &r->plan, C, 1);
    return MOM_OK;
}

static mom_status forward(const mom_run *run, const mom_pool *pool, mom_half_saved *saved, float *x_out,
                          const float *x_in, const float *state) {
    const mom_config *c = run->config;
    const size_t N = run->N, C = c->C;
    mom_error *err = run->err;
    saved->input = x_in;
    MOM_ARENA_NEW(saved->mean, run->saved, N, err);
    MOM_ARENA_NEW(saved->rstd, run->saved, N, err);
    MOM_ARENA_NEW(saved->inner, run->saved, N * 3 * C, err);
    MOM_ARENA_NEW(saved->heads, run->saved, N * C, err);
    MOM_ARENA_NEW(saved->lse, run->saved, N * c->H, err);

    saved->active = NULL;
    if (pool->routed) {
        MOM_TRY(mom_route_forward(run, pool, saved, state));
        MOM_TRY(find_active(run, saved));
    }
    MOM_TRY(mix_qkv(run, pool, saved));
    const mom_attention_spec spec = attention_spec(run, saved);
    MOM_TRY(mom_attention_forward(run->exec, saved->heads, saved->lse, saved->inner, run->mask, saved->active, &spec,
                                  err));

    const mom_dropout dropout = mom_run_dropout(run, c->resid_pdrop, saved->site + MOM_STREAM_OUTPUT);
    if (x_out != x_in)
        memcpy(x_out, x_in, N * C * sizeof *x_out);
    if (dropout.p == 0.0f)
        return project(run, pool, saved, x_out);
    float *out;
    MOM_ARENA_NEW(out, run->exec->workspace, N * C, err);
    memset(out, 0, N * C * sizeof *out);
    MOM_TRY(project(run, pool, saved, out));
    mom_dropout_apply(run->exec, out, out, dropout, N * C);
    run->exec->k->add(x_out, out, N * C);
    return MOM_OK;
}

mom_status mom_attention_pool_forward(const mom_run *run, const mom_pool *pool, mom_half_saved *saved, float *x_out,
                                      const float *x_in, const float *state) {
    const mom_arena_mark mark = mom_arena_get_mark(run->exec->workspace);
    const mom_status status = forward(run, pool, saved, x_out, x_in, state);
    mom_arena_release(run->exec->workspace, mark);
    return status;
}

/* Backward of project: dheads (N, C); dused (N, K) gradient of the weights through this use. */
static mom_status project_backward(const mom_run *run, mom_pool *pool, const mom_half_saved *saved, float *dheads,
                                   float *dused, const float *dout) {
    const mom_exec *x = run->exec;
    const mom_pool_tensors *w = &pool->weight, *g = &pool->grad;
    const size_t N = run->N, C = run->config->C;
    if (!pool->routed) {
        MOM_TRY(mom_linear_backward_input(x, dheads, dout, w->out_weight[0], MOM_WEIGHT_IN_OUT, 0, N, C, C, run->err));
        return mom_linear_backward_weight(x, g->out_weight[0], g->out_bias[0], saved->heads, dout, MOM_WEIGHT_IN_OUT, N,
                                          C, C, run->err);
    }
    const mom_route *r = &saved->route;
    float *dh, *slot_scale;
    MOM_ARENA_NEW(dh, x->workspace, r->plan.slots * C, run->err);
    MOM_ARENA_NEW(slot_scale, x->workspace, r->plan.slots, run->err);
    mom_routed_slot_scale(slot_scale, r->used, &r->plan);
    MOM_TRY(mom_routed_linear_backward_input(x, dh, dout, 1, CONST_ARRAY(w->out_weight), &r->plan, C, C, run->err));
    mom_routed_score_backward(x, dused, dh, saved->heads, 1, dout, CONST_ARRAY(w->out_bias), r->used, &r->plan, C, C);
    MOM_TRY(mom_routed_linear_backward_weight(x, g->out_weight, g->out_bias, saved->heads, 1, dout, 1, slot_scale,
                                              &r->plan, C, C, run->err));
    mom_routed_combine_forward(x, dheads, dh, NULL, &r->plan, C, 0);
    return MOM_OK;
}

/* Backward of mix_qkv: dx (N, C) added to; dused (N, K) only with weighted_qkv. */
static mom_status mix_qkv_backward(const mom_run *run, mom_pool *pool, const mom_half_saved *saved, float *dx,
                                   float *dused, const float *dqkv) {
    const mom_exec *x = run->exec;
    const mom_pool_tensors *w = &pool->weight, *g = &pool->grad;
    const size_t N = run->N, C = run->config->C;
    float *xn, *dxn;
    if (!pool->routed) {
        MOM_ARENA_NEW(xn, x->workspace, N * C, run->err);
        MOM_ARENA_NEW(dxn, x->workspace, N * C, run->err);
        mom_layernorm_forward(x, xn, saved->mean, saved->rstd, saved->input, w->ln_weight[0], w->ln_bias[0],
                              run->config->ln_eps, N, C);
        MOM_TRY(mom_linear_backward_weight(x, g->in_weight[0], g->in_bias[0], xn, dqkv, MOM_WEIGHT_IN_OUT, N, C, 3 * C,
                                           run->err));
        MOM_TRY(mom_linear_backward_input(x, dxn, dqkv, w->in_weight[0], MOM_WEIGHT_IN_OUT, 0, N, C, 3 * C, run->err));
        return mom_layernorm_backward(x, dx, g->ln_weight[0], g->ln_bias[0], dxn, saved->input, w->ln_weight[0],
                                      saved->mean, saved->rstd, N, C, run->err);
    }
    const mom_route *r = &saved->route;
    const size_t slots = r->plan.slots;
    MOM_ARENA_NEW(xn, x->workspace, slots * C, run->err);
    MOM_ARENA_NEW(dxn, x->workspace, slots * C, run->err);
    mom_routed_layernorm_forward(x, xn, saved->input, saved->mean, saved->rstd, CONST_ARRAY(w->ln_weight),
                                 CONST_ARRAY(w->ln_bias), &r->plan, C);
    MOM_TRY(mom_routed_linear_backward_input(x, dxn, dqkv, 1, CONST_ARRAY(w->in_weight), &r->plan, C, 3 * C, run->err));
    float *slot_scale = NULL;
    if (dused) {
        MOM_ARENA_NEW(slot_scale, x->workspace, slots, run->err);
        mom_routed_slot_scale(slot_scale, r->used, &r->plan);
        mom_routed_score_backward(x, dused, dxn, xn, 0, dqkv, CONST_ARRAY(w->in_bias), r->used, &r->plan, C, 3 * C);
    }
    MOM_TRY(mom_routed_linear_backward_weight(x, g->in_weight, g->in_bias, xn, 0, dqkv, 1, slot_scale, &r->plan, C,
                                              3 * C, run->err));
    return mom_routed_layernorm_backward(x, dx, g->ln_weight, g->ln_bias, dxn, saved->input, saved->mean, saved->rstd,
                                         CONST_ARRAY(w->ln_weight), &r->plan, C, run->err);
}

static mom_status backward(const mom_run *run, mom_pool *pool, const mom_half_saved *saved, float *dx,
                           const float *state, float *dstate, int has_dstate, const mom_balance_terms *balance) {
    const mom_config *c = run->config;
    const mom_exec *x = run->exec;
    const size_t N = run->N, C = c->C;
    mom_error *err = run->err;
    float *dheads, *dqkv, *dused = NULL, *dused_qkv = NULL;
    MOM_ARENA_NEW(dheads, x->workspace, N * C, err);
    MOM_ARENA_NEW(dqkv, x->workspace, N * 3 * C, err);
    if (pool->routed) {
        const size_t n = N * saved->route.plan.K;
        MOM_ARENA_NEW(dused, x->workspace, n, err);
        memset(dused, 0, n * sizeof *dused);
        if (c->weighted_qkv) {
            MOM_ARENA_NEW(dused_qkv, x->workspace, n, err);
            memset(dused_qkv, 0, n * sizeof *dused_qkv);
        }
    }

    const mom_dropout dropout = mom_run_dropout(run, c->resid_pdrop, saved->site + MOM_STREAM_OUTPUT);
    const float *dout = dx;
    if (dropout.p != 0.0f) {
        float *masked;
        MOM_ARENA_NEW(masked, x->workspace, N * C, err);
        mom_dropout_apply(x, masked, dx, dropout, N * C);
        dout = masked;
    }
    MOM_TRY(project_backward(run, pool, saved, dheads, dused, dout));
    const mom_attention_spec spec = attention_spec(run, saved);
    MOM_TRY(mom_attention_backward(x, dqkv, dheads, saved->inner, saved->heads, saved->lse, run->mask,
                                   saved->active, &spec, err));
    MOM_TRY(mix_qkv_backward(run, pool, saved, dx, dused_qkv, dqkv));
    if (!pool->routed)
        return MOM_OK;
    return mom_route_backward(run, pool, saved, dx, dused, dused_qkv, state, dstate, has_dstate, balance);
}

mom_status mom_attention_pool_backward(const mom_run *run, mom_pool *pool, const mom_half_saved *saved, float *dx,
                                       const float *state, float *dstate, int has_dstate,
                                       const mom_balance_terms *balance) {
    const mom_arena_mark mark = mom_arena_get_mark(run->exec->workspace);
    const mom_status status = backward(run, pool, saved, dx, state, dstate, has_dstate, balance);
    mom_arena_release(run->exec->workspace, mark);
    return status;
}
