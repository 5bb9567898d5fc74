/* The whole network. Reading order: forward (embedding, places, head), then backward in reverse.
 *
 * Memory: `saved` holds what backward and the routes need and is emptied by the next forward; `workspace` holds
 * temporaries. Without `keep` the residual stream is updated in place and a place's activations are released as
 * soon as it is done, except for the routes (scores, choices, weights).
 */
#include "model/gpt.h"

#include <math.h>
#include <string.h>

#include "ops/balance_loss.h"
#include "ops/embedding.h"
#include "ops/layernorm.h"
#include "ops/linear.h"

enum { SITE_EMBEDDING = 1 };

mom_status mom_gpt_init(mom_gpt *gpt, const mom_config *config, mom_error *err) {
    memset(gpt, 0, sizeof *gpt);
    mom_arena_init(&gpt->saved, "activations");
    mom_arena_init(&gpt->workspace, "workspace");
    mom_arena_attach(&gpt->saved, &gpt->region, 0);
    mom_arena_attach(&gpt->workspace, &gpt->region, 1);
    MOM_TRY(mom_params_init(&gpt->params, config, err));
    gpt->config = *config;
    gpt->gradients_absent = 1;
    return MOM_OK;
}

void mom_gpt_free(mom_gpt *gpt) {
    mom_params_free(&gpt->params);
    mom_arena_free(&gpt->saved);
    mom_arena_free(&gpt->workspace);
    mom_region_free(&gpt->region);
    mom_memory_free(gpt->step_counts);
    mom_memory_free(gpt->step_tokens);
    memset(gpt, 0, sizeof *gpt);
}

/* ------------------------------------------------------------------ balance loss over halves, rounds and blocks */

/* Widest router of either half: counts of all halves are kept with this stride. */
static size_t widest_router(const mom_config *c) {
    return c->choices_attn > c->choices_ffn ? c->choices_attn : c->choices_ffn;
}

static int contributes(const mom_route *r) { return r->counts != NULL; }

typedef struct {
    double *counts, *prob_sums; /* (S) */
    double count_tokens, tokens;
    size_t S;
} balance_group;

/* The groups whose losses are added: pooled: one per half; depthwise: one per (block, round, half). */
typedef struct {
    balance_group *groups;
    size_t count;
    double factor; /* of each group's loss */
} balance_groups;

static size_t group_index(const mom_config *c, size_t block, size_t round, int half) {
    return c->balance_depthwise ? (block * c->rounds + round) * 2 + (size_t)half : (size_t)half;
}

static mom_status collect_balance(mom_gpt *gpt, balance_groups *out, mom_arena *arena, mom_error *err) {
    const mom_config *c = &gpt->config;
    const size_t S = widest_router(c);
    out->count = c->balance_depthwise ? c->chunks * c->rounds * 2 : 2;
    out->factor = c->balance_depthwise && c->rounds ? 1.0 / (double)(c->chunks * c->rounds) : 1.0;
    MOM_ARENA_NEW(out->groups, arena, out->count, err);
    for (size_t g = 0; g < out->count; g++) {
        balance_group *group = &out->groups[g];
        memset(group, 0, sizeof *group);
        MOM_ARENA_NEW(group->counts, arena, S, err);
        MOM_ARENA_NEW(group->prob_sums, arena, S, err);
        memset(group->counts, 0, S * sizeof(double));
        memset(group->prob_sums, 0, S * sizeof(double));
    }
    size_t block = 0;
    for (size_t i = 0; i < gpt->params.num_places; i++) {
        const mom_place *place = &gpt->params.places[i];
        if (!place->block)
            continue;
        for (size_t round = 0; round < place->rounds; round++) {
            for (int half = 0; half < 2; half++) {
                const mom_route *r = &gpt->halves[i][2 * round + (size_t)half].route;
                const mom_pool *pool = half ? &place->ffn : &place->attn;
                if (!pool->routed || !contributes(r))
                    continue;
                balance_group *group = &out->groups[group_index(c, block, round, half)];
                group->S = pool->S;
                group->tokens += r->tokens;
                for (size_t s = 0; s < pool->S; s++) {
                    group->counts[s] += r->counts[s];
                    group->prob_sums[s] += r->prob_sums[s];
                }
            }
        }
        block++;
    }
    for (size_t g = 0; g < out->count; g++)
        out->groups[g].count_tokens = out->groups[g].tokens;
    return MOM_OK;
}

/* With balance_step_counts the shares are those of all micro-batches since gradients were last zeroed.
 * `remember` adds this micro-batch's counts to the memory (once per kept forward). */
static mom_status gather_step_counts(mom_gpt *gpt, balance_groups *b, int remember, mom_error *err) {
    const size_t S = widest_router(&gpt->config);
    if (!gpt->config.balance_step_counts || !b->count || gpt->run.exec->dry_run)
        return MOM_OK;
    if (!gpt->step_counts) {
        gpt->step_counts = mom_memory_calloc(b->count * S, sizeof(double), "balance counts", err);
        if (!gpt->step_counts)
            return MOM_ERR_MEMORY;
    }
    if (!gpt->step_tokens) {
        gpt->step_tokens = mom_memory_calloc(b->count, sizeof(double), "balance counts", err);
        if (!gpt->step_tokens)
            return MOM_ERR_MEMORY;
    }
    for (size_t g = 0; g < b->count; g++) {
        balance_group *group = &b->groups[g];
        for (size_t s = 0; s < S; s++) {
            group->counts[s] += gpt->step_counts[g * S + s];
            if (remember)
                gpt->step_counts[g * S + s] = group->counts[s];
        }
        group->count_tokens += gpt->step_tokens[g];
        if (remember)
            gpt->step_tokens[g] = group->count_tokens;
    }
    return MOM_OK;
}

static double total_balance(const balance_groups *b, int *any) {
    double loss = 0.0;
    *any = 0;
    for (size_t g = 0; g < b->count; g++) {
        const balance_group *group = &b->groups[g];
        if (!group->S)
            continue;
        *any = 1;
        loss += mom_balance_loss(group->counts, group->count_tokens, group->prob_sums, group->tokens, group->S);
    }
    return loss * b->factor;
}

/* ------------------------------------------------------------------ forward */

static size_t sequence_length(const mom_batch *batch, size_t b) {
    return batch->lengths ? (size_t)batch->lengths[b] : batch->T;
}

static size_t count_tokens(const mom_batch *batch) {
    size_t N = 0;
    for (size_t b = 0; b < batch->B; b++)
        N += sequence_length(batch, b);
    return N;
}

