/* Routers: from the residual stream to logits; forward and backward.
 *
 * Order of calls in a round: the router, then scores, top-k and the straight-through sign
 * (ops/scores.h). Backward goes in reverse order; the gradient of the recurrent state travels from the last round to the
 * first. Router weights are stored [out, in]. Derivation: docs/derivations/router.md.
 */
#ifndef MOM_OPS_ROUTER_H
#define MOM_OPS_ROUTER_H

#include "gemm/gemm.h"
#include "ops/scores.h"

typedef enum {
    MOM_ROUTER_NAIVE, MOM_ROUTER_GRU_DEV, MOM_ROUTER_GRU, MOM_ROUTER_HASH, MOM_ROUTER_LINEAR, MOM_ROUTER_NORM,
    MOM_ROUTER_KINDS
} mom_router_kind;

typedef struct {
    mom_router_kind kind;
    int random;  /* recurrent only: fourth gate that mixes in uniform noise */
    size_t C, R, S; /* input width, router width, outputs */
    size_t M;       /* modules: outputs from M on mean SKIP; 0 if an operator is called by itself: all are modules */
    int few_rows;   /* forward reads the weights once (ops/gemv.h) and does not pack them; rounding differs */
    /* What the router of a network may have beside its kind; 0 for an operator called by itself (model/route.c). */
    size_t rounds;  /* of a block */
    int own_maps;   /* each round has a last map of its own */
    int embedded;   /* each round has a vector that is added to the input */
    int normed;     /* a LayerNorm of the input */
    int biased;     /* a bias that changes the choices, but not their weights */
} mom_router_spec;

/* Weights, or their gradients. G gates: 3, with random 4; rows of gates are r, i, n, p. */
typedef struct {
    float *in_weight, *in_bias;       /* naive, norm: router.0 (R, C), norm without bias; recurrent: x2h (G*R, C) */
    float *state_weight, *state_bias; /* recurrent: h2h (G*R, R); else NULL */
    float *out_weight, *out_bias;     /* (S, R); linear: (S, C); norm: only the bias */
    /* Recurrent: in_weight and state_weight packed as factors b of the products of one direction (mom_router_in_factor,
     * mom_router_state_factor), or NULL. */
    const void *packed_in, *packed_state;
    /* see mom_router_spec */
    float *norm_weight, *norm_bias; /* (C) */
    float *round_embedding;         /* (rounds, C) */
    float *balance_bias;            /* (S) */
} mom_router_tensors;


/* What to pack for the forward products or, transposed, for the gradients to the inputs; dst is left to the caller. */
mom_gemm_packing mom_router_in_factor(const mom_router_tensors *weights, const mom_router_spec *spec, mom_dtype precision,
                                      int transposed);
mom_gemm_packing mom_router_state_factor(const mom_router_tensors *weights, const mom_router_spec *spec,
                                         mom_dtype precision, int transposed);

/* What one round saves for backward. The caller provides the memory. Only backward reads gates and h_n, so they have type
 * `dtype`; the state goes on to the next round and to the scores, and stays float32. */
typedef struct {
    float *hidden; /* (N, R): naive: after ReLU; recurrent: the new state; NULL for a kind without hidden values */
    void *gates;   /* (N, G*R) activated gates; recurrent only */
    void *h_n;     /* (N, R) the n part of h2h(state); recurrent only */
    mom_dtype dtype;
} mom_router_saved;

/* What a router reads in one round. */
typedef struct {
    const mom_router_tensors *weights;
    const float *inp;   /* (N, C) */
    const float *state; /* (N, R): saved.hidden of the round before, or NULL for zero */
    const int32_t *tokens; /* (N) ids, or NULL if an operator is called by itself */
    size_t round;          /* of the block */
    int half;              /* 0: attention, 1: feed-forward */
    uint64_t noise_key; /* of this round's noise; component j of token t has index t * R + j */
    size_t N;
} mom_router_inputs;

/* Forward has two steps: the hidden values (of a recurrent kind: the new state), which go to *saved, then the outputs
 * (N, S). Between them a caller may change the hidden values. */
mom_status mom_router_hidden_forward(const mom_exec *x, mom_router_saved *saved, const mom_router_inputs *in,
                                     const mom_router_spec *spec, mom_error *err);
mom_status mom_router_outputs_forward(const mom_exec *x, float *outputs, const mom_router_saved *saved,
                                      const mom_router_inputs *in, const mom_router_spec *spec, mom_error *err);
/* Both steps. Writes logits (N, S) and *saved. */
mom_status mom_router_forward(const mom_exec *x, float *logits, mom_router_saved *saved, const mom_router_inputs *in,
                              const mom_router_spec *spec, mom_error *err);

