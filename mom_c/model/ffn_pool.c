/* Feed-forward half: route, then per chosen module LayerNorm, c_fc, GELU, c_proj, weighted and added to the
 * residual stream.
 *
 * Shapes  x (N, C); slots are (token, module) pairs, see routing_plan.h
 * Maths   x[t] += sum over chosen m of w_tm (gelu(LN_m(x_t) W_m + b_m) P_m + p_m)
 * Kept for backward: the inputs of GELU; LayerNorm and GELU outputs are computed again.
 */
#include <string.h>

#include "model/pool.h"
#include "ops/embedding.h"
#include "ops/gelu.h"
#include "ops/layernorm.h"
#include "ops/linear.h"

#define CONST_ARRAY(p) ((const float *const *)(p))

static mom_status forward(const mom_run *run, const mom_pool *pool, mom_half_saved *saved, float *x_out,
                          const float *x_in, const float *state) {
    const mom_config *c = run->config;
    const mom_exec *x = run->exec;
    const mom_pool_tensors *w = &pool->weight;
    const size_t N = run->N, C = c->C, F = pool->F;
    mom_error *err = run->err;
    float *xn, *g, *y;
    saved->input = x_in;
    MOM_ARENA_NEW(saved->mean, run->saved, N, err);
    MOM_ARENA_NEW(saved->rstd, run->saved, N, err);

    if (!pool->routed) {
        MOM_ARENA_NEW(saved->inner, run->saved, N * F, err);
        MOM_ARENA_NEW(xn, x->workspace, N * C, err);
        MOM_ARENA_NEW(g, x->workspace, N * F, err);
        mom_layernorm_forward(x, xn, saved->mean, saved->rstd, x_in, w->ln_weight[0], w->ln_bias[0], c->ln_eps, N, C);
        MOM_TRY(mom_linear_forward(x, saved->inner, xn, w->in_weight[0], w->in_bias[0], MOM_WEIGHT_IN_OUT, 0, N, C, F, err));
        mom_gelu_forward(x, g, saved->inner, N * F);
        if (x_out != x_in)
            memcpy(x_out, x_in, N * C * sizeof *x_out);
        const mom_dropout dropout = mom_run_dropout(run, c->resid_pdrop, saved->site + MOM_STREAM_OUTPUT);
        if (dropout.p == 0.0f)
            return mom_linear_forward(x, x_out, g, w->out_weight[0], w->out_bias[0], MOM_WEIGHT_IN_OUT, 1, N, F, C, err);
        MOM_ARENA_NEW(y, x->workspace, N * C, err);
        MOM_TRY(mom_linear_forward(x, y, g, w->out_weight[0], w->out_bias[0], MOM_WEIGHT_IN_OUT, 0, N, F, C, err));
        mom_dropout_apply(x, y, y, dropout, N * C);
        x->k->add(x_out, y, N * C);
        return MOM_OK;
    }

    MOM_TRY(mom_route_forward(run, pool, saved, state));
    const mom_routing_plan *plan = &saved->route.plan;
    MOM_ARENA_NEW(saved->inner, run->saved, plan->slots * F, err);
    MOM_ARENA_NEW(xn, x->workspace, plan->slots * C, err);
    MOM_ARENA_NEW(g, x->workspace, plan->slots * F, err);
    MOM_ARENA_NEW(y, x->workspace, plan->slots * C, err);
    mom_layernorm_stats(x, saved->mean, saved->rstd, x_in, c->ln_eps, N, C);
    mom_routed_layernorm_forward(x, xn, x_in, saved->mean, saved->rstd, CONST_ARRAY(w->ln_weight),
                                 CONST_ARRAY(w->ln_bias), plan, C);
    MOM_TRY(mom_routed_linear_forward(x, saved->inner, xn, 0, CONST_ARRAY(w->in_weight), CONST_ARRAY(w->in_bias), plan,
                                      C, F, err));
    mom_gelu_forward(x, g, saved->inner, plan->slots * F);
    MOM_TRY(mom_routed_linear_forward(x, y, g, 0, CONST_ARRAY(w->out_weight), CONST_ARRAY(w->out_bias), plan, F, C, err));
    if (x_out != x_in)
        memcpy(x_out, x_in, N * C * sizeof *x_out);
    mom_routed_combine_forward(x, x_out, y, saved->route.used, plan, C, 1);
    return MOM_OK;
}

mom_status mom_ffn_pool_forward(const mom_run *run, const mom_pool *pool, mom_half_saved *saved, float *x_out,
                                const float *x_in, const float *state) {
    const mom_arena_mark mark = mom_arena_get_mark(run->exec->workspace);
    const mom_status status = forward(run, pool, saved, x_out, x_in, state);
    mom_arena_release(run->exec->workspace, mark);
    return status;
}