static mom_status copy_batch(mom_gpt *gpt, const mom_batch *batch, mom_error *err) {
    const size_t N = gpt->run.N;
    gpt->batch = *batch;
    MOM_ARENA_NEW(gpt->offsets, &gpt->saved, batch->B + 1, err);
    gpt->offsets[0] = 0;
    for (size_t b = 0; b < batch->B; b++)
        gpt->offsets[b + 1] = gpt->offsets[b] + (int32_t)sequence_length(batch, b);
    MOM_ARENA_NEW(gpt->tokens, &gpt->saved, N, err);
    mom_copy(gpt->run.exec, gpt->tokens, batch->tokens, N * sizeof(int32_t));
    MOM_ARENA_NEW(gpt->positions, &gpt->saved, N, err);
    if (batch->positions)
        mom_copy(gpt->run.exec, gpt->positions, batch->positions, N * sizeof(int32_t));
    for (size_t b = 0; !batch->positions && !gpt->run.exec->dry_run && b < batch->B; b++)
        for (int32_t i = gpt->offsets[b]; i < gpt->offsets[b + 1]; i++)
            gpt->positions[i] = i - gpt->offsets[b];
    gpt->mask = NULL;
    if (batch->mask || gpt->run.exec->dry_run) {
        MOM_ARENA_NEW(gpt->mask, &gpt->saved, N, err);
        mom_copy(gpt->run.exec, gpt->mask, batch->mask, N);
    }
    if (gpt->run.exec->dry_run)
        gpt->mask = NULL; /* every token is seen: the most work */
    return MOM_OK;
}

/* The tokens whose states are classified. */
static mom_status collect_pooled(mom_gpt *gpt, const mom_batch *batch, mom_error *err) {
    MOM_ARENA_NEW(gpt->pooled, &gpt->saved, gpt->run.B, err);
    for (size_t b = 0; b < gpt->run.B && !gpt->run.exec->dry_run; b++)
        gpt->pooled[b] = batch->pooled ? gpt->offsets[b] + batch->pooled[b] : gpt->offsets[b + 1] - 1;
    return MOM_OK;
}

/* Rows with a label: position t of a sequence is scored against label t + 1. */
static mom_status collect_labels(mom_gpt *gpt, const int32_t *labels, mom_error *err) {
    MOM_ARENA_NEW(gpt->rows, &gpt->saved, gpt->run.N, err);
    MOM_ARENA_NEW(gpt->row_labels, &gpt->saved, gpt->run.N, err);
    size_t n = gpt->run.exec->dry_run ? gpt->run.N - gpt->run.B : 0;
    for (size_t b = 0; b < gpt->run.B && !gpt->run.exec->dry_run; b++)
        for (int32_t i = gpt->offsets[b]; i + 1 < gpt->offsets[b + 1]; i++)
            if (labels[i + 1] != MOM_IGNORED_LABEL) {
                gpt->rows[n] = i;
                gpt->row_labels[n++] = labels[i + 1];
            }
    gpt->losses.labelled = n;
    return MOM_OK;
}

static void need(mom_gpt *gpt, const int32_t *rows, size_t count) {
    for (size_t i = 0; i < count; i++)
        gpt->unneeded[rows[i]] = 0;
}

/* Nothing but the rows that are wanted depends on the last round's halves, but for other rows' keys and values; where these
 * halves are not routed, most of the others' work is left out. It takes more than a few to pay. */
static mom_status collect_needed(mom_gpt *gpt, const mom_batch *batch, mom_error *err) {
    const size_t B = gpt->run.B, N = gpt->run.N, labels = gpt->config.num_labels;
    gpt->unneeded = NULL;
    if (batch->all_rows || !(labels || batch->labels || batch->rows || gpt->run.exec->dry_run))
        return MOM_OK;
    MOM_ARENA_NEW(gpt->unneeded, &gpt->saved, N, err);
    if (gpt->run.exec->dry_run) /* a plan is for either way, with all rows: the most work */
        return MOM_OK;
    size_t needed = 0;
    for (size_t i = 0; i < N; i++)
        gpt->unneeded[i] = 1;
    if (labels)
        need(gpt, gpt->pooled, B);
    if (batch->labels)
        need(gpt, gpt->rows, gpt->losses.labelled);
    need(gpt, batch->rows, batch->rows ? batch->row_count : 0);
    for (size_t i = 0; i < N; i++)
        needed += !gpt->unneeded[i];
    if (!needed || needed > N / 4 * 3)
        gpt->unneeded = NULL;
    return MOM_OK;
}

typedef struct {
    mom_gpt *gpt;
    const int32_t *labels; /* (N) or NULL */
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
    const mom_gpt *gpt = job->gpt;
    const size_t C = gpt->config.C, begin = (size_t)gpt->offsets[b], end = (size_t)gpt->offsets[b + 1];
    (void)thread;
    for (size_t i = begin; i < end; i++) {
        const int scored = job->labels && i + 1 < end && job->labels[i + 1] != MOM_IGNORED_LABEL;
        const int classified = gpt->config.num_labels && (size_t)gpt->pooled[b] == i;
        if (!gpt->mask[i] && (scored || classified))
            return;
    }
    for (size_t i = begin; i < end; i++)
        if (!gpt->mask[i] && !is_finite(gpt->embedded + i * C, C))
            memset(gpt->embedded + i * C, 0, C * sizeof(float));
}

/* Padding whose embedding is no number counts as zeros. No real token sees it, and its gradient is zero unless padding of
 * its sequence is scored; but backward multiplies that gradient with what forward kept of the token. */
static void clear_padding(mom_gpt *gpt, const mom_batch *batch) {
    padding_job job = {gpt, batch->labels};
    if (gpt->mask)
        mom_parallel_for(gpt->run.exec, gpt->run.B, clear_padding_task, &job);
}

static mom_status pack_pool(mom_gpt *gpt, mom_pool *pool, size_t rounds, int transposed) {
    const size_t before = gpt->workspace.live;
    MOM_TRY(mom_pool_pack(&gpt->run, pool, rounds, transposed));
    gpt->workspace.region->noted += gpt->workspace.live - before;
    return MOM_OK;
}

static void unpack_place(mom_gpt *gpt, mom_place *place) {
    mom_pool_unpack(&place->attn);
    mom_pool_unpack(&place->ffn);
    gpt->workspace.region->noted = 0;
}

/* One round of place i from *x on, which becomes the stream after it; the same array unless activations are kept or
 * `fresh` asks for a new one. states: of the round before, replaced by the new ones, which lie among the activations
 * when these are kept, else in held. */
static mom_status forward_round(mom_gpt *gpt, size_t i, size_t round, int keep, int fresh, uint64_t site, float **x,
                                const float *states[2], float *const held[2], mom_error *err) {
    const mom_run *run = &gpt->run;
    const mom_place *place = &gpt->params.places[i];
    const size_t R = gpt->config.R, N = run->N, C = gpt->config.C;
    for (int half = 0; half < 2; half++) {
        const mom_pool *pool = half ? &place->ffn : &place->attn;
        mom_half_saved *saved = &gpt->halves[i][2 * round + (size_t)half];
        float *next = *x;
        saved->site = site + (uint64_t)half * MOM_STREAMS;
        saved->start = mom_arena_get_mark(&gpt->saved);
        if (keep)
            next = NULL;
        else if (fresh && !half)
            MOM_ARENA_NEW(next, &gpt->saved, N * C, err);
        const mom_arena_mark mark = mom_arena_get_mark(&gpt->saved);
        mom_run own = *run;
        if (i + 1 == gpt->params.num_places && round + 1 == place->rounds && !place->ffn.routed)
            own.unneeded = gpt->unneeded;
        MOM_TRY((half ? mom_ffn_pool_forward : mom_attention_pool_forward)(&own, pool, saved, &next, *x, states[half]));
        *x = next;
        const mom_observer *observer = gpt->batch.observer;
        if (observer)
            observer->half_done(observer->context, run, i, round, half, saved);
        const int recurrent = pool->routed && gpt->config.router_kind != MOM_ROUTER_NAIVE;
        if (recurrent)
            states[half] = saved->route.router.hidden;
        if (keep)
            continue;
        if (recurrent) {
            states[half] = held[half];
            mom_copy(gpt->run.exec, held[half], saved->route.router.hidden, N * R * sizeof(float));
        }
        mom_arena_release(&gpt->saved, mark);
    }
    return MOM_OK;
}

