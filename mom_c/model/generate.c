/* Generating token by token. Reading order: weights, sequences, one step (routed halves, places, head), append, generate.
 *
 * DESIGN  A step takes a block of rows, a row being one token of one sequence; rows of one sequence stand in order and see
 *         each other. Every product of a step (ops/gemv.h) reads each matrix it needs once for the whole block, of pools
 *         the chosen modules only. Routing is that of the forward pass (pool.c); a token that only skips has no query,
 *         no key and no value, and its key counts in the softmax of later ones (ops/kv_cache.h).
 *         What a step computes for a row does not depend on the other rows of its block.
 * COST    per token the weights of the chosen modules, of routers and head, and the keys and values it sees.
 */
#include "model/generate.h"

#include <math.h>
#include <string.h>

#include "base/sizes.h"
#include "ops/embedding.h"
#include "ops/kv_cache.h"
#include "ops/layernorm.h"
#include "ops/routed_linear.h"

#define BLOCK_ROWS ((size_t)32)
/* An empty cache is filled by a forward pass if there are more tokens than this: it packs every matrix, which costs
 * reading them three times. */
#define FEW_TOKENS ((size_t)16)

static size_t head_size(const mom_config *c) { return c->C / c->H; }

static const mom_pool *half_of(const mom_place *place, int half) { return half ? &place->ffn : &place->attn; }

/* ------------------------------------------------------------------ weights */

/* Sizes of a pool's matrices: in (C, F), out (O, C). */
static size_t out_inputs(const mom_config *c, const mom_pool *pool) {
    return pool->kind == MOM_POOL_ATTN ? c->C : pool->F;
}

typedef struct {
    const mom_exec *exec;
    mom_gemv_format format;
    unsigned char *next; /* where the next copy goes */
    size_t bytes;        /* of all copies */
} weight_copier;

/* With exec NULL the copies are only measured. */
static void take_matrix(weight_copier *w, mom_gemv_matrix *matrix, const float *weight, mom_weight_layout layout, size_t k,
                        size_t n) {
    if (w->format == MOM_GEMV_F32) {
        *matrix = (mom_gemv_matrix){MOM_GEMV_F32, layout, weight, NULL, k, n};
        return;
    }
    const size_t bytes = mom_gemv_packed_bytes(w->format, k, n);
    if (w->exec) {
        mom_gemv_pack(w->exec, matrix, w->next, w->format, weight, layout, k, n);
        w->next += bytes;
    }
    w->bytes += bytes;
}

static void take_weights(mom_decoder *d, weight_copier *w) {
    const mom_gpt *gpt = d->gpt;
    const mom_config *c = &gpt->config;
    const mom_params *p = &gpt->params;
    for (size_t i = 0; i < p->num_places; i++) {
        for (int half = 0; half < 2; half++) {
            const mom_pool *pool = half_of(&p->places[i], half);
            mom_decoder_pool *own = &d->places[i].halves[half];
            for (size_t m = 0; m < pool->M; m++) {
                take_matrix(w, &own->in[m], pool->weight.in_weight[m], MOM_WEIGHT_IN_OUT, c->C, pool->F);
                take_matrix(w, &own->out[m], pool->weight.out_weight[m], MOM_WEIGHT_IN_OUT, out_inputs(c, pool), c->C);
            }
        }
    }
    take_matrix(w, &d->head, mom_param_value(p, p->wte), MOM_WEIGHT_OUT_IN, c->C, c->V);
}

static mom_status init(mom_decoder *d, const mom_exec *exec, mom_error *err) {
    const mom_params *p = &d->gpt->params;
    MOM_ARENA_NEW(d->places, &d->tables, p->num_places, err);
    for (size_t i = 0; i < p->num_places; i++) {
        d->places[i].first_entry = d->entries;
        d->entries += p->places[i].rounds;
        for (int half = 0; half < 2; half++) {
            const size_t M = half_of(&p->places[i], half)->M;
            MOM_ARENA_NEW(d->places[i].halves[half].in, &d->tables, M, err);
            MOM_ARENA_NEW(d->places[i].halves[half].out, &d->tables, M, err);
        }
    }
    weight_copier measure = {.format = d->format};
    take_weights(d, &measure);
    if (d->format == MOM_GEMV_F32)
        return MOM_OK;
    d->packed = mom_memory_alloc(measure.bytes, 1, "weights of the decoder", err);
    if (!d->packed)
        return MOM_ERR_MEMORY;
    d->packed_bytes = measure.bytes;
    weight_copier copy = {.exec = exec, .format = d->format, .next = d->packed};
    take_weights(d, &copy);
    return MOM_OK;
}

mom_status mom_decoder_init(mom_decoder *d, mom_gpt *gpt, mom_gemv_format format, const mom_exec *exec, mom_error *err) {
    *d = (mom_decoder){.gpt = gpt, .format = format};
    mom_arena_init(&d->tables, "decoder");
    mom_arena_init(&d->workspace, "decoder workspace");
    mom_arena_init(&d->batch.arena, "sequences of the decoder");
    const mom_status status = init(d, exec, err);
    if (status != MOM_OK)
        mom_decoder_free(d);
    return status;
}

