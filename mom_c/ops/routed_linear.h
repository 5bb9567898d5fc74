/* Linear layers of a module pool and their gradients, step by step.
 *
 * Plain definitions: mom.ops exposes them, and tests compare the fused half-round of the network (ops/routed_half.h) with
 * them. The network does not use them. Derivation: docs/derivations/routed_linear.md.
 */
#ifndef MOM_OPS_ROUTED_LINEAR_H
#define MOM_OPS_ROUTED_LINEAR_H

#include "gemm/gemm.h"
#include "ops/routing_plan.h"

/* Rows of some width, by slot (slots, width); or, if gathered, by token (N, width), read through plan->token. */
typedef struct {
    const float *data;
    int gathered;
} mom_routed_rows;

/* A layer of each module: weight[m] (In, Out), bias[m] (Out). bias may be NULL. */
typedef struct {
    const float *const *weight, *const *bias;
    size_t In, Out;
} mom_routed_layer;

/* out (slots, Out) = inp * weight[m] + bias[m] */
mom_status mom_routed_linear_forward(const mom_exec *x, float *out, mom_routed_rows inp, const mom_routed_layer *layer,
                                     const mom_routing_plan *plan, mom_error *err);

/* dinp (slots, In) = dout * weight[m]^T */
mom_status mom_routed_linear_backward_input(const mom_exec *x, float *dinp, mom_routed_rows dout,
                                            const mom_routed_layer *layer, const mom_routing_plan *plan, mom_error *err);

/* Where the gradients of a layer are added to: weight[m] (In, Out), bias[m] (Out). bias may be NULL. */
typedef struct {
    float *const *weight, *const *bias;
    size_t In, Out;
} mom_routed_gradient;

/* dweight[m] += inp^T * (slot_scale * dout); dbias[m] += sum of slot_scale * dout over the module's slots. slot_scale
 * (slots) or NULL for 1. A module without slots is left alone. */
mom_status mom_routed_linear_backward_weight(const mom_exec *x, const mom_routed_gradient *gradient, mom_routed_rows inp,
                                             mom_routed_rows dout, const float *slot_scale, const mom_routing_plan *plan,
                                             mom_error *err);

/* dweight (N, K) = <dout[t], y[slot]>, 0 for SKIP; left out if NULL. dy (slots, C) = weight[t, k] * dout[t]; left out if
 * NULL. */
void mom_routed_combine_backward(const mom_exec *x, float *dweight, float *dy, const float *dout, const float *y,
                                 const float *weight, const mom_routing_plan *plan, size_t C);

/* The gradient of a score without the module's output: dweight[t, k] += <dh[slot], h> + <dout, bias[m]>. h is the input
 * of the layer, dout (N, Out), dh (slots, In) = dout * weight[m]^T, not yet multiplied by the score. Afterwards
 * dh[slot] *= weight[t, k], unless weight (N, K) is NULL. Of the layer only bias and sizes are read. */
void mom_routed_score_backward(const mom_exec *x, float *dweight, float *dh, mom_routed_rows h, const float *dout,
                               const mom_routed_layer *layer, const float *weight, const mom_routing_plan *plan);

#endif
