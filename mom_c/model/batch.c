#include "model/batch.h"

#include <string.h>

static size_t sequence_length(const mom_batch *batch, size_t b) {
    return batch->lengths ? (size_t)batch->lengths[b] : batch->T;
}

size_t mom_batch_tokens(const mom_batch *batch) {
    size_t N = 0;
    for (size_t b = 0; b < batch->B; b++)
        N += sequence_length(batch, b);
    return N;
}

static mom_status allocate(mom_rows *r, const mom_config *c, const mom_batch *batch, int dry_run, mom_arena *arena,
                           mom_error *err) {
    const int chosen = c->num_labels || batch->labels || batch->rows || dry_run;
    MOM_ARENA_NEW(r->tokens, arena, r->N, err);
    MOM_ARENA_NEW(r->positions, arena, r->N, err);
    if (batch->mask || dry_run)
        MOM_ARENA_NEW(r->mask, arena, r->N, err);
    if (c->num_labels)
        MOM_ARENA_NEW(r->pooled, arena, r->B, err);
    if (!c->num_labels && batch->labels) {
        MOM_ARENA_NEW(r->scored, arena, r->N, err);
        MOM_ARENA_NEW(r->labels, arena, r->N, err);
    }
    const mom_interventions *in = batch->interventions;
    const int all_rows = batch->all_rows || (in && (in->patch_count || in->capture_count || in->attention)); /* they see all rows */
    if (!all_rows && chosen)
        MOM_ARENA_NEW(r->unneeded, arena, r->N, err);
    return MOM_OK;
}

static void find_positions(mom_rows *r, const mom_batch *batch) {
    if (batch->positions)
        memcpy(r->positions, batch->positions, r->N * sizeof *r->positions);
    for (size_t b = 0; !batch->positions && b < r->B; b++)
        for (int32_t i = r->offsets[b]; i < r->offsets[b + 1]; i++)
            r->positions[i] = i - r->offsets[b];
}

/* Rows with a label: position t of a sequence is scored against label t + 1. */
static void find_scored(mom_rows *r, const int32_t *labels) {
    for (size_t b = 0; b < r->B; b++)
        for (int32_t i = r->offsets[b]; i + 1 < r->offsets[b + 1]; i++)
            if (labels[i + 1] != MOM_IGNORED_LABEL) {
                r->scored[r->scored_count] = i;
                r->labels[r->scored_count++] = labels[i + 1];
            }
}

static void need(mom_rows *r, const int32_t *rows, size_t count) {
    for (size_t i = 0; i < count; i++)
        r->unneeded[rows[i]] = 0;
}

/* In the last round, unwanted rows only supply keys and values. Their other work is skipped if they are at least about a
 * quarter of the rows. */
static void find_unneeded(mom_rows *r, const mom_batch *batch) {
    size_t needed = 0;
    for (size_t i = 0; i < r->N; i++)
        r->unneeded[i] = 1;
    if (r->pooled)
        need(r, r->pooled, r->B);
    if (r->scored)
        need(r, r->scored, r->scored_count);
    if (batch->rows)
        need(r, batch->rows, batch->row_count);
    for (size_t i = 0; i < r->N; i++)
        needed += !r->unneeded[i];
    if (!needed || needed > r->N / 4 * 3)
        r->unneeded = NULL;
}

mom_status mom_rows_init(mom_rows *r, const mom_exec *x, const mom_config *c, const mom_batch *batch, mom_arena *arena,
                         mom_error *err) {
    *r = (mom_rows){.B = batch->B, .N = mom_batch_tokens(batch)};
    MOM_ARENA_NEW(r->offsets, arena, r->B + 1, err);
    r->offsets[0] = 0;
    for (size_t b = 0; b < r->B; b++)
        r->offsets[b + 1] = r->offsets[b] + (int32_t)sequence_length(batch, b);
    MOM_TRY(allocate(r, c, batch, x->dry_run != MOM_COMPUTE, arena, err));
    if (x->dry_run) {
        r->mask = NULL;
        r->scored_count = r->scored ? r->N - r->B : 0;
        return MOM_OK;
    }
    memcpy(r->tokens, batch->tokens, r->N * sizeof *r->tokens);
    find_positions(r, batch);
    if (r->mask)
        memcpy(r->mask, batch->mask, r->N);
    for (size_t b = 0; r->pooled && b < r->B; b++)
        r->pooled[b] = batch->pooled ? r->offsets[b] + batch->pooled[b] : r->offsets[b + 1] - 1;
    if (r->scored)
        find_scored(r, batch->labels);
    if (r->unneeded)
        find_unneeded(r, batch);
    return MOM_OK;
}