void mom_decoder_free(mom_decoder *d) {
    mom_decoder_clear(d);
    mom_memory_free(d->packed);
    mom_arena_free(&d->tables);
    mom_arena_free(&d->workspace);
    *d = (mom_decoder){0};
}

/* ------------------------------------------------------------------ sequences */

static void free_batch(mom_decoder_batch *batch) {
    for (size_t b = 0; b < batch->B; b++)
        mom_memory_free(batch->sequences[b].kv);
    mom_arena_free(&batch->arena);
    batch->B = 0;
    batch->sequences = NULL;
    batch->routes = NULL;
    batch->logits = NULL;
}

void mom_decoder_clear(mom_decoder *d) {
    free_batch(&d->batch);
    mom_arena_clear(&d->workspace);
}

/* Everything of a batch but its caches, from `arena`. */
static mom_status allocate_batch(const mom_decoder *d, mom_decoder_batch *batch, mom_arena *arena, size_t B, mom_error *err) {
    const mom_params *p = &d->gpt->params;
    MOM_ARENA_NEW(batch->sequences, arena, B, err);
    for (size_t b = 0; b < B; b++) {
        mom_sequence *s = &batch->sequences[b];
        *s = (mom_sequence){.pending = -1};
        MOM_ARENA_NEW(s->active, arena, d->entries, err);
        memset(s->active, 0, d->entries * sizeof *s->active);
    }
    MOM_ARENA_NEW(batch->logits, arena, B * d->gpt->config.V, err);
    MOM_ARENA_NEW(batch->routes, arena, p->num_places, err);
    for (size_t i = 0; i < p->num_places; i++) {
        const size_t n = 2 * p->places[i].rounds;
        MOM_ARENA_NEW(batch->routes[i], arena, n, err);
        for (size_t j = 0; j < n; j++) {
            const mom_pool *pool = half_of(&p->places[i], (int)(j % 2));
            mom_decoder_route *r = &batch->routes[i][j];
            *r = (mom_decoder_route){NULL, NULL, NULL};
            if (!pool->routed)
                continue;
            MOM_ARENA_NEW(r->scores, arena, B * pool->S, err);
            MOM_ARENA_NEW(r->kept, arena, B * pool->K, err);
            MOM_ARENA_NEW(r->index, arena, B * pool->K, err);
        }
    }
    batch->B = B;
    return MOM_OK;
}

static mom_status init_batch(const mom_decoder *d, mom_decoder_batch *batch, size_t B, mom_error *err) {
    *batch = (mom_decoder_batch){0};
    mom_arena_init(&batch->arena, "sequences of the decoder");
    const mom_status status = allocate_batch(d, batch, &batch->arena, B, err);
    if (status != MOM_OK)
        free_batch(batch);
    return status;
}

static mom_kv cache_entry(const mom_decoder *d, const mom_sequence *s, size_t entry) {
    const size_t C = d->gpt->config.C;
    float *keys = s->kv + entry * mom_kv_floats(s->capacity, C);
    return (mom_kv){keys, keys + s->capacity * C, s->capacity};
}

/* Copies the cached keys and values of one sequence into another's block. */
static void copy_cache(const mom_decoder *d, const mom_sequence *to, const mom_sequence *from) {
    const mom_config *c = &d->gpt->config;
    for (size_t e = 0; e < d->entries; e++) {
        const mom_kv target = cache_entry(d, to, e), source = cache_entry(d, from, e);
        mom_kv_copy(&target, &source, (size_t)from->active[e], c->H, head_size(c));
    }
}

static mom_status allocate_cache(const mom_decoder *d, mom_sequence *s, size_t capacity, mom_error *err) {
    s->capacity = mom_max((capacity + MOM_PANEL - 1) / MOM_PANEL * MOM_PANEL, MOM_PANEL);
    s->kv = mom_memory_alloc(d->entries, mom_kv_floats(s->capacity, d->gpt->config.C) * sizeof(float),
                             "cache of keys and values", err);
    return s->kv ? MOM_OK : MOM_ERR_MEMORY;
}

static mom_status reserve(const mom_decoder *d, mom_sequence *s, size_t capacity, mom_error *err) {
    if (s->kv && s->capacity >= capacity)
        return MOM_OK;
    mom_sequence larger = *s;
    MOM_TRY(allocate_cache(d, &larger, capacity, err));
    if (s->kv)
        copy_cache(d, &larger, s);
    mom_memory_free(s->kv);
    *s = larger;
    return MOM_OK;
}

mom_status mom_decoder_reserve(mom_decoder *d, size_t capacity, mom_error *err) {
    const size_t P = d->gpt->config.P;
    if (capacity > P)
        return mom_error_set(err, MOM_ERR_VALUE, "capacity: %zu tokens, n_positions is %zu", capacity, P);
    for (size_t b = 0; b < d->batch.B; b++)
        MOM_TRY(reserve(d, &d->batch.sequences[b], capacity, err));
    return MOM_OK;
}

