/* Code that attention and feed-forward pools share: layers, packing, the router's part of a half. */
#include "model/pool.h"

#include <math.h>
#include <string.h>

#include "model/sites.h"
#include "ops/balance_loss.h"
#include "ops/elementwise.h"
#include "ops/forced_choices.h"
#include "ops/z_loss.h"

/* Whether the balance loss applies a softmax to the scores to get probabilities. */
static int balance_softmax(const mom_config *c) { return c->balance_reference || !c->router_softmax; }

static int balance_wanted(const mom_config *c) {
    return c->balance_enabled && mom_router_types[c->router_kind].scored && !(c->balance_reference && c->num_attn == 1);
}

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

/* ------------------------------------------------------------------ routes */

static mom_router_tensors router_weights(const mom_half_round *at) {
    mom_router_tensors weights = mom_half_round_pool(at)->router_weight;
    weights.packed_in = at->packed->router_in;
    weights.packed_state = at->packed->router_state;
    return weights;
}

static mom_router_inputs router_inputs(const mom_pass *pass, const mom_half_round *at, const mom_router_tensors *weights,
                                       const float *inp, const float *state) {
    return (mom_router_inputs){.weights = weights, .inp = inp, .state = state, .tokens = pass->tokens, .round = at->round,
                               .half = at->half, .modules = mom_half_round_pool(at)->M,
                               .noise_key = mom_half_round_key(pass, at, MOM_STREAM_NOISE), .N = pass->N};
}

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

static mom_status force(const mom_pass *pass, const mom_pool *pool, mom_route *r, const mom_route_change *change,
                        const mom_topk_spec *topk) {
    const mom_forced_choices choices = {.topk = *topk, .M = pool->M, .scores = r->scores, .outputs = r->outputs,
                                        .forced = change->forced ? change->forced + pass->first_row * topk->K : NULL,
                                        .scored = mom_router_type_of(&pool->spec)->scored};
    return mom_forced_choices_forward(pass->exec, r->index, r->kept, &choices, pass->err);
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
    if (type->param_count)
        MOM_ARENA_NEW(r->router.hidden, pass->saved, N * R, pass->err);
    if (gates) {
        const size_t size = mom_dtype_size(r->router.dtype = c->dtype);
        MOM_ARENA_NEW_SIZED(r->router.gates, pass->saved, N * gates * R, size, pass->err);
        MOM_ARENA_NEW_SIZED(r->router.h_n, pass->saved, N * R, size, pass->err);
    }
    mom_router_spec spec = pool->spec;
    spec.few_rows = pass->few_rows;
    const mom_router_tensors weights = router_weights(at);
    const mom_router_inputs inputs = router_inputs(pass, at, &weights, saved->input, state);
    const mom_counts before = begin_counting(pass);
    MOM_TRY(mom_router_hidden_forward(x, &r->router, &inputs, &spec, pass->err));
    if (type->recurrent)
        mom_site_visit(pass, mom_half_round_site(at, MOM_SITE_STATE), r->router.hidden, R);
    MOM_TRY(mom_router_outputs_forward(x, r->outputs, &r->router, &inputs, &spec, pass->err));
    end_counting(pass, &before);
    const mom_route_change *change = mom_route_change_of(pass, at);
    if (change && change->bias)
        add_bias(pass, r->outputs, change, S);
    mom_router_scores_forward(x, r->scores, r->outputs, c->router_softmax, c->temperature, N, S);
    const mom_topk_spec topk = {N, S, r->K, c->router_softmax};
    if (change)
        return force(pass, pool, r, change, &topk);
    mom_router_topk_forward(x, r->index, r->kept, r->scores, &topk);
    for (size_t i = 0; !type->scored && !x->dry_run && i < N * r->K; i++)
        r->kept[i] = 1.0f / (float)r->K;
    return MOM_OK;
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
    if (!x->dry_run)
        mom_router_ste_forward(r->used, weights, n);
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

/* dused (n): adds up the gradients of the two uses of a weight. With straight-through each is first clamped. dused2 may
 * be NULL. */
static void join_uses(const mom_exec *x, float *dused, float *dused2, int straight_through, size_t n) {
    if (straight_through) {
        mom_router_ste_backward(dused, dused, n);
        if (dused2)
            mom_router_ste_backward(dused2, dused2, n);
    }
    if (dused2)
        x->k->vec.add(dused, dused2, n);
}

mom_status mom_route_backward(const mom_pass *pass, const mom_half_round *at, const mom_half_saved *saved,
                              const mom_half_backward *b, float *dused, float *dused2) {
    const mom_pool *pool = mom_half_round_pool(at);
    const mom_config *c = pass->config;
    const mom_route *r = &saved->route;
    const mom_exec *x = pass->exec;
    const mom_balance_terms *balance = &b->balance;
    const size_t N = pass->N, S = pool->S, width = pool->M * sizeof(float);
    if (!x->dry_run)
        join_uses(x, dused, dused2, c->use_ste, N * r->plan.K);

    const mom_topk_spec topk = {N, S, r->K, c->router_softmax};
    float *dscores, *dhidden;
    MOM_ARENA_ZEROS(dscores, x, x->workspace, N * S, pass->err);
    if (c->all_paths)
        mom_copy_rows(x, dscores, S * sizeof *dscores, dused, width, N, width);
    else
        mom_router_topk_backward(x, dscores, dused, r->index, r->kept, r->scores, &topk);
    const mom_balance_scores scores = {.scores = r->scores, .mask = pass->mask, .softmax = balance_softmax(c), .N = N, .S = S};
    if (balance->active)
        mom_balance_backward(x, dscores, &scores, balance->counts, balance->count_tokens, balance->tokens, balance->scale);
    mom_router_scores_backward(x, dscores, dscores, r->scores, c->router_softmax, c->temperature, N, S);
    const mom_router_outputs outputs = {r->outputs, pass->mask, N, S};
    if (b->z_scale != 0.0f)
        mom_z_loss_backward(x, dscores, &outputs, b->z_scale); /* dscores are the gradients of the outputs by now */
    for (size_t i = 0; mom_route_is_biased(pass, at) && i < N * S; i++)
        if (r->outputs[i] == -INFINITY)
            dscores[i] = 0.0f; /* a forbidden choice */

    const mom_router_tensors weights = router_weights(at);
    const mom_router_inputs inputs = router_inputs(pass, at, &weights, saved->input, b->state);
    const mom_router_gradients gradients = {b->dx, b->state ? b->dstate : NULL, &b->pool->router};
    const float *dstate_out = b->has_dstate ? b->dstate : NULL;
    const mom_site state = mom_half_round_site(at, MOM_SITE_STATE);
    const mom_counts before = begin_counting(pass);
    MOM_TRY(mom_router_outputs_backward(x, &dhidden, gradients.dweights, dscores, &inputs, &r->router, &pool->spec, pass->err));
    if (mom_site_used(pass, state) && !x->dry_run) {
        if (dstate_out)
            x->k->vec.add(dhidden, dstate_out, N * pool->spec.R);
        dstate_out = NULL;
        mom_site_visit_backward(pass, state, dhidden, pool->spec.R);
    }
    MOM_TRY(mom_router_hidden_backward(x, &gradients, dhidden, dstate_out, &inputs, &r->router, &pool->spec, pass->err));
    end_counting(pass, &before);
    return MOM_OK;
}