static mom_status new_states(mom_gpt *gpt, const mom_place *place, float *states[2], mom_error *err) {
    for (int half = 0; half < 2 && gpt->config.router_kind != MOM_ROUTER_NAIVE; half++)
        if ((half ? &place->ffn : &place->attn)->routed)
            MOM_ARENA_NEW(states[half], &gpt->saved, gpt->run.N * gpt->config.R, err);
    return MOM_OK;
}

static mom_status forward_place(mom_gpt *gpt, size_t i, uint64_t *site, float **x, mom_error *err) {
    const mom_place *place = &gpt->params.places[i];
    const int needed = gpt->batch.keep && i >= gpt->trained_from;
    const int keep = needed && !gpt->batch.checkpoint, checkpoint = needed && gpt->batch.checkpoint;
    const float *states[2] = {NULL, NULL};
    float *held[2] = {NULL, NULL}; /* states that outlive a release */
    for (size_t round = 0; round < place->rounds; round++) {
        if (checkpoint)
            gpt->inputs[i][round] = (mom_round_input){*x, {states[0], states[1]}, *site};
        if (checkpoint || (!keep && round == 0))
            MOM_TRY(new_states(gpt, place, held, err));
        MOM_TRY(forward_round(gpt, i, round, keep, checkpoint, *site, x, states, held, err));
        *site += 2 * MOM_STREAMS;
    }
    return MOM_OK;
}

/* What the caller may ask for after backward, too: it lies below everything that is given back on the way. */
static mom_status make_room(mom_gpt *gpt, mom_error *err) {
    const size_t places = gpt->params.num_places;
    MOM_ARENA_NEW(gpt->halves, &gpt->saved, places, err);
    MOM_ARENA_NEW(gpt->inputs, &gpt->saved, places, err);
    for (size_t i = 0; i < places; i++) {
        const mom_place *place = &gpt->params.places[i];
        const size_t n = 2 * place->rounds;
        MOM_ARENA_NEW(gpt->halves[i], &gpt->saved, n, err);
        MOM_ARENA_NEW(gpt->inputs[i], &gpt->saved, place->rounds, err);
        memset(gpt->halves[i], 0, n * sizeof(mom_half_saved));
        for (size_t h = 0; h < n; h++) {
            const mom_pool *pool = h % 2 ? &place->ffn : &place->attn;
            if (pool->routed)
                MOM_TRY(mom_route_room(&gpt->run, pool, &gpt->halves[i][h].route));
        }
    }
    return MOM_OK;
}

static mom_status forward_places(mom_gpt *gpt, mom_error *err) {
    uint64_t site = MOM_SITE_FIRST_HALF;
    float *x = gpt->embedded;
    for (size_t i = 0; i < gpt->params.num_places; i++) {
        mom_place *place = &gpt->params.places[i];
        const mom_arena_mark mark = mom_arena_get_mark(&gpt->workspace);
        mom_status status = pack_pool(gpt, &place->attn, place->rounds, 0);
        if (status == MOM_OK)
            status = pack_pool(gpt, &place->ffn, place->rounds, 0);
        if (status == MOM_OK)
            status = forward_place(gpt, i, &site, &x, err);
        unpack_place(gpt, place);
        mom_arena_release(&gpt->workspace, mark);
        MOM_TRY(status);
    }
    gpt->x = x;
    return MOM_OK;
}

/* With `keep` the head's gradients are computed along with the loss, so that no logit is computed twice; that of wte lies
 * at the bottom of the workspace until backward adds it. */
static mom_status forward_head(mom_gpt *gpt, double *loss_sum, mom_error *err) {
    const mom_exec *x = gpt->run.exec;
    const float *wte = mom_param_value(&gpt->params, gpt->params.wte);
    const size_t N = gpt->run.N, C = gpt->config.C, V = gpt->config.V, n = gpt->losses.labelled;
    if (!gpt->batch.keep)
        return mom_lm_head_gradient(x, loss_sum, NULL, NULL, gpt->hidden, wte, gpt->rows, gpt->row_labels, n, V, C, err);
    MOM_ARENA_NEW(gpt->dhidden, &gpt->saved, N * C, err);
    mom_zero(x, gpt->dhidden, N * C * sizeof *gpt->dhidden);
    if (!gpt->trained_from)
        MOM_ARENA_NEW(gpt->dwte, &gpt->workspace, V * C, err);
    gpt->head_mark = mom_arena_get_mark(&gpt->workspace);
    return mom_lm_head_gradient(x, loss_sum, gpt->dhidden, gpt->dwte, gpt->hidden, wte, gpt->rows, gpt->row_labels, n, V,
                                C, err);
}

static mom_status forward_classifier(mom_gpt *gpt, const mom_batch *batch, mom_error *err) {
    const size_t B = gpt->run.B, C = gpt->config.C, L = gpt->config.num_labels;
    MOM_ARENA_NEW(gpt->pooled_hidden, &gpt->saved, B * C, err);
    MOM_ARENA_NEW(gpt->pooled_logits, &gpt->saved, B * L, err);
    for (size_t b = 0; b < B && !gpt->run.exec->dry_run; b++)
        memcpy(gpt->pooled_hidden + b * C, gpt->hidden + (size_t)gpt->pooled[b] * C, C * sizeof(float));
    MOM_TRY(mom_linear_forward(gpt->run.exec, gpt->pooled_logits, gpt->pooled_hidden,
                               mom_param_value(&gpt->params, gpt->params.score), NULL, MOM_WEIGHT_OUT_IN, 0, B, C, L, err));
    gpt->classes = NULL;
    gpt->values = NULL;
    if (batch->classes) {
        MOM_ARENA_NEW(gpt->classes, &gpt->saved, B, err);
        mom_copy(gpt->run.exec, gpt->classes, batch->classes, B * sizeof(int32_t));
    } else if (batch->values) {
        MOM_ARENA_NEW(gpt->values, &gpt->saved, B * L, err);
        mom_copy(gpt->run.exec, gpt->values, batch->values, B * L * sizeof(float));
    } else {
        return MOM_OK;
    }
    gpt->losses.has_loss = 1;
    for (size_t b = 0; b < B && !gpt->run.exec->dry_run; b++)
        gpt->losses.labelled += !gpt->classes || gpt->classes[b] != MOM_IGNORED_LABEL;
    gpt->losses.lm_loss = mom_label_loss_compute(gpt->run.exec, NULL, gpt->pooled_logits, gpt->classes, gpt->values,
                                                 batch->label_loss, 1.0f, B, L);
    return MOM_OK;
}

