#include "model/gradients.h"

#include <string.h>

static mom_status init_pool(mom_gradients *g, const mom_params *p, size_t place, int half, mom_error *err) {
    const mom_pool *pool = mom_place_pool(&p->places[place], half);
    mom_pool_gradients *own = &g->pools[place][half];
    *own = (mom_pool_gradients){0};
    if (pool->owner != place) { /* the modules of an earlier place */
        own->in_overwrite = g->pools[pool->owner][half].in_overwrite;
        own->out_overwrite = g->pools[pool->owner][half].out_overwrite;
        return MOM_OK;
    }
    MOM_ARENA_NEW(own->in_overwrite, &g->arena, pool->M, err);
    MOM_ARENA_NEW(own->out_overwrite, &g->arena, pool->M, err);
    for (size_t m = 0; m < pool->M; m++) {
        g->table[mom_pool_param(pool, m, 2)].overwrite = &own->in_overwrite[m];
        g->table[mom_pool_param(pool, m, 4)].overwrite = &own->out_overwrite[m];
        own->in_overwrite[m] = own->out_overwrite[m] = 0;
    }
    return MOM_OK;
}

static mom_status init_embedding(mom_gradients *g, const mom_params *p, size_t i, mom_error *err) {
    MOM_ARENA_NEW(g->table[i].touched, &g->arena, p->table[i].dims[0], err);
    memset(g->table[i].touched, 0, p->table[i].dims[0]);
    return MOM_OK;
}

static mom_status init(mom_gradients *g, const mom_params *p, mom_error *err) {
    MOM_ARENA_NEW(g->table, &g->arena, p->count, err);
    for (size_t i = 0; i < p->count; i++)
        g->table[i] = (mom_gradient){.trained = p->table[i].rule != MOM_RULE_FIXED, .computed = 1,
                                     .moments = mom_param_floats(p->table[i].count)};
    MOM_ARENA_NEW(g->pools, &g->arena, p->num_places, err);
    for (size_t i = 0; i < p->num_places; i++)
        for (int half = 0; half < 2; half++)
            MOM_TRY(init_pool(g, p, i, half, err));
    MOM_TRY(init_embedding(g, p, p->wte, err));
    return init_embedding(g, p, p->wpe, err);
}

mom_status mom_gradients_init(mom_gradients *g, const mom_params *p, mom_error *err) {
    *g = (mom_gradients){0};
    mom_arena_init(&g->arena, "gradients");
    mom_arena_init(&g->pointers, "gradients");
    const mom_status status = init(g, p, err);
    if (status != MOM_OK)
        mom_gradients_free(g);
    return status;
}

void mom_gradients_free(mom_gradients *g) {
    mom_memory_free(g->values);
    mom_arena_free(&g->arena);
    mom_arena_free(&g->pointers);
    *g = (mom_gradients){0};
}

static mom_status point_pools(mom_gradients *g, const mom_params *p, float *block, mom_error *err) {
    for (size_t i = 0; i < p->num_places; i++)
        for (int half = 0; half < 2; half++) {
            mom_pool_gradients *own = &g->pools[i][half];
            MOM_TRY(mom_pool_point(p, mom_place_pool(&p->places[i], half), &own->tensors, &own->router, block,
                                   &g->pointers, err));
        }
    return MOM_OK;
}

/* Has no effect once a caller has seen the gradients. */
static void mark_overwrite(mom_gradients *g, const mom_params *p) {
    for (size_t i = 0; i < p->count && g->values && !g->shown; i++)
        if (g->table[i].overwrite)
            *g->table[i].overwrite = 1;
}

mom_status mom_gradients_allocate(mom_gradients *g, const mom_params *p, int dry, mom_error *err) {
    if (g->values)
        return MOM_OK;
    float *values = (dry ? mom_memory_reserve : mom_memory_calloc)(p->total, sizeof(float), "gradients", err);
    if (!values)
        return MOM_ERR_MEMORY;
    const mom_status status = point_pools(g, p, values, err);
    if (status != MOM_OK) {
        mom_arena_free(&g->pointers);
        mom_memory_free(values);
        return status;
    }
    g->values = values;
    mark_overwrite(g, p);
    return MOM_OK;
}