static void copy_route_row(mom_decoder_route *to, size_t b, const float *scores, const float *kept, const int16_t *index,
                           size_t row, const mom_pool *pool) {
    memcpy(to->scores + b * pool->S, scores + row * pool->S, pool->S * sizeof *scores);
    memcpy(to->kept + b * pool->K, kept + row * pool->K, pool->K * sizeof *kept);
    memcpy(to->index + b * pool->K, index + row * pool->K, pool->K * sizeof *index);
}

/* Sequence b of one batch becomes sequence `row` of another, but for its cache. */
static void copy_sequence(const mom_decoder *d, mom_decoder_batch *to, size_t b, const mom_decoder_batch *from, size_t row) {
    const mom_params *p = &d->gpt->params;
    const size_t V = d->gpt->config.V;
    const mom_sequence *old = &from->sequences[row];
    mom_sequence *s = &to->sequences[b];
    s->length = old->length;
    s->pending = old->pending;
    memcpy(s->active, old->active, d->entries * sizeof *s->active);
    memcpy(to->logits + b * V, from->logits + row * V, V * sizeof *to->logits);
    for (size_t i = 0; i < p->num_places; i++) {
        for (size_t j = 0; j < 2 * p->places[i].rounds; j++) {
            const mom_pool *pool = half_of(&p->places[i], (int)(j % 2));
            const mom_decoder_route *r = &from->routes[i][j];
            if (pool->routed)
                copy_route_row(&to->routes[i][j], b, r->scores, r->kept, r->index, row, pool);
        }
    }
}

mom_status mom_decoder_reorder(mom_decoder *d, const int32_t *rows, size_t count, mom_error *err) {
    if (!d->batch.B)
        return mom_error_set(err, MOM_ERR_STATE, "reorder: there are no sequences yet");
    for (size_t i = 0; i < count; i++)
        if (rows[i] < 0 || (size_t)rows[i] >= d->batch.B)
            return mom_error_set(err, MOM_ERR_VALUE, "rows: %ld at position %zu is not in [0, %zu)", (long)rows[i], i,
                                 d->batch.B);
    if (!count)
        return mom_error_set(err, MOM_ERR_VALUE, "rows: is empty");
    mom_decoder_batch batch;
    MOM_TRY(init_batch(d, &batch, count, err));
    /* pass 1: copies for the second and later uses of a sequence; the first takes over the cache as it is */
    for (size_t i = 0; i < count; i++) {
        size_t first = 0;
        while (rows[first] != rows[i])
            first++;
        copy_sequence(d, &batch, i, &d->batch, (size_t)rows[i]);
        if (first == i)
            continue;
        const mom_sequence *old = &d->batch.sequences[rows[i]];
        const mom_status status = allocate_cache(d, &batch.sequences[i], old->capacity, err);
        if (status != MOM_OK) {
            free_batch(&batch);
            return status;
        }
        copy_cache(d, &batch.sequences[i], old);
    }
    /* pass 2: what cannot fail */
    for (size_t i = 0; i < count; i++) {
        mom_sequence *old = &d->batch.sequences[rows[i]];
        if (batch.sequences[i].kv)
            continue;
        batch.sequences[i].kv = old->kv;
        batch.sequences[i].capacity = old->capacity;
        old->kv = NULL;
    }
    free_batch(&d->batch);
    d->batch = batch;
    return MOM_OK;
}

static size_t arena_bytes(const mom_arena *arena) {
    size_t bytes = arena->spare ? arena->spare->capacity : 0;
    for (const mom_arena_block *block = arena->top; block; block = block->previous)
        bytes += block->capacity;
    return bytes;
}

size_t mom_decoder_bytes(const mom_decoder *d) {
    size_t bytes = d->packed_bytes + arena_bytes(&d->tables) + arena_bytes(&d->workspace) + arena_bytes(&d->batch.arena);
    for (size_t b = 0; b < d->batch.B; b++) {
        const mom_sequence *s = &d->batch.sequences[b];
        bytes += s->kv ? d->entries * mom_kv_floats(s->capacity, d->gpt->config.C) * sizeof(float) : 0;
    }
    return bytes;
}

/* ------------------------------------------------------------------ one step */

typedef struct {
    size_t sequence, position;
    int32_t token;
    int last; /* of its sequence in this call: its logits and routes are wanted */
} row;

/* What a half of a step works with. */
typedef struct {
    mom_decoder *d;
    const mom_run *run;
    const row *rows;
    size_t entry; /* of the cache */
    const mom_pool *pool;
    const mom_decoder_pool *matrices;
    mom_half_saved *saved;
    float *x; /* (n, C) residual stream */
} half_step;

