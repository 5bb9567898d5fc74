/* The feed-forward half of a round: the router chooses modules for each token. Each chosen module applies LayerNorm,
 * c_fc, GELU and c_proj. The weighted results are added to the residual stream.
 *
 * Shapes  x (N, C); slots are (token, module) pairs, see routing_plan.h
 * Maths   x[t] += sum over chosen m of w_tm (gelu(LN_m(x_t) W_m + b_m) P_m + p_m)
 * Kept for backward: the inputs of GELU, which backward replaces by their gradient.
 */
#include "model/pool.h"
#include "ops/layernorm.h"
#include "ops/routed_half.h"

static mom_half_output output_of(const mom_pass *pass, const mom_half_round *at, const mom_half_saved *saved) {
    const int routed = mom_half_round_pool(at)->routed;
    mom_half_output output = {.inner = saved->inner, .gelu = 1, .weight = routed ? saved->route.used : NULL};
    if (!routed) /* as in the reference, routed feed-forward outputs have no dropout */
        output.dropout =
            mom_pass_dropout(pass, pass->config->resid_pdrop, mom_half_round_key(pass, at, MOM_STREAM_OUTPUT));
    return output;
}

mom_status mom_ffn_pool_forward(const mom_pass *pass, const mom_half_round *at, mom_half_saved *saved, float **x_out,
                                const float *x_in, const float *state) {
    const mom_arena_mark mark = mom_arena_get_mark(pass->exec->workspace);
    const mom_pool *pool = mom_half_round_pool(at);
    const mom_config *c = pass->config;
    saved->input = x_in;
    MOM_TRY(mom_half_start(pass, at, saved, state));
    const size_t inner = saved->route.plan.slots * pool->F;
    MOM_ARENA_NEW_SIZED(saved->inner, pass->saved, inner, mom_dtype_size(c->dtype), pass->err);
    MOM_TRY(mom_half_end(pass, saved, x_out));
    mom_layernorm_stats(pass->exec, saved->mean, saved->rstd, x_in, c->ln_eps, pass->N, c->C);
    const mom_half half = mom_half_of(pass, pool, saved);
    const mom_half_layer in = mom_half_in_layer(pool, at->packed);
    mom_half_output output = output_of(pass, at, saved);
    mom_count_part(pass->exec, MOM_PART_UP);
    MOM_TRY(mom_half_first_layer(&half, saved->inner, c->dtype, 0, NULL, &in));
    mom_count_part(pass->exec, MOM_PART_DOWN);
    MOM_TRY(mom_half_output_forward(pass, at, &half, &output, *x_out));
    mom_arena_release(pass->exec->workspace, mark);
    return MOM_OK;
}

mom_status mom_ffn_pool_backward(const mom_pass *pass, const mom_half_round *at, const mom_half_saved *saved,
                                 const mom_half_backward *b) {
    const mom_arena_mark mark = mom_arena_get_mark(pass->exec->workspace);
    const mom_pool *pool = mom_half_round_pool(at);
    const mom_exec *x = pass->exec;
    const size_t scores = pass->N * saved->route.plan.K;
    const mom_half half = mom_half_of(pass, pool, saved);
    const mom_half_layer in = mom_half_in_layer(pool, at->packed);
    const mom_half_gradient in_gradient = mom_half_in_gradient(b->pool);
    mom_half_output output = output_of(pass, at, saved);
    float *dused = NULL;
    if (pool->routed)
        MOM_ARENA_ZEROS(dused, x, x->workspace, scores, pass->err);
    mom_count_part(x, MOM_PART_DOWN);
    MOM_TRY(mom_half_output_backward(pass, at, &half, &output, b, dused, saved->inner, saved->inner));
    mom_count_part(x, MOM_PART_UP);
    MOM_TRY(mom_half_first_layer_backward(&half, &in_gradient, b->dx, NULL, saved->inner, 0, NULL, &in));
    if (pool->routed)
        MOM_TRY(mom_route_backward(pass, at, saved, b, dused, NULL));
    mom_arena_release(pass->exec->workspace, mark);
    return MOM_OK;
}
