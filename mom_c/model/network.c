/* Forward and backward of one pass, in memory that is already allocated. Reading order: forward (embedding, places,
 * head), then backward in reverse.
 *
 * `saved` holds what backward and the readers of routes need, and the next forward empties it; `workspace` holds
 * temporaries. Without `keep` the residual stream is updated in place. A half's activations are then released as soon
 * as the half is done, except for its route (scores, choices, weights).
 */
#include <math.h>
#include <string.h>

#include "model/coupling.h"
#include "model/gpt.h"
#include "model/head.h"
#include "model/sites.h"
#include "ops/embedding.h"
#include "ops/layernorm.h"
#include "ops/z_loss.h"

/* ------------------------------------------------------------------ forward */

typedef struct {
    const mom_activations *a;
    const mom_batch *batch;
} padding_job;

static int is_finite(const float *row, size_t n) {
    uint32_t any = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, row + i, sizeof bits);
        any |= (bits & 0x7f800000u) == 0x7f800000u;
    }
    return !any;
}

/* One sequence. */
static void clear_padding_task(void *context, size_t b, int thread) {
    const padding_job *job = context;
    const mom_activations *a = job->a;
    const mom_rows *r = &a->rows;
    const int32_t *labels = r->pooled ? NULL : job->batch->labels;
    const size_t C = a->pass.config->C, begin = (size_t)r->offsets[b], end = (size_t)r->offsets[b + 1];
    (void)thread;
    for (size_t i = begin; i < end; i++) {
        const int scored = labels && i + 1 < end && labels[i + 1] != MOM_IGNORED_LABEL;
        const int classified = r->pooled && (size_t)r->pooled[b] == i;
        if (!r->mask[i] && (scored || classified))
            return;
    }
    for (size_t i = begin; i < end; i++)
        if (!r->mask[i] && !is_finite(a->embedded + i * C, C))
            memset(a->embedded + i * C, 0, C * sizeof(float));
}

/* Padding with an embedding that is not finite is replaced by zeros. No real token sees padding, and its gradient is
 * zero unless padding of its sequence is scored. But backward multiplies this zero gradient by the token's activations,
 * and zero times infinity would be NaN. */
static void clear_padding(const mom_activations *a, const mom_batch *batch) {
    padding_job job = {a, batch};
    if (a->rows.mask)
        mom_parallel_for(a->pass.exec, a->pass.B, clear_padding_task, &job);
}

static mom_status embed(mom_gpt *gpt, const mom_batch *batch) {
    mom_activations *a = &gpt->last;
    const mom_pass *pass = &a->pass;
    const mom_params *p = &gpt->params;
    const size_t N = pass->N, C = gpt->config.C;
    const mom_dropout dropout =
        mom_pass_dropout(pass, gpt->config.embd_pdrop, mom_pass_key(pass, MOM_STREAM_EMBEDDING));
    MOM_ARENA_NEW(a->embedded, pass->saved, N * C, pass->err);
    mom_embedding_forward(pass->exec, a->embedded, a->rows.tokens, a->rows.positions, mom_param_value(p, p->wte),
                          mom_param_value(p, p->wpe), dropout, N, C);
    clear_padding(a, batch);
    mom_site_visit(pass, (mom_site){.kind = MOM_SITE_EMBEDDING}, a->embedded, C);
    return MOM_OK;
}

/* In place of the embedding: the stream of a pass that begins in the middle. */
static mom_status enter(mom_gpt *gpt) {
    mom_activations *a = &gpt->last;
    const size_t n = a->pass.N * gpt->config.C;
    MOM_ARENA_NEW(a->embedded, a->pass.saved, n, a->pass.err);
    mom_copy(a->pass.exec, a->embedded, a->begin->stream, n * sizeof *a->embedded);
    return MOM_OK;
}

/* Where a half-round lies in a pass: -1 before its beginning, so that it does not run; 0 if the pass begins with it in the
 * middle; else 1. */