/* out (slots, n) of the modules' first or second matrices, inp (slots, k) sorted by module as the plan is. */
static mom_status pool_products(const half_step *h, float *out, const float *inp, const mom_gemv_matrix *matrices,
                                float *const *bias, int gelu) {
    const mom_exec *x = h->run->exec;
    const mom_pool *pool = h->pool;
    mom_gemv *products;
    size_t count = 0;
    MOM_ARENA_NEW(products, x->workspace, pool->M, h->run->err);
    for (size_t m = 0; m < pool->M; m++) {
        const int32_t *offsets = h->saved->route.plan.offsets;
        const size_t first = pool->routed ? (size_t)offsets[m] : 0;
        const size_t slots = pool->routed ? (size_t)offsets[m + 1] - first : h->run->N;
        if (slots)
            products[count++] = (mom_gemv){.out = out + first * matrices[m].n, .x = inp + first * matrices[m].k,
                                           .matrix = &matrices[m], .bias = bias[m], .rows = slots, .gelu = gelu};
    }
    return mom_gemv_run(x, products, count, h->run->err);
}

static size_t slots_of(const half_step *h) { return h->pool->routed ? h->saved->route.plan.slots : h->run->N; }

#define CONST_ARRAY(p) ((const float *const *)(p))

/* xn (slots, C): LayerNorm of each slot's module */
static void normalise(const half_step *h, float *xn) {
    const mom_exec *x = h->run->exec;
    const mom_pool_tensors *w = &h->pool->weight;
    const mom_half_saved *s = h->saved;
    const size_t N = h->run->N, C = h->run->config->C;
    if (!h->pool->routed) {
        mom_layernorm_forward(x, xn, s->mean, s->rstd, h->x, w->ln_weight[0], w->ln_bias[0], h->run->config->ln_eps, N, C);
        return;
    }
    mom_layernorm_stats(x, s->mean, s->rstd, h->x, h->run->config->ln_eps, N, C);
    mom_routed_layernorm_forward(x, xn, h->x, s->mean, s->rstd, CONST_ARRAY(w->ln_weight), CONST_ARRAY(w->ln_bias),
                                 &s->route.plan, C);
}

/* x += outputs y (slots, C), weighted */
static void add_outputs(const half_step *h, const float *y) {
    const mom_exec *x = h->run->exec;
    const size_t N = h->run->N, C = h->run->config->C;
    if (h->pool->routed)
        mom_routed_combine_forward(x, h->x, y, h->saved->route.used, &h->saved->route.plan, C, 1);
    else
        x->k->vec.add(h->x, y, N * C);
}

/* Whether a token chose a module. */
static int is_active(const mom_route *route, size_t token) {
    const mom_routing_plan *plan = &route->plan;
    for (size_t k = 0; k < plan->K; k++)
        if (plan->slot[token * plan->K + k] >= 0)
            return 1;
    return 0;
}

/* Puts keys and values into the cache and attends: heads (n, C) of the rows that chose a module. */
static mom_status attend(const half_step *h, float *heads, const float *qkv) {
    const mom_config *c = h->run->config;
    const size_t N = h->run->N, C = c->C, D = head_size(c);
    mom_kv_query *queries;
    size_t count = 0;
    MOM_ARENA_NEW(queries, h->run->exec->workspace, N, h->run->err);
    for (size_t i = 0; i < N; i++) {
        if (h->pool->routed && !is_active(&h->saved->route, i))
            continue;
        mom_sequence *s = &h->d->batch.sequences[h->rows[i].sequence];
        const mom_kv kv = cache_entry(h->d, s, h->entry);
        const size_t slot = (size_t)s->active[h->entry]++;
        const float *q = qkv + i * 3 * C;
        for (size_t head = 0; head < c->H; head++)
            mom_kv_write(&kv, slot, q + C + head * D, q + 2 * C + head * D, MOM_F32, head, D);
        queries[count++] = (mom_kv_query){heads + i * C, q, kv, slot + 1, h->rows[i].position - slot};
    }
    const float scale = c->scale_attention ? 1.0f / sqrtf((float)D) : 1.0f;
    return mom_kv_attention(h->run->exec, queries, count, scale, c->H, D, h->run->err);
}

static mom_status attention_step(const half_step *h) {
    const mom_exec *x = h->run->exec;
    const mom_pool_tensors *w = &h->pool->weight;
    const mom_route *route = &h->saved->route;
    const size_t N = h->run->N, C = h->run->config->C, slots = slots_of(h);
    mom_error *err = h->run->err;
    float *xn, *y, *qkv, *heads;
    MOM_ARENA_NEW(xn, x->workspace, slots * C, err);
    MOM_ARENA_NEW(y, x->workspace, slots * 3 * C, err);
    MOM_ARENA_NEW(heads, x->workspace, N * C, err);
    normalise(h, xn);
    MOM_TRY(pool_products(h, y, xn, h->matrices->in, w->in_bias, 0));
    qkv = y;
    if (h->pool->routed) {
        MOM_ARENA_NEW(qkv, x->workspace, N * 3 * C, err);
        mom_routed_combine_forward(x, qkv, y, h->run->config->weighted_qkv ? route->used : NULL, &route->plan, 3 * C, 0);
    }
    MOM_TRY(attend(h, heads, qkv));
    const float *inp = heads;
    if (h->pool->routed) {
        for (size_t slot = 0; slot < slots; slot++)
            memcpy(xn + slot * C, heads + (size_t)route->plan.token[slot] * C, C * sizeof *xn);
        inp = xn;
    }
    MOM_TRY(pool_products(h, y, inp, h->matrices->out, w->out_bias, 0));
    add_outputs(h, y);
    return MOM_OK;
}

