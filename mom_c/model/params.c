#include "model/params.h"

#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/rng.h"

/* Pass 1 counts the parameters and pass 2 writes them. Both run the same code; `table` is NULL in pass 1. */
typedef struct {
    mom_param *table;
    size_t count, total;
    int overflow; /* more floats than can be counted */
} builder;

static size_t add(builder *b, int decay, float std, float value, size_t d0, size_t d1, const char *format, ...)
    MOM_PRINTF(7, 8);

static size_t add(builder *b, int decay, float std, float value, size_t d0, size_t d1, const char *format, ...) {
    const size_t index = b->count++, count = d1 ? d0 * d1 : d0;
    if (b->table) {
        mom_param *p = &b->table[index];
        va_list args;
        va_start(args, format);
        vsnprintf(p->name, sizeof p->name, format, args);
        va_end(args);
        p->dims[0] = d0;
        p->dims[1] = d1;
        p->ndim = d1 ? 2 : 1;
        p->offset = b->total;
        p->count = count;
        p->init_std = std;
        p->init_value = value;
        p->decay = decay;
        p->rule = MOM_RULE_OPTIMIZER;
    }
    /* mom_config_check bounds the size of each tensor, but not their sum. */
    const size_t rounded = mom_param_floats(count);
    if (rounded > SIZE_MAX - b->total)
        b->overflow = 1;
    b->total += rounded;
    return index;
}

#define WEIGHT(std, d0, d1, ...) add(b, 1, (std), 0.0f, (d0), (d1), __VA_ARGS__)
#define BIAS(d0, ...) add(b, 0, 0.0f, 0.0f, (d0), 0, __VA_ARGS__)
#define NORM_WEIGHT(d0, ...) add(b, 0, 0.0f, 1.0f, (d0), 0, __VA_ARGS__)

static void add_router(builder *b, const mom_config *c, mom_pool *pool, const char *prefix) {
    const mom_router_spec *spec = &pool->spec;
    pool->first_router_param = b->count;
    pool->router_params = mom_router_param_count(spec);
    for (size_t i = 0; i < pool->router_params; i++) {
        const mom_router_param *param = mom_router_param_at(spec, i);
        const size_t rows = mom_router_dim_size(spec, param->dims[0]);
        const size_t columns = mom_router_dim_size(spec, param->dims[1]);
        const size_t index = add(b, columns > 0, columns ? c->init_range : 0.0f, param->initial, rows, columns,
                                 "%s.router.%s", prefix, param->name);
        if (!b->table)
            continue;
        const int balances = param->offset == offsetof(mom_router_tensors, balance_bias);
        b->table[index].rule = balances ? MOM_RULE_SIGN : c->router_frozen ? MOM_RULE_FIXED : MOM_RULE_OPTIMIZER;
    }
}

/* Everything but the parameters. */
static void describe_pool(const mom_config *c, const mom_place *place, mom_pool *pool, mom_pool_kind kind) {
    const int attn = kind == MOM_POOL_ATTN;
    pool->kind = kind;
    pool->M = place->block ? (attn ? c->num_attn : c->num_ffn) : 1;
    pool->routed = pool->M > 1 || (place->block && c->route_single);
    pool->keeps_state = c->router_state != MOM_STATE_RESET;
    pool->S = attn ? c->choices_attn : c->choices_ffn;
    pool->K = c->top_k < pool->S ? c->top_k : pool->S;
    pool->F = attn ? 3 * c->C : c->F;
    pool->spec = (mom_router_spec){.kind = c->router_kind, .random = c->router_random, .C = c->C, .R = c->R, .S = pool->S,
                                   .M = pool->M, .rounds = c->rounds, .own_maps = c->router_own_maps,
                                   .embedded = c->router_embedded, .normed = c->router_normed,
                                   .biased = c->bias_rate > 0.0f};
}

