/* One step of a decoder.
 *
 * DESIGN  A step takes a block of rows; a row is one token of one sequence. The rows of a sequence are in order, and
 *         each sees the rows before it. Every product of a step (ops/gemv.h) reads each matrix once for the whole
 *         block. Of a pool only the matrices of chosen modules are read. Routing is that of the forward pass (pool.c).
 *         A token that only skips has no query, key or value. Later tokens still count a key with score 0 for it in
 *         their softmax (ops/kv_cache.h). The result for a row does not depend on the other rows of its block.
 * COST    Each token reads the weights of its chosen modules, the routers, the head, and the keys and values it sees.
 */
#include <string.h>

#include "model/decoder_internal.h"
#include "model/sites.h"
#include "ops/embedding.h"
#include "ops/layernorm.h"
#include "ops/routed_rows.h"

#define BLOCK_ROWS ((size_t)32)

/* What a half of a step works with. */
typedef struct {
    mom_decoder *d;
    const mom_pass *pass;
    const mom_decoder_row *rows;
    size_t entry; /* of the cache */
    const mom_half_round *at;
    const mom_pool *pool;
    const mom_decoder_pool *matrices;
    mom_half_saved *saved;
    float *x; /* (n, C) residual stream */
} half_step;

/* out (slots, n): products with the modules' first or second matrices. inp (slots, k) is sorted by module, as in the
 * plan. */
static mom_status pool_products(const half_step *h, float *out, const float *inp, const mom_gemv_matrix *matrices,
                                float *const *bias, int gelu) {
    const mom_exec *x = h->pass->exec;
    const mom_pool *pool = h->pool;
    mom_gemv *products;
    size_t count = 0;
    MOM_ARENA_NEW(products, x->workspace, pool->M, h->pass->err);
    for (size_t m = 0; m < pool->M; m++) {
        const int32_t *offsets = h->saved->route.plan.offsets;
        const size_t first = pool->routed ? (size_t)offsets[m] : 0;
        const size_t slots = pool->routed ? (size_t)offsets[m + 1] - first : h->pass->N;
        if (slots)
            products[count++] = (mom_gemv){.out = out + first * matrices[m].n, .x = inp + first * matrices[m].k,
                                           .matrix = &matrices[m], .bias = bias[m], .rows = slots, .gelu = gelu};
    }
    return mom_gemv_run(x, products, count, h->pass->err);
}

static size_t slots_of(const half_step *h) { return h->pool->routed ? h->saved->route.plan.slots : h->pass->N; }

#define CONST_ARRAY(p) ((const float *const *)(p))

/* xn (slots, C): LayerNorm of each slot's module */
static void normalise(const half_step *h, float *xn) {
    const mom_exec *x = h->pass->exec;
    const mom_pool_tensors *w = &h->pool->weight;
    const mom_half_saved *s = h->saved;
    const size_t N = h->pass->N, C = h->pass->config->C;
    if (!h->pool->routed) {
        const mom_layernorm norm = {w->ln_weight[0], w->ln_bias[0], h->pass->config->ln_eps};
        mom_layernorm_forward(x, xn, s->mean, s->rstd, h->x, &norm, N, C);
        return;
    }
    mom_layernorm_stats(x, s->mean, s->rstd, h->x, h->pass->config->ln_eps, N, C);
    const mom_normed_rows rows = {h->x, s->mean, s->rstd, N, C};
    mom_routed_layernorm_forward(x, xn, &rows, CONST_ARRAY(w->ln_weight), CONST_ARRAY(w->ln_bias), &s->route.plan);
}

/* x += outputs y (slots, C), weighted */
static mom_status add_outputs(const half_step *h, float *y) {
    const mom_exec *x = h->pass->exec;
    const size_t N = h->pass->N, C = h->pass->config->C;
    mom_routing_plan single;
    mom_output_parts parts = {.plan = &h->saved->route.plan, .weight = h->saved->route.used};
    mom_output_visit visit;
    if (h->pass->interventions && !h->pool->routed) {
        MOM_TRY(mom_routing_plan_init_dense(x, &single, x->workspace, N, 1, h->pass->err));
        parts = (mom_output_parts){.plan = &single};
    }
    MOM_TRY(mom_output_visit_begin(h->pass, h->at, &parts, h->x, h->x, &visit));
    if (visit.slots)
        visit.slots = y;
    if (h->pool->routed)
        mom_routed_combine_forward(x, h->x, y, h->saved->route.used, &h->saved->route.plan, C, 1);
    else
        x->k->vec.add(h->x, y, N * C);
    return mom_output_visit_end(h->pass, h->at, &parts, &visit, h->x);
}

