/* Feed-forward half: route, then per chosen module LayerNorm, c_fc, GELU, c_proj, weighted and added to the
 * residual stream.
 *
 * Shapes  x (N, C); slots are (token, module) pairs, see routing_plan.h
 * Maths   x[t] += sum over chosen m of w_tm (gelu(LN_m(x_t) W_m + b_m) P_m + p_m)
 * Kept for backward: the inputs of GELU, which backward replaces by their gradient.
 */
#include "model/pool.h"
#include "ops/embedding.h"
#include "ops/layernorm.h"
#include "ops/routed_half.h"

static mom_half_output output_of(const mom_run *run, const mom_pool *pool, const mom_half_saved *saved) {
    mom_half_output output = {.inner = saved->inner, .gelu = 1, .weight = pool->routed ? saved->route.used : NULL};
    if (!pool->routed) /* as the reference: routed feed-forward outputs have no dropout */
        output.dropout = mom_run_dropout(run, run->config->resid_pdrop, saved->site + MOM_STREAM_OUTPUT);
    return output;
}

static mom_status forward(const mom_run *run, const mom_pool *pool, mom_half_saved *saved, float **x_out,
                          const float *x_in, const float *state) {
    const mom_config *c = run->config;
    const size_t N = run->N, C = c->C;
    saved->input = x_in;
    MOM_TRY(mom_half_start(run, pool, saved, state));
    const mom_routing_plan *plan = &saved->route.plan;
    saved->inner = mom_arena_alloc(run->saved, plan->slots * pool->F, mom_dtype_size(c->dtype), run->err);
    if (!saved->inner)
        return MOM_ERR_MEMORY;
    MOM_TRY(mom_half_end(run, saved, x_out));
    mom_layernorm_stats(run->exec, saved->mean, saved->rstd, x_in, c->ln_eps, N, C);
    const mom_half half = mom_half_of(run, pool, saved);
    const mom_half_layer in = mom_half_in_layer(pool), out = mom_half_out_layer(pool);
    const mom_half_output output = output_of(run, pool, saved);
    MOM_TRY(mom_half_enter(&half, saved->inner, c->dtype, 0, NULL, &in));
    return mom_half_leave(&half, *x_out, &output, &out);
}

mom_status mom_ffn_pool_forward(const mom_run *run, const mom_pool *pool, mom_half_saved *saved, float **x_out,
                                const float *x_in, const float *state) {
    const mom_arena_mark mark = mom_arena_get_mark(run->exec->workspace);
    const mom_status status = forward(run, pool, saved, x_out, x_in, state);
    mom_arena_release(run->exec->workspace, mark);
    return status;
}

static mom_status backward(const mom_run *run, mom_pool *pool, const mom_half_saved *saved, float *dx,
                           const float *state, float *dstate, int has_dstate, const mom_balance_terms *balance) {
    const mom_exec *x = run->exec;
    const mom_pool_tensors *d = &pool->grad;
    const size_t N = run->N, C = run->config->C, scores = N * saved->route.plan.K;
    const mom_half half = mom_half_of(run, pool, saved);
    const mom_half_layer in = mom_half_in_layer(pool), out = mom_half_out_layer(pool);
    const mom_half_gradient in_gradient = mom_half_in_gradient(pool), out_gradient = mom_half_out_gradient(pool);
    const mom_half_output output = output_of(run, pool, saved);
    float *dused = NULL, *masked = NULL;
    if (pool->routed) {
        MOM_ARENA_NEW(dused, x->workspace, scores, run->err);
        mom_zero(x, dused, scores * sizeof *dused);
    }
    if (output.dropout.p > 0.0f) {
        MOM_ARENA_NEW(masked, x->workspace, N * C, run->err);
        mom_dropout_apply(x, masked, dx, output.dropout, N * C);
    }
    MOM_TRY(mom_half_leave_backward(&half, &out_gradient, dused, saved->inner, saved->inner, &output,
                                    masked ? masked : dx, &out));
    MOM_TRY(mom_half_enter_backward(&half, &in_gradient, d->ln_weight, d->ln_bias, dx, NULL, saved->inner, 0,
                                    NULL, &in));
    return pool->routed ? mom_route_backward(run, pool, saved, dx, dused, NULL, state, dstate, has_dstate, balance)
                        : MOM_OK;
}

mom_status mom_ffn_pool_backward(const mom_run *run, mom_pool *pool, const mom_half_saved *saved, float *dx,
                                 const float *state, float *dstate, int has_dstate, const mom_balance_terms *balance) {
    const mom_arena_mark mark = mom_arena_get_mark(run->exec->workspace);
    const mom_status status = backward(run, pool, saved, dx, state, dstate, has_dstate, balance);
    mom_arena_release(run->exec->workspace, mark);
    return status;
}