void mom_gradient_settle(mom_gradients *g, const mom_params *p, size_t i) {
    uint8_t *overwrite = g->table[i].overwrite;
    if (!g->values || !overwrite || !*overwrite)
        return;
    memset(mom_param_grad(g, p, i), 0, p->table[i].count * sizeof(float));
    *overwrite = 0;
}

static mom_status settle_all(mom_gradients *g, const mom_params *p, mom_error *err) {
    MOM_TRY(mom_gradients_allocate(g, p, 0, err));
    for (size_t i = 0; i < p->count; i++)
        mom_gradient_settle(g, p, i);
    return MOM_OK;
}

mom_status mom_gradients_show(mom_gradients *g, const mom_params *p, mom_error *err) {
    MOM_TRY(settle_all(g, p, err));
    g->shown = 1;
    return MOM_OK;
}

mom_status mom_gradients_lend(mom_gradients *g, const mom_params *p, mom_error *err) {
    MOM_TRY(settle_all(g, p, err));
    g->lent = 1;
    return MOM_OK;
}

#define ZERO_ROWS ((size_t)256) /* rows per task */

typedef struct {
    float *values;
    const uint8_t *touched;
    size_t width;
} embedding_job;

static void zero_touched(const void *context, size_t begin, size_t end) {
    const embedding_job *job = context;
    for (size_t r = begin; r < end; r++)
        if (job->touched[r])
            memset(job->values + r * job->width, 0, job->width * sizeof *job->values);
}

void mom_gradients_zero(const mom_exec *x, mom_gradients *g, const mom_params *p) {
    for (size_t i = 0; i < p->count && g->values; i++) {
        const mom_gradient *gradient = &g->table[i];
        if (!g->shown && (!gradient->written || gradient->overwrite))
            continue;
        float *values = mom_param_grad(g, p, i);
        if (!g->shown && gradient->touched) { /* no caller has seen the other rows */
            const embedding_job job = {values, gradient->touched, p->table[i].dims[1]};
            mom_parallel_rows(x, p->table[i].dims[0], ZERO_ROWS, zero_touched, &job);
        } else {
            mom_zero(x, values, p->table[i].count * sizeof *values);
        }
    }
    mom_gradients_forget(g, p);
}

void mom_gradients_forget(mom_gradients *g, const mom_params *p) {
    for (size_t i = 0; i < p->count; i++) {
        mom_gradient *gradient = &g->table[i];
        gradient->used = gradient->written = 0;
        if (gradient->touched)
            memset(gradient->touched, 0, p->table[i].dims[0]);
    }
    mark_overwrite(g, p);
}

void mom_gradient_touch(mom_gradients *g, const mom_params *p, size_t i, const int32_t *rows, size_t count) {
    uint8_t *touched = g->table[i].touched;
    if (!rows)
        memset(touched, 1, p->table[i].dims[0]);
    for (size_t r = 0; r < count; r++)
        touched[rows[r]] = 1;
}

void mom_gradients_take(mom_gradients *g, const mom_params *p, const uint8_t *used) {
    for (size_t i = 0; i < p->count; i++) {
        mom_gradient *gradient = &g->table[i];
        gradient->used = used[i] && gradient->trained;
        gradient->written = 1;
        if (gradient->touched)
            memset(gradient->touched, 1, p->table[i].dims[0]);
    }
}

void mom_gradients_mark_written(mom_gradients *g, const mom_params *p) {
    for (size_t i = 0; i < p->count; i++)
        g->table[i].written |= g->table[i].computed;
}

/* ------------------------------------------------------------------ what is trained */

static int any_module_trained(const mom_pool *pool, const uint8_t *trained) {
    int any = 0;
    for (size_t m = 0; m < pool->M; m++)
        for (size_t t = 0; t < 6; t++)
            any |= trained[mom_pool_param(pool, m, t)];
    return any;
}