static int order(const mom_activations *a, size_t place, size_t round, int half) {
    const mom_begin *b = a->begin;
    if (!b || place > b->place)
        return 1;
    if (place < b->place || round < b->round)
        return -1;
    return round > b->round ? 1 : (half > b->half) - (half < b->half);
}

/* Allocates the arrays that the caller may read even after backward. They lie below everything that backward
 * releases. */
static mom_status allocate_halves(mom_gpt *gpt) {
    mom_activations *a = &gpt->last;
    const mom_pass *pass = &a->pass;
    const size_t places = gpt->params.num_places;
    MOM_ARENA_NEW(a->halves, pass->saved, places, pass->err);
    MOM_ARENA_NEW(a->inputs, pass->saved, places, pass->err);
    for (size_t i = 0; i < places; i++) {
        const mom_place *place = &gpt->params.places[i];
        const size_t n = 2 * place->rounds;
        MOM_ARENA_NEW(a->halves[i], pass->saved, n, pass->err);
        MOM_ARENA_NEW(a->inputs[i], pass->saved, place->rounds, pass->err);
        memset(a->halves[i], 0, n * sizeof(mom_half_saved));
        for (size_t h = 0; h < n; h++) {
            const mom_pool *pool = mom_place_pool(place, (int)(h % 2));
            if (pool->routed)
                MOM_TRY(mom_route_allocate(pass, pool, &a->halves[i][h].route));
        }
    }
    return MOM_OK;
}

/* The choices of a half in the last round of place i before `round` that ran, or NULL. */
static const int16_t *choices_before(const mom_gpt *gpt, size_t i, size_t round, int half) {
    while (round-- > 0) {
        const mom_route *route = &mom_saved_half(&gpt->last, i, round, half)->route;
        if (!route->left_out)
            return route->index;
    }
    return NULL;
}

static mom_half_round half_round(const mom_gpt *gpt, size_t i, size_t round, int half) {
    const mom_params *p = &gpt->params;
    const mom_place *place = &p->places[i];
    const int last = i + 1 == p->num_places && round + 1 == place->rounds && !place->ffn.routed;
    return (mom_half_round){.place = place, .index = i, .round = round, .half = half, .packed = &gpt->last.packed[half],
                            .before = choices_before(gpt, i, round, half), .unneeded = last ? gpt->last.rows.unneeded : NULL};
}

/* Where a round puts its results. */
typedef struct {
    int keep;       /* everything stays for backward */
    int new_stream; /* without keep: the stream after the round gets an array of its own */
    float *held[2]; /* without keep: memory for the recurrent states, which outlive the round */
} round_memory;

/* A round that is left out: the stream and the recurrent states pass it by. */
static void leave_out_round(mom_gpt *gpt, size_t i, size_t round, float *x, const float *const states[2]) {
    const mom_pass *pass = &gpt->last.pass;
    for (int half = 0; half < 2; half++) {
        const mom_half_round at = half_round(gpt, i, round, half);
        const mom_pool *pool = mom_half_round_pool(&at);
        mom_half_saved *saved = mom_saved_half(&gpt->last, i, round, half);
        mom_site_visit(pass, mom_half_round_site(&at, MOM_SITE_INPUT), x, gpt->config.C);
        saved->start = saved->end = mom_arena_get_mark(pass->saved);
        saved->route.left_out = 1;
        if (pool->routed)
            mom_route_leave_out(pass, pool, &saved->route);
        saved->route.router.hidden = (float *)(uintptr_t)states[half];
    }
}

/* One round of place i, or the part of it that the pass runs. Replaces *x by the stream after the round, and the recurrent
 * states (by half) by the new ones. */
