/* The attention half of a round. The router chooses modules for each token, and the q, k, v of the chosen modules are
 * mixed. One attention runs over the whole sequence. The chosen modules project the heads, and the result is added to
 * the residual stream.
 *
 * Shapes  x (N, C); slots are (token, module) pairs, see routing_plan.h
 * Maths   qkv[t] = sum over chosen m of (w_tm if weighted_qkv) (LN_m(x_t) W_m + b_m)
 *         x[t]  += sum over chosen m of w_tm (heads_t P_m + p_m)
 * If the half is not routed and only some rows of its output are needed, the other rows get no query and no projection.
 * They keep their values in the stream.
 */
#include <string.h>

#include "model/pool.h"
#include "ops/attention_probabilities.h"
#include "ops/layernorm.h"
#include "ops/routed_half.h"

static mom_attention_spec attention_spec(const mom_pass *pass, const mom_half_round *at, const mom_half_saved *saved) {
    const mom_config *c = pass->config;
    return (mom_attention_spec){
        .B = pass->B, .T = pass->T, .C = c->C, .H = c->H,
        .scale = mom_config_attention_scale(c),
        .masked_query = c->masked_query,
        .dropout = mom_pass_dropout(pass, c->attn_pdrop, mom_half_round_key(pass, at, MOM_STREAM_ATTENTION)),
        .offsets = pass->offsets,
        .dtype = c->dtype,
        .mask = pass->mask,
        .active = saved->active,
        .queries = saved->queries,
    };
}

static const float *qkv_weight(const mom_pass *pass, const mom_half_round *at, const mom_half_saved *saved) {
    return mom_half_round_pool(at)->routed && pass->config->weighted_qkv ? saved->route.used : NULL;
}

static mom_half_output output_of(const mom_pass *pass, const mom_half_round *at, const mom_half_saved *saved) {
    return (mom_half_output){
        .inner = saved->heads, .by_token = 1, .weight = mom_half_round_pool(at)->routed ? saved->route.used : NULL,
        .dropout = mom_pass_dropout(pass, pass->config->resid_pdrop, mom_half_round_key(pass, at, MOM_STREAM_OUTPUT)),
    };
}

/* Marks the tokens that have a module. Other tokens take part in attention only as keys with score 0. In a dry run
 * every token has a module, because that needs the most memory. */
static mom_status find_active(const mom_pass *pass, const mom_half_round *at, mom_half_saved *saved) {
    const mom_routing_plan *plan = &saved->route.plan;
    uint8_t *active;
    saved->active = NULL;
    if (!mom_half_round_pool(at)->routed)
        return MOM_OK;
    MOM_ARENA_NEW(active, pass->saved, plan->N, pass->err);
    if (pass->exec->dry_run)
        return MOM_OK;
    memset(active, 0, plan->N);
    for (size_t s = 0; s < plan->slots; s++)
        active[plan->token[s]] = 1;
    saved->active = active;
    return MOM_OK;
}

/* Marks the rows that are needed, if not all are. */
static mom_status find_queries(const mom_pass *pass, const mom_half_round *at, mom_half_saved *saved) {
    uint8_t *queries;
    saved->queries = NULL;
    if (mom_half_round_pool(at)->routed || !at->unneeded)
        return MOM_OK;
    MOM_TRY(mom_plan_needed(pass, at, &saved->needed));
    MOM_ARENA_NEW(queries, pass->saved, pass->N, pass->err);
    for (size_t t = 0; t < pass->N && !pass->exec->dry_run; t++)
        queries[t] = !at->unneeded[t];
    saved->queries = queries;
    return MOM_OK;
}

/* The half as its last layer sees it: with all rows, or only with the needed ones. */
static mom_half half_of_last_layer(const mom_half *half, const mom_half_saved *saved) {
    mom_half own = *half;
    if (saved->queries)
        own.plan = &saved->needed;
    return own;
}

/* Mixed q, k, v (N, 3C) of the chosen modules. Rows of tokens without a module are not written. */
static mom_status mix_qkv(const mom_pass *pass, const mom_half_round *at, mom_half_saved *saved, const mom_half *half) {
    const mom_routing_plan *plan = &saved->route.plan;
    const mom_half_layer in = mom_half_in_layer(mom_half_round_pool(at), at->packed);
    const float *weight = qkv_weight(pass, at, saved);
    float *y;
    if (saved->queries)
        MOM_TRY(mom_half_first_layer_split(half, &saved->needed, half->C, saved->inner, half->dtype, &in));
    if (saved->queries && !pass->exec->dry_run) /* a dry run allocates for both cases */
        return MOM_OK;
    if (plan->K <= 1)
        return mom_half_first_layer(half, saved->inner, half->dtype, 1, weight, &in);
    MOM_ARENA_NEW(y, pass->exec->workspace, plan->slots * 3 * half->C, pass->err);
    MOM_TRY(mom_half_first_layer(half, y, MOM_F32, 0, NULL, &in));
    return mom_half_mix(half, saved->inner, half->dtype, y, weight, 3 * half->C);
}

static mom_status allocate(const mom_pass *pass, mom_half_saved *saved) {
    const mom_config *c = pass->config;
    const size_t N = pass->N, size = mom_dtype_size(c->dtype);
    saved->before_inner = mom_arena_get_mark(pass->saved);
    MOM_ARENA_NEW_SIZED(saved->inner, pass->saved, N * 3 * c->C, size, pass->err);
    MOM_ARENA_NEW_SIZED(saved->heads, pass->saved, N * c->C, size, pass->err);
    MOM_ARENA_NEW(saved->lse, pass->saved, c->H * N, pass->err);
    return MOM_OK;
}

