/* The route of a half-round: its router, scores, choices, and the terms of the loss that come from it. Contract: pool.h. */
#include "model/pool.h"

#include <math.h>
#include <string.h>

#include "model/sites.h"
#include "ops/balance_loss.h"
#include "ops/elementwise.h"
#include "ops/forced_choices.h"
#include "ops/layernorm.h"
#include "ops/linear.h"
#include "ops/path_loss.h"
#include "ops/z_loss.h"

/* Whether the balance loss applies a softmax to the scores to get probabilities. */
static int balance_softmax(const mom_config *c) { return c->balance_reference || !c->router_softmax; }

#define ROUTE_ROWS 64 /* tokens of a task */

static mom_topk_spec topk_of(const mom_pass *pass, const mom_pool *pool, const mom_route *r) {
    const mom_config *c = pass->config;
    return (mom_topk_spec){pass->N, pool->S, r->K, c->router_softmax && c->renormalise};
}

static int balance_wanted(const mom_config *c) {
    return c->balance_enabled && mom_router_types[c->router_kind].scored && !(c->balance_reference && c->num_attn == 1);
}

/* ------------------------------------------------------------------ the router's inputs */

static mom_router_tensors router_weights(const mom_half_round *at) {
    const mom_pool *pool = mom_half_round_pool(at);
    mom_router_tensors weights = mom_router_of_round(&pool->router_weight, &pool->spec, at->round);
    weights.packed_in = at->packed->router_in;
    weights.packed_state = at->packed->router_state;
    return weights;
}

static mom_router_inputs router_inputs(const mom_pass *pass, const mom_half_round *at, const mom_router_tensors *weights,
                                       const float *inp, const float *state) {
    return (mom_router_inputs){.weights = weights, .inp = inp, .state = state, .tokens = pass->tokens, .round = at->round,
                               .half = at->half, .noise_key = mom_half_round_key(pass, at, MOM_STREAM_NOISE), .N = pass->N};
}

typedef struct {
    const mom_kernels *k;
    float *rows;
    const float *added;
    size_t width;
} add_job;

static void add_task(const void *context, size_t begin, size_t end) {
    const add_job *job = context;
    for (size_t t = begin; t < end; t++)
        job->k->vec.add(job->rows + t * job->width, job->added, job->width);
}

/* What the router reads: the stream, or r->read, which is made from it by the LayerNorm and the vector of the round. */
static mom_status read_stream(const mom_pass *pass, const mom_half_round *at, mom_route *r, const float *stream) {
    const mom_pool *pool = mom_half_round_pool(at);
    const mom_router_tensors *w = &pool->router_weight;
    const mom_exec *x = pass->exec;
    const size_t N = pass->N, C = pass->config->C;
    r->read = NULL;
    if (!pool->spec.normed && !pool->spec.embedded)
        return MOM_OK;
    MOM_ARENA_NEW(r->read, pass->saved, N * C, pass->err);
    if (pool->spec.normed) {
        const mom_layernorm norm = {w->norm_weight, w->norm_bias, pass->config->ln_eps};
        MOM_ARENA_NEW(r->read_mean, pass->saved, N, pass->err);
        MOM_ARENA_NEW(r->read_rstd, pass->saved, N, pass->err);
        mom_layernorm_forward(x, r->read, r->read_mean, r->read_rstd, stream, &norm, N, C);
    } else {
        mom_copy(x, r->read, stream, N * C * sizeof *r->read);
    }
    if (!pool->spec.embedded)
        return MOM_OK;
    add_job job = {x->k, r->read, w->round_embedding + at->round * C, C};
    mom_parallel_rows(x, N, ROUTE_ROWS, add_task, &job);
    return MOM_OK;
}

/* dx (N, C) += the gradient of the stream from dread, that of r->read */
static mom_status read_stream_backward(const mom_pass *pass, const mom_half_round *at, const mom_route *r,
                                       const float *stream, const float *dread, const mom_half_backward *b) {
    const mom_pool *pool = mom_half_round_pool(at);
    const mom_router_tensors *d = &b->pool->router;
    const size_t N = pass->N, C = pass->config->C;
    if (pool->spec.embedded)
        mom_column_sum(pass->exec, d->round_embedding + at->round * C, dread, NULL, NULL, N, C);
    if (!pool->spec.normed) {
        if (!pass->exec->dry_run)
            pass->exec->k->vec.add(b->dx, dread, N * C);
        return MOM_OK;
    }
    const mom_normed_rows rows = {stream, r->read_mean, r->read_rstd, N, C};
    return mom_layernorm_backward(pass->exec, b->dx, d->norm_weight, d->norm_bias, dread, pool->router_weight.norm_weight,
                                  &rows, pass->err);
}