static mom_status backward_single(const mom_run *run, mom_pool *pool, const mom_half_saved *saved, float *dx) {
    const mom_config *c = run->config;
    const mom_exec *x = run->exec;
    const mom_pool_tensors *w = &pool->weight, *d = &pool->grad;
    const size_t N = run->N, C = c->C, F = pool->F;
    mom_error *err = run->err;
    float *g, *dg, *xn, *dxn;
    MOM_ARENA_NEW(g, x->workspace, N * F, err);
    MOM_ARENA_NEW(dg, x->workspace, N * F, err);
    MOM_ARENA_NEW(xn, x->workspace, N * C, err);
    MOM_ARENA_NEW(dxn, x->workspace, N * C, err);

    const mom_dropout dropout = mom_run_dropout(run, c->resid_pdrop, saved->site + MOM_STREAM_OUTPUT);
    const float *dout = dx;
    if (dropout.p != 0.0f) {
        mom_dropout_apply(x, dxn, dx, dropout, N * C);
        dout = dxn; /* read for the last time before dxn is written */
    }
    mom_gelu_forward(x, g, saved->inner, N * F);
    MOM_TRY(mom_linear_backward_input(x, dg, dout, w->out_weight[0], MOM_WEIGHT_IN_OUT, 0, N, F, C, err));
    MOM_TRY(mom_linear_backward_weight(x, d->out_weight[0], d->out_bias[0], g, dout, MOM_WEIGHT_IN_OUT, N, F, C, err));
    mom_gelu_backward(x, dg, dg, saved->inner, N * F);
    mom_layernorm_forward(x, xn, saved->mean, saved->rstd, saved->input, w->ln_weight[0], w->ln_bias[0], c->ln_eps, N, C);
    MOM_TRY(mom_linear_backward_weight(x, d->in_weight[0], d->in_bias[0], xn, dg, MOM_WEIGHT_IN_OUT, N, C, F, err));
    MOM_TRY(mom_linear_backward_input(x, dxn, dg, w->in_weight[0], MOM_WEIGHT_IN_OUT, 0, N, C, F, err));
    return mom_layernorm_backward(x, dx, d->ln_weight[0], d->ln_bias[0], dxn, saved->input, w->ln_weight[0],
                                  saved->mean, saved->rstd, N, C, err);
}

static mom_status backward_routed(const mom_run *run, mom_pool *pool, const mom_half_saved *saved, float *dx,
                                  const float *state, float *dstate, int has_dstate, const mom_balance_terms *balance) {
    const mom_exec *x = run->exec;
    const mom_pool_tensors *w = &pool->weight, *d = &pool->grad;
    const mom_route *r = &saved->route;
    const mom_routing_plan *plan = &r->plan;
    const size_t N = run->N, C = run->config->C, F = pool->F, slots = plan->slots;
    mom_error *err = run->err;
    float *g, *dg, *xn, *dxn, *dused, *slot_scale;
    MOM_ARENA_NEW(g, x->workspace, slots * F, err);
    MOM_ARENA_NEW(dg, x->workspace, slots * F, err);
    MOM_ARENA_NEW(xn, x->workspace, slots * C, err);
    MOM_ARENA_NEW(dxn, x->workspace, slots * C, err);
    MOM_ARENA_NEW(dused, x->workspace, N * plan->K, err);
    MOM_ARENA_NEW(slot_scale, x->workspace, slots, err);
    memset(dused, 0, N * plan->K * sizeof *dused);
    mom_routed_slot_scale(slot_scale, r->used, plan);

    mom_gelu_forward(x, g, saved->inner, slots * F);
    MOM_TRY(mom_routed_linear_backward_input(x, dg, dx, 1, CONST_ARRAY(w->out_weight), plan, F, C, err));
    mom_routed_score_backward(x, dused, dg, g, 0, dx, CONST_ARRAY(w->out_bias), r->used, plan, F, C);
    MOM_TRY(mom_routed_linear_backward_weight(x, d->out_weight, d->out_bias, g, 0, dx, 1, slot_scale, plan, F, C, err));
    mom_gelu_backward(x, dg, dg, saved->inner, slots * F);
    mom_routed_layernorm_forward(x, xn, saved->input, saved->mean, saved->rstd, CONST_ARRAY(w->ln_weight),
                                 CONST_ARRAY(w->ln_bias), plan, C);
    MOM_TRY(mom_routed_linear_backward_weight(x, d->in_weight, d->in_bias, xn, 0, dg, 0, NULL, plan, C, F, err));
    MOM_TRY(mom_routed_linear_backward_input(x, dxn, dg, 0, CONST_ARRAY(w->in_weight), plan, C, F, err));
    MOM_TRY(mom_routed_layernorm_backward(x, dx, d->ln_weight, d->ln_bias, dxn, saved->input, saved->mean, saved->rstd,
                                          CONST_ARRAY(w->ln_weight), plan, C, err));
    return mom_route_backward(run, pool, saved, dx, dused, NULL, state, dstate, has_dstate, balance);
}

mom_status mom_ffn_pool_backward(const mom_run *run, mom_pool *pool, const mom_half_saved *saved, float *dx,
                                 const float *state, float *dstate, int has_dstate, const mom_balance_terms *balance) {
    const mom_arena_mark mark = mom_arena_get_mark(run->exec->workspace);
    const mom_status status = pool->routed
                                  ? backward_routed(run, pool, saved, dx, state, dstate, has_dstate, balance)
                                  : backward_single(run, pool, saved, dx);
    mom_arena_release(run->exec->workspace, mark);
    return status;
}