/* What backward writes. */
typedef struct {
    float *dinp;      /* (N, C), added to */
    float *dstate_in; /* (N, R), overwritten; NULL in the first round. May be the same array as dstate_out. */
    mom_router_tensors *dweights; /* added to */
} mom_router_gradients;

/* Backward has the same steps in reverse. *dhidden comes from the workspace: (N, R), or (N, C) for a kind without hidden
 * values; it is NULL for a kind without gradients.
 * The first step adds to the gradients of the last map; the second overwrites dhidden. */
mom_status mom_router_outputs_backward(const mom_exec *x, float **dhidden, mom_router_tensors *dweights, const float *dlogits,
                                       const mom_router_inputs *in, const mom_router_saved *saved,
                                       const mom_router_spec *spec, mom_error *err);
mom_status mom_router_hidden_backward(const mom_exec *x, const mom_router_gradients *out, float *dhidden,
                                      const float *dstate_out, const mom_router_inputs *in, const mom_router_saved *saved,
                                      const mom_router_spec *spec, mom_error *err);
/* Both steps. dlogits (N, S); dstate_out (N, R): the gradient that arrives from the next round, or NULL. */
mom_status mom_router_backward(const mom_exec *x, const mom_router_gradients *out, const float *dlogits,
                               const float *dstate_out, const mom_router_inputs *in, const mom_router_saved *saved,
                               const mom_router_spec *spec, mom_error *err);

/* ---- the kinds: one entry each */

/* What a dimension of a parameter is. MOM_DIM_OUT is S, or S for each round of a router with own_maps. */
typedef enum {
    MOM_DIM_NONE, MOM_DIM_C, MOM_DIM_R, MOM_DIM_S, MOM_DIM_OUT, MOM_DIM_GATES, MOM_DIM_ROUNDS, MOM_DIMS
} mom_router_dim;

typedef struct {
    const char *name;       /* after "router." in a state dict */
    mom_router_dim dims[2]; /* the second is MOM_DIM_NONE for a bias */
    size_t offset;          /* of the pointer in mom_router_tensors */
    float initial;          /* value of a fresh bias */
} mom_router_param;

/* Python has a counterpart of this table in python/mom/routers.py. */
typedef struct {
    const char *name;
    int recurrent;          /* a state goes from round to round */
    int scored;             /* outputs are scores: they weigh the choices, and the balance loss counts them. Otherwise they
                             * only say which choices are best, and all kept choices have the weight 1 / K. */
    size_t gates;           /* of a recurrent cell, without the noise gate; 0: none */
    size_t param_count;
    const mom_router_param *params; /* in the order of the state dict */
    /* A kind has a linear map from its hidden values to the outputs, or, if it has none, from the inputs. Instead of the map
     * it may have functions of its own. `hidden` says whether there are hidden values (N, R). */
    int hidden;
    mom_status (*hidden_forward)(const mom_exec *x, mom_router_saved *saved, const mom_router_inputs *in,
                                 const mom_router_spec *spec, mom_error *err);
    mom_status (*hidden_backward)(const mom_exec *x, const mom_router_gradients *out, float *dhidden,
                                  const float *dstate_out, const mom_router_inputs *in, const mom_router_saved *saved,
                                  const mom_router_spec *spec, mom_error *err);
    mom_status (*outputs)(const mom_exec *x, float *outputs, const mom_router_saved *saved, const mom_router_inputs *in,
                          const mom_router_spec *spec, mom_error *err);
    /* dhidden (N, R) is overwritten; NULL if outputs pass no gradient on. */
    void (*outputs_backward)(const mom_exec *x, float *dhidden, mom_router_tensors *dweights, const float *dlogits,
                             const mom_router_inputs *in, const mom_router_saved *saved, const mom_router_spec *spec);
} mom_router_type;

extern const mom_router_type mom_router_types[MOM_ROUTER_KINDS];

static inline const mom_router_type *mom_router_type_of(const mom_router_spec *spec) { return &mom_router_types[spec->kind]; }
/* G, the noise gate included */
static inline size_t mom_router_gates(const mom_router_spec *spec) {
    const size_t gates = mom_router_type_of(spec)->gates;
    return gates && spec->random ? gates + 1 : gates;
}
/* The size of a dimension; 0 for MOM_DIM_NONE. */
size_t mom_router_dim_size(const mom_router_spec *spec, mom_router_dim dim);
/* The parameters of a router: those of its kind, then those of what else it has. */
size_t mom_router_param_count(const mom_router_spec *spec);
const mom_router_param *mom_router_param_at(const mom_router_spec *spec, size_t i);
/* The pointer to a parameter. */
float **mom_router_tensor(mom_router_tensors *tensors, const mom_router_param *param);
/* The tensors of one round: of a router with own_maps, those with the round's last map. */
mom_router_tensors mom_router_of_round(const mom_router_tensors *tensors, const mom_router_spec *spec, size_t round);

#endif