/* ------------------------------------------------------------------ forward */

size_t mom_pass_choices(const mom_pass *pass, const mom_pool *pool) {
    const size_t own = pass->interventions ? pass->interventions->choices[pool->kind == MOM_POOL_FFN] : 0;
    return own ? own : pool->K;
}

mom_status mom_route_allocate(const mom_pass *pass, const mom_pool *pool, mom_route *r) {
    const size_t N = pass->N, S = pool->S, K = mom_pass_choices(pass, pool);
    *r = (mom_route){.K = K};
    MOM_ARENA_NEW(r->scores, pass->saved, N * S, pass->err);
    r->outputs = r->scores;
    if (pass->config->router_softmax)
        MOM_ARENA_NEW(r->outputs, pass->saved, N * S, pass->err);
    MOM_ARENA_NEW(r->index, pass->saved, N * K, pass->err);
    MOM_ARENA_NEW(r->kept, pass->saved, N * K, pass->err);
    MOM_ARENA_NEW(r->reached, pass->saved, pool->M, pass->err);
    if (balance_wanted(pass->config) && !pass->few_rows) {
        MOM_ARENA_NEW(r->counts, pass->saved, S, pass->err);
        MOM_ARENA_NEW(r->prob_sums, pass->saved, S, pass->err);
    }
    return MOM_OK;
}

/* outputs (N, S) += bias */
static void add_bias(const mom_pass *pass, float *outputs, const mom_route_change *change, size_t S) {
    for (size_t t = 0; t < pass->N && !pass->exec->dry_run; t++)
        pass->exec->k->vec.add(outputs + t * S, change->bias + (pass->first_row + t) * change->bias_stride, S);
}

/* outputs (N, S) += uniform noise in [-jitter, jitter) */
static void add_jitter(const mom_pass *pass, const mom_half_round *at, float *outputs, size_t S) {
    const float size = pass->config->jitter;
    const uint64_t key = mom_rng_key(mom_half_round_key(pass, at, MOM_STREAM_NOISE), 1, 0);
    if (!pass->training || !(size > 0.0f) || pass->exec->dry_run)
        return;
    for (size_t i = 0; i < pass->N * S; i++)
        outputs[i] += size * (2.0f * mom_rng_uniform(key, i) - 1.0f);
}

/* Choices with changes of a call, or with a bias that the weights do not have. */
static mom_status choose_with(const mom_pass *pass, const mom_pool *pool, mom_route *r, const mom_route_change *change,
                              const mom_topk_spec *topk) {
    const mom_exec *x = pass->exec;
    mom_forced_choices choices = {.topk = *topk, .M = pool->M, .scores = r->scores, .outputs = r->outputs,
                                  .scored = mom_router_type_of(&pool->spec)->scored};
    if (change && change->forced)
        choices.forced = change->forced + pass->first_row * topk->K;
    if (pool->spec.biased) {
        float *ranking;
        MOM_ARENA_NEW(ranking, x->workspace, topk->N * topk->S, pass->err);
        mom_copy(x, ranking, r->scores, topk->N * topk->S * sizeof *ranking);
        add_job job = {x->k, ranking, pool->router_weight.balance_bias, topk->S};
        mom_parallel_rows(x, topk->N, ROUTE_ROWS, add_task, &job);
        choices.ranking = ranking;
    }
    return mom_forced_choices_forward(x, r->index, r->kept, &choices, pass->err);
}

static int is_free(const int16_t *forced, size_t K) {
    for (size_t k = 0; forced && k < K; k++)
        if (forced[k] != MOM_FREE)
            return 0;
    return 1;
}