static mom_status forward(mom_gpt *gpt, const mom_batch *batch, mom_error *err) {
    const mom_config *c = &gpt->config;
    const mom_exec *x = gpt->run.exec;
    const mom_params *p = &gpt->params;
    const size_t N = gpt->run.N, C = c->C;

    /* pass 1: embedding */
    MOM_TRY(copy_batch(gpt, batch, err));
    if (c->num_labels)
        MOM_TRY(collect_pooled(gpt, batch, err));
    else if (batch->labels)
        MOM_TRY(collect_labels(gpt, batch->labels, err));
    MOM_TRY(collect_needed(gpt, batch, err));
    gpt->run.mask = gpt->mask;
    gpt->run.offsets = gpt->offsets;
    MOM_TRY(make_room(gpt, err));
    MOM_ARENA_NEW(gpt->embedded, &gpt->saved, N * C, err);
    mom_embedding_forward(x, gpt->embedded, gpt->tokens, gpt->positions, mom_param_value(p, p->wte),
                          mom_param_value(p, p->wpe), mom_run_dropout(&gpt->run, c->embd_pdrop, SITE_EMBEDDING), N, C);
    clear_padding(gpt, batch);

    /* pass 2: anchor layers and blocks */
    MOM_TRY(forward_places(gpt, err));
    gpt->has_routes = 1;

    /* pass 3: final LayerNorm */
    gpt->head_start = mom_arena_get_mark(&gpt->saved);
    MOM_ARENA_NEW(gpt->mean, &gpt->saved, N, err);
    MOM_ARENA_NEW(gpt->rstd, &gpt->saved, N, err);
    MOM_ARENA_NEW(gpt->hidden, &gpt->saved, N * C, err);
    mom_layernorm_forward(x, gpt->hidden, gpt->mean, gpt->rstd, gpt->x, mom_param_value(p, p->lnf_weight),
                          mom_param_value(p, p->lnf_bias), c->ln_eps, N, C);

    /* pass 4: losses */
    if (c->num_labels)
        return forward_classifier(gpt, batch, err);
    if (batch->labels) {
        double sum = 0.0;
        MOM_TRY(forward_head(gpt, &sum, err));
        gpt->losses.has_loss = 1;
        gpt->losses.lm_loss = sum / (double)gpt->losses.labelled; /* NaN when nothing is labelled, as a mean of nothing */
    }
    balance_groups balance;
    MOM_TRY(collect_balance(gpt, &balance, &gpt->workspace, err));
    MOM_TRY(gather_step_counts(gpt, &balance, 0, err));
    gpt->losses.balance_loss = total_balance(&balance, &gpt->losses.has_balance);
    return MOM_OK;
}

static int draws(const mom_config *c, const mom_batch *batch) {
    const int dropout = c->embd_pdrop > 0.0f || c->attn_pdrop > 0.0f || c->resid_pdrop > 0.0f;
    return (batch->training && dropout) || mom_config_draws(c);
}

static mom_status make_arena(mom_gpt *gpt, const mom_exec *exec, const mom_batch *batch, mom_error *err);

/* Empties the arenas and begins a call. run.exec lives as long as the activations that backward reads through it. */
static mom_status begin(mom_gpt *gpt, const mom_exec *exec, const mom_batch *batch, mom_error *err) {
    gpt->can_backward = gpt->has_routes = 0;
    gpt->dwte = gpt->dhidden = gpt->hidden = NULL;
    mom_arena_clear(&gpt->saved);
    mom_arena_clear(&gpt->workspace);
    mom_exec *own;
    MOM_ARENA_NEW(own, &gpt->saved, 1, err);
    *own = (mom_exec){exec->k, exec->threads, &gpt->workspace, gpt->config.dtype, exec->dry_run};
    gpt->run = (mom_run){.exec = own, .config = &gpt->config, .saved = &gpt->saved, .B = batch->B, .T = batch->T,
                         .N = count_tokens(batch), .training = batch->training, .seed = gpt->seed,
                         .counter = gpt->counter, .apart = gpt->apart, .err = err};
    gpt->losses = (mom_losses){0};
    gpt->losses.lm_loss = gpt->losses.balance_loss = NAN;
    return MOM_OK;
}

mom_status mom_gpt_forward(mom_gpt *gpt, const mom_exec *exec, const mom_batch *batch, mom_losses *losses, mom_error *err) {
    MOM_TRY(make_arena(gpt, exec, batch, err));
    MOM_TRY(begin(gpt, exec, batch, err));
    const mom_arena_mark mark = mom_arena_get_mark(&gpt->workspace);
    const mom_status status = forward(gpt, batch, err);
    gpt->batch.observer = NULL; /* the caller's, for this call only */
    if (status != MOM_OK)
        gpt->dwte = NULL;
    mom_arena_release(&gpt->workspace, gpt->dwte ? gpt->head_mark : mark);
    if (status != MOM_OK) {
        gpt->has_routes = 0;
        mom_arena_clear(&gpt->saved);
        return status;
    }
    gpt->can_backward = batch->keep && gpt->losses.has_loss;
    if (draws(&gpt->config, batch))
        gpt->counter++;
    *losses = gpt->losses;
    return MOM_OK;
}

mom_status mom_gpt_logits(mom_gpt *gpt, const mom_exec *exec, float *out, const int32_t *rows, size_t count, mom_error *err) {
    if (!gpt->has_routes || !gpt->hidden)
        return mom_error_set(err, MOM_ERR_STATE, "logits: there is no forward pass to take them from");
    for (size_t i = 0; i < count && gpt->unneeded; i++)
        if (gpt->unneeded[rows ? (size_t)rows[i] : i])
            return mom_error_set(err, MOM_ERR_STATE, "logits: row %zu was not wanted of the forward pass",
                                 rows ? (size_t)rows[i] : i);
    const mom_exec x = {exec->k, exec->threads, &gpt->workspace, gpt->config.dtype, MOM_COMPUTE};
    const size_t C = gpt->config.C, V = gpt->config.V;
    mom_gemm g = {.m = count, .n = V, .k = C, .c = out, .ldc = V};
    g.a = mom_matrix_rows(gpt->hidden, C);
    g.a.row_index = rows;
    g.b = mom_matrix_transposed(mom_param_value(&gpt->params, gpt->params.wte), C);
    g.precision = x.precision;
    return mom_gemm_run(&x, &g, 1, err);
}

/* ------------------------------------------------------------------ backward */

/* Marks parameters that have a gradient now. A module has one if a token reached it in any round; a router if it
 * took part in a weight or in the balance loss (whatever that is weighted by: a product with zero depends on it too). */
