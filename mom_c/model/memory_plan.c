#include "model/memory_plan.h"

#include <string.h>

#include "model/gpt.h"

static void init_arenas(mom_memory *memory, mom_region *region, int dry) {
    mom_arena_init(&memory->saved, "activations");
    mom_arena_init(&memory->workspace, "workspace");
    memory->saved.dry = memory->workspace.dry = dry;
    mom_arena_attach(&memory->saved, region, MOM_LOWER);
    mom_arena_attach(&memory->workspace, region, MOM_UPPER);
}

void mom_memory_init(mom_memory *memory) {
    *memory = (mom_memory){0};
    init_arenas(memory, &memory->region, 0);
}

void mom_memory_release(mom_memory *memory) {
    mom_arena_free(&memory->saved);
    mom_arena_free(&memory->workspace);
    mom_region_free(&memory->region);
}

/* ------------------------------------------------------------------ dry run */

/* Lengths of a batch of this kind: one sequence has the greatest length, the others are as equal as possible. */
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

static mom_status run_dry(mom_gpt *dry, const mom_memory_key *key, const int32_t *lengths, mom_error *err) {
    static const int32_t label;
    static const float value;
    float scales[MOM_TERMS];
    const mom_config *c = &dry->config;
    const mom_exec exec = {.k = key->k, .threads = key->threads,
                           .dry_run = c->chunks && !c->all_paths ? MOM_DRY_ANY_ROUTES : MOM_DRY};
    const mom_interventions interventions = {.choices = {key->choices[0], key->choices[1]}, .all_outputs = key->outputs};
    const mom_batch batch = {.B = key->B, .T = key->T, .lengths = lengths, .keep = key->keep,
                             .checkpoint = key->checkpoint, .training = key->training,
                             .labels = key->labels && !c->num_labels ? &label : NULL,
                             .values = key->labels && c->num_labels ? &value : NULL, .label_loss = MOM_LOSS_MSE,
                             .interventions = &interventions};
    for (int term = 0; term < MOM_TERMS; term++)
        scales[term] = 1.0f;
    MOM_TRY(mom_gpt_forward_pass(dry, &exec, &batch, err));
    return key->keep && key->labels ? mom_gpt_backward_pass(dry, &exec, scales, err) : MOM_OK;
}

/* Makes a dry run on a copy of the network. The copy shares the parameters, and its arenas and gradients have no memory
 * behind them. */
static mom_status plan_region(const mom_gpt *gpt, const mom_memory_key *key, mom_region *region, mom_error *err) {
    mom_gpt dry = *gpt;
    mom_arena tables;
    int32_t *lengths;
    mom_arena_init(&tables, "memory plan");
    init_arenas(&dry.memory, region, 1);
    mom_status status = mom_gradients_init(&dry.gradients, &gpt->params, err);
    if (status == MOM_OK) {
        mom_gradients_select_like(&dry.gradients, &gpt->params, &gpt->gradients);
        status = mom_gradients_allocate(&dry.gradients, &gpt->params, 1, err);
    }
    if (status == MOM_OK)
        status = typical_lengths(&lengths, key, &tables, err);
    if (status == MOM_OK)
        status = run_dry(&dry, key, lengths, err);
    mom_gradients_free(&dry.gradients);
    mom_arena_free(&dry.memory.saved);
    mom_arena_free(&dry.memory.workspace);
    mom_arena_free(&tables);
    return status;
}

/* A margin, because the sizes of temporaries also depend on how evenly the tokens are distributed over the modules. */
static size_t spare_room(size_t bytes) { return (bytes / 256 + ((size_t)1 << 16)) / MOM_ALIGNMENT * MOM_ALIGNMENT; }

/* Fails for batches that no routing plan can hold. Even a dry run would make long lists of their sequences. */
static mom_status check_choices(const mom_gpt *gpt, size_t N, mom_error *err) {
    size_t most = 1;
    for (size_t i = 0; i < gpt->params.num_places; i++)
        for (int half = 0; half < 2; half++) {
            const mom_pool *pool = mom_place_pool(&gpt->params.places[i], half);
            most = mom_max(most, !pool->routed ? 1 : gpt->config.all_paths ? pool->M : pool->K);
        }
    if (N > INT32_MAX / most)
        return mom_error_set(err, MOM_ERR_VALUE,
                             "index: %zu tokens with %zu choices each, expected at most %ld choices in all", N, most,
                             (long)INT32_MAX);
    return MOM_OK;
}

