/* Attention half: route, mix q, k, v of the chosen modules, one attention over the whole sequence, project the heads
 * by the chosen modules, add to the residual stream.
 *
 * Shapes  x (N, C); slots are (token, module) pairs, see routing_plan.h
 * Maths   qkv[t] = sum over chosen m of (w_tm if weighted_qkv) (LN_m(x_t) W_m + b_m)
 *         x[t]  += sum over chosen m of w_tm (heads_t P_m + p_m)
 * Where only some rows of the stream are needed after a half that is not routed, the others have no query and no
 * projection, and their rows of the stream stay as they were.
 * Backward uses the same pass names in reverse.
 */
#include <math.h>
#include <string.h>

#include "model/pool.h"
#include "ops/attention.h"
#include "ops/embedding.h"
#include "ops/layernorm.h"
#include "ops/routed_half.h"

static mom_attention_spec attention_spec(const mom_run *run, const mom_half_saved *saved) {
    const mom_config *c = run->config;
    return (mom_attention_spec){
        .B = run->B, .T = run->T, .C = c->C, .H = c->H,
        .scale = c->scale_attention ? 1.0f / sqrtf((float)(c->C / c->H)) : 1.0f,
        .masked_query = c->masked_query,
        .dropout = mom_run_dropout(run, c->attn_pdrop, saved->site + MOM_STREAM_ATTENTION),
        .offsets = run->offsets,
        .dtype = c->dtype,
        .queries = saved->queries,
    };
}

static const float *qkv_weight(const mom_run *run, const mom_pool *pool, const mom_half_saved *saved) {
    return pool->routed && run->config->weighted_qkv ? saved->route.used : NULL;
}

static mom_half_output output_of(const mom_run *run, const mom_pool *pool, const mom_half_saved *saved) {
    return (mom_half_output){
        .inner = saved->heads, .by_token = 1, .weight = pool->routed ? saved->route.used : NULL,
        .dropout = mom_run_dropout(run, run->config->resid_pdrop, saved->site + MOM_STREAM_OUTPUT),
    };
}

/* Which tokens have a module: the others take no part in attention but as keys with score 0. NULL: all have. */
static mom_status find_active(const mom_run *run, const mom_pool *pool, mom_half_saved *saved) {
    const mom_routing_plan *plan = &saved->route.plan;
    uint8_t *active;
    saved->active = NULL;
    if (!pool->routed)
        return MOM_OK;
    MOM_ARENA_NEW(active, run->saved, plan->N, run->err);
    if (run->exec->dry_run) /* all of them: the most work */
        return MOM_OK;
    memset(active, 0, plan->N);
    for (size_t s = 0; s < plan->slots; s++)
        active[plan->token[s]] = 1;
    saved->active = active;
    return MOM_OK;
}

/* The rows that are needed, where not all of them are. */
static mom_status find_queries(const mom_run *run, const mom_pool *pool, mom_half_saved *saved) {
    uint8_t *queries;
    saved->queries = NULL;
    if (pool->routed || !run->unneeded)
        return MOM_OK;
    MOM_TRY(mom_plan_needed(run, &saved->needed));
    MOM_ARENA_NEW(queries, run->saved, run->N, run->err);
    for (size_t t = 0; t < run->N && !run->exec->dry_run; t++)
        queries[t] = !run->unneeded[t];
    saved->queries = queries;
    return MOM_OK;
}

/* The half's last layer: of all rows, or of those that are needed. */
static mom_half leaving(const mom_half *half, const mom_half_saved *saved) {
    mom_half own = *half;
    if (saved->queries)
        own.plan = &saved->needed;
    return own;
}

/* mixed q, k, v (N, 3C) of the chosen modules; rows of tokens without a module are left alone */
static mom_status mix_qkv(const mom_run *run, const mom_pool *pool, mom_half_saved *saved, const mom_half *half) {
    const mom_routing_plan *plan = &saved->route.plan;
    const mom_half_layer in = mom_half_in_layer(pool);
    const float *weight = qkv_weight(run, pool, saved);
    float *y;
    if (saved->queries)
        MOM_TRY(mom_half_enter_split(half, &saved->needed, half->C, saved->inner, half->dtype, &in));
    if (saved->queries && !run->exec->dry_run) /* a plan has room for either way */
        return MOM_OK;
    if (plan->K <= 1)
        return mom_half_enter(half, saved->inner, half->dtype, 1, weight, &in);
    MOM_ARENA_NEW(y, run->exec->workspace, plan->slots * 3 * half->C, run->err);
    MOM_TRY(mom_half_enter(half, y, MOM_F32, 0, NULL, &in));
    return mom_half_mix(half, saved->inner, half->dtype, y, weight, 3 * half->C);
}