int mom_route_is_active(const mom_route *route, size_t token) {
    const mom_routing_plan *plan = &route->plan;
    for (size_t k = 0; k < plan->K; k++)
        if (plan->slot[token * plan->K + k] >= 0)
            return 1;
    return 0;
}

/* Appends keys and values to the cache and computes attention: heads (n, C) of the rows that chose a module. */
static mom_status attend(const half_step *h, float *heads, const float *qkv) {
    const mom_config *c = h->pass->config;
    const size_t N = h->pass->N, C = c->C, D = mom_head_size(c);
    mom_kv_query *queries;
    size_t count = 0;
    MOM_ARENA_NEW(queries, h->pass->exec->workspace, N, h->pass->err);
    for (size_t i = 0; i < N; i++) {
        if (h->pool->routed && !mom_route_is_active(&h->saved->route, i))
            continue;
        mom_sequence *s = &h->d->batch.sequences[h->rows[i].sequence];
        const mom_kv kv = mom_decoder_cache(h->d, s, h->entry);
        const size_t slot = (size_t)s->active[h->entry]++;
        const float *q = qkv + i * 3 * C;
        for (size_t head = 0; head < c->H; head++)
            mom_kv_write(&kv, slot, q + C + head * D, q + 2 * C + head * D, MOM_F32, head, D);
        queries[count++] = (mom_kv_query){heads + i * C, q, kv, slot + 1, h->rows[i].position - slot};
    }
    return mom_kv_attention(h->pass->exec, queries, count, mom_config_attention_scale(c), c->H, D, h->pass->err);
}

static mom_status attention_step(const half_step *h) {
    const mom_exec *x = h->pass->exec;
    const mom_pool_tensors *w = &h->pool->weight;
    const mom_route *route = &h->saved->route;
    const size_t N = h->pass->N, C = h->pass->config->C, slots = slots_of(h);
    mom_error *err = h->pass->err;
    float *xn, *y, *qkv, *heads;
    MOM_ARENA_NEW(xn, x->workspace, slots * C, err);
    MOM_ARENA_NEW(y, x->workspace, slots * 3 * C, err);
    MOM_ARENA_NEW(heads, x->workspace, N * C, err);
    normalise(h, xn);
    mom_count_part(x, MOM_PART_QKV);
    MOM_TRY(pool_products(h, y, xn, h->matrices->in, w->in_bias, 0));
    qkv = y;
    if (h->pool->routed) {
        MOM_ARENA_NEW(qkv, x->workspace, N * 3 * C, err);
        mom_routed_combine_forward(x, qkv, y, h->pass->config->weighted_qkv ? route->used : NULL, &route->plan, 3 * C, 0);
    }
    mom_count_part(x, MOM_PART_SCORES);
    MOM_TRY(attend(h, heads, qkv));
    mom_count_part(x, MOM_PART_PROJECTION);
    const float *inp = heads;
    if (h->pool->routed) {
        for (size_t slot = 0; slot < slots; slot++)
            memcpy(xn + slot * C, heads + (size_t)route->plan.token[slot] * C, C * sizeof *xn);
        inp = xn;
    }
    MOM_TRY(pool_products(h, y, inp, h->matrices->out, w->out_bias, 0));
    return add_outputs(h, y);
}

static mom_status ffn_step(const half_step *h) {
    const mom_exec *x = h->pass->exec;
    const mom_pool_tensors *w = &h->pool->weight;
    const size_t C = h->pass->config->C, slots = slots_of(h);
    float *xn, *g, *y;
    MOM_ARENA_NEW(xn, x->workspace, slots * C, h->pass->err);
    MOM_ARENA_NEW(g, x->workspace, slots * h->pool->F, h->pass->err);
    MOM_ARENA_NEW(y, x->workspace, slots * C, h->pass->err);
    normalise(h, xn);
    mom_count_part(x, MOM_PART_UP);
    MOM_TRY(pool_products(h, g, xn, h->matrices->in, w->in_bias, 1));
    mom_count_part(x, MOM_PART_DOWN);
    MOM_TRY(pool_products(h, y, g, h->matrices->out, w->out_bias, 0));
    return add_outputs(h, y);
}