static void add_modules(builder *b, const mom_config *c, const mom_place *place, mom_pool *pool, const char *half,
                        const char *norm) {
    const int attn = pool->kind == MOM_POOL_ATTN;
    const char *in = attn ? "c_attn" : "c_fc";
    const size_t out_rows = attn ? c->C : c->F;
    const float proj_std = place->block ? c->init_range : c->anchor_proj_range;
    pool->first_param = b->count;
    for (int pair = 0; pair < 3; pair++) {
        for (size_t m = 0; m < pool->M; m++) {
            char index[24] = "";
            if (pool->M > 1)
                snprintf(index, sizeof index, ".%zu", m);
            if (pair == 0) {
                NORM_WEIGHT(c->C, "%s%s.weight", norm, index);
                BIAS(c->C, "%s%s.bias", norm, index);
            } else if (pair == 1) {
                WEIGHT(c->init_range, c->C, pool->F, "%s.%s%s.weight", half, in, index);
                BIAS(pool->F, "%s.%s%s.bias", half, in, index);
            } else {
                WEIGHT(proj_std, out_rows, c->C, "%s.c_proj%s.weight", half, index);
                BIAS(c->C, "%s.c_proj%s.bias", half, index);
            }
        }
    }
}

/* The place that has the modules of a pool of place i. */
static size_t owner_of(const mom_config *c, const mom_params *p, size_t i, mom_pool_kind kind) {
    const int shared = kind == MOM_POOL_ATTN ? c->share_attn : c->share_ffn;
    return p->places[i].block && shared ? c->bottom : i;
}

static void add_pool(builder *b, const mom_config *c, mom_params *p, mom_pool_kind kind, size_t i) {
    mom_place *place = &p->places[i];
    const int attn = kind == MOM_POOL_ATTN;
    mom_pool *pool = attn ? &place->attn : &place->ffn;
    char half[64], norm[96];
    describe_pool(c, place, pool, kind);
    pool->owner = owner_of(c, p, i, kind);
    if (c->vanilla) {
        snprintf(half, sizeof half, "transformer.h.%zu.%s", i, attn ? "attn" : "mlp");
        snprintf(norm, sizeof norm, "transformer.h.%zu.%s", i, attn ? "ln_1" : "ln_2");
    } else {
        snprintf(half, sizeof half, "transformer.h.%zu.%s", i, attn ? "mot_attn" : "mot_ffn");
        snprintf(norm, sizeof norm, "%s.%s", half, attn ? "attention_layernorm" : "ffn_layernorm");
    }
    if (pool->owner == i)
        add_modules(b, c, place, pool, half, norm);
    else
        pool->first_param = mom_place_pool(&p->places[pool->owner], !attn)->first_param;
    if (pool->routed)
        add_router(b, c, pool, half);
}

static void add_all(builder *b, const mom_config *c, mom_params *p) {
    p->wte = WEIGHT(c->init_range, c->V, c->C, "transformer.wte.weight");
    p->wpe = WEIGHT(c->init_range, c->P, c->C, "transformer.wpe.weight");
    for (size_t i = 0; i < p->num_places; i++) {
        add_pool(b, c, p, MOM_POOL_ATTN, i);
        add_pool(b, c, p, MOM_POOL_FFN, i);
    }
    p->lnf_weight = NORM_WEIGHT(c->C, "transformer.ln_f.weight");
    p->lnf_bias = BIAS(c->C, "transformer.ln_f.bias");
    p->score = 0;
    if (c->num_labels)
        p->score = WEIGHT(c->init_range, c->num_labels, c->C, "score.weight");
}

mom_status mom_pool_point(const mom_params *p, const mom_pool *pool, mom_pool_tensors *tensors, mom_router_tensors *router,
                          float *block, mom_arena *arena, mom_error *err) {
    float ***arrays[6] = {&tensors->ln_weight, &tensors->ln_bias,    &tensors->in_weight,
                          &tensors->in_bias,   &tensors->out_weight, &tensors->out_bias};
    for (size_t t = 0; t < 6; t++) {
        MOM_ARENA_NEW(*arrays[t], arena, pool->M, err);
        for (size_t m = 0; m < pool->M; m++)
            (*arrays[t])[m] = block + p->table[mom_pool_param(pool, m, t)].offset;
    }
    if (!pool->routed)
        return MOM_OK;
    *router = (mom_router_tensors){0};
    for (size_t i = 0; i < pool->router_params; i++)
        *mom_router_tensor(router, mom_router_param_at(&pool->spec, i)) =
            block + p->table[pool->first_router_param + i].offset;
    return MOM_OK;
}