static mom_status ffn_step(const half_step *h) {
    const mom_exec *x = h->run->exec;
    const mom_pool_tensors *w = &h->pool->weight;
    const size_t C = h->run->config->C, slots = slots_of(h);
    float *xn, *g, *y;
    MOM_ARENA_NEW(xn, x->workspace, slots * C, h->run->err);
    MOM_ARENA_NEW(g, x->workspace, slots * h->pool->F, h->run->err);
    MOM_ARENA_NEW(y, x->workspace, slots * C, h->run->err);
    normalise(h, xn);
    MOM_TRY(pool_products(h, g, xn, h->matrices->in, w->in_bias, 1));
    MOM_TRY(pool_products(h, y, g, h->matrices->out, w->out_bias, 0));
    add_outputs(h, y);
    return MOM_OK;
}

/* One half of one round. state (n, R): the recurrent state of the round before, NULL for zero; the new one is copied to
 * next_state. */
static mom_status step_half(const half_step *h, const float *state, float *next_state) {
    const mom_run *run = h->run;
    const size_t N = run->N;
    MOM_ARENA_NEW(h->saved->mean, run->saved, N, run->err);
    MOM_ARENA_NEW(h->saved->rstd, run->saved, N, run->err);
    h->saved->input = h->x;
    if (h->pool->routed) {
        MOM_TRY(mom_route_forward(run, h->pool, h->saved, state));
        if (next_state)
            memcpy(next_state, h->saved->route.router.hidden, N * run->config->R * sizeof *next_state);
    }
    return h->pool->kind == MOM_POOL_ATTN ? attention_step(h) : ffn_step(h);
}

static void record_routes(const half_step *h, mom_decoder_route *to) {
    const mom_route *r = &h->saved->route;
    for (size_t i = 0; h->pool->routed && i < h->run->N; i++)
        if (h->rows[i].last)
            copy_route_row(to, h->rows[i].sequence, r->scores, r->kept, r->index, i, h->pool);
}

static mom_status step_place(mom_decoder *d, const mom_run *run, const row *rows, size_t i, uint64_t *site, float *x) {
    const mom_place *place = &d->gpt->params.places[i];
    const int recurrent = run->config->router_kind != MOM_ROUTER_NAIVE;
    float *states[2] = {NULL, NULL};
    for (int half = 0; half < 2; half++)
        if (recurrent && half_of(place, half)->routed)
            MOM_ARENA_NEW(states[half], run->saved, run->N * run->config->R, run->err);
    for (size_t round = 0; round < place->rounds; round++) {
        for (int half = 0; half < 2; half++) {
            const mom_arena_mark mark = mom_arena_get_mark(run->saved);
            mom_half_saved saved = {.site = *site};
            half_step h = {d, run, rows, d->places[i].first_entry + round, half_of(place, half),
                           &d->places[i].halves[half], &saved, x};
            *site += MOM_STREAMS;
            MOM_TRY(step_half(&h, round ? states[half] : NULL, states[half]));
            record_routes(&h, &d->batch.routes[i][2 * round + (size_t)half]);
            mom_arena_release(run->saved, mark);
        }
    }
    return MOM_OK;
}

/* Logits of the sequences `targets` from their hidden rows (count, C), after the final LayerNorm. */
static mom_status head(mom_decoder *d, const mom_exec *x, const float *hidden, const size_t *targets, size_t count,
                       mom_error *err) {
    const size_t V = d->gpt->config.V;
    float *logits;
    MOM_ARENA_NEW(logits, x->workspace, count * V, err);
    const mom_gemv product = {.out = logits, .x = hidden, .matrix = &d->head, .rows = count};
    MOM_TRY(mom_gemv_run(x, &product, 1, err));
    for (size_t i = 0; i < count; i++)
        memcpy(d->batch.logits + targets[i] * V, logits + i * V, V * sizeof *logits);
    return MOM_OK;
}

static mom_status step_head(mom_decoder *d, const mom_run *run, const row *rows, const float *x) {
    const mom_exec *exec = run->exec;
    const mom_params *p = &d->gpt->params;
    const size_t C = run->config->C;
    float *hidden, *mean, *rstd;
    size_t *targets, count = 0;
    MOM_ARENA_NEW(hidden, exec->workspace, run->N * C, run->err);
    MOM_ARENA_NEW(mean, exec->workspace, run->N, run->err);
    MOM_ARENA_NEW(rstd, exec->workspace, run->N, run->err);
    MOM_ARENA_NEW(targets, exec->workspace, run->N, run->err);
    for (size_t i = 0; i < run->N; i++) {
        if (!rows[i].last)
            continue;
        mom_layernorm_forward(exec, hidden + count * C, mean, rstd, x + i * C, mom_param_value(p, p->lnf_weight),
                              mom_param_value(p, p->lnf_bias), run->config->ln_eps, 1, C);
        targets[count++] = rows[i].sequence;
    }
    return count ? head(d, exec, hidden, targets, count, run->err) : MOM_OK;
}