mom_status mom_gpt_plan(mom_gpt *gpt, const mom_memory_key *key, mom_memory_plan *plan, mom_error *err) {
    const mom_gradients *g = &gpt->gradients;
    mom_region region = {0};
    MOM_TRY(check_choices(gpt, key->N, err));
    MOM_TRY(plan_region(gpt, key, &region, err));
    *plan = (mom_memory_plan){.parameters = gpt->params.total * sizeof(float),
                              .gradients = key->keep ? mom_gradients_bytes(g, &gpt->params) : 0,
                              .moments = mom_gradients_moment_bytes(g, &gpt->params, g->optimizers),
                              .activations = region.at_peak[MOM_LOWER], .packed = region.tagged_at_peak};
    plan->workspace = region.peak - plan->activations - plan->packed + spare_room(region.peak);
    return MOM_OK;
}

/* ------------------------------------------------------------------ the region of a pass */

static int covers(const mom_memory_key *have, const mom_memory_key *want) {
    const size_t have_scored = have->N - have->B, want_scored = want->N - want->B;
    return have->B >= want->B && have->T >= want->T && have->N >= want->N && have_scored >= want_scored &&
           have->labels >= want->labels && have->training >= want->training && have->checkpoint == want->checkpoint &&
           have->threads == want->threads && have->k == want->k && have->choices[0] >= want->choices[0] &&
           have->choices[1] >= want->choices[1] && have->outputs >= want->outputs;
}

static mom_status grow(mom_gpt *gpt, size_t bytes, mom_error *err) {
    mom_memory *memory = &gpt->memory;
    if (bytes <= memory->region.capacity)
        return MOM_OK;
    gpt->last.can_backward = gpt->last.has_routes = 0;
    mom_memory_release(memory);
    mom_memory_trim();
    return mom_region_init(&memory->region, bytes, "activations", err);
}

/* Choices per token in the rounds of a half. Plans with few of them do not cover passes with more. */
static size_t kept_choices(const mom_config *c, const mom_interventions *in, int half) {
    return in && in->choices[half] ? in->choices[half] : mom_min(c->top_k, half ? c->choices_ffn : c->choices_attn);
}

mom_status mom_gpt_prepare_memory(mom_gpt *gpt, const mom_exec *exec, const mom_batch *batch, mom_error *err) {
    mom_memory *memory = &gpt->memory;
    mom_region *region = &memory->region;
    const mom_interventions *in = batch->interventions;
    const mom_memory_key key = {.B = batch->B, .T = batch->T, .N = mom_batch_tokens(batch),
                                .labels = batch->labels || batch->classes || batch->values, .keep = batch->keep,
                                .checkpoint = batch->keep && batch->checkpoint, .training = batch->training,
                                .threads = exec->threads, .k = exec->k,
                                .choices = {kept_choices(&gpt->config, in, 0), kept_choices(&gpt->config, in, 1)},
                                .outputs = in && (in->patch_count || in->capture_count)};
    if (region->data && !region->full && covers(&memory->planned[key.keep], &key))
        return MOM_OK;
    mom_memory_plan plan;
    MOM_TRY(mom_gpt_plan(gpt, &key, &plan, err));
    const size_t planned = mom_memory_plan_region(&plan), total = planned + plan.parameters + plan.gradients + plan.moments;
    if (memory->limit && total > memory->limit)
        return mom_error_set(err, MOM_ERR_MEMORY,
                             "tokens: %zu sequences of %s%zu tokens need %zu bytes with the model, more than the limit of %zu",
                             batch->B, batch->lengths ? "up to " : "", batch->T, total, memory->limit);
    /* If the region was too small although it had the planned size, it grows by an eighth. */
    MOM_TRY(grow(gpt, region->full ? mom_max(planned, region->capacity / 8 * 9) : planned, err));
    region->full = 0;
    memory->planned[key.keep] = key;
    return MOM_OK;
}

void mom_gpt_forget_plans(mom_gpt *gpt) { memset(gpt->memory.planned, 0, sizeof gpt->memory.planned); }