static mom_status forward_round(mom_gpt *gpt, size_t i, size_t round, const round_memory *memory, float **x,
                                const float *states[2]) {
    mom_activations *a = &gpt->last;
    const mom_pass *pass = &a->pass;
    if (mom_round_left_out(pass, &gpt->params.places[i], round)) {
        leave_out_round(gpt, i, round, *x, states);
        return MOM_OK;
    }
    for (int half = 0; half < 2; half++) {
        const mom_half_round at = half_round(gpt, i, round, half);
        mom_half_saved *saved = mom_saved_half(&gpt->last, i, round, half);
        float *next = memory->keep ? NULL : *x;
        if (order(a, i, round, half) < 0)
            continue;
        if (order(a, i, round, half) > 0 && (half || !pass->again))
            mom_site_visit(pass, mom_half_round_site(&at, MOM_SITE_INPUT), *x, gpt->config.C);
        saved->start = mom_arena_get_mark(pass->saved);
        if (memory->new_stream && !half)
            MOM_ARENA_NEW(next, pass->saved, pass->N * gpt->config.C, pass->err);
        const mom_arena_mark mark = mom_arena_get_mark(pass->saved);
        MOM_TRY((half ? mom_ffn_pool_forward : mom_attention_pool_forward)(pass, &at, saved, &next, *x, states[half]));
        *x = next;
        if (a->observer)
            a->observer->half_done(a->observer->context, pass, i, round, half, saved);
        const int recurrent = mom_pool_has_state(mom_half_round_pool(&at));
        if (recurrent)
            states[half] = saved->route.router.hidden;
        if (memory->keep)
            continue;
        if (recurrent) {
            mom_copy(pass->exec, memory->held[half], states[half], pass->N * gpt->config.R * sizeof(float));
            states[half] = memory->held[half];
        }
        mom_arena_release(pass->saved, mark);
    }
    return MOM_OK;
}

static mom_status new_states(mom_gpt *gpt, const mom_place *place, float *states[2]) {
    const mom_pass *pass = &gpt->last.pass;
    for (int half = 0; half < 2; half++)
        if (mom_pool_has_state(mom_place_pool(place, half)))
            MOM_ARENA_NEW(states[half], pass->saved, pass->N * gpt->config.R, pass->err);
    return MOM_OK;
}

static mom_status forward_place(mom_gpt *gpt, size_t i, float **x) {
    mom_activations *a = &gpt->last;
    const mom_place *place = &gpt->params.places[i];
    const int needed = a->keep && i >= gpt->gradients.lowest_place, checkpoint = needed && a->checkpoint;
    round_memory memory = {.keep = needed && !checkpoint, .new_stream = checkpoint};
    const float *states[2] = {NULL, NULL};
    if (a->begin && a->begin->place == i)
        memcpy(states, a->begin->states, sizeof states);
    for (size_t round = 0; round < place->rounds; round++) {
        if (checkpoint)
            a->inputs[i][round] = (mom_round_input){*x, {states[0], states[1]}};
        if (checkpoint || (!memory.keep && round == 0))
            MOM_TRY(new_states(gpt, place, memory.held));
        MOM_TRY(forward_round(gpt, i, round, &memory, x, states));
    }
    return MOM_OK;
}

/* Packs a pool's weights for `rounds` rounds. Their memory is counted separately: see mom_memory_plan.packed. */
static mom_status pack_pool(mom_gpt *gpt, const mom_place *place, int half, size_t rounds, int transposed) {
    mom_arena *workspace = gpt->last.pass.exec->workspace;
    const size_t before = workspace->live;
    MOM_TRY(mom_pool_pack(&gpt->last.pass, mom_place_pool(place, half), rounds, transposed, &gpt->last.packed[half]));
    workspace->region->tagged += workspace->live - before;
    return MOM_OK;
}

/* Arrays that the rounds of a place share are in the workspace between begin_place and end_place. */
static mom_arena_mark begin_place(mom_gpt *gpt) { return mom_arena_get_mark(gpt->last.pass.exec->workspace); }

static void end_place(mom_gpt *gpt, mom_arena_mark mark) {
    mom_arena *workspace = gpt->last.pass.exec->workspace;
    memset(gpt->last.packed, 0, sizeof gpt->last.packed);
    workspace->region->tagged = 0;
    mom_arena_release(workspace, mark);
}

