#include "model/gpt.h"

#include <string.h>

#include "model/coupling.h"
#include "model/head.h"

const char *const mom_term_names[MOM_TERMS] = {"lm", "balance", "z", "path", "route", "coupling"};

static mom_status init(mom_gpt *gpt, const mom_config *config, mom_error *err) {
    MOM_TRY(mom_params_init(&gpt->params, config, err));
    return mom_gradients_init(&gpt->gradients, &gpt->params, err);
}

mom_status mom_gpt_init(mom_gpt *gpt, const mom_config *config, mom_error *err) {
    *gpt = (mom_gpt){.config = *config};
    mom_memory_init(&gpt->memory);
    const mom_status status = init(gpt, config, err);
    if (status != MOM_OK)
        mom_gpt_free(gpt);
    return status;
}

void mom_gpt_free(mom_gpt *gpt) {
    mom_params_free(&gpt->params);
    mom_gradients_free(&gpt->gradients);
    mom_memory_release(&gpt->memory);
    mom_balance_step_free(&gpt->step);
    memset(gpt, 0, sizeof *gpt);
}

/* ------------------------------------------------------------------ forward */

static int draws(const mom_config *c, const mom_batch *batch) {
    const int random = c->embd_pdrop > 0.0f || c->attn_pdrop > 0.0f || c->resid_pdrop > 0.0f || c->round_pdrop > 0.0f ||
                       c->jitter > 0.0f || (c->coupling_loss && c->chunks);
    return (batch->training && random) || mom_config_draws(c);
}

mom_status mom_gpt_forward(mom_gpt *gpt, const mom_exec *exec, const mom_batch *batch, mom_losses *losses, mom_error *err) {
    if (batch->begin.stream && batch->keep)
        return mom_error_set(err, MOM_ERR_VALUE, "keep: a pass that begins in the middle has no backward");
    if (batch->begin.stream && gpt->config.final_skip)
        return mom_error_set(err, MOM_ERR_VALUE, "begin: with a SKIP that is final, choices depend on those of earlier rounds");
    MOM_TRY(mom_gpt_prepare_memory(gpt, exec, batch, err));
    MOM_TRY(mom_gpt_forward_pass(gpt, exec, batch, err));
    if (draws(&gpt->config, batch))
        gpt->counter++;
    *losses = gpt->last.losses;
    return MOM_OK;
}

mom_status mom_gpt_logits(mom_gpt *gpt, const mom_exec *exec, float *out, const int32_t *rows, size_t count, mom_error *err) {
    mom_exec x = *exec;
    x.workspace = &gpt->memory.workspace;
    x.precision = gpt->config.dtype;
    const mom_arena_mark mark = mom_arena_get_mark(x.workspace);
    const mom_status status = mom_head_logits(&gpt->last, &x, &gpt->params, out, rows, count, err);
    mom_arena_release(x.workspace, mark);
    return status;
}

/* ------------------------------------------------------------------ backward */

static void mark_used(mom_gradients *g, size_t first, size_t count) {
    for (size_t i = first; i < first + count; i++)
        g->table[i].used |= g->table[i].trained;
}

/* A module has a gradient if a token reached it in any round. A router has a gradient if a weight, the balance loss or the
 * z-loss depends on it. A scale of zero on one of these losses makes no difference. */
static void mark_pool_used(mom_gpt *gpt, size_t i, int half) {
    mom_gradients *g = &gpt->gradients;
    const mom_place *place = &gpt->params.places[i];
    const mom_pool *pool = mom_place_pool(place, half);
    int any = 0, ran = 0;
    for (size_t round = 0; round < place->rounds; round++)
        ran |= !mom_saved_half(&gpt->last, i, round, half)->route.left_out;
    for (size_t m = 0; m < pool->M; m++) {
        int used = !pool->routed && ran;
        for (size_t round = 0; pool->routed && !used && round < place->rounds; round++)
            used = mom_saved_half(&gpt->last, i, round, half)->route.reached[m];
        any |= used;
        for (size_t t = 0; used && t < 6 && !g->pools[i][half].frozen; t++)
            mark_used(g, mom_pool_param(pool, m, t), 1);
    }
    if (!pool->routed || !ran)
        return;
    const int balanced = gpt->last.losses.has[MOM_TERM_BALANCE] && mom_saved_half(&gpt->last, i, 0, half)->route.counts;
    const int *has = gpt->last.losses.has;
    if (any || balanced || has[MOM_TERM_Z] || has[MOM_TERM_PATH] || has[MOM_TERM_ROUTE])
        mark_used(g, pool->first_router_param, pool->router_params);
}