static mom_status forward(const mom_run *run, const mom_pool *pool, mom_half_saved *saved, float **x_out,
                          const float *x_in, const float *state) {
    const mom_config *c = run->config;
    const size_t N = run->N, C = c->C;
    mom_error *err = run->err;
    saved->input = x_in;
    MOM_TRY(mom_half_start(run, pool, saved, state));
    MOM_TRY(find_active(run, pool, saved));
    MOM_TRY(find_queries(run, pool, saved));
    saved->before_inner = mom_arena_get_mark(run->saved);
    saved->inner = mom_arena_alloc(run->saved, N * 3 * C, mom_dtype_size(c->dtype), err);
    saved->heads = saved->inner ? mom_arena_alloc(run->saved, N * C, mom_dtype_size(c->dtype), err) : NULL;
    if (!saved->heads)
        return MOM_ERR_MEMORY;
    MOM_ARENA_NEW(saved->lse, run->saved, c->H * N, err);
    MOM_TRY(mom_half_end(run, saved, x_out));

    mom_layernorm_stats(run->exec, saved->mean, saved->rstd, x_in, c->ln_eps, N, C);
    const mom_half half = mom_half_of(run, pool, saved), last = leaving(&half, saved);
    const mom_half_layer out = mom_half_out_layer(pool);
    const mom_half_output output = output_of(run, pool, saved);
    const mom_attention_spec spec = attention_spec(run, saved);
    MOM_TRY(mix_qkv(run, pool, saved, &half));
    MOM_TRY(mom_attention_forward(run->exec, saved->heads, saved->lse, saved->inner, run->mask, saved->active, &spec, err));
    return mom_half_leave(&last, *x_out, &output, &out);
}

mom_status mom_attention_pool_forward(const mom_run *run, const mom_pool *pool, mom_half_saved *saved, float **x_out,
                                      const float *x_in, const float *state) {
    const mom_arena_mark mark = mom_arena_get_mark(run->exec->workspace);
    const mom_status status = forward(run, pool, saved, x_out, x_in, state);
    mom_arena_release(run->exec->workspace, mark);
    return status;
}

static mom_status new_zeros(float **out, const mom_run *run, size_t n) {
    MOM_ARENA_NEW(*out, run->exec->workspace, n, run->err);
    mom_zero(run->exec, *out, n * sizeof **out);
    return MOM_OK;
}

static mom_status backward(const mom_run *run, mom_pool *pool, const mom_half_saved *saved, float *dx,
                           const float *state, float *dstate, int has_dstate, const mom_balance_terms *balance) {
    const mom_config *c = run->config;
    const mom_exec *x = run->exec;
    const mom_pool_tensors *d = &pool->grad;
    const size_t N = run->N, C = c->C, scores = N * saved->route.plan.K, size = mom_dtype_size(c->dtype);
    mom_half half = mom_half_of(run, pool, saved);
    const mom_half last = leaving(&half, saved);
    const mom_half_layer in = mom_half_in_layer(pool), out = mom_half_out_layer(pool);
    const mom_half_gradient in_gradient = mom_half_in_gradient(pool), out_gradient = mom_half_out_gradient(pool);
    const mom_half_output output = output_of(run, pool, saved);
    const float *weight = qkv_weight(run, pool, saved);
    mom_error *err = run->err;
    float *dused = NULL, *dused_qkv = NULL, *masked = NULL;
    void *dheads, *dqkv;
    if (pool->routed)
        MOM_TRY(new_zeros(&dused, run, scores));
    if (weight)
        MOM_TRY(new_zeros(&dused_qkv, run, scores));
    if (!(dheads = mom_arena_alloc(x->workspace, N * C, size, err)))
        return MOM_ERR_MEMORY;
    const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
    if (output.dropout.p > 0.0f) {
        MOM_ARENA_NEW(masked, x->workspace, N * C, err);
        mom_dropout_apply(x, masked, dx, output.dropout, N * C);
    }
    MOM_TRY(mom_half_leave_backward(&last, &out_gradient, dused, saved->heads, dheads, &output,
                                    masked ? masked : dx, &out));
    mom_arena_release(x->workspace, mark);
    if (!(dqkv = mom_arena_alloc(x->workspace, N * 3 * C, size, err)))
        return MOM_ERR_MEMORY;
    const mom_attention_spec spec = attention_spec(run, saved);
    MOM_TRY(mom_attention_backward(x, dqkv, dheads, saved->inner, saved->heads, saved->lse, run->mask, saved->active,
                                   &spec, err));
    /* q, k, v and heads have served: the temporaries of what follows take their place. */
    mom_arena_release(run->saved, saved->before_inner);
    const mom_exec in_its_place = {x->k, x->threads, run->saved, x->precision, x->dry_run};
    half.exec = &in_its_place;
    if (saved->queries)
        MOM_TRY(mom_half_enter_split_backward(&half, &saved->needed, C, &in_gradient, d->ln_weight, d->ln_bias, dx, dqkv,
                                              &in));
    if (saved->queries && !run->exec->dry_run)
        return MOM_OK;
    MOM_TRY(mom_half_enter_backward(&half, &in_gradient, d->ln_weight, d->ln_bias, dx, dused_qkv, dqkv, 1,
                                    weight, &in));
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
