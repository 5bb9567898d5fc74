#include "model/balance.h"

#include <string.h>

#include "ops/balance_loss.h"

/* Stride of the counts, for both halves. */
static size_t widest_router(const mom_config *c) { return mom_max(c->choices_attn, c->choices_ffn); }

static size_t group_count(const mom_config *c) { return c->balance_depthwise ? c->chunks * c->rounds * 2 : 2; }

static size_t group_index(const mom_config *c, size_t block, size_t round, int half) {
    return c->balance_depthwise ? (block * c->rounds + round) * 2 + (size_t)half : (size_t)half;
}

void mom_balance_step_free(mom_balance_step *step) {
    mom_memory_free(step->counts);
    mom_memory_free(step->tokens);
    *step = (mom_balance_step){0};
}

void mom_balance_step_clear(mom_balance_step *step, const mom_config *c) {
    if (step->counts)
        memset(step->counts, 0, group_count(c) * widest_router(c) * sizeof(double));
    if (step->tokens)
        memset(step->tokens, 0, group_count(c) * sizeof(double));
}

static mom_status new_groups(mom_balance_groups *out, const mom_config *c, mom_arena *arena, mom_error *err) {
    const size_t S = widest_router(c);
    out->count = group_count(c);
    out->factor = c->balance_depthwise && c->rounds ? 1.0 / (double)(c->chunks * c->rounds) : 1.0;
    MOM_ARENA_NEW(out->groups, arena, out->count, err);
    for (size_t g = 0; g < out->count; g++) {
        mom_balance_group *group = &out->groups[g];
        memset(group, 0, sizeof *group);
        MOM_ARENA_NEW(group->counts, arena, S, err);
        MOM_ARENA_NEW(group->prob_sums, arena, S, err);
        memset(group->counts, 0, S * sizeof(double));
        memset(group->prob_sums, 0, S * sizeof(double));
    }
    return MOM_OK;
}

static void add_route(mom_balance_group *group, const mom_route *r, size_t S) {
    group->S = S;
    group->tokens += r->tokens;
    for (size_t s = 0; s < S; s++) {
        group->counts[s] += r->counts[s];
        group->prob_sums[s] += r->prob_sums[s];
    }
}

static mom_status add_step(mom_balance_groups *b, const mom_config *c, mom_balance_step *step, int remember, mom_error *err) {
    const size_t S = widest_router(c);
    if (!step->counts && !(step->counts = mom_memory_calloc(b->count * S, sizeof(double), "balance counts", err)))
        return MOM_ERR_MEMORY;
    if (!step->tokens && !(step->tokens = mom_memory_calloc(b->count, sizeof(double), "balance counts", err)))
        return MOM_ERR_MEMORY;
    for (size_t g = 0; g < b->count; g++) {
        mom_balance_group *group = &b->groups[g];
        for (size_t s = 0; s < S; s++) {
            group->counts[s] += step->counts[g * S + s];
            if (remember)
                step->counts[g * S + s] = group->counts[s];
        }
        group->count_tokens += step->tokens[g];
        if (remember)
            step->tokens[g] = group->count_tokens;
    }
    return MOM_OK;
}

mom_status mom_balance_collect(mom_balance_groups *out, const mom_pass *pass, const mom_params *p,
                               mom_half_saved *const *halves, mom_balance_step *step, int remember, mom_arena *arena) {
    const mom_config *c = pass->config;
    MOM_TRY(new_groups(out, c, arena, pass->err));
    size_t block = 0;
    for (size_t i = 0; i < p->num_places; i++) {
        const mom_place *place = &p->places[i];
        for (size_t h = 0; place->block && h < 2 * place->rounds; h++) {
            const int half = (int)(h % 2);
            const mom_pool *pool = mom_place_pool(place, half);
            const mom_route *route = &halves[i][h].route;
            if (pool->routed && route->counts)
                add_route(&out->groups[group_index(c, block, h / 2, half)], route, pool->S);
        }
        block += place->block != 0;
    }
    for (size_t g = 0; g < out->count; g++)
        out->groups[g].count_tokens = out->groups[g].tokens;
    const int over_steps = c->balance_step_counts && out->count && !pass->exec->dry_run;
    return over_steps ? add_step(out, c, step, remember, pass->err) : MOM_OK;
}

double mom_balance_total(const mom_balance_groups *b, int *any) {
    double loss = 0.0;
    *any = 0;
    for (size_t g = 0; g < b->count; g++) {
        const mom_balance_group *group = &b->groups[g];
        if (!group->S)
            continue;
        *any = 1;
        loss += mom_balance_loss(group->counts, group->count_tokens, group->prob_sums, group->tokens, group->S);
    }
    return loss * b->factor;
}

mom_balance_terms mom_balance_terms_of(const mom_balance_groups *b, const mom_config *c, size_t block, size_t round, int half,
                                       float scale) {
    const mom_balance_group *group = &b->groups[group_index(c, block, round, half)];
    if (scale == 0.0f || !group->S)
        return (mom_balance_terms){0};
    return (mom_balance_terms){1, group->counts, group->count_tokens, group->tokens, (float)(scale * b->factor)};
}