/* How often forward runs a half of place i. */
static size_t rounds_to_run(const mom_gpt *gpt, size_t i, int half) {
    size_t count = 0;
    for (size_t round = 0; round < gpt->params.places[i].rounds; round++)
        count += order(&gpt->last, i, round, half) >= 0;
    return count;
}

static mom_status forward_places(mom_gpt *gpt) {
    float *x = gpt->last.embedded;
    for (size_t i = 0; i < gpt->params.num_places; i++) {
        const mom_place *place = &gpt->params.places[i];
        const mom_arena_mark mark = begin_place(gpt);
        for (int half = 0; half < 2; half++)
            MOM_TRY(pack_pool(gpt, place, half, rounds_to_run(gpt, i, half), 0));
        MOM_TRY(forward_place(gpt, i, &x));
        end_place(gpt, mark);
    }
    gpt->last.x = x;
    return MOM_OK;
}

static mom_status balance_loss(mom_gpt *gpt) {
    mom_activations *a = &gpt->last;
    mom_balance_groups groups;
    MOM_TRY(mom_balance_collect(&groups, &a->pass, &gpt->params, a->halves, &gpt->step, 0, a->pass.exec->workspace));
    a->losses.value[MOM_TERM_BALANCE] = mom_balance_total(&groups, &a->losses.has[MOM_TERM_BALANCE]);
    return MOM_OK;
}

/* Rounds of all blocks that ran. */
static size_t rounds_of_blocks(const mom_gpt *gpt) {
    size_t count = 0;
    for (size_t i = 0; i < gpt->params.num_places; i++)
        for (size_t round = 0; gpt->params.places[i].block && round < gpt->params.places[i].rounds; round++)
            count += !gpt->last.halves[i][2 * round].route.left_out;
    return count;
}

/* Every half-round has the same tokens. So the sum over both halves is divided by the number of rows of one half. */
static mom_status z_loss(mom_gpt *gpt) {
    mom_activations *a = &gpt->last;
    const mom_pass *pass = &a->pass;
    double sum = 0.0, tokens = 0.0;
    for (size_t i = 0; i < gpt->params.num_places; i++)
        for (size_t h = 0; h < 2 * gpt->params.places[i].rounds; h++) {
            const mom_pool *pool = mom_place_pool(&gpt->params.places[i], (int)(h % 2));
            const mom_route *route = &a->halves[i][h].route;
            const mom_router_outputs outputs = {route->outputs, pass->mask, pass->N, pool->S};
            if (!pool->routed || !mom_router_type_of(&pool->spec)->scored || route->left_out)
                continue;
            MOM_TRY(mom_z_loss_add(pass->exec, &sum, &tokens, &outputs, pass->err));
            a->losses.has[MOM_TERM_Z] = 1;
        }
    a->z_count = tokens * (double)rounds_of_blocks(gpt);
    if (a->losses.has[MOM_TERM_Z])
        a->losses.value[MOM_TERM_Z] = a->z_count > 0.0 ? sum / a->z_count : 0.0;
    return MOM_OK;
}

/* The scores of a half in all rounds of place i that ran, in the workspace; no rounds if it has no router. */
static mom_status path_of(mom_gpt *gpt, size_t i, int half, mom_path *path) {
    const mom_activations *a = &gpt->last;
    const mom_place *place = &gpt->params.places[i];
    const mom_pool *pool = mom_place_pool(place, half);
    const float **scores;
    *path = (mom_path){.mask = a->pass.mask, .N = a->pass.N, .S = pool->S, .M = pool->M};
    MOM_ARENA_NEW(scores, a->pass.exec->workspace, place->rounds, a->pass.err);
    for (size_t round = 0; pool->routed && round < place->rounds; round++)
        if (!a->halves[i][2 * round + (size_t)half].route.left_out)
            scores[path->rounds++] = a->halves[i][2 * round + (size_t)half].route.scores;
    path->scores = scores;
    return MOM_OK;
}