static mom_status run_block(mom_decoder *d, const mom_exec *x, const row *rows, size_t n, mom_error *err) {
    mom_gpt *gpt = d->gpt;
    const mom_config *c = &gpt->config;
    const mom_params *p = &gpt->params;
    const mom_run run = {.exec = x, .config = c, .saved = x->workspace, .B = n, .T = 1, .N = n, .seed = gpt->seed,
                         .counter = gpt->counter, .few_rows = 1, .err = err};
    int32_t *tokens, *positions;
    float *stream;
    MOM_ARENA_NEW(tokens, x->workspace, n, err);
    MOM_ARENA_NEW(positions, x->workspace, n, err);
    MOM_ARENA_NEW(stream, x->workspace, n * c->C, err);
    for (size_t i = 0; i < n; i++) {
        tokens[i] = rows[i].token;
        positions[i] = (int32_t)rows[i].position;
    }
    mom_embedding_forward(x, stream, tokens, positions, mom_param_value(p, p->wte), mom_param_value(p, p->wpe),
                          (mom_dropout){0.0f, 0}, n, c->C);
    uint64_t site = MOM_SITE_FIRST_HALF;
    for (size_t i = 0; i < p->num_places; i++)
        MOM_TRY(step_place(d, &run, rows, i, &site, stream));
    MOM_TRY(step_head(d, &run, rows, stream));
    if (mom_config_draws(c))
        gpt->counter++;
    for (size_t i = 0; i < n; i++)
        d->batch.sequences[rows[i].sequence].length++;
    return MOM_OK;
}

static mom_status run_rows(mom_decoder *d, const mom_exec *x, const row *rows, size_t count, mom_error *err) {
    for (size_t i = 0; i < count; i += BLOCK_ROWS) {
        const mom_arena_mark mark = mom_arena_get_mark(x->workspace);
        const mom_status status = run_block(d, x, rows + i, mom_min(BLOCK_ROWS, count - i), err);
        mom_arena_release(x->workspace, mark);
        MOM_TRY(status);
    }
    return MOM_OK;
}

/* ------------------------------------------------------------------ the first tokens, by a forward pass */

typedef struct {
    mom_decoder *d;
    const int32_t *offsets; /* (B + 1) rows of the sequences */
    const mom_half_saved *saved;
    const mom_pool *pool;
    size_t entry;
} fill_context;

/* One head of one sequence. */
static void run_fill(void *context, size_t task, int thread) {
    (void)thread;
    const fill_context *f = context;
    const mom_config *c = &f->d->gpt->config;
    const size_t C = c->C, D = head_size(c), b = task / c->H, head = task % c->H, size = mom_dtype_size(c->dtype);
    const mom_kv kv = cache_entry(f->d, &f->d->batch.sequences[b], f->entry);
    size_t slot = 0;
    for (size_t t = (size_t)f->offsets[b]; t < (size_t)f->offsets[b + 1]; t++) {
        if (f->pool->routed && !is_active(&f->saved->route, t))
            continue;
        const unsigned char *qkv = (const unsigned char *)f->saved->inner + (t * 3 * C + head * D) * size;
        mom_kv_write(&kv, slot++, qkv + C * size, qkv + 2 * C * size, c->dtype, head, D);
    }
    if (head == 0)
        f->d->batch.sequences[b].active[f->entry] = (int32_t)slot;
}

static void fill_half(void *context, const mom_run *run, size_t place, size_t round, int half,
                      const mom_half_saved *saved) {
    fill_context *f = context;
    mom_decoder *d = f->d;
    f->offsets = run->offsets;
    f->saved = saved;
    f->pool = half_of(&d->gpt->params.places[place], half);
    f->entry = d->places[place].first_entry + round;
    if (!half)
        mom_parallel_for(run->exec, run->B * run->config->H, run_fill, f);
    for (size_t b = 0; f->pool->routed && b < run->B; b++)
        copy_route_row(&d->batch.routes[place][2 * round + (size_t)half], b, saved->route.scores, saved->route.kept,
                       saved->route.index, (size_t)f->offsets[b + 1] - 1, f->pool);
}