static int wants_probabilities(const mom_pass *pass, const mom_half_round *at) {
    const mom_attention_capture *wanted = pass->interventions ? pass->interventions->attention : NULL;
    return wanted && wanted->place == at->index && wanted->round == at->round && !pass->exec->dry_run && !pass->again;
}

mom_status mom_attention_pool_forward(const mom_pass *pass, const mom_half_round *at, mom_half_saved *saved, float **x_out,
                                      const float *x_in, const float *state) {
    const mom_arena_mark mark = mom_arena_get_mark(pass->exec->workspace);
    const mom_pool *pool = mom_half_round_pool(at);
    const mom_config *c = pass->config;
    const mom_interventions *in = pass->interventions;
    saved->input = x_in;
    MOM_TRY(mom_half_start(pass, at, saved, state));
    MOM_TRY(find_active(pass, at, saved));
    MOM_TRY(find_queries(pass, at, saved));
    MOM_TRY(allocate(pass, saved));
    MOM_TRY(mom_half_end(pass, saved, x_out));

    mom_layernorm_stats(pass->exec, saved->mean, saved->rstd, x_in, c->ln_eps, pass->N, c->C);
    const mom_half half = mom_half_of(pass, pool, saved), last = half_of_last_layer(&half, saved);
    mom_half_output output = output_of(pass, at, saved);
    const mom_attention_spec spec = attention_spec(pass, at, saved);
    mom_count_part(pass->exec, MOM_PART_QKV);
    MOM_TRY(mix_qkv(pass, at, saved, &half));
    mom_count_part(pass->exec, MOM_PART_SCORES);
    MOM_TRY(mom_attention_forward(pass->exec, saved->heads, saved->lse, saved->inner, &spec, pass->err));
    if (wants_probabilities(pass, at))
        MOM_TRY(mom_attention_probabilities(pass->exec, in->attention->out, saved->inner, &spec, in->attention->rows,
                                            in->attention->row_count, pass->err));
    mom_count_part(pass->exec, MOM_PART_PROJECTION);
    MOM_TRY(mom_half_output_forward(pass, at, &last, &output, *x_out));
    mom_arena_release(pass->exec->workspace, mark);
    return MOM_OK;
}

/* dheads from the gradient of the half's output; adds to the gradients of the projection and to dused. */
static mom_status project_backward(const mom_pass *pass, const mom_half_round *at, const mom_half_saved *saved,
                                   const mom_half_backward *b, void *dheads, float *dused) {
    const mom_half half = mom_half_of(pass, mom_half_round_pool(at), saved), last = half_of_last_layer(&half, saved);
    mom_half_output output = output_of(pass, at, saved);
    return mom_half_output_backward(pass, at, &last, &output, b, dused, saved->heads, dheads);
}

/* Adds to dx and to the gradients of the first projection and of the LayerNorms. */
static mom_status mix_backward(const mom_pass *pass, const mom_half_round *at, const mom_half_saved *saved,
                               const mom_half_backward *b, const void *dqkv, float *dused_qkv) {
    const mom_half_layer in = mom_half_in_layer(mom_half_round_pool(at), at->packed);
    const mom_half_gradient gradient = mom_half_in_gradient(b->pool);
    mom_half half = mom_half_of(pass, mom_half_round_pool(at), saved);
    /* q, k, v and heads are not needed any more, so the temporaries of the next steps reuse their memory. */
    mom_arena_release(pass->saved, saved->before_inner);
    mom_exec in_its_place = *pass->exec;
    in_its_place.workspace = pass->saved;
    half.exec = &in_its_place;
    if (saved->queries)
        MOM_TRY(mom_half_first_layer_split_backward(&half, &saved->needed, pass->config->C, &gradient, b->dx, dqkv, &in));
    if (saved->queries && !pass->exec->dry_run)
        return MOM_OK;
    return mom_half_first_layer_backward(&half, &gradient, b->dx, dused_qkv, dqkv, 1, qkv_weight(pass, at, saved), &in);
}

mom_status mom_attention_pool_backward(const mom_pass *pass, const mom_half_round *at, const mom_half_saved *saved,
                                       const mom_half_backward *b) {
    const mom_arena_mark mark = mom_arena_get_mark(pass->exec->workspace);
    const mom_exec *x = pass->exec;
    const int routed = mom_half_round_pool(at)->routed;
    const size_t n = pass->N * pass->config->C, scores = pass->N * saved->route.plan.K;
    const size_t size = mom_dtype_size(pass->config->dtype);
    const mom_attention_spec spec = attention_spec(pass, at, saved);
    float *dused = NULL, *dused_qkv = NULL;
    void *dheads, *dqkv;
    if (routed)
        MOM_ARENA_ZEROS(dused, x, x->workspace, scores, pass->err);
    if (qkv_weight(pass, at, saved))
        MOM_ARENA_ZEROS(dused_qkv, x, x->workspace, scores, pass->err);
    MOM_ARENA_NEW_SIZED(dheads, x->workspace, n, size, pass->err);
    mom_count_part(x, MOM_PART_PROJECTION);
    MOM_TRY(project_backward(pass, at, saved, b, dheads, dused));
    MOM_ARENA_NEW_SIZED(dqkv, x->workspace, 3 * n, size, pass->err);
    mom_count_part(x, MOM_PART_SCORES);
    MOM_TRY(mom_attention_backward(x, dqkv, dheads, saved->inner, saved->heads, saved->lse, &spec, pass->err));
    mom_count_part(x, MOM_PART_QKV);
    MOM_TRY(mix_backward(pass, at, saved, b, dqkv, dused_qkv));
    if (routed)
        MOM_TRY(mom_route_backward(pass, at, saved, b, dused, dused_qkv));
    mom_arena_release(pass->exec->workspace, mark);
    return MOM_OK;
}
