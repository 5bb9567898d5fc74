/* Routers: from the residual stream to scores, choices and weights; forward and backward.
 *
 * Order of calls in a round: cell (naive or recurrent) -> scores -> topk -> (ste); backward in reverse, the
 * recurrent state's gradient travelling from the last round to the first.
 * Router weights are stored [out, in]. Derivation: docs/derivations/router.md.
 */
#ifndef MOM_OPS_ROUTER_H
#define MOM_OPS_ROUTER_H

#include "gemm/gemm.h"

typedef enum { MOM_ROUTER_NAIVE, MOM_ROUTER_GRU_DEV, MOM_ROUTER_GRU, MOM_ROUTER_KINDS } mom_router_kind;

typedef struct {
    mom_router_kind kind;
    int random;  /* recurrent only: fourth gate that mixes in uniform noise */
    size_t C, R, S; /* input width, router width, outputs */
    int few_rows;   /* forward: read the weights once (ops/gemv.h) instead of packing them; other rounding */
} mom_router_spec;

/* The same struct holds weights or their gradients. in_*: naive router.0 (R, C) or recurrent x2h (G*R, C);
 * state_*: recurrent h2h (G*R, R), NULL for naive; out_*: (S, R). G = 3, with random 4; gate rows r, i, n, p. */
typedef struct {
    float *in_weight, *in_bias;
    float *state_weight, *state_bias;
    float *out_weight, *out_bias;
    /* NULL, or in_weight and state_weight of a recurrent router as factors b of the products of one direction, packed:
     * mom_router_in_factor, mom_router_state_factor */
    const void *packed_in, *packed_state;
} mom_router_tensors;

size_t mom_router_gates(const mom_router_spec *spec); /* G; 0 for naive */

/* What to pack for the forward products or, transposed, for the gradients to the inputs; dst is left to the caller. */
mom_gemm_packing mom_router_in_factor(const mom_router_tensors *weights, const mom_router_spec *spec, mom_dtype precision,
                                      int transposed);
mom_gemm_packing mom_router_state_factor(const mom_router_tensors *weights, const mom_router_spec *spec,
                                         mom_dtype precision, int transposed);

/* What one round saves for backward (all pointers given by the caller, N tokens). `dtype` is that of what only backward
 * reads; the state goes on to the next round and to the scores, and stays float32. */
typedef struct {
    float *hidden; /* (N, R): naive: after ReLU; recurrent: the new state */
    void *gates;   /* (N, G*R) activated gates; recurrent only */
    void *h_n;     /* (N, R) the n part of h2h(state); recurrent only */
    mom_dtype dtype;
} mom_router_saved;

/* logits (N, S); saved is written; inp (N, C); state (N, R): saved.hidden of the round before, or NULL for zero.
 * noise_key: key of this round's noise (component j of token t has index t*R + j). */
mom_status mom_router_forward(const mom_exec *x, float *logits, mom_router_saved *saved, const float *inp,
                              const float *state, const mom_router_tensors *weights, uint64_t noise_key,
                              const mom_router_spec *spec, size_t N, mom_error *err);

/* dinp (N, C) added to; dstate_in (N, R) overwritten (NULL in the first round); gradients added to *dweights.
 * dlogits (N, S); dstate_out (N, R): gradient arriving from the next round, or NULL. dstate_in may be the
 * same array as dstate_out. */
mom_status mom_router_backward(const mom_exec *x, float *dinp, float *dstate_in, mom_router_tensors *dweights,
                               const float *dlogits, const float *dstate_out, const float *inp, const float *state,
                               const mom_router_saved *saved, const mom_router_tensors *weights, uint64_t noise_key,
                               const mom_router_spec *spec, size_t N, mom_error *err);

/* scores (N, S) = softmax(logits / temperature) or a copy of logits. In place allowed. */
void mom_router_scores_forward(const mom_exec *x, float *scores, const float *logits, int softmax, float temperature,
                               size_t N, size_t S);
/* dlogits (N, S) from dscores; scores as returned by forward. Overwrites; in place allowed. */
void mom_router_scores_backward(const mom_exec *x, float *dlogits, const float *dscores, const float *scores,
                                int softmax, float temperature, size_t N, size_t S);

/* index (N, K) of the K largest scores in falling order (ties and NaN: see topk.h), weight (N, K): the kept
 * scores, divided by their sum when renormalise. */
void mom_router_topk_forward(const mom_exec *x, int16_t *index, float *weight, const float *scores, int renormalise,
                             size_t N, size_t S, size_t K);
/* dscores (N, S) added to. dweight (N, K); weight (N, K) as returned by forward. */
void mom_router_topk_backward(const mom_exec *x, float *dscores, const float *dweight, const int16_t *index,
                              const float *weight, const float *scores, int renormalise, size_t N, size_t S, size_t K);

/* Straight-through sign: out = sign(weight) (0 for 0); backward: out = clamp(dweight, -1, 1). In place allowed. */
void mom_router_ste_forward(float *out, const float *weight, size_t n);
void mom_router_ste_backward(float *out, const float *dweight, size_t n);

#endif