/* tokens (B, T) with lengths of at least 1 */
static mom_status run_forward(mom_decoder *d, const mom_exec *x, const int32_t *tokens, const int32_t *lengths, size_t T,
                              mom_error *err) {
    const mom_gpt *gpt = d->gpt;
    const size_t B = d->batch.B, C = gpt->config.C;
    size_t longest = 0, total = 0;
    int32_t *packed, *last;
    float *hidden;
    size_t *targets;
    MOM_ARENA_NEW(last, x->workspace, B, err);
    MOM_ARENA_NEW(packed, x->workspace, B * T, err);
    MOM_ARENA_NEW(hidden, x->workspace, B * C, err);
    MOM_ARENA_NEW(targets, x->workspace, B, err);
    for (size_t b = 0; b < B; b++) {
        const size_t length = (size_t)lengths[b];
        memcpy(packed + total, tokens + b * T, length * sizeof *packed);
        total += length;
        last[b] = (int32_t)total - 1;
        longest = mom_max(longest, length);
    }

    fill_context fill = {.d = d};
    const mom_observer observer = {fill_half, &fill};
    const mom_batch batch = {.B = B, .T = longest, .lengths = lengths, .tokens = packed, .rows = last, .row_count = B,
                             .observer = &observer};
    mom_losses losses;
    MOM_TRY(mom_gpt_forward(d->gpt, x, &batch, &losses, err));
    for (size_t b = 0; b < B; b++) {
        memcpy(hidden + b * C, gpt->hidden + (size_t)last[b] * C, C * sizeof *hidden);
        targets[b] = b;
    }
    MOM_TRY(head(d, x, hidden, targets, B, err));
    for (size_t b = 0; b < B; b++)
        d->batch.sequences[b].length = (size_t)lengths[b];
    return MOM_OK;
}

/* ------------------------------------------------------------------ append */

/* What a call that fails puts back: what it has added to the caches lies beyond their counts. */
typedef struct {
    mom_decoder_batch batch; /* without caches, in the workspace */
    uint64_t counter;
} snapshot;

static mom_status take_snapshot(const mom_decoder *d, snapshot *s, mom_arena *arena, mom_error *err) {
    *s = (snapshot){.counter = d->gpt->counter};
    MOM_TRY(allocate_batch(d, &s->batch, arena, d->batch.B, err));
    for (size_t b = 0; b < d->batch.B; b++)
        copy_sequence(d, &s->batch, b, &d->batch, b);
    return MOM_OK;
}

static void put_back(mom_decoder *d, const snapshot *s) {
    for (size_t b = 0; b < d->batch.B; b++)
        copy_sequence(d, &d->batch, b, &s->batch, b);
    d->gpt->counter = s->counter;
}

/* Tokens to be added per sequence, its pending one included, after checking that they fit. */
static mom_status count_tokens(const mom_decoder *d, const int32_t *lengths, size_t *total, mom_error *err) {
    *total = 0;
    for (size_t b = 0; b < d->batch.B; b++) {
        const mom_sequence *s = &d->batch.sequences[b];
        const size_t have = mom_sequence_length(s), length = (size_t)lengths[b], P = d->gpt->config.P;
        if (have + length > P)
            return mom_error_set(err, MOM_ERR_VALUE, "tokens: sequence %zu would have %zu tokens, n_positions is %zu", b,
                                 have + length, P);
        *total += length + (length && s->pending >= 0);
    }
    return MOM_OK;
}

/* The cache holds them: it grows by half, so that adding token after token copies each only a few times. */
static mom_status grow(mom_decoder *d, const int32_t *lengths, mom_error *err) {
    for (size_t b = 0; b < d->batch.B; b++) {
        mom_sequence *s = &d->batch.sequences[b];
        const size_t need = mom_sequence_length(s) + (size_t)lengths[b];
        if (!s->kv || s->capacity < need)
            MOM_TRY(reserve(d, s, mom_min(s->kv ? need + need / 2 : need, d->gpt->config.P), err));
    }
    return MOM_OK;
}

static mom_status append_rows(mom_decoder *d, const mom_exec *x, const int32_t *tokens, const int32_t *lengths, size_t T,
                              size_t total, mom_error *err) {
    row *rows;
    size_t n = 0;
    MOM_ARENA_NEW(rows, x->workspace, total, err);
    for (size_t b = 0; b < d->batch.B; b++) {
        mom_sequence *s = &d->batch.sequences[b];
        size_t position = s->length;
        if (lengths[b] && s->pending >= 0) {
            rows[n++] = (row){b, position++, s->pending, 0};
            s->pending = -1;
        }
        for (size_t t = 0; t < (size_t)lengths[b]; t++)
            rows[n++] = (row){b, position++, tokens[b * T + t], t + 1 == (size_t)lengths[b]};
    }
    return run_rows(d, x, rows, n, err);
}

/* To sequences that are there. */
static mom_status append(mom_decoder *d, const mom_exec *x, const int32_t *tokens, const int32_t *lengths, size_t T,
                         mom_error *err) {
    size_t total;
    int fresh = 1;
    snapshot before;
    MOM_TRY(count_tokens(d, lengths, &total, err));
    MOM_TRY(grow(d, lengths, err));
    MOM_TRY(take_snapshot(d, &before, x->workspace, err));
    for (size_t b = 0; b < d->batch.B; b++)
        fresh &= !mom_sequence_length(&d->batch.sequences[b]) && lengths[b] > 0;
    const int by_forward = fresh && (total > FEW_TOKENS || d->format != MOM_GEMV_F32);
    const mom_status status = by_forward ? run_forward(d, x, tokens, lengths, T, err)
                                         : append_rows(d, x, tokens, lengths, T, total, err);
    if (status != MOM_OK)
        put_back(d, &before);
    return status;
}