/* A token that skipped in the round before makes no choice any more, unless the call forces one. */
static void keep_skipping(const mom_pass *pass, const mom_half_round *at, mom_route *r, const mom_route_change *change) {
    const size_t K = r->K, M = mom_half_round_pool(at)->M;
    if (!pass->config->final_skip || !at->before || !K || pass->exec->dry_run)
        return;
    for (size_t t = 0; t < pass->N; t++) {
        const int16_t *forced = change && change->forced ? change->forced + (pass->first_row + t) * K : NULL;
        if ((size_t)at->before[t * K] < M || !is_free(forced, K))
            continue;
        for (size_t k = t * K; k < (t + 1) * K; k++) {
            r->index[k] = MOM_NONE;
            r->kept[k] = 0.0f;
        }
    }
}

/* The K best choices and their weights. */
static mom_status keep_best(const mom_pass *pass, const mom_half_round *at, mom_route *r) {
    const mom_pool *pool = mom_half_round_pool(at);
    const mom_exec *x = pass->exec;
    const mom_topk_spec topk = topk_of(pass, pool, r);
    const mom_route_change *change = mom_route_change_of(pass, at);
    if (change || pool->spec.biased) {
        MOM_TRY(choose_with(pass, pool, r, change, &topk));
    } else {
        mom_router_topk_forward(x, r->index, r->kept, r->scores, &topk);
        const int scored = mom_router_type_of(&pool->spec)->scored;
        for (size_t i = 0; !scored && !x->dry_run && i < topk.N * r->K; i++)
            r->kept[i] = 1.0f / (float)r->K;
    }
    keep_skipping(pass, at, r, change);
    return MOM_OK;
}

/* Around the products of a router: they count as the router's, without the rows of padding. */
static mom_counts begin_counting(const mom_pass *pass) {
    mom_count_part(pass->exec, MOM_PART_ROUTER);
    return pass->exec->counts ? *pass->exec->counts : (mom_counts){0};
}

static void end_counting(const mom_pass *pass, const mom_counts *before) {
    if (pass->exec->counts && pass->exec->counts->mask)
        mom_counts_leave_out(pass->exec->counts, before, pass->N);
}

/* Outputs and scores of the router, and the choices it makes from them. */
static mom_status choose(const mom_pass *pass, const mom_half_round *at, mom_half_saved *saved, const float *state) {
    const mom_pool *pool = mom_half_round_pool(at);
    const mom_config *c = pass->config;
    const mom_exec *x = pass->exec;
    const mom_router_type *type = mom_router_type_of(&pool->spec);
    mom_route *r = &saved->route;
    const size_t N = pass->N, S = pool->S, R = pool->spec.R, gates = mom_router_gates(&pool->spec);
    if (type->hidden)
        MOM_ARENA_NEW(r->router.hidden, pass->saved, N * R, pass->err);
    if (gates) {
        const size_t size = mom_dtype_size(r->router.dtype = c->dtype);
        MOM_ARENA_NEW_SIZED(r->router.gates, pass->saved, N * gates * R, size, pass->err);
        MOM_ARENA_NEW_SIZED(r->router.h_n, pass->saved, N * R, size, pass->err);
    }
    mom_router_spec spec = pool->spec;
    spec.few_rows = pass->few_rows;
    const mom_router_tensors weights = router_weights(at);
    MOM_TRY(read_stream(pass, at, r, saved->input));
    const mom_router_inputs inputs = router_inputs(pass, at, &weights, r->read ? r->read : saved->input, state);
    const mom_counts before = begin_counting(pass);
    MOM_TRY(mom_router_hidden_forward(x, &r->router, &inputs, &spec, pass->err));
    if (type->recurrent)
        mom_site_visit(pass, mom_half_round_site(at, MOM_SITE_STATE), r->router.hidden, R);
    MOM_TRY(mom_router_outputs_forward(x, r->outputs, &r->router, &inputs, &spec, pass->err));
    end_counting(pass, &before);
    add_jitter(pass, at, r->outputs, S);
    const mom_route_change *change = mom_route_change_of(pass, at);
    if (change && change->bias)
        add_bias(pass, r->outputs, change, S);
    mom_router_scores_forward(x, r->scores, r->outputs, c->router_softmax, c->temperature, N, S);
    return keep_best(pass, at, r);
}

