/* The decoder's weights and sequences. */
#include "model/decoder.h"

#include <string.h>

#include "model/decoder_internal.h"
#include "ops/forced_choices.h"

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

/* With exec NULL the sizes of the copies are only added up. */
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
            const mom_pool *pool = mom_place_pool(&p->places[i], half);
            mom_decoder_pool *own = &d->places[i].halves[half];
            for (size_t m = 0; m < pool->M; m++) {
                take_matrix(w, &own->in[m], pool->weight.in_weight[m], MOM_WEIGHT_IN_OUT, c->C, pool->F);
                take_matrix(w, &own->out[m], pool->weight.out_weight[m], MOM_WEIGHT_IN_OUT, out_inputs(c, pool), c->C);
            }
        }
    }
    take_matrix(w, &d->head, mom_param_value(p, p->wte), MOM_WEIGHT_OUT_IN, c->C, c->V);
}

static size_t arena_bytes(const mom_arena *arena) {
    size_t bytes = arena->spare ? arena->spare->capacity : 0;
    for (const mom_arena_block *block = arena->top; block; block = block->previous)
        bytes += block->capacity;
    return bytes;
}

/* Bytes of a batch: its arrays and its caches. */
static size_t batch_bytes(const mom_decoder *d, const mom_decoder_batch *batch) {
    size_t bytes = arena_bytes(&batch->arena);
    for (size_t b = 0; b < batch->B; b++) {
        const mom_sequence *s = &batch->sequences[b];
        bytes += s->kv ? d->entries * mom_kv_floats(s->capacity, d->gpt->config.C) * sizeof(float) : 0;
    }
    return bytes;
}

size_t mom_decoder_bytes(const mom_decoder *d) {
    return d->packed_bytes + arena_bytes(&d->tables) + arena_bytes(&d->workspace) + batch_bytes(d, &d->batch);
}

/* Fails if `count` times `size` bytes do not fit beside what the model's parameters and the decoder hold already.
 * `batch` is one that is being made, or NULL; it counts, too. */
static mom_status check_room(const mom_decoder *d, const mom_decoder_batch *batch, const char *what, size_t count,
                             size_t size, mom_error *err) {
    const size_t limit = d->gpt->memory.limit;
    const size_t held = d->gpt->params.total * sizeof(float) + mom_decoder_bytes(d) + (batch ? batch_bytes(d, batch) : 0);
    if (!limit || !size || (held <= limit && count <= (limit - held) / size))
        return MOM_OK;
    return mom_error_set(err, MOM_ERR_MEMORY,
                         "%s: %zu times %zu bytes, beside %zu bytes of the model and the decoder, are more than the "
                         "model's memory_limit of %zu. Use fewer or shorter sequences, or other weights",
                         what, count, size, held, limit);
}

static mom_status init(mom_decoder *d, const mom_exec *exec, mom_error *err) {
    const mom_params *p = &d->gpt->params;
    MOM_ARENA_NEW(d->places, &d->tables, p->num_places, err);
    for (size_t i = 0; i < p->num_places; i++) {
        d->places[i].first_entry = d->entries;
        d->entries += p->places[i].rounds;
        for (int half = 0; half < 2; half++) {
            const size_t M = mom_place_pool(&p->places[i], half)->M;
            MOM_ARENA_NEW(d->places[i].halves[half].in, &d->tables, M, err);
            MOM_ARENA_NEW(d->places[i].halves[half].out, &d->tables, M, err);
        }
    }
    weight_copier measure = {.format = d->format};
    take_weights(d, &measure);
    if (d->format == MOM_GEMV_F32)
        return MOM_OK;
    MOM_TRY(check_room(d, NULL, "weights of the decoder", 1, measure.bytes, err));
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

void mom_decoder_batch_free(mom_decoder_batch *batch) {
    for (size_t b = 0; b < batch->B; b++)
        mom_memory_free(batch->sequences[b].kv);
    mom_arena_free(&batch->arena);
    batch->B = 0;
    batch->sequences = NULL;
    batch->routes = NULL;
    batch->logits = NULL;
}

void mom_decoder_clear(mom_decoder *d) {
    mom_decoder_batch_free(&d->batch);
    mom_arena_clear(&d->workspace);
}

mom_status mom_decoder_batch_allocate(const mom_decoder *d, mom_decoder_batch *batch, mom_arena *arena, size_t B, mom_error *err) {
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
            const mom_pool *pool = mom_place_pool(&p->places[i], (int)(j % 2));
            mom_decoder_route *r = &batch->routes[i][j];
            *r = (mom_decoder_route){.K = pool->K};
            if (!pool->routed)
                continue;
            MOM_ARENA_NEW(r->scores, arena, B * pool->S, err);
            MOM_ARENA_NEW(r->kept, arena, B * pool->S, err);
            MOM_ARENA_NEW(r->index, arena, B * pool->S, err);
        }
    }
    batch->B = B;
    return MOM_OK;
}

mom_status mom_decoder_batch_init(const mom_decoder *d, mom_decoder_batch *batch, size_t B, mom_error *err) {
    *batch = (mom_decoder_batch){0};
    mom_arena_init(&batch->arena, "sequences of the decoder");
    const mom_status status = mom_decoder_batch_allocate(d, batch, &batch->arena, B, err);
    if (status != MOM_OK)
        mom_decoder_batch_free(batch);
    return status;
}