static void mark_used(mom_gpt *gpt, int has_balance) {
    mom_params *p = &gpt->params;
    for (size_t i = gpt->trained_from; i < p->num_places; i++) {
        const mom_place *place = &p->places[i];
        for (int half = 0; half < 2; half++) {
            const mom_pool *pool = half ? &place->ffn : &place->attn;
            int router_used = 0;
            for (size_t m = 0; m < pool->M; m++) {
                int used = !pool->routed && place->rounds > 0;
                for (size_t round = 0; pool->routed && !used && round < place->rounds; round++)
                    used = gpt->halves[i][2 * round + (size_t)half].route.reached[m];
                if (!used)
                    continue;
                router_used = 1;
                for (size_t t = 0; t < 6 && !pool->frozen; t++)
                    p->table[mom_pool_param(pool, m, t)].used = 1;
            }
            if (!pool->routed || !place->rounds)
                continue;
            router_used |= has_balance && contributes(&gpt->halves[i][half].route);
            for (size_t r = 0; router_used && r < pool->router_params; r++)
                p->table[pool->first_router_param + r].used = 1;
        }
    }
    if (!gpt->trained_from)
        p->table[p->wte].used = p->table[p->wpe].used = 1;
    if (gpt->trained_from <= p->num_places)
        p->table[p->lnf_weight].used = p->table[p->lnf_bias].used = 1;
    if (gpt->config.num_labels)
        p->table[p->score].used = 1;
}

static mom_balance_terms balance_terms(const mom_gpt *gpt, const balance_groups *b, size_t block, size_t round, int half,
                                       float scale) {
    if (scale == 0.0f || !gpt->losses.has_balance)
        return (mom_balance_terms){0};
    const balance_group *group = &b->groups[group_index(&gpt->config, block, round, half)];
    return (mom_balance_terms){1, group->counts, group->count_tokens, group->tokens, (float)(scale * b->factor)};
}

/* Zero within [begin, end) of the gradients' bytes but for matrices that are written before they are read. */
static void zero_gradients(mom_params *p, size_t begin, size_t end) {
    for (size_t i = 0; i < p->count; i++) {
        const mom_param *param = &p->table[i];
        size_t first = param->offset * sizeof(float), last = first + param->count * sizeof(float);
        if (param->unset && *param->unset)
            continue;
        first = first > begin ? first : begin;
        last = last < end ? last : end;
        if (first < last)
            memset((unsigned char *)p->grads + first, 0, last - first);
    }
}

/* Gradients come into being place by place while activations go: pages of these make up for those of the former, so that
 * the fullest moment stays the end of the forward pass, with no gradients at all. first: the first parameter whose
 * gradient is there when the next place is done; the embeddings' are there as well. The very pages of activations become
 * those of gradients, of wte's now and of the place's from the end down, unless the user has seen these. written: the
 * first parameter whose gradient is written to next. */
static void make_up_for_gradients(mom_gpt *gpt, size_t first, size_t written) {
    mom_params *p = &gpt->params;
    const size_t begin = p->table[first].offset, bytes = (p->table[p->wpe].offset + p->total - begin) * sizeof(float);
    if (!gpt->gradients_absent || gpt->run.exec->dry_run)
        return;
    const size_t resident = gpt->resident[0] + gpt->resident[1], most = bytes < resident ? resident - bytes : 0;
    if (first == p->lnf_weight) {
        mom_region_shrink(&gpt->region, most, gpt->most_workspace, &gpt->bare_wte);
        return;
    }
    mom_bare *bare = &gpt->bare;
    mom_bare_limit(bare, begin * sizeof(float), p->grads_shown ? 0 : bare->end);
    const size_t end = bare->end;
    mom_region_shrink(&gpt->region, most, gpt->most_workspace, bare);
    zero_gradients(p, bare->end, end);
    mom_bare_limit(bare, bare->begin, p->table[written].offset * sizeof(float));
}

/* What the rounds of a place share in the workspace comes with the first half that uses it, since the first halves of
 * backward are the moment when most is kept. Weights are packed for all rounds but the last. */
static mom_status share_over_rounds(mom_gpt *gpt, mom_place *place, mom_pool *pool, size_t round, float **dstate,
                                    mom_error *err) {
    const int recurrent = place->block && pool->routed && gpt->config.router_kind != MOM_ROUTER_NAIVE;
    if (recurrent && round + 1 == place->rounds)
        MOM_ARENA_NEW(*dstate, &gpt->workspace, gpt->run.N * gpt->config.R, err);
    return round + 2 == place->rounds && !gpt->batch.checkpoint ? pack_pool(gpt, pool, round + 1, 1) : MOM_OK;
}

static mom_status backward_round(mom_gpt *gpt, size_t i, size_t block, size_t round, float *dx, float *dstates[2],
                                 const balance_groups *balance, float balance_scale, mom_error *err) {
    const mom_run *run = &gpt->run;
    mom_place *place = &gpt->params.places[i];
    const mom_arena_mark start = mom_arena_get_mark(&gpt->saved);
    const float *states[2] = {NULL, NULL};
    for (int half = 0; half < 2 && round > 0; half++)
        states[half] = gpt->halves[i][2 * (round - 1) + (size_t)half].route.router.hidden;
    if (gpt->batch.checkpoint) {
        const mom_round_input *input = &gpt->inputs[i][round];
        float *const none[2] = {NULL, NULL};
        const float *next[2] = {states[0] = input->states[0], states[1] = input->states[1]};
        float *x = (float *)(uintptr_t)input->x; /* only read: activations are kept now */
        MOM_TRY(forward_round(gpt, i, round, 1, 0, input->site, &x, next, none, err));
    }
    for (int half = 1; half >= 0; half--) {
        mom_pool *pool = half ? &place->ffn : &place->attn;
        const mom_half_saved *saved = &gpt->halves[i][2 * round + (size_t)half];
        mom_arena_release(&gpt->saved, saved->end);
        make_up_for_gradients(gpt, place->attn.first_param, pool->first_param);
        MOM_TRY(share_over_rounds(gpt, place, pool, round, &dstates[half], err));
        mom_balance_terms terms = {0};
        if (pool->routed && contributes(&saved->route))
            terms = balance_terms(gpt, balance, block, round, half, balance_scale);
        const int has_dstate = round + 1 < place->rounds && dstates[half] != NULL;
        const float *state = dstates[half] ? states[half] : NULL;
        if (half)
            MOM_TRY(mom_ffn_pool_backward(run, pool, saved, dx, state, dstates[half], has_dstate, &terms));
        else
            MOM_TRY(mom_attention_pool_backward(run, pool, saved, dx, state, dstates[half], has_dstate, &terms));
        mom_arena_release(&gpt->saved, saved->start);
    }
    if (gpt->batch.checkpoint)
        mom_arena_release(&gpt->saved, start);
    return MOM_OK;
}

static mom_status backward_place(mom_gpt *gpt, size_t i, size_t block, float *dx, const balance_groups *balance,
                                 float balance_scale, mom_error *err) {
    const mom_place *place = &gpt->params.places[i];
    float *dstates[2] = {NULL, NULL};
    for (size_t round = place->rounds; round-- > 0;)
        MOM_TRY(backward_round(gpt, i, block, round, dx, dstates, balance, balance_scale, err));
    return MOM_OK;
}

/* Adds factor * dwte to the gradient of wte. Where that comes into being now, the pages of dwte go piece by piece: both are
 * large, and at this moment nearly everything that forward kept is still there. */