/* Makes the plan that sends tokens to their modules, and the weights that multiply the modules' outputs. */
static mom_status dispatch(const mom_pass *pass, const mom_pool *pool, mom_route *r, int biased) {
    const mom_config *c = pass->config;
    const mom_exec *x = pass->exec;
    const size_t N = pass->N, M = pool->M, width = M * sizeof(float);
    if (c->all_paths) {
        MOM_TRY(mom_routing_plan_init_dense(x, &r->plan, pass->saved, N, M, pass->err));
        MOM_ARENA_NEW(r->used, pass->saved, N * M, pass->err);
        mom_copy_rows(x, r->used, width, r->scores, pool->S * sizeof(float), N, width);
        for (size_t i = 0; biased && i < N * M; i++)
            if (r->outputs[i / M * pool->S + i % M] == -INFINITY)
                r->used[i] = 0.0f; /* forbidden; without a softmax its score is not 0 */
    } else {
        MOM_TRY(mom_routing_plan_init(x, &r->plan, pass->saved, r->index, N, r->K, M, pass->err));
        r->used = r->kept;
    }
    for (size_t m = 0; m < M; m++)
        r->reached[m] = r->plan.offsets[m + 1] > r->plan.offsets[m];
    if (!c->use_ste)
        return MOM_OK;
    const size_t n = N * r->plan.K;
    const float *weights = r->used;
    MOM_ARENA_NEW(r->used, pass->saved, n, pass->err);
    mom_router_ste_forward(x, r->used, weights, n);
    return MOM_OK;
}

mom_status mom_route_forward(const mom_pass *pass, const mom_half_round *at, mom_half_saved *saved, const float *state) {
    const mom_pool *pool = mom_half_round_pool(at);
    mom_route *r = &saved->route;
    const size_t S = pool->S;
    if (!r->scores)
        MOM_TRY(mom_route_allocate(pass, pool, r));
    MOM_TRY(choose(pass, at, saved, state));
    MOM_TRY(dispatch(pass, pool, r, mom_route_is_biased(pass, at)));
    r->tokens = 0.0;
    if (!r->counts)
        return MOM_OK;
    memset(r->counts, 0, S * sizeof *r->counts);
    memset(r->prob_sums, 0, S * sizeof *r->prob_sums);
    const mom_balance_scores scores = {.scores = r->scores, .mask = pass->mask, .softmax = balance_softmax(pass->config),
                                       .N = pass->N, .S = S, .used = pass->config->balance_used ? r->index : NULL,
                                       .used_stride = r->K};
    return mom_balance_accumulate(pass->exec, r->counts, r->prob_sums, &r->tokens, &scores, pass->err);
}

void mom_route_leave_out(const mom_pass *pass, const mom_pool *pool, mom_route *r) {
    const size_t N = pass->N, S = pool->S;
    r->left_out = 1;
    r->tokens = 0.0;
    if (pass->exec->dry_run)
        return;
    for (size_t i = 0; i < N * r->K; i++) {
        r->index[i] = MOM_NONE;
        r->kept[i] = 0.0f;
    }
    memset(r->scores, 0, N * S * sizeof *r->scores);
    memset(r->outputs, 0, N * S * sizeof *r->outputs);
    memset(r->reached, 0, pool->M * sizeof *r->reached);
    if (r->counts)
        memset(r->counts, 0, S * sizeof *r->counts);
    if (r->prob_sums)
        memset(r->prob_sums, 0, S * sizeof *r->prob_sums);
}

/* ------------------------------------------------------------------ backward */

/* dused (n): adds up the gradients of the two uses of a weight. With straight-through each is first clamped. dused2 may
 * be NULL. */
static void join_uses(const mom_exec *x, float *dused, float *dused2, int straight_through, size_t n) {
    if (straight_through) {
        mom_router_ste_backward(x, dused, dused, n);
        if (dused2)
            mom_router_ste_backward(x, dused2, dused2, n);
    }
    if (dused2)
        mom_scaled_add(x, dused, 1.0f, dused2, n);
}

/* dbias (S), a count in place of a gradient: how many more real tokens made each choice than its equal share. */
static void count_choices(const mom_pass *pass, const mom_route *r, float *dbias, size_t S) {
    size_t made = 0;
    for (size_t i = 0; i < pass->N * r->K; i++) {
        if ((pass->mask && !pass->mask[i / r->K]) || (size_t)r->index[i] >= S)
            continue;
        dbias[r->index[i]] += 1.0f;
        made++;
    }
    for (size_t s = 0; s < S; s++)
        dbias[s] -= (float)made / (float)S;
}

