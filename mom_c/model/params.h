/* The network's parameters: one block of memory, a table of names, and pointers grouped by pool.
 *
 * Order of calls: init, then set pointers of gradients once with mom_params_add_gradients, free.
 * Names and shapes are the reference's state-dict names (Hugging Face's for a plain GPT-2), so checkpoints
 * and papers read alike. Weights of modules are stored [in, out], of routers and heads [out, in].
 */
#ifndef MOM_MODEL_PARAMS_H
#define MOM_MODEL_PARAMS_H

#include "model/config.h"

#define MOM_NAME_SIZE 96

typedef struct {
    char name[MOM_NAME_SIZE];
    size_t dims[2];
    int ndim;
    size_t offset; /* floats from the start of the block */
    size_t count;  /* floats */
    float init_std;   /* of fresh values; 0: constant init_value */
    float init_value;
    int decay;     /* weight decay applies: not a LayerNorm, not a bias */
    int used;      /* has a gradient since gradients were last zeroed */
    int trained, computed; /* optimizers are to update it; backward gives it a gradient: see mom_gpt_set_trained */
    int written;   /* that gradient's memory may hold something since gradients were last zeroed */
    _Atomic size_t held;   /* optimizers in which its moments take up memory */
    uint8_t *touched; /* of an embedding, by row, while gradients are not shown: 0: its gradient is zero; else NULL */
    uint8_t *unset; /* of a module's matrix: its entry in mom_pool's unset_in or unset_out; else NULL */
} mom_param;

/* A module's tensors; the same struct for weights and for gradients. Each is an array over modules. */
typedef struct {
    float **ln_weight, **ln_bias;   /* (C) */
    float **in_weight, **in_bias;   /* c_attn (C, 3C) or c_fc (C, F) */
    float **out_weight, **out_bias; /* c_proj (C, C) or (F, C) */
} mom_pool_tensors;

typedef enum { MOM_POOL_ATTN, MOM_POOL_FFN } mom_pool_kind;

typedef struct {
    mom_pool_kind kind;
    size_t M;      /* modules */
    int routed;    /* M > 1 */
    size_t S, K;   /* router outputs and kept choices (all-path: K choices are reported, all modules run) */
    size_t F;      /* inner width: 3C or F */
    mom_pool_tensors weight, grad;
    mom_router_spec spec;
    mom_router_tensors router_weight, router_grad;
    const void **packed_in, **packed_out; /* by module, between mom_pool_pack and mom_pool_unpack; else NULL */
    uint8_t *unset_in, *unset_out; /* by module: see mom_params_unset_matrices */
    int frozen; /* no gradients of the modules' matrices and their biases are computed */
    size_t first_param; /* see mom_pool_param */
    size_t first_router_param, router_params;
} mom_pool;

typedef struct {
    int block;     /* 0: anchor layer, one round */
    size_t rounds;
    mom_pool attn, ffn;
} mom_place;

typedef struct {
    mom_param *table;
    size_t count;
    size_t total; /* floats */
    float *values, *grads; /* (total); grads NULL until asked for */
    int grads_shown;       /* views of grads exist: its memory is what counts */
    mom_place *places;
    size_t num_places;
    size_t wte, wpe, lnf_weight, lnf_bias, score; /* indices into table; score only with labels */
    mom_arena arena; /* holds table, places and pointer arrays */
} mom_params;

mom_status mom_params_init(mom_params *params, const mom_config *config, mom_error *err);
mom_status mom_params_add_gradients(mom_params *params, mom_error *err); /* zeroed; no effect the second time */
/* When gradients are zeroed, those of the modules' matrices may keep what was there: it counts as zero until the first
 * product overwrites it. Without effect once gradients are shown. */
void mom_params_unset_matrices(mom_params *params);
/* Zeroes what counts as zero: all of it, or that of one parameter. */
void mom_params_settle(mom_params *params);
void mom_param_settle(mom_params *params, size_t i);
/* Marks rows (count) of an embedding, or with NULL all, as touched. */
void mom_param_touch(mom_params *params, size_t i, const int32_t *rows, size_t count);
void mom_params_free(mom_params *params);

/* Fresh values: normal with each tensor's own standard deviation, LayerNorm weights 1, biases 0. Depends on
 * seed and on the tensor's place in the table only. */
void mom_params_randomize(mom_params *params, uint64_t seed);

/* Index in the table of tensor t (0..5 in the order of mom_pool_tensors) of module m: the reference's order,
 * all LayerNorms (weight, bias), all first projections, all second projections. */
static inline size_t mom_pool_param(const mom_pool *pool, size_t m, size_t t) {
    return pool->first_param + t / 2 * 2 * pool->M + 2 * m + t % 2;
}

/* Floats of the block that a parameter of `count` takes up: each begins on a cache line. */
static inline size_t mom_param_floats(size_t count) { return (count + 15) / 16 * 16; }

static inline float *mom_param_value(const mom_params *p, size_t i) { return p->values + p->table[i].offset; }
static inline float *mom_param_grad(const mom_params *p, size_t i) { return p->grads + p->table[i].offset; }

#endif