/* Pending tokens of the sequences that are not finished. */
static mom_status append_pending(mom_decoder *d, const mom_exec *x, const uint8_t *finished, mom_error *err) {
    row *rows;
    int32_t *none;
    snapshot before;
    size_t n = 0;
    MOM_ARENA_NEW(rows, x->workspace, d->batch.B, err);
    MOM_ARENA_NEW(none, x->workspace, d->batch.B, err);
    memset(none, 0, d->batch.B * sizeof *none);
    MOM_TRY(grow(d, none, err));
    MOM_TRY(take_snapshot(d, &before, x->workspace, err));
    for (size_t b = 0; b < d->batch.B; b++) {
        mom_sequence *s = &d->batch.sequences[b];
        if (finished[b] || s->pending < 0)
            continue;
        rows[n++] = (row){b, s->length, s->pending, 1};
        s->pending = -1;
    }
    const mom_status status = run_rows(d, x, rows, n, err);
    if (status != MOM_OK)
        put_back(d, &before);
    return status;
}

static mom_status check_lengths(const mom_decoder *d, const int32_t *lengths, size_t B, size_t T, mom_error *err) {
    if (d->batch.B && B != d->batch.B)
        return mom_error_set(err, MOM_ERR_VALUE, "tokens: %zu rows, expected %zu, one per sequence", B, d->batch.B);
    for (size_t b = 0; lengths && b < B; b++) {
        const long least = d->batch.B ? 0 : 1;
        if (lengths[b] < least || (size_t)lengths[b] > T)
            return mom_error_set(err, MOM_ERR_VALUE, "lengths: %ld at position %zu is not in [%ld, %zu]", (long)lengths[b],
                                 b, least, T);
    }
    return MOM_OK;
}

mom_status mom_decoder_append(mom_decoder *d, const mom_exec *exec, const int32_t *tokens, const int32_t *lengths,
                              size_t B, size_t T, mom_error *err) {
    if (!B || !T)
        return mom_error_set(err, MOM_ERR_VALUE, "tokens: shape (%zu, %zu) is empty", B, T);
    MOM_TRY(check_lengths(d, lengths, B, T, err));
    const mom_exec x = {exec->k, exec->threads, &d->workspace, MOM_F32, MOM_COMPUTE};
    const int fresh = !d->batch.B;
    mom_arena_clear(&d->workspace);
    int32_t *own;
    MOM_ARENA_NEW(own, x.workspace, B, err);
    for (size_t b = 0; b < B; b++)
        own[b] = lengths ? lengths[b] : (int32_t)T;
    if (fresh)
        MOM_TRY(init_batch(d, &d->batch, B, err));
    const mom_status status = append(d, &x, tokens, own, T, err);
    if (status != MOM_OK && fresh)
        free_batch(&d->batch);
    return status;
}

/* ------------------------------------------------------------------ generate */

mom_status mom_decoder_generate(mom_decoder *d, const mom_exec *exec, int32_t *out, uint8_t *finished, size_t *made,
                                const mom_sampling *sampling, int32_t stop_token, size_t n, mom_error *err) {
    const size_t B = d->batch.B, P = d->gpt->config.P;
    *made = 0;
    if (!B)
        return mom_error_set(err, MOM_ERR_STATE, "generate: there are no sequences to continue");
    for (size_t b = 0; b < B; b++) {
        const size_t length = mom_sequence_length(&d->batch.sequences[b]);
        if (!finished[b] && n > P - length)
            return mom_error_set(err, MOM_ERR_VALUE, "n: sequence %zu of %zu tokens and %zu new ones need %zu positions, "
                                 "n_positions is %zu", b, length, n, length + n, P);
    }
    mom_sampling s = *sampling;
    for (; *made < n; ++*made, s.step++) {
        const mom_exec x = {exec->k, exec->threads, &d->workspace, MOM_F32, MOM_COMPUTE};
        mom_arena_clear(&d->workspace);
        int32_t *tokens = out + *made * B;
        size_t left = 0;
        for (size_t b = 0; b < B; b++)
            left += !finished[b];
        if (!left)
            return MOM_OK;
        /* pass 1: logits after the tokens chosen last */
        MOM_TRY(append_pending(d, &x, finished, err));
        /* pass 2: choose */
        MOM_TRY(mom_sample(&x, tokens, d->batch.logits, &s, finished, B, d->gpt->config.V, err));
        for (size_t b = 0; b < B; b++) {
            if (finished[b]) {
                tokens[b] = stop_token;
                continue;
            }
            d->batch.sequences[b].pending = tokens[b];
            finished[b] = tokens[b] == stop_token;
        }
    }
    return MOM_OK;
}