/* From the gradient of the outputs, doutputs (N, S), to those of the router's parameters, of the stream and of the state. */
static mom_status router_backward(const mom_pass *pass, const mom_half_round *at, const mom_half_saved *saved,
                                  const mom_half_backward *b, const float *doutputs) {
    const mom_pool *pool = mom_half_round_pool(at);
    const mom_route *r = &saved->route;
    const mom_exec *x = pass->exec;
    const size_t N = pass->N, C = pass->config->C, R = pool->spec.R;
    const int detached = pass->config->router_state == MOM_STATE_DETACHED;
    const mom_router_tensors weights = router_weights(at);
    mom_router_tensors dweights = mom_router_of_round(&b->pool->router, &pool->spec, at->round);
    const mom_router_inputs inputs = router_inputs(pass, at, &weights, r->read ? r->read : saved->input, b->state);
    mom_router_gradients gradients = {b->dx, b->state && !detached ? b->dstate : NULL, &dweights};
    const float *dstate_out = b->has_dstate && !detached ? b->dstate : NULL;
    const mom_site state = mom_half_round_site(at, MOM_SITE_STATE);
    const mom_counts before = begin_counting(pass);
    float *dhidden, *dread = NULL;
    if (r->read) {
        MOM_ARENA_ZEROS(dread, x, x->workspace, N * C, pass->err);
        gradients.dinp = dread;
    }
    MOM_TRY(mom_router_outputs_backward(x, &dhidden, &dweights, doutputs, &inputs, &r->router, &pool->spec, pass->err));
    if (mom_site_used(pass, state) && !x->dry_run) {
        if (dstate_out)
            x->k->vec.add(dhidden, dstate_out, N * R);
        dstate_out = NULL;
        mom_site_visit_backward(pass, state, dhidden, R);
    }
    MOM_TRY(mom_router_hidden_backward(x, &gradients, dhidden, dstate_out, &inputs, &r->router, &pool->spec, pass->err));
    end_counting(pass, &before);
    return dread ? read_stream_backward(pass, at, r, saved->input, dread, b) : MOM_OK;
}

mom_status mom_route_backward(const mom_pass *pass, const mom_half_round *at, const mom_half_saved *saved,
                              const mom_half_backward *b, float *dused, float *dused2) {
    const mom_pool *pool = mom_half_round_pool(at);
    const mom_config *c = pass->config;
    const mom_route *r = &saved->route;
    const mom_exec *x = pass->exec;
    const mom_balance_terms *balance = &b->balance;
    const size_t N = pass->N, S = pool->S, width = pool->M * sizeof(float);
    join_uses(x, dused, dused2, c->use_ste, N * r->plan.K);

    const mom_topk_spec topk = topk_of(pass, pool, r);
    float *dscores;
    MOM_ARENA_ZEROS(dscores, x, x->workspace, N * S, pass->err);
    if (c->all_paths)
        mom_copy_rows(x, dscores, S * sizeof *dscores, dused, width, N, width);
    else
        mom_router_topk_backward(x, dscores, dused, r->index, r->kept, r->scores, &topk);
    const mom_balance_scores scores = {.scores = r->scores, .mask = pass->mask, .softmax = balance_softmax(c), .N = N, .S = S};
    if (balance->active)
        mom_balance_backward(x, dscores, &scores, balance->counts, balance->count_tokens, balance->tokens, balance->scale);
    if (b->path_scale != 0.0f)
        mom_path_loss_backward(x, dscores, b->path, b->path_scale);
    mom_router_scores_backward(x, dscores, dscores, r->scores, c->router_softmax, c->temperature, N, S);
    const mom_router_outputs outputs = {r->outputs, pass->mask, N, S};
    if (b->z_scale != 0.0f)
        mom_z_loss_backward(x, dscores, &outputs, b->z_scale); /* dscores are the gradients of the outputs by now */
    const mom_made_choices made = mom_route_made(pass, pool, r);
    if (b->route_scale != 0.0f)
        mom_route_loss_backward(x, dscores, &made, b->route_scale);
    for (size_t i = 0; mom_route_is_biased(pass, at) && i < N * S; i++)
        if (r->outputs[i] == -INFINITY)
            dscores[i] = 0.0f; /* a forbidden choice */
    if (pool->spec.biased && !c->num_labels && !x->dry_run) /* a classifier's routers are not balanced */
        count_choices(pass, r, b->pool->router.balance_bias, S);
    return router_backward(pass, at, saved, b, dscores);
}