/* The mean over all half-rounds and their tokens. */
static mom_status route_loss(mom_gpt *gpt) {
    mom_activations *a = &gpt->last;
    double sum = 0.0;
    for (size_t i = 0; i < gpt->params.num_places; i++)
        for (size_t h = 0; h < 2 * gpt->params.places[i].rounds; h++) {
            const mom_pool *pool = mom_place_pool(&gpt->params.places[i], (int)(h % 2));
            const mom_route *route = &a->halves[i][h].route;
            if (!pool->routed || !mom_router_type_of(&pool->spec)->scored || route->left_out)
                continue;
            const mom_made_choices made = mom_route_made(&a->pass, pool, route);
            MOM_TRY(mom_route_loss_add(a->pass.exec, &sum, &a->route_count, &made, a->pass.err));
            a->losses.has[MOM_TERM_ROUTE] = 1;
        }
    if (a->losses.has[MOM_TERM_ROUTE])
        a->losses.value[MOM_TERM_ROUTE] = a->route_count > 0.0 ? sum / a->route_count : 0.0;
    return MOM_OK;
}

/* The sum over both halves, averaged over blocks and tokens. */
static mom_status path_loss(mom_gpt *gpt) {
    mom_activations *a = &gpt->last;
    const mom_pass *pass = &a->pass;
    const mom_arena_mark mark = mom_arena_get_mark(pass->exec->workspace);
    double sum = 0.0, tokens = 0.0;
    for (size_t i = 0; i < gpt->params.num_places; i++)
        for (int half = 0; half < 2; half++) {
            mom_path path;
            MOM_TRY(path_of(gpt, i, half, &path));
            if (!path.rounds)
                continue;
            MOM_TRY(mom_path_loss_add(pass->exec, &sum, &tokens, &path, pass->err));
            a->losses.has[MOM_TERM_PATH] = 1;
        }
    mom_arena_release(pass->exec->workspace, mark);
    a->path_count = tokens * (double)gpt->config.chunks;
    if (a->losses.has[MOM_TERM_PATH])
        a->losses.value[MOM_TERM_PATH] = a->path_count > 0.0 ? sum / a->path_count : 0.0;
    return MOM_OK;
}

/* Tells the counters, if the pass has some, what comes next. */
static void begin_counting(const mom_activations *a, mom_work work) {
    mom_count_work(&a->exec, work);
    if (a->exec.counts)
        a->exec.counts->mask = a->rows.mask;
}

static mom_status forward(mom_gpt *gpt, const mom_batch *batch) {
    mom_activations *a = &gpt->last;
    mom_pass *pass = &a->pass;
    MOM_TRY(mom_rows_init(&a->rows, pass->exec, &gpt->config, batch, pass->saved, pass->err));
    pass->tokens = a->rows.tokens;
    pass->mask = a->rows.mask;
    pass->offsets = a->rows.offsets;
    begin_counting(a, MOM_WORK_FORWARD);
    MOM_TRY(allocate_halves(gpt));
    MOM_TRY(a->begin ? enter(gpt) : embed(gpt, batch));
    MOM_TRY(forward_places(gpt));
    a->has_routes = !a->begin;
    MOM_TRY(mom_head_forward(a, &gpt->params, batch, !gpt->gradients.lowest_place));
    if (a->begin) /* the other terms are sums over all half-rounds */
        return MOM_OK;
    if (!gpt->config.num_labels)
        MOM_TRY(balance_loss(gpt));
    if (gpt->config.z_loss)
        MOM_TRY(z_loss(gpt));
    if (gpt->config.path_loss)
        MOM_TRY(path_loss(gpt));
    if (gpt->config.route_loss)
        MOM_TRY(route_loss(gpt));
    double *coupling = &a->losses.value[MOM_TERM_COUPLING];
    if (gpt->config.coupling_loss && a->losses.has[MOM_TERM_LM]) /* without labels it would cost as much, for nothing */
        MOM_TRY(mom_coupling_total(pass, &gpt->params, coupling, &a->losses.has[MOM_TERM_COUPLING]));
    return MOM_OK;
}