/* One half of one round. state (n, R) is the recurrent state after the round before, or NULL for zero. The new state is
 * copied to next_state. */
static mom_status step_half(const half_step *h, const float *state, float *next_state) {
    const mom_pass *pass = h->pass;
    const size_t N = pass->N;
    MOM_ARENA_NEW(h->saved->mean, pass->saved, N, pass->err);
    MOM_ARENA_NEW(h->saved->rstd, pass->saved, N, pass->err);
    mom_site_visit(pass, mom_half_round_site(h->at, MOM_SITE_INPUT), h->x, pass->config->C);
    h->saved->input = h->x;
    if (h->pool->routed) {
        MOM_TRY(mom_route_forward(pass, h->at, h->saved, state));
        if (next_state)
            memcpy(next_state, h->saved->route.router.hidden, N * pass->config->R * sizeof *next_state);
    }
    return h->pool->kind == MOM_POOL_ATTN ? attention_step(h) : ffn_step(h);
}

static void record_routes(const half_step *h, mom_decoder_route *to) {
    const mom_route *r = &h->saved->route;
    const mom_decoder_route route = {r->scores, r->kept, r->index, r->K};
    if (!h->pool->routed)
        return;
    mom_decoder_record(h->d, h->at->index, h->at->round, h->at->half, h->pass->first_row, h->pass->N, &route);
    for (size_t i = 0; i < h->pass->N; i++)
        if (h->rows[i].last)
            mom_decoder_route_copy(to, h->rows[i].sequence, &route, i, r->K, h->pool);
}

static mom_status step_place(mom_decoder *d, const mom_pass *pass, const mom_decoder_row *rows, size_t i, float *x) {
    static const mom_packed_pool none;
    const mom_place *place = &d->gpt->params.places[i];
    float *states[2] = {NULL, NULL};
    int16_t *before[2] = {NULL, NULL}; /* choices of the round before */
    for (int half = 0; half < 2; half++)
        if (mom_pool_has_state(mom_place_pool(place, half)))
            MOM_ARENA_NEW(states[half], pass->saved, pass->N * pass->config->R, pass->err);
    for (int half = 0; half < 2 && pass->config->final_skip; half++) {
        const mom_pool *pool = mom_place_pool(place, half);
        if (pool->routed)
            MOM_ARENA_NEW(before[half], pass->saved, pass->N * mom_pass_choices(pass, pool), pass->err);
    }
    for (size_t round = 0; round < place->rounds; round++) {
        for (int half = 0; half < 2; half++) {
            const mom_arena_mark mark = mom_arena_get_mark(pass->saved);
            const mom_half_round at = {.place = place, .index = i, .round = round, .half = half, .packed = &none,
                                       .before = round ? before[half] : NULL};
            mom_half_saved saved = {0};
            half_step h = {d, pass, rows, d->places[i].first_entry + round, &at, mom_place_pool(place, half),
                           &d->places[i].halves[half], &saved, x};
            MOM_TRY(step_half(&h, round ? states[half] : NULL, states[half]));
            record_routes(&h, &d->batch.routes[i][2 * round + (size_t)half]);
            if (before[half])
                memcpy(before[half], saved.route.index, pass->N * saved.route.K * sizeof *before[half]);
            mom_arena_release(pass->saved, mark);
        }
    }
    return MOM_OK;
}

mom_status mom_decoder_head(mom_decoder *d, const mom_exec *x, const float *hidden, const size_t *targets, size_t count,
                       mom_error *err) {
    const size_t V = d->gpt->config.V;
    float *logits;
    MOM_ARENA_NEW(logits, x->workspace, count * V, err);
    const mom_gemv product = {.out = logits, .x = hidden, .matrix = &d->head, .rows = count};
    mom_count_part(x, MOM_PART_HEAD);
    MOM_TRY(mom_gemv_run(x, &product, 1, err));
    for (size_t i = 0; i < count; i++)
        memcpy(d->batch.logits + targets[i] * V, logits + i * V, V * sizeof *logits);
    return MOM_OK;
}

