/* From a router's outputs to scores, choices and weights; forward and backward.
 *
 * Shapes  logits, scores (N, S); index, weight (N, K)
 * Derivation: docs/derivations/router.md.
 */
#ifndef MOM_OPS_SCORES_H
#define MOM_OPS_SCORES_H

#include "kernels/kernels.h"

/* out (n) = softmax(logits / temperature); out may be logits. Scores decide where everything else goes, so they follow
 * PyTorch's order of operations and use the C library's exponential, which rounds almost every result correctly. Then 99
 * % of the scores have the bits that PyTorch computes, and recorded runs can be followed through the near-ties that fresh
 * routers produce in every batch. */
void mom_softmax_row(const mom_kernels *k, float *out, const float *logits, float temperature, size_t n);

/* scores (N, S) = softmax(logits / temperature) or a copy of logits. In place allowed. */
void mom_router_scores_forward(const mom_exec *x, float *scores, const float *logits, int softmax, float temperature,
                               size_t N, size_t S);
/* dlogits (N, S) from dscores; scores as returned by forward. Overwrites; in place allowed. */
void mom_router_scores_backward(const mom_exec *x, float *dlogits, const float *dscores, const float *scores,
                                int softmax, float temperature, size_t N, size_t S);

typedef struct {
    size_t N, S, K;
    int renormalise; /* kept scores are divided by their sum */
} mom_topk_spec;

/* index (N, K): the K largest scores in falling order (ties and NaN: see topk.h); weight (N, K): the kept scores. */
void mom_router_topk_forward(const mom_exec *x, int16_t *index, float *weight, const float *scores, const mom_topk_spec *spec);
/* dscores (N, S) added to. dweight (N, K); index, weight as returned by forward. */
void mom_router_topk_backward(const mom_exec *x, float *dscores, const float *dweight, const int16_t *index,
                              const float *weight, const float *scores, const mom_topk_spec *spec);

/* Straight-through sign: out = sign(weight) (0 for 0); backward: out = clamp(dweight, -1, 1). In place allowed. */
void mom_router_ste_forward(const mom_exec *x, float *out, const float *weight, size_t n);
void mom_router_ste_backward(const mom_exec *x, float *out, const float *dweight, size_t n);

#endif