/* The coupling loss gives a gradient to the router's map, which is its first parameter, and to the LayerNorm and the first layer
 * of every module, whether a token reached it or not. */
static void mark_coupled_used(mom_gpt *gpt, size_t i, int half) {
    mom_gradients *g = &gpt->gradients;
    const mom_pool *pool = mom_place_pool(&gpt->params.places[i], half);
    if (!gpt->last.losses.has[MOM_TERM_COUPLING] || !mom_is_coupled(&gpt->params.places[i], half))
        return;
    mark_used(g, pool->first_router_param, 1);
    for (size_t m = 0; m < pool->M; m++)
        for (size_t t = 0; t < 4 && !g->pools[i][half].frozen; t++)
            mark_used(g, mom_pool_param(pool, m, t), 1);
}

static void mark_all_used(mom_gpt *gpt) {
    const mom_params *p = &gpt->params;
    mom_gradients *g = &gpt->gradients;
    for (size_t i = g->lowest_place; i < p->num_places; i++)
        for (int half = 0; half < 2; half++) {
            mark_pool_used(gpt, i, half);
            mark_coupled_used(gpt, i, half);
        }
    const int embeddings = !g->lowest_place, norm = g->lowest_place <= p->num_places, labels = gpt->config.num_labels != 0;
    mark_used(g, p->wte, embeddings);
    mark_used(g, p->wpe, embeddings);
    mark_used(g, p->lnf_weight, norm);
    mark_used(g, p->lnf_bias, norm);
    mark_used(g, p->score, labels);
}

mom_status mom_gpt_backward(mom_gpt *gpt, const mom_exec *exec, const float scales[MOM_TERMS], mom_error *err) {
    if (!gpt->last.can_backward)
        return mom_error_set(err, MOM_ERR_STATE,
                             "backward: needs a forward pass with labels before it, and can follow it only once");
    MOM_TRY(mom_gradients_allocate(&gpt->gradients, &gpt->params, 0, err));
    mom_gradients_mark_written(&gpt->gradients, &gpt->params);
    const mom_status status = mom_gpt_backward_pass(gpt, exec, scales, err);
    if (status == MOM_OK) {
        mark_all_used(gpt);
    } else { /* a part of the sums has been added */
        mom_gpt_zero_grad(gpt, exec);
        gpt->counter = gpt->last.pass.counter;
    }
    return status;
}

/* ------------------------------------------------------------------ gradients */

void mom_gpt_set_trained(mom_gpt *gpt, const uint8_t *trained) {
    mom_gradients_set_trained(&gpt->gradients, &gpt->params, trained);
    gpt->last.can_backward = 0;
    mom_gpt_forget_plans(gpt);
}

void mom_gpt_zero_grad(mom_gpt *gpt, const mom_exec *exec) {
    mom_gradients_zero(exec, &gpt->gradients, &gpt->params);
    mom_balance_step_clear(&gpt->step, &gpt->config);
}

void mom_gpt_forget_grad(mom_gpt *gpt) {
    mom_gradients_forget(&gpt->gradients, &gpt->params);
    mom_balance_step_clear(&gpt->step, &gpt->config);
}

void mom_gpt_abandon_pass(mom_gpt *gpt) {
    const size_t limit = gpt->memory.limit;
    const mom_exec alone = {.threads = 1}; /* the parent's threads do not exist here */
    mom_memory_init(&gpt->memory);
    gpt->memory.limit = limit;
    memset(&gpt->last, 0, sizeof gpt->last);
    mom_gpt_zero_grad(gpt, &alone);
}