/* Empties the arenas and begins a pass. */
static void begin(mom_gpt *gpt, const mom_exec *exec, const mom_batch *batch, mom_error *err) {
    mom_activations *a = &gpt->last;
    mom_arena_clear(&gpt->memory.saved);
    mom_arena_clear(&gpt->memory.workspace);
    gpt->memory.workspace.region->tagged = 0;
    *a = (mom_activations){.keep = batch->keep, .checkpoint = batch->keep && batch->checkpoint, .observer = batch->observer,
                           .begin = batch->begin.stream ? &batch->begin : NULL};
    a->exec = *exec;
    a->exec.workspace = &gpt->memory.workspace;
    a->exec.precision = gpt->config.dtype;
    a->pass = (mom_pass){.exec = &a->exec, .config = &gpt->config, .saved = &gpt->memory.saved, .B = batch->B, .T = batch->T,
                         .N = mom_batch_tokens(batch), .training = batch->training, .seed = gpt->seed,
                         .counter = gpt->counter, .interventions = batch->interventions, .err = err};
    for (int term = 0; term < MOM_TERMS; term++)
        a->losses.value[term] = NAN;
}

mom_status mom_gpt_forward_pass(mom_gpt *gpt, const mom_exec *exec, const mom_batch *batch, mom_error *err) {
    mom_activations *a = &gpt->last;
    begin(gpt, exec, batch, err);
    const mom_arena_mark mark = mom_arena_get_mark(&gpt->memory.workspace);
    const mom_status status = forward(gpt, batch);
    a->observer = NULL; /* the caller's, for this call only */
    a->begin = NULL;
    if (status != MOM_OK) {
        a->has_routes = 0;
        a->dwte = NULL;
        mom_arena_clear(&gpt->memory.saved);
    }
    mom_arena_release(&gpt->memory.workspace, a->dwte ? a->head_end : mark);
    a->can_backward = status == MOM_OK && a->keep && a->losses.has[MOM_TERM_LM];
    return status;
}

/* ------------------------------------------------------------------ backward */

/* What backward carries from round to round. */
typedef struct {
    float *dx;         /* (N, C) gradient of the residual stream */
    float *dstates[2]; /* (N, R) of the recurrent states, by half; or NULL */
    int has_dstates[2]; /* a later round of the place has written them; otherwise they count as zero */
    mom_path paths[2];  /* of the place, by half, if there is a path loss */
    mom_balance_groups balance;
    float balance_scale, z_scale, path_scale, route_scale;
} backward_state;

/* Arrays that the rounds of a place share are allocated as late as possible, with the first half that uses them. During
 * the first halves of backward, memory use is largest. Weights are packed for all rounds but the last. */
static mom_status share_over_rounds(mom_gpt *gpt, const mom_place *place, int half, size_t round, backward_state *b) {
    const mom_pass *pass = &gpt->last.pass;
    if (mom_pool_has_state(mom_place_pool(place, half)) && round + 1 == place->rounds)
        MOM_ARENA_NEW(b->dstates[half], pass->exec->workspace, pass->N * gpt->config.R, pass->err);
    return round + 2 == place->rounds && !gpt->last.checkpoint ? pack_pool(gpt, place, half, round + 1, 1) : MOM_OK;
}

