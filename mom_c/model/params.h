/* The parameters of a network: one block of memory, a table of names, and pointers grouped by pool.
 *
 * Names and shapes are those of the reference's state dict; for a plain GPT-2, those of Hugging Face. So published
 * checkpoints can be read as they are. Weights of modules are stored [in, out], weights of routers and heads [out, in].
 */
#ifndef MOM_MODEL_PARAMS_H
#define MOM_MODEL_PARAMS_H

#include "base/sizes.h"
#include "model/config.h"

#define MOM_NAME_SIZE 96

/* What changes a parameter: the optimizer; the sign of its gradient, which is a count (mom_config.bias_rate); nothing. */
typedef enum { MOM_RULE_OPTIMIZER, MOM_RULE_SIGN, MOM_RULE_FIXED } mom_param_rule;

typedef struct {
    char name[MOM_NAME_SIZE];
    size_t dims[2];
    int ndim;
    size_t offset;    /* floats from the start of the block */
    size_t count;     /* floats */
    float init_std;   /* standard deviation of initial values; 0: all are init_value */
    float init_value;
    int decay;        /* weight decay applies: neither a LayerNorm nor a bias */
    mom_param_rule rule;
} mom_param;

/* The tensors of a pool's modules, each an array over modules. The same struct serves weights and gradients. */
typedef struct {
    float **ln_weight, **ln_bias;   /* (C) */
    float **in_weight, **in_bias;   /* c_attn (C, 3C) or c_fc (C, F) */
    float **out_weight, **out_bias; /* c_proj (C, C) or (F, C) */
} mom_pool_tensors;

typedef enum { MOM_POOL_ATTN, MOM_POOL_FFN } mom_pool_kind;

typedef struct {
    mom_pool_kind kind;
    size_t M;    /* modules */
    int routed;  /* there is a router */
    int keeps_state; /* a recurrent router knows the rounds before */
    size_t owner; /* the place that has the modules: this one, or the first block */
    size_t S, K; /* router outputs and kept choices (all-path: K choices are reported, all modules run) */
    size_t F;    /* inner width: 3C or F */
    mom_pool_tensors weight;
    mom_router_spec spec;
    mom_router_tensors router_weight;
    size_t first_param; /* see mom_pool_param */
    size_t first_router_param, router_params;
} mom_pool;

/* An entry of `transformer.h`: an anchor layer or a block. */
typedef struct {
    int block;          /* 0: anchor layer, one round */
    size_t rounds;
    size_t first_round; /* rounds of all places before this one */
    mom_pool attn, ffn;
} mom_place;

typedef struct {
    mom_param *table;
    size_t count;
    size_t total; /* floats */
    float *values; /* (total) */
    mom_place *places;
    size_t num_places;
    size_t wte, wpe, lnf_weight, lnf_bias, score; /* indices into table; score only with labels */
    mom_arena arena; /* holds table, places and pointer arrays */
} mom_params;

mom_status mom_params_init(mom_params *params, const mom_config *config, mom_error *err);
void mom_params_free(mom_params *params);

/* Fills the parameters with initial values: normal with each tensor's own standard deviation, LayerNorm weights 1,
 * biases 0. They depend only on the seed and on the tensor's position in the table. */
void mom_params_randomize(const mom_exec *x, mom_params *params, uint64_t seed);

/* Allocates the pointer arrays of `tensors` from `arena` and points them into `block`, which is laid out like the
 * parameters. Does the same for `router` if the pool is routed. */
mom_status mom_pool_point(const mom_params *params, const mom_pool *pool, mom_pool_tensors *tensors,
                          mom_router_tensors *router, float *block, mom_arena *arena, mom_error *err);

/* Index in the table of tensor t of module m; t is 0..5 in the order of mom_pool_tensors. The table has the reference's
 * order: first the LayerNorms of all modules (weight, bias), then all first projections, then all second ones. */
static inline size_t mom_pool_param(const mom_pool *pool, size_t m, size_t t) {
    return pool->first_param + t / 2 * 2 * pool->M + 2 * m + t % 2;
}

static inline const mom_pool *mom_place_pool(const mom_place *place, int half) { return half ? &place->ffn : &place->attn; }

/* Whether the pool's router passes a recurrent state from round to round. */
static inline int mom_pool_has_state(const mom_pool *pool) {
    return pool->routed && pool->keeps_state && mom_router_type_of(&pool->spec)->recurrent;
}

/* Floats that a parameter of `count` elements takes up in the block. Each parameter begins on a cache line. */
static inline size_t mom_param_floats(size_t count) { return mom_round_up(count, 16); }

static inline float *mom_param_value(const mom_params *p, size_t i) { return p->values + p->table[i].offset; }

#endif