static int any_router_trained(const mom_params *p, const mom_pool *pool, const uint8_t *trained) {
    int any = 0;
    for (size_t r = 0; pool->routed && r < pool->router_params; r++)
        any |= trained[pool->first_router_param + r] && p->table[pool->first_router_param + r].rule != MOM_RULE_FIXED;
    return any;
}

/* Backward computes the gradients of LayerNorms and routers in every half that it goes through. It computes those of
 * matrices and their biases only in halves that are not frozen. */
static void mark_computed(mom_gradients *g, const mom_params *p) {
    for (size_t i = 0; i < p->num_places; i++)
        for (int half = 0; half < 2; half++) {
            const mom_pool *pool = mom_place_pool(&p->places[i], half);
            const int above = i >= g->lowest_place;
            for (size_t m = 0; m < pool->M; m++)
                for (size_t t = 0; t < 6; t++)
                    g->table[mom_pool_param(pool, m, t)].computed = above && (t < 2 || !g->pools[i][half].frozen);
            for (size_t r = 0; pool->routed && r < pool->router_params; r++)
                g->table[pool->first_router_param + r].computed = above;
        }
    g->table[p->wte].computed = g->table[p->wpe].computed = !g->lowest_place;
    g->table[p->lnf_weight].computed = g->table[p->lnf_bias].computed = g->lowest_place <= p->num_places;
}

static void free_if_empty(mom_gradients *g, const mom_params *p) {
    int written = g->shown | g->lent;
    for (size_t i = 0; i < p->count; i++)
        written |= g->table[i].written | g->table[i].used;
    if (written)
        return;
    mom_memory_free(g->values);
    mom_arena_free(&g->pointers);
    g->values = NULL;
}

void mom_gradients_set_trained(mom_gradients *g, const mom_params *p, const uint8_t *trained) {
    const int norm = trained[p->lnf_weight] || trained[p->lnf_bias], labels = p->score != 0;
    g->lowest_place = p->num_places + (labels && !norm);
    for (size_t i = p->num_places; i-- > 0;) {
        int any = 0;
        for (int half = 0; half < 2; half++) {
            const mom_pool *pool = mom_place_pool(&p->places[i], half);
            g->pools[i][half].frozen = !any_module_trained(pool, trained);
            any |= !g->pools[i][half].frozen || any_router_trained(p, pool, trained);
        }
        if (any)
            g->lowest_place = i;
    }
    if (trained[p->wte] || trained[p->wpe])
        g->lowest_place = 0;
    mark_computed(g, p);
    for (size_t i = 0; i < p->count; i++) {
        g->table[i].trained = trained[i] && p->table[i].rule != MOM_RULE_FIXED;
        g->table[i].used &= g->table[i].trained;
    }
    free_if_empty(g, p);
}

void mom_gradients_select_like(mom_gradients *g, const mom_params *p, const mom_gradients *other) {
    g->lowest_place = other->lowest_place;
    g->shown = other->shown;
    for (size_t i = 0; i < p->count; i++) {
        g->table[i].trained = other->table[i].trained;
        g->table[i].computed = other->table[i].computed;
    }
    for (size_t i = 0; i < p->num_places; i++)
        for (int half = 0; half < 2; half++)
            g->pools[i][half].frozen = other->pools[i][half].frozen;
}

/* ------------------------------------------------------------------ sizes */

size_t mom_gradients_bytes(const mom_gradients *g, const mom_params *p) {
    size_t floats = 0;
    for (size_t i = 0; i < p->count; i++)
        if (g->table[i].computed || g->shown)
            floats += mom_param_floats(p->table[i].count);
    return floats * sizeof(float);
}

size_t mom_gradients_moment_bytes(const mom_gradients *g, const mom_params *p, size_t optimizers) {
    size_t floats = 0;
    for (size_t i = 0; i < p->count; i++)
        floats += 2 * g->table[i].moments * (g->table[i].trained ? optimizers : g->table[i].held);
    return floats * sizeof(float);
}