static mom_status step_head(mom_decoder *d, const mom_pass *pass, const mom_decoder_row *rows, const float *x) {
    const mom_exec *exec = pass->exec;
    const mom_params *p = &d->gpt->params;
    const size_t C = pass->config->C;
    float *hidden, *mean, *rstd;
    size_t *targets, count = 0;
    MOM_ARENA_NEW(hidden, exec->workspace, pass->N * C, pass->err);
    MOM_ARENA_NEW(mean, exec->workspace, pass->N, pass->err);
    MOM_ARENA_NEW(rstd, exec->workspace, pass->N, pass->err);
    MOM_ARENA_NEW(targets, exec->workspace, pass->N, pass->err);
    const mom_layernorm norm = {mom_param_value(p, p->lnf_weight), mom_param_value(p, p->lnf_bias), pass->config->ln_eps};
    for (size_t i = 0; i < pass->N; i++) {
        if (!rows[i].last)
            continue;
        mom_layernorm_forward(exec, hidden + count * C, mean, rstd, x + i * C, &norm, 1, C);
        mom_pass row = *pass;
        row.N = 1;
        row.first_row = pass->first_row + i;
        mom_site_visit(&row, (mom_site){.kind = MOM_SITE_HIDDEN}, hidden + count * C, C);
        targets[count++] = rows[i].sequence;
    }
    return count ? mom_decoder_head(d, exec, hidden, targets, count, pass->err) : MOM_OK;
}

/* Rows first to first + n - 1 of the call. */
static mom_status run_block(mom_decoder *d, const mom_exec *x, const mom_decoder_row *rows, size_t first, size_t n,
                            mom_error *err) {
    mom_gpt *gpt = d->gpt;
    const mom_config *c = &gpt->config;
    const mom_params *p = &gpt->params;
    int32_t *tokens, *positions;
    float *stream;
    MOM_ARENA_NEW(tokens, x->workspace, n, err);
    MOM_ARENA_NEW(positions, x->workspace, n, err);
    MOM_ARENA_NEW(stream, x->workspace, n * c->C, err);
    const mom_pass pass = {.exec = x, .config = c, .saved = x->workspace, .B = n, .T = 1, .N = n, .tokens = tokens,
                           .seed = gpt->seed, .counter = gpt->counter, .few_rows = 1, .interventions = d->interventions,
                           .first_row = first, .err = err};
    for (size_t i = 0; i < n; i++) {
        tokens[i] = rows[first + i].token;
        positions[i] = (int32_t)rows[first + i].position;
    }
    mom_embedding_forward(x, stream, tokens, positions, mom_param_value(p, p->wte), mom_param_value(p, p->wpe),
                          (mom_dropout){0.0f, 0}, n, c->C);
    mom_site_visit(&pass, (mom_site){.kind = MOM_SITE_EMBEDDING}, stream, c->C);
    for (size_t i = 0; i < p->num_places; i++)
        MOM_TRY(step_place(d, &pass, rows + first, i, stream));
    mom_site_visit(&pass, (mom_site){.kind = MOM_SITE_FINAL}, stream, c->C);
    MOM_TRY(step_head(d, &pass, rows + first, stream));
    if (mom_config_draws(c))
        gpt->counter++;
    for (size_t i = 0; i < n; i++)
        d->batch.sequences[rows[first + i].sequence].length++;
    return MOM_OK;
}

mom_status mom_decoder_run_rows(mom_decoder *d, const mom_exec *x, const mom_decoder_row *rows, size_t count, mom_error *err) {
    mom_count_work(x, MOM_WORK_FORWARD);
    if (x->counts)
        x->counts->mask = NULL; /* of an earlier pass */
    for (size_t i = 0; i < count; i += BLOCK_ROWS) {
        const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
        MOM_TRY(run_block(d, x, rows, i, mom_min(BLOCK_ROWS, count - i), err));
        mom_arena_release(x->workspace, mark);
    }
    return MOM_OK;
}