static mom_status backward_half(mom_gpt *gpt, size_t i, size_t block, size_t round, int half, const float *state,
                                backward_state *b) {
    const mom_place *place = &gpt->params.places[i];
    const mom_pass *pass = &gpt->last.pass;
    const mom_half_saved *saved = mom_saved_half(&gpt->last, i, round, half);
    const mom_half_round at = half_round(gpt, i, round, half);
    mom_arena_release(pass->saved, saved->end);
    MOM_TRY(share_over_rounds(gpt, place, half, round, b));
    float *dstate = b->dstates[half];
    mom_half_backward args = {.dx = b->dx, .pool = &gpt->gradients.pools[i][half], .state = dstate ? state : NULL,
                              .dstate = dstate, .has_dstate = b->has_dstates[half], .z_scale = b->z_scale,
                              .path = &b->paths[half], .path_scale = b->path_scale,
                              .route_scale = b->route_scale};
    if (mom_half_round_pool(&at)->routed && saved->route.counts)
        args.balance = mom_balance_terms_of(&b->balance, &gpt->config, block, round, half, b->balance_scale);
    if (!saved->route.left_out) {
        MOM_TRY((half ? mom_ffn_pool_backward : mom_attention_pool_backward)(pass, &at, saved, &args));
        b->has_dstates[half] = dstate != NULL;
    }
    mom_site_visit_backward(pass, mom_half_round_site(&at, MOM_SITE_INPUT), b->dx, gpt->config.C);
    mom_arena_release(pass->saved, saved->start);
    return MOM_OK;
}

static mom_status backward_round(mom_gpt *gpt, size_t i, size_t block, size_t round, backward_state *b) {
    const mom_pass *pass = &gpt->last.pass;
    const mom_arena_mark start = mom_arena_get_mark(pass->saved);
    const float *states[2] = {NULL, NULL};
    for (int half = 0; half < 2 && round > 0; half++)
        states[half] = mom_saved_half(&gpt->last, i, round - 1, half)->route.router.hidden;
    if (gpt->last.checkpoint) {
        const mom_round_input *input = &gpt->last.inputs[i][round];
        const round_memory memory = {.keep = 1};
        const float *next[2] = {states[0] = input->states[0], states[1] = input->states[1]};
        float *x = (float *)(uintptr_t)input->x; /* only read, since activations are kept from here on */
        gpt->last.pass.again = 1;
        const mom_work work = mom_count_work(pass->exec, MOM_WORK_AGAIN);
        MOM_TRY(forward_round(gpt, i, round, &memory, &x, next));
        gpt->last.pass.again = 0;
        mom_count_work(pass->exec, work);
    }
    for (int half = 1; half >= 0; half--)
        MOM_TRY(backward_half(gpt, i, block, round, half, states[half], b));
    if (gpt->last.checkpoint)
        mom_arena_release(pass->saved, start);
    return MOM_OK;
}

static mom_status backward_places(mom_gpt *gpt, backward_state *b) {
    const mom_params *p = &gpt->params;
    size_t block = gpt->config.chunks;
    for (size_t i = p->num_places; i-- > gpt->gradients.lowest_place;) {
        if (p->places[i].block)
            block--;
        const mom_arena_mark mark = begin_place(gpt);
        b->dstates[0] = b->dstates[1] = NULL;
        b->has_dstates[0] = b->has_dstates[1] = 0;
        for (int half = 0; half < 2 && b->path_scale != 0.0f; half++)
            MOM_TRY(path_of(gpt, i, half, &b->paths[half]));
        for (size_t round = p->places[i].rounds; round-- > 0;)
            MOM_TRY(backward_round(gpt, i, block, round, b));
        end_place(gpt, mark);
    }
    return MOM_OK;
}

/* Computes dx before the final LayerNorm, and the gradients of the head. */
static mom_status backward_head(mom_gpt *gpt, const float *scales, backward_state *b) {
    mom_activations *a = &gpt->last;
    const mom_pass *pass = &a->pass;
    const mom_exec *x = pass->exec;
    const mom_params *p = &gpt->params;
    mom_gradients *g = &gpt->gradients;
    const size_t N = pass->N, C = gpt->config.C;
    if (!a->dhidden)
        MOM_ARENA_ZEROS(a->dhidden, x, pass->saved, N * C, pass->err);
    MOM_TRY(mom_head_backward(a, p, g, a->dhidden, scales[MOM_TERM_LM]));
    if (a->dwte)
        mom_arena_clear(x->workspace);
    a->dwte = NULL;
    MOM_TRY(mom_balance_collect(&b->balance, pass, p, a->halves, &gpt->step, 1, x->workspace));
    MOM_ARENA_ZEROS(b->dx, x, x->workspace, N * C, pass->err);
    mom_site_visit_backward(pass, (mom_site){.kind = MOM_SITE_HIDDEN}, a->dhidden, C);
    const mom_normed_rows rows = {a->x, a->mean, a->rstd, N, C};
    MOM_TRY(mom_layernorm_backward(x, b->dx, mom_param_grad(g, p, p->lnf_weight), mom_param_grad(g, p, p->lnf_bias),
                                   a->dhidden, mom_param_value(p, p->lnf_weight), &rows, pass->err));
    mom_site_visit_backward(pass, (mom_site){.kind = MOM_SITE_FINAL}, b->dx, C);
    a->hidden = a->dhidden = NULL;
    mom_arena_release(pass->saved, a->head_start);
    return MOM_OK;
}

