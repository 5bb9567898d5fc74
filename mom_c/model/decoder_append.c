/* Appending tokens to the sequences of a decoder, and choosing them. */
#include <string.h>

#include "model/decoder_internal.h"

/* An empty cache is filled by a forward pass if there are more tokens than this. A forward pass packs every matrix,
 * which costs as much as reading all matrices three times. */
#define FEW_TOKENS ((size_t)16)

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
    const size_t C = c->C, D = mom_head_size(c), b = task / c->H, head = task % c->H, size = mom_dtype_size(c->dtype);
    const mom_kv kv = mom_decoder_cache(f->d, &f->d->batch.sequences[b], f->entry);
    size_t slot = 0;
    for (size_t t = (size_t)f->offsets[b]; t < (size_t)f->offsets[b + 1]; t++) {
        if (f->pool->routed && !mom_route_is_active(&f->saved->route, t))
            continue;
        const unsigned char *qkv = (const unsigned char *)f->saved->inner + (t * 3 * C + head * D) * size;
        mom_kv_write(&kv, slot++, qkv + C * size, qkv + 2 * C * size, c->dtype, head, D);
    }
    if (head == 0)
        f->d->batch.sequences[b].active[f->entry] = (int32_t)slot;
}

static void fill_half(void *context, const mom_pass *pass, size_t place, size_t round, int half,
                      const mom_half_saved *saved) {
    fill_context *f = context;
    mom_decoder *d = f->d;
    f->offsets = pass->offsets;
    f->saved = saved;
    f->pool = mom_place_pool(&d->gpt->params.places[place], half);
    f->entry = d->places[place].first_entry + round;
    if (!half)
        mom_parallel_for(pass->exec, pass->B * pass->config->H, run_fill, f);
    const mom_route *r = &saved->route;
    const mom_decoder_route route = {r->scores, r->kept, r->index, r->K};
    if (!f->pool->routed)
        return;
    mom_decoder_record(d, place, round, half, 0, pass->N, &route);
    for (size_t b = 0; b < pass->B; b++)
        mom_decoder_route_copy(&d->batch.routes[place][2 * round + (size_t)half], b, &route,
                               (size_t)f->offsets[b + 1] - 1, r->K, f->pool);
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
                             .observer = &observer, .interventions = d->interventions};
    mom_losses losses;
    MOM_TRY(mom_gpt_forward(d->gpt, x, &batch, &losses, err));
    for (size_t b = 0; b < B; b++) {
        memcpy(hidden + b * C, gpt->last.hidden + (size_t)last[b] * C, C * sizeof *hidden);
        targets[b] = b;
    }
    MOM_TRY(mom_decoder_head(d, x, hidden, targets, B, err));
    for (size_t b = 0; b < B; b++)
        d->batch.sequences[b].length = (size_t)lengths[b];
    return MOM_OK;
}

/* ------------------------------------------------------------------ append */

/* The state that a failed call restores. Entries that it has added to the caches need no removal: they lie beyond the
 * restored counts. */
typedef struct {
    mom_decoder_batch batch; /* a copy in the workspace, without caches */
    uint64_t counter;
} snapshot;

static mom_status take_snapshot(const mom_decoder *d, snapshot *s, mom_arena *arena, mom_error *err) {
    *s = (snapshot){.counter = d->gpt->counter};
    MOM_TRY(mom_decoder_batch_allocate(d, &s->batch, arena, d->batch.B, err));
    for (size_t b = 0; b < d->batch.B; b++)
        mom_sequence_copy(d, &s->batch, b, &d->batch, b);
    return MOM_OK;
}

static void put_back(mom_decoder *d, const snapshot *s) {
    for (size_t b = 0; b < d->batch.B; b++)
        mom_sequence_copy(d, &d->batch, b, &s->batch, b);
    d->gpt->counter = s->counter;
}

/* Counts the tokens to add to each sequence, its pending token included, and checks that they fit. */
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

/* Makes the caches large enough for the new tokens. A cache grows by half, so that each entry is copied only a few
 * times. */
static mom_status grow(mom_decoder *d, const int32_t *lengths, mom_error *err) {
    for (size_t b = 0; b < d->batch.B; b++) {
        mom_sequence *s = &d->batch.sequences[b];
        const size_t need = mom_sequence_length(s) + (size_t)lengths[b];
        if (!s->kv || s->capacity < need)
            MOM_TRY(mom_sequence_reserve(d, s, mom_min(s->kv ? need + need / 2 : need, d->gpt->config.P), err));
    }
    return MOM_OK;
}

static mom_status append_rows(mom_decoder *d, const mom_exec *x, const int32_t *tokens, const int32_t *lengths, size_t T,
                              size_t total, mom_error *err) {
    mom_decoder_row *rows;
    size_t n = 0;
    MOM_ARENA_NEW(rows, x->workspace, total, err);
    for (size_t b = 0; b < d->batch.B; b++) {
        mom_sequence *s = &d->batch.sequences[b];
        size_t position = s->length;
        if (lengths[b] && s->pending >= 0) {
            rows[n++] = (mom_decoder_row){b, position++, s->pending, 0};
            s->pending = -1;
        }
        for (size_t t = 0; t < (size_t)lengths[b]; t++)
            rows[n++] = (mom_decoder_row){b, position++, tokens[b * T + t], t + 1 == (size_t)lengths[b]};
    }
    return mom_decoder_run_rows(d, x, rows, n, err);
}

/* Appends to sequences that exist already. */
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

/* Appends the pending tokens of the sequences that are not finished. */
static mom_status append_pending(mom_decoder *d, const mom_exec *x, const uint8_t *finished, mom_error *err) {
    mom_decoder_row *rows;
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
        rows[n++] = (mom_decoder_row){b, s->length, s->pending, 1};
        s->pending = -1;
    }
    const mom_status status = mom_decoder_run_rows(d, x, rows, n, err);
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
    const mom_exec x = mom_decoder_exec(d, exec);
    const int fresh = !d->batch.B;
    mom_arena_clear(&d->workspace);
    int32_t *own;
    MOM_ARENA_NEW(own, x.workspace, B, err);
    for (size_t b = 0; b < B; b++)
        own[b] = lengths ? lengths[b] : (int32_t)T;
    if (fresh)
        MOM_TRY(mom_decoder_batch_init(d, &d->batch, B, err));
    const mom_status status = append(d, &x, tokens, own, T, err);
    if (status != MOM_OK && fresh)
        mom_decoder_batch_free(&d->batch);
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
        const mom_exec x = mom_decoder_exec(d, exec);
        MOM_TRY(mom_check_stop(&x, err));
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