static void add_head_gradient(mom_gpt *gpt, float factor) {
    const size_t n = gpt->config.V * gpt->config.C, piece = (size_t)1 << 20;
    float *dwte = mom_param_grad(&gpt->params, gpt->params.wte);
    for (size_t i = 0; i < n && !gpt->run.exec->dry_run; i += piece) {
        const size_t count = n - i < piece ? n - i : piece;
        if (!gpt->gradients_absent || gpt->params.grads_shown) {
            mom_scaled_add(gpt->run.exec, dwte + i, factor, gpt->dwte + i, count);
            continue;
        }
        mom_scaled(gpt->run.exec, dwte + i, factor, gpt->dwte + i, count);
        const size_t done = (i + count) * sizeof *dwte, bare = gpt->bare_wte.begin;
        mom_bare_limit(&gpt->bare_wte, done > bare ? done : bare, n * sizeof *dwte);
        mom_region_forget(&gpt->region, gpt->dwte, i * sizeof *dwte, done, &gpt->bare_wte);
    }
}

/* Gradient of the head: dhidden (N, C), of a language model the one that forward computed, else zeroed by the caller; of a
 * classifier NULL, when its own parameters alone are trained. */
static mom_status backward_head(mom_gpt *gpt, float *dhidden, float lm_scale, mom_error *err) {
    const mom_exec *x = gpt->run.exec;
    mom_params *p = &gpt->params;
    const size_t B = gpt->run.B, N = gpt->run.N, C = gpt->config.C, L = gpt->config.num_labels;
    if (!L) {
        if (!gpt->losses.labelled)
            return MOM_OK;
        const float scale = lm_scale / (float)gpt->losses.labelled;
        if (gpt->dwte) {
            add_head_gradient(gpt, scale);
            if (!gpt->run.exec->dry_run)
                mom_param_touch(p, p->wte, NULL, 0);
        }
        if (!gpt->run.exec->dry_run)
            x->k->vec.scale(dhidden, scale, dhidden, N * C);
        return MOM_OK;
    }
    float *dlogits, *dpooled;
    MOM_ARENA_NEW(dlogits, &gpt->workspace, B * L, err);
    mom_label_loss_compute(x, dlogits, gpt->pooled_logits, gpt->classes, gpt->values, gpt->batch.label_loss, lm_scale, B, L);
    MOM_TRY(mom_linear_backward_weight(x, mom_param_grad(p, p->score), NULL, gpt->pooled_hidden, dlogits,
                                       MOM_WEIGHT_OUT_IN, B, C, L, err));
    if (!dhidden)
        return MOM_OK;
    MOM_ARENA_NEW(dpooled, &gpt->workspace, B * C, err);
    MOM_TRY(mom_linear_backward_input(x, dpooled, dlogits, mom_param_value(p, p->score), MOM_WEIGHT_OUT_IN, 0, B, C, L, err));
    for (size_t b = 0; b < B && !gpt->run.exec->dry_run; b++)
        memcpy(dhidden + (size_t)gpt->pooled[b] * C, dpooled + b * C, C * sizeof(float));
    return MOM_OK;
}

static mom_status backward(mom_gpt *gpt, float lm_scale, float balance_scale, mom_error *err) {
    const mom_exec *x = gpt->run.exec;
    mom_params *p = &gpt->params;
    const mom_config *c = &gpt->config;
    const size_t N = gpt->run.N, C = c->C;
    balance_groups balance;
    float *dx, *dhidden;

    if (gpt->trained_from > p->num_places) {
        MOM_TRY(backward_head(gpt, NULL, lm_scale, err));
        mark_used(gpt, 0);
        return MOM_OK;
    }

    /* pass 4: losses. The head's part of the gradients has been computed by forward; its memory is free after this. */
    memcpy(gpt->resident, gpt->region.touched, sizeof gpt->resident);
    dhidden = gpt->dhidden;
    if (!dhidden) {
        MOM_ARENA_NEW(dhidden, &gpt->saved, N * C, err);
        mom_zero(x, dhidden, N * C * sizeof *dhidden);
    }
    const size_t bare = gpt->dwte && gpt->losses.labelled && !p->grads_shown ? p->table[p->wpe].offset * sizeof(float) : 0;
    int whole = 1; /* else gradients that are not computed would get memory */
    for (size_t i = 0; i < p->count; i++)
        whole &= p->table[i].computed;
    gpt->bare = (mom_bare){.data = (unsigned char *)p->grads,
                           .end = whole ? p->table[p->lnf_weight].offset * sizeof(float) : 0};
    gpt->bare_wte = (mom_bare){.data = (unsigned char *)p->grads, .end = bare, .upwards = 1};
    mom_bare_limit(&gpt->bare_wte, 0, bare);
    make_up_for_gradients(gpt, p->lnf_weight, p->lnf_weight);
    MOM_TRY(backward_head(gpt, dhidden, lm_scale, err));
    if (gpt->dwte)
        mom_arena_clear(&gpt->workspace);
    gpt->dwte = NULL;
    MOM_TRY(collect_balance(gpt, &balance, &gpt->workspace, err));
    MOM_TRY(gather_step_counts(gpt, &balance, 1, err));

    /* pass 3: final LayerNorm */
    MOM_ARENA_NEW(dx, &gpt->workspace, N * C, err);
    mom_zero(x, dx, N * C * sizeof *dx);
    MOM_TRY(mom_layernorm_backward(x, dx, mom_param_grad(p, p->lnf_weight), mom_param_grad(p, p->lnf_bias), dhidden,
                                   gpt->x, mom_param_value(p, p->lnf_weight), gpt->mean, gpt->rstd, N, C, err));
    gpt->hidden = gpt->dhidden = NULL;
    mom_arena_release(&gpt->saved, gpt->head_start);

    /* pass 2: blocks and anchor layers, last first */
    size_t block = c->chunks;
    for (size_t i = p->num_places; i-- > gpt->trained_from;) {
        if (p->places[i].block)
            block--;
        const mom_arena_mark mark = mom_arena_get_mark(&gpt->workspace);
        const mom_status status = backward_place(gpt, i, block, dx, &balance, balance_scale, err);
        unpack_place(gpt, &p->places[i]);
        mom_arena_release(&gpt->workspace, mark);
        MOM_TRY(status);
    }

    /* pass 1: embedding */
    if (!gpt->trained_from) {
        mom_embedding_backward(x, mom_param_grad(p, p->wte), mom_param_grad(p, p->wpe), dx, gpt->tokens, gpt->positions,
                               mom_run_dropout(&gpt->run, c->embd_pdrop, SITE_EMBEDDING), N, C);
        if (!gpt->run.exec->dry_run) {
            mom_param_touch(p, p->wte, gpt->tokens, N);
            mom_param_touch(p, p->wpe, gpt->positions, N);
        }
    }
    mark_used(gpt, gpt->losses.has_balance);
    return MOM_OK;
}