static void backward_embedding(mom_gpt *gpt, const float *dx) {
    const mom_activations *a = &gpt->last;
    const mom_pass *pass = &a->pass;
    const mom_params *p = &gpt->params;
    mom_gradients *g = &gpt->gradients;
    const mom_dropout dropout =
        mom_pass_dropout(pass, gpt->config.embd_pdrop, mom_pass_key(pass, MOM_STREAM_EMBEDDING));
    mom_embedding_backward(pass->exec, mom_param_grad(g, p, p->wte), mom_param_grad(g, p, p->wpe), dx, a->rows.tokens,
                           a->rows.positions, dropout, pass->N, gpt->config.C);
    if (pass->exec->dry_run)
        return;
    mom_gradient_touch(g, p, p->wte, a->rows.tokens, pass->N);
    mom_gradient_touch(g, p, p->wpe, a->rows.positions, pass->N);
}

static mom_status backward(mom_gpt *gpt, const float *scales) {
    const size_t lowest = gpt->gradients.lowest_place;
    const int balanced = gpt->last.losses.has[MOM_TERM_BALANCE]; /* a classifier's routers are not balanced */
    backward_state b = {.balance_scale = balanced ? scales[MOM_TERM_BALANCE] : 0.0f};
    if (gpt->last.z_count > 0.0)
        b.z_scale = (float)((double)scales[MOM_TERM_Z] / gpt->last.z_count);
    if (gpt->last.route_count > 0.0)
        b.route_scale = (float)((double)scales[MOM_TERM_ROUTE] / gpt->last.route_count);
    if (gpt->last.path_count > 0.0)
        b.path_scale = (float)((double)scales[MOM_TERM_PATH] / gpt->last.path_count);
    if (lowest > gpt->params.num_places) /* only a classifier's own parameters are trained */
        return mom_head_backward(&gpt->last, &gpt->params, &gpt->gradients, NULL, scales[MOM_TERM_LM]);
    MOM_TRY(backward_head(gpt, scales, &b));
    MOM_TRY(backward_places(gpt, &b));
    if (gpt->last.losses.has[MOM_TERM_COUPLING]) /* here, because the activations are released by now */
        MOM_TRY(mom_coupling_total_backward(&gpt->last.pass, &gpt->params, &gpt->gradients, scales[MOM_TERM_COUPLING]));
    if (lowest)
        return MOM_OK;
    mom_site_visit_backward(&gpt->last.pass, (mom_site){.kind = MOM_SITE_EMBEDDING}, b.dx, gpt->config.C);
    backward_embedding(gpt, b.dx);
    return MOM_OK;
}

mom_status mom_gpt_backward_pass(mom_gpt *gpt, const mom_exec *exec, const float scales[MOM_TERMS], mom_error *err) {
    mom_activations *a = &gpt->last;
    a->exec.k = exec->k;
    a->exec.threads = exec->threads;
    a->exec.stop = exec->stop;
    a->exec.counts = exec->counts;
    a->pass.err = err;
    begin_counting(a, MOM_WORK_BACKWARD);
    const mom_status status = backward(gpt, scales);
    a->dwte = a->dhidden = NULL;
    a->can_backward = 0;
    mom_arena_clear(&gpt->memory.workspace);
    return status;
}