/* Anchor layers at the bottom, blocks (each followed by an anchor layer if anchor_between), anchor layers at the top. */
static mom_status add_places(mom_params *p, const mom_config *c, mom_error *err) {
    const size_t chunk_places = c->chunks * (c->anchor_between ? 2 : 1);
    size_t round = 0;
    p->num_places = c->bottom + chunk_places + c->top;
    MOM_ARENA_NEW(p->places, &p->arena, p->num_places, err);
    memset(p->places, 0, p->num_places * sizeof *p->places);
    for (size_t i = 0; i < p->num_places; i++) {
        mom_place *place = &p->places[i];
        const int in_chunks = i >= c->bottom && i < c->bottom + chunk_places;
        place->block = in_chunks && (!c->anchor_between || (i - c->bottom) % 2 == 0);
        place->rounds = place->block ? c->rounds : 1;
        place->first_round = round;
        round += place->rounds;
    }
    return MOM_OK;
}

static mom_status init(mom_params *p, const mom_config *c, mom_error *err) {
    MOM_TRY(mom_config_check(c, err));
    MOM_TRY(add_places(p, c, err));
    builder b = {0};
    add_all(&b, c, p);
    if (b.overflow)
        return mom_error_set(err, MOM_ERR_MEMORY, "parameters: more than can be addressed");
    MOM_ARENA_NEW(p->table, &p->arena, b.count, err);
    p->count = b.count;
    p->total = b.total;
    b = (builder){.table = p->table};
    add_all(&b, c, p);
    p->values = mom_memory_calloc(p->total, sizeof(float), "parameters", err);
    if (!p->values)
        return MOM_ERR_MEMORY;
    for (size_t i = 0; i < p->num_places; i++)
        for (int half = 0; half < 2; half++) {
            mom_pool *pool = half ? &p->places[i].ffn : &p->places[i].attn;
            MOM_TRY(mom_pool_point(p, pool, &pool->weight, &pool->router_weight, p->values, &p->arena, err));
        }
    return MOM_OK;
}

mom_status mom_params_init(mom_params *p, const mom_config *c, mom_error *err) {
    memset(p, 0, sizeof *p);
    mom_arena_init(&p->arena, "parameter table");
    const mom_status status = init(p, c, err);
    if (status != MOM_OK)
        mom_params_free(p);
    return status;
}

void mom_params_free(mom_params *p) {
    mom_memory_free(p->values);
    mom_arena_free(&p->arena);
    memset(p, 0, sizeof *p);
}

#define RANDOM_NUMBERS ((size_t)8192) /* per task */

typedef struct {
    float *out;
    double std;
    float value; /* with a standard deviation of 0 */
    uint64_t key;
} random_job;

static void fill_task(const void *context, size_t begin, size_t end) {
    const random_job *job = context;
    for (size_t j = begin; j < end; j++)
        job->out[j] = job->value;
}

/* Box-Muller; the radius uses a draw in (0, 1]. */
static void normal_task(const void *context, size_t begin, size_t end) {
    const random_job *job = context;
    for (size_t j = begin; j < end; j++) {
        const double u = 1.0 - (double)(mom_rng_u64(job->key, 2 * j) >> 11) * 0x1p-53;
        const double v = (double)(mom_rng_u64(job->key, 2 * j + 1) >> 11) * 0x1p-53;
        job->out[j] = (float)(job->std * sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v));
    }
}

void mom_params_randomize(const mom_exec *x, mom_params *p, uint64_t seed) {
    for (size_t i = 0; i < p->count; i++) {
        const mom_param *param = &p->table[i];
        const random_job job = {p->values + param->offset, (double)param->init_std, param->init_value, mom_rng_key(seed, 0, i)};
        mom_parallel_rows(x, param->count, RANDOM_NUMBERS, param->init_std == 0.0f ? fill_task : normal_task, &job);
    }
}
