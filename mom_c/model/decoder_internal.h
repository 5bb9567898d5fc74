/* What the files of the decoder share. */
#ifndef MOM_MODEL_DECODER_INTERNAL_H
#define MOM_MODEL_DECODER_INTERNAL_H

#include "model/decoder.h"
#include "ops/kv_cache.h"

static inline size_t mom_head_size(const mom_config *c) { return c->C / c->H; }

/* The execution context of one step, with the decoder's workspace. */
static inline mom_exec mom_decoder_exec(mom_decoder *d, const mom_exec *exec) {
    mom_exec x = *exec;
    x.workspace = &d->workspace;
    x.precision = MOM_F32;
    return x;
}

/* ---- sequences (decoder.c) */

/* Allocates the arrays of a batch, except its caches, from `arena`. */
mom_status mom_decoder_batch_allocate(const mom_decoder *d, mom_decoder_batch *batch, mom_arena *arena, size_t B,
                                      mom_error *err);
mom_status mom_decoder_batch_init(const mom_decoder *d, mom_decoder_batch *batch, size_t B, mom_error *err);
void mom_decoder_batch_free(mom_decoder_batch *batch);
/* Copies sequence `row` of one batch to sequence b of another, except for its cache. */
void mom_sequence_copy(const mom_decoder *d, mom_decoder_batch *to, size_t b, const mom_decoder_batch *from, size_t row);
/* Makes the cache large enough for `capacity` tokens. */
mom_status mom_sequence_reserve(const mom_decoder *d, mom_sequence *s, size_t capacity, mom_error *err);
/* Keys and values of one attention half-round. */
mom_kv mom_decoder_cache(const mom_decoder *d, const mom_sequence *s, size_t entry);
/* Copies row `row` of `from`, whose rows of choices are `stride` apart, to row b of `to`. */
void mom_decoder_route_copy(mom_decoder_route *to, size_t b, const mom_decoder_route *from, size_t row, size_t stride,
                            const mom_pool *pool);

/* Copies the routes of rows to the caller's records, where they are wanted. The rows are first_row and those after it. */
void mom_decoder_record(const mom_decoder *d, size_t place, size_t round, int half, size_t first_row, size_t rows,
                        const mom_decoder_route *from);

/* ---- steps (decoder_step.c) */

/* One token of one sequence. */
typedef struct {
    size_t sequence, position;
    int32_t token;
    int last; /* last of its sequence in this call, so its logits and routes are wanted */
} mom_decoder_row;

/* Appends rows to their sequences. The rows of a sequence are in the order of its tokens. */
mom_status mom_decoder_run_rows(mom_decoder *d, const mom_exec *x, const mom_decoder_row *rows, size_t count, mom_error *err);
/* Computes the logits of the sequences `targets` from their hidden rows (count, C) after the final LayerNorm. */
mom_status mom_decoder_head(mom_decoder *d, const mom_exec *x, const float *hidden, const size_t *targets, size_t count,
                            mom_error *err);
/* Whether a token chose a module. */
int mom_route_is_active(const mom_route *route, size_t token);

#endif