mom_status mom_gpt_backward(mom_gpt *gpt, const mom_exec *exec, float lm_scale, float balance_scale, mom_error *err) {
    if (!gpt->can_backward)
        return mom_error_set(err, MOM_ERR_STATE,
                             "backward: needs a forward pass with labels before it, and can follow it only once");
    mom_params *p = &gpt->params;
    MOM_TRY(mom_params_add_gradients(p, err));
    for (size_t i = 0; i < p->count; i++)
        p->table[i].written |= p->table[i].computed;
    mom_exec own = {exec->k, exec->threads, &gpt->workspace, gpt->config.dtype, MOM_COMPUTE};
    gpt->run.exec = &own;
    gpt->run.err = err;
    const mom_status status = backward(gpt, lm_scale, balance_scale, err);
    gpt->dwte = gpt->dhidden = NULL;
    mom_arena_clear(&gpt->workspace);
    gpt->run.exec = NULL;
    gpt->can_backward = gpt->gradients_absent = 0;
    return status;
}

/* ------------------------------------------------------------------ memory */

/* A network without memory of its own that goes through the calls in a rehearsal: parameters and gradients are the
 * original's parameters, which nothing touches. */
static mom_status shadow_init(mom_gpt *shadow, const mom_gpt *gpt, mom_arena *arena, mom_region *region, mom_error *err) {
    *shadow = *gpt;
    mom_params *p = &shadow->params;
    MOM_ARENA_NEW(p->places, arena, p->num_places, err);
    MOM_ARENA_NEW(p->table, arena, p->count, err);
    memcpy(p->places, gpt->params.places, p->num_places * sizeof *p->places);
    memcpy(p->table, gpt->params.table, p->count * sizeof *p->table);
    p->grads = p->values;
    for (size_t i = 0; i < p->num_places; i++) {
        mom_place *place = &p->places[i];
        place->attn.grad = place->attn.weight;
        place->ffn.grad = place->ffn.weight;
        place->attn.router_grad = place->attn.router_weight;
        place->ffn.router_grad = place->ffn.router_weight;
    }
    mom_arena_init(&shadow->saved, "activations");
    mom_arena_init(&shadow->workspace, "workspace");
    shadow->saved.reserve = shadow->workspace.reserve = 1;
    mom_arena_attach(&shadow->saved, region, 0);
    mom_arena_attach(&shadow->workspace, region, 1);
    return MOM_OK;
}

/* Sequences of a batch of this kind: one of the greatest length, the others as even as can be. */
static mom_status typical_lengths(int32_t **out, const mom_memory_key *key, mom_arena *arena, mom_error *err) {
    *out = NULL;
    if (key->N == key->B * key->T)
        return MOM_OK;
    MOM_ARENA_NEW(*out, arena, key->B, err);
    (*out)[0] = (int32_t)key->T;
    for (size_t b = 1; b < key->B; b++) {
        size_t begin, end;
        mom_range(key->N - key->T, key->B - 1, b - 1, &begin, &end);
        (*out)[b] = (int32_t)(end - begin);
    }
    return MOM_OK;
}

static mom_status rehearse(mom_gpt *shadow, const mom_memory_key *key, const int32_t *lengths, mom_error *err) {
    static const int32_t nothing;
    static const float no_value;
    const mom_dry_run how = shadow->config.chunks && !shadow->config.all_paths ? MOM_DRY_ANY_ROUTES : MOM_DRY;
    const mom_exec exec = {key->k, key->threads, &shadow->workspace, shadow->config.dtype, how};
    const int classifier = shadow->config.num_labels > 0;
    const mom_batch batch = {.B = key->B, .T = key->T, .lengths = lengths, .keep = key->keep,
                             .checkpoint = key->checkpoint, .training = key->training,
                             .labels = key->labels && !classifier ? &nothing : NULL,
                             .values = key->labels && classifier ? &no_value : NULL, .label_loss = MOM_LOSS_MSE};
    MOM_TRY(begin(shadow, &exec, &batch, err));
    const mom_arena_mark mark = mom_arena_get_mark(&shadow->workspace);
    MOM_TRY(forward(shadow, &batch, err));
    mom_arena_release(&shadow->workspace, shadow->dwte ? shadow->head_mark : mark);
    return key->keep && key->labels ? backward(shadow, 1.0f, 1.0f, err) : MOM_OK;
}

/* Room for what the sizes of temporaries depend on beside the key: how evenly the tokens spread over the modules. */
static size_t spare_room(size_t arena) { return (arena / 256 + ((size_t)1 << 16)) / MOM_ALIGNMENT * MOM_ALIGNMENT; }

/* Of the gradients that backward computes. Once somebody has looked at them all are in memory. */
static size_t gradient_bytes(const mom_params *p) {
    size_t floats = 0;
    for (size_t i = 0; i < p->count; i++)
        if (p->table[i].computed || p->grads_shown)
            floats += mom_param_floats(p->table[i].count);
    return floats * sizeof(float);
}

size_t mom_gpt_moments(const mom_gpt *gpt, size_t optimizers) {
    const mom_params *p = &gpt->params;
    size_t floats = 0;
    for (size_t i = 0; i < p->count; i++)
        floats += 2 * mom_param_floats(p->table[i].count) * (p->table[i].trained ? optimizers : p->table[i].held);
    return floats * sizeof(float);
}

/* Whether a half's inner activations are so many that in the first halves of backward, when most is kept, packed copies of
 * this size are worth a barrier more per product. Smaller steps would feel it, by 1 %. */
#define LARGE_HALF ((size_t)1 << 23)

static int large_halves(const mom_config *c, const mom_memory_key *key) {
    const size_t modules = c->num_attn > c->num_ffn ? c->num_attn : c->num_ffn;
    const size_t chosen = c->all_paths || c->top_k > modules ? modules : c->top_k, per_token = c->chunks ? chosen : 1;
    return key->N * per_token * c->F >= LARGE_HALF;
}

mom_status mom_gpt_plan(mom_gpt *gpt, const mom_memory_key *key, mom_memory_plan *plan, mom_error *err) {
    const size_t parameters = gpt->params.total * sizeof(float);
    mom_gpt shadow;
    mom_region region = {0};
    mom_arena tables;
    mom_arena_init(&tables, "memory plan");
    int32_t *lengths = NULL;
    mom_status status = shadow_init(&shadow, gpt, &tables, &region, err);
    shadow.apart = large_halves(&gpt->config, key);
    if (status == MOM_OK)
        status = typical_lengths(&lengths, key, &tables, err);
    if (status == MOM_OK) {
        status = rehearse(&shadow, key, lengths, err);
        mom_arena_free(&shadow.saved);
        mom_arena_free(&shadow.workspace);
    }
    mom_arena_free(&tables);
    MOM_TRY(status);
    *plan = (mom_memory_plan){.parameters = parameters, .gradients = key->keep ? gradient_bytes(&gpt->params) : 0,
                              .moments = mom_gpt_moments(gpt, gpt->optimizers),
                              .activations = region.at_peak[0], .packed = region.noted_at_peak};
    plan->workspace = region.peak - plan->activations - plan->packed;
    plan->workspace += spare_room(region.peak);
    plan->most_workspace = region.touched[1];
    return MOM_OK;
}

/* Giving pages back saves at most as much as is smaller, gradients or arena, and costs the time of zeroing it, twice: a
 * large part of short steps, which a small arena stands for. */