mom_kv mom_decoder_cache(const mom_decoder *d, const mom_sequence *s, size_t entry) {
    const size_t C = d->gpt->config.C;
    float *keys = s->kv + entry * mom_kv_floats(s->capacity, C);
    return (mom_kv){keys, keys + s->capacity * C, s->capacity};
}

/* Copies the cached keys and values of one sequence into another's block. */
static void copy_cache(const mom_decoder *d, const mom_sequence *to, const mom_sequence *from) {
    const mom_config *c = &d->gpt->config;
    for (size_t e = 0; e < d->entries; e++) {
        const mom_kv target = mom_decoder_cache(d, to, e), source = mom_decoder_cache(d, from, e);
        mom_kv_copy(&target, &source, (size_t)from->active[e], c->H, mom_head_size(c));
    }
}

/* Allocates the cache of a sequence. `batch` as in check_room. */
static mom_status allocate_cache(const mom_decoder *d, const mom_decoder_batch *batch, mom_sequence *s, size_t capacity,
                                 mom_error *err) {
    s->capacity = mom_max(mom_round_up(capacity, MOM_PANEL), MOM_PANEL);
    const size_t size = mom_kv_floats(s->capacity, d->gpt->config.C) * sizeof(float);
    MOM_TRY(check_room(d, batch, "cache of keys and values", d->entries, size, err));
    s->kv = mom_memory_alloc(d->entries, size, "cache of keys and values", err);
    return s->kv ? MOM_OK : MOM_ERR_MEMORY;
}

mom_status mom_sequence_reserve(const mom_decoder *d, mom_sequence *s, size_t capacity, mom_error *err) {
    if (s->kv && s->capacity >= capacity)
        return MOM_OK;
    mom_sequence larger = *s;
    MOM_TRY(allocate_cache(d, NULL, &larger, capacity, err));
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
        MOM_TRY(mom_sequence_reserve(d, &d->batch.sequences[b], capacity, err));
    return MOM_OK;
}

void mom_decoder_route_copy(mom_decoder_route *to, size_t b, const mom_decoder_route *from, size_t row, size_t stride,
                            const mom_pool *pool) {
    memcpy(to->scores + b * pool->S, from->scores + row * pool->S, pool->S * sizeof *to->scores);
    memcpy(to->kept + b * pool->S, from->kept + row * stride, from->K * sizeof *to->kept);
    memcpy(to->index + b * pool->S, from->index + row * stride, from->K * sizeof *to->index);
    for (size_t k = from->K; k < pool->S; k++) {
        to->kept[b * pool->S + k] = 0.0f;
        to->index[b * pool->S + k] = MOM_NONE;
    }
    to->K = from->K;
}

void mom_decoder_record(const mom_decoder *d, size_t place, size_t round, int half, size_t first_row, size_t rows,
                        const mom_decoder_route *from) {
    if (!d->interventions || !d->interventions->records)
        return;
    const mom_route_record *record = &d->interventions->records[place][2 * round + (size_t)half];
    const size_t S = mom_place_pool(&d->gpt->params.places[place], half)->S, K = from->K;
    if (!record->index)
        return;
    memcpy(record->index + first_row * K, from->index, rows * K * sizeof *record->index);
    memcpy(record->kept + first_row * K, from->kept, rows * K * sizeof *record->kept);
    memcpy(record->scores + first_row * S, from->scores, rows * S * sizeof *record->scores);
}

void mom_sequence_copy(const mom_decoder *d, mom_decoder_batch *to, size_t b, const mom_decoder_batch *from, size_t row) {
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
            const mom_pool *pool = mom_place_pool(&p->places[i], (int)(j % 2));
            if (pool->routed)
                mom_decoder_route_copy(&to->routes[i][j], b, &from->routes[i][j], row, pool->S, pool);
        }
    }
}

/* Copies the sequences `rows` of the decoder to a new batch. Of a sequence that is used several times the first use gets
 * no cache here, since the cache itself moves later; the other uses get copies. The new batch counts beside the old one,
 * as both exist until the old one is freed. */
static mom_status copy_sequences(const mom_decoder *d, mom_decoder_batch *batch, const int32_t *rows, mom_error *err) {
    MOM_TRY(check_room(d, NULL, "sequences of the decoder", 1, batch_bytes(d, batch), err));
    for (size_t i = 0; i < batch->B; i++) {
        size_t first = 0;
        while (rows[first] != rows[i])
            first++;
        mom_sequence_copy(d, batch, i, &d->batch, (size_t)rows[i]);
        if (first == i)
            continue;
        const mom_sequence *old = &d->batch.sequences[rows[i]];
        MOM_TRY(allocate_cache(d, batch, &batch->sequences[i], old->capacity, err));
        copy_cache(d, &batch->sequences[i], old);
    }
    return MOM_OK;
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
    MOM_TRY(mom_decoder_batch_init(d, &batch, count, err));
    const mom_status status = copy_sequences(d, &batch, rows, err);
    if (status != MOM_OK) {
        mom_decoder_batch_free(&batch);
        return status;
    }
    /* the part that cannot fail: caches that were not copied move */
    for (size_t i = 0; i < count; i++) {
        mom_sequence *old = &d->batch.sequences[rows[i]];
        if (batch.sequences[i].kv)
            continue;
        batch.sequences[i].kv = old->kv;
        batch.sequences[i].capacity = old->capacity;
        old->kv = NULL;
    }
    mom_decoder_batch_free(&d->batch);
    d->batch = batch;
    return MOM_OK;
}