#define LITTLE_MEMORY ((size_t)1 << 27)

static int keeps_gradients(const mom_memory_plan *plan) {
    const size_t arena = mom_memory_plan_arena(plan);
    return arena + plan->gradients <= LITTLE_MEMORY || (arena <= plan->gradients && arena <= LITTLE_MEMORY);
}

static int covers(const mom_memory_key *have, const mom_memory_key *want) {
    const size_t have_scored = have->N - have->B, scored = want->N - want->B;
    return have->B >= want->B && have->T >= want->T && have->N >= want->N && have_scored >= scored &&
           have->labels >= want->labels && have->training >= want->training && have->checkpoint == want->checkpoint &&
           have->threads == want->threads && have->k == want->k;
}

/* Makes the arena large enough for a call and the backward pass that may follow; nothing has changed if it would be too
 * large. */
static mom_status make_arena(mom_gpt *gpt, const mom_exec *exec, const mom_batch *batch, mom_error *err) {
    const mom_memory_key key = {.B = batch->B, .T = batch->T, .N = count_tokens(batch),
                                .labels = batch->labels || batch->classes || batch->values, .keep = batch->keep,
                                .checkpoint = batch->keep && batch->checkpoint, .training = batch->training,
                                .threads = exec->threads, .k = exec->k};
    mom_memory_key *planned = &gpt->planned[batch->keep];
    if (gpt->region.data && !gpt->region.full && covers(planned, &key))
        return MOM_OK;
    mom_memory_plan plan;
    MOM_TRY(mom_gpt_plan(gpt, &key, &plan, err));
    const size_t arena = mom_memory_plan_arena(&plan), total = mom_memory_plan_total(&plan);
    if (gpt->memory_limit && total > gpt->memory_limit)
        return mom_error_set(err, MOM_ERR_MEMORY,
                             "tokens: %zu sequences of %s%zu tokens need %zu bytes with the model, more than the limit of %zu",
                             batch->B, batch->lengths ? "up to " : "", batch->T, total, gpt->memory_limit);
    /* Without a plan that fits, at least as much as was too little. */
    const size_t wanted = gpt->region.full && arena <= gpt->region.capacity ? gpt->region.capacity / 8 * 9 : arena;
    if (wanted > gpt->region.capacity) {
        gpt->can_backward = gpt->has_routes = 0;
        mom_arena_free(&gpt->saved);
        mom_arena_free(&gpt->workspace);
        mom_region_free(&gpt->region);
        mom_memory_trim();
        MOM_TRY(mom_region_init(&gpt->region, wanted, "activations", err));
    }
    gpt->region.full = 0;
    gpt->most_workspace = plan.most_workspace;
    if (key.keep) {
        gpt->keeps_gradients = keeps_gradients(&plan);
        gpt->apart = large_halves(&gpt->config, &key);
    }
    *planned = key;
    return MOM_OK;
}

static int any_module_trained(const mom_pool *pool, const uint8_t *trained) {
    int any = 0;
    for (size_t m = 0; m < pool->M; m++)
        for (size_t t = 0; t < 6; t++)
            any |= trained[mom_pool_param(pool, m, t)];
    return any;
}

static int any_router_trained(const mom_pool *pool, const uint8_t *trained) {
    int any = 0;
    for (size_t r = 0; pool->routed && r < pool->router_params; r++)
        any |= trained[pool->first_router_param + r];
    return any;
}

/* What backward goes through: LayerNorms and routers whether they are trained or not, matrices with their biases only in
 * halves that are not frozen. */
static void mark_computed(mom_gpt *gpt) {
    mom_params *p = &gpt->params;
    for (size_t i = 0; i < p->num_places; i++)
        for (int half = 0; half < 2; half++) {
            const mom_pool *pool = half ? &p->places[i].ffn : &p->places[i].attn;
            const int above = i >= gpt->trained_from;
            for (size_t m = 0; m < pool->M; m++)
                for (size_t t = 0; t < 6; t++)
                    p->table[mom_pool_param(pool, m, t)].computed = above && (t < 2 || !pool->frozen);
            for (size_t r = 0; pool->routed && r < pool->router_params; r++)
                p->table[pool->first_router_param + r].computed = above;
        }
    p->table[p->wte].computed = p->table[p->wpe].computed = !gpt->trained_from;
    p->table[p->lnf_weight].computed = p->table[p->lnf_bias].computed = gpt->trained_from <= p->num_places;
}

void mom_gpt_set_trained(mom_gpt *gpt, const uint8_t *trained) {
    mom_params *p = &gpt->params;
    const int norm = trained[p->lnf_weight] || trained[p->lnf_bias];
    gpt->trained_from = p->num_places + (gpt->config.num_labels && !norm);
    for (size_t i = p->num_places; i-- > 0;) {
        mom_place *place = &p->places[i];
        place->attn.frozen = !any_module_trained(&place->attn, trained);
        place->ffn.frozen = !any_module_trained(&place->ffn, trained);
        if (!place->attn.frozen || !place->ffn.frozen || any_router_trained(&place->attn, trained) ||
            any_router_trained(&place->ffn, trained))
            gpt->trained_from = i;
    }
    if (trained[p->wte] || trained[p->wpe])
        gpt->trained_from = 0;
    mark_computed(gpt);
    int written = p->grads_shown;
    for (size_t i = 0; i < p->count; i++) {
        p->table[i].trained = trained[i] != 0;
        written |= p->table[i].written;
    }
    if (p->grads && !written && mom_memory_is_mapped(p->grads)) {
        mom_memory_clear(p->grads);
        gpt->gradients_absent = 1;
    }
    gpt->can_backward = 0;
    mom_gpt_forget_plans(gpt);
}

void mom_gpt_forget_plans(mom_gpt *gpt) { memset(gpt->planned, 0, sizeof gpt->planned); }

void mom_gpt_zero_grad(mom_gpt *gpt) {
    mom_params *p = &gpt->params;
    gpt->gradients_absent = !gpt->keeps_gradients || !p->grads;
    if (p->grads && gpt->gradients_absent)
        mom_region_refill(&gpt->region, gpt->resident, p->grads);
    for (size_t i = 0; i < p->count && !gpt->gradients_absent; i++)
        if (p->grads_shown || (p->table[i].written && !p->table[i].unset))
            memset(mom_param_grad(p, i), 0, p->table[i].count * sizeof(float));
    mom_gpt_forget_grad(gpt);
}

void mom_gpt_forget_grad(mom_gpt *gpt) {
    mom_params *p = &gpt->params;
    for (size_t i = 0; i < p->count; i++) {
        p->table[i].used = p->table[i].written = 0;
        if (p->table[i].touched)
            memset(p->table[i].touched, 0, p->table[i].dims[0]);
    }
    mom_params_unset_matrices(p);
    const mom_config *c = &gpt->config;
    const size_t groups = c->balance_depthwise ? c->chunks * c->rounds * 2 : 2;
    if (gpt->step_counts)
        memset(gpt->step_counts, 0, groups * widest_router(c) * sizeof(double));
    if (gpt->step_tokens)
        memset(gpt->step_tokens, 0, groups * sizeof(double));
}
