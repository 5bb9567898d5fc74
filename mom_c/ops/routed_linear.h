/* Linear layers of a module pool: gather, grouped product, weighted combine; and their gradients.
 *
 * weight[m] (In, Out) and bias[m] (Out) are module m's own arrays. "gathered" arguments are per token
 * (N, width) and are read through plan->token; otherwise they are per slot (slots, width).
 * Derivation: docs/derivations/routed_linear.md.
 */
#ifndef MOM_OPS_ROUTED_LINEAR_H
#define MOM_OPS_ROUTED_LINEAR_H

#include "gemm/gemm.h"
#include "ops/routing_plan.h"

/* out (slots, Out) = inp * weight[m] + bias[m]. Overwrites out. bias may be NULL. */
mom_status mom_routed_linear_forward(const mom_exec *x, float *out, const float *inp, int inp_gathered,
                                     const float *const *weight, const float *const *bias,
                                     const mom_routing_plan *plan, size_t In, size_t Out, mom_error *err);

/* dinp (slots, In) = dout * weight[m]^T. Overwrites dinp. */
mom_status mom_routed_linear_backward_input(const mom_exec *x, float *dinp, const float *dout, int dout_gathered,
                                            const float *const *weight, const mom_routing_plan *plan, size_t In,
                                            size_t Out, mom_error *err);

/* dweight[m] (In, Out) += inp^T * (slot_scale * dout); dbias[m] (Out) += sum of slot_scale * dout over the
 * module's slots. slot_scale (slots) or NULL. A module without slots is left alone. */
mom_status mom_routed_linear_backward_weight(const mom_exec *x, float *const *dweight, float *const *dbias,
                                             const float *inp, int inp_gathered, const float *dout, int dout_gathered,
                                             const float *slot_scale, const mom_routing_plan *plan, size_t In,
                                             size_t Out, mom_error *err);

/* out (N, C) += or = sum over the token's slots of weight[t, k] * y[slot]; weight (N, K) or NULL for 1.
 * Tokens without slots get 0 when accumulate is 0. */
void mom_routed_combine_forward(const mom_exec *x, float *out, const float *y, const float *weight,
                                const mom_routing_plan *plan, size_t C, int accumulate);

/* dweight (N, K) = <dout[t], y[slot]>, 0 for SKIP (skipped when dweight is NULL); dy (slots, C) =
 * weight[t, k] * dout[t] (skipped when dy is NULL). Overwrites. */
void mom_routed_combine_backward(const mom_exec *x, float *dweight, float *dy, const float *dout, const float *y,
                                 const float *weight, const mom_routing_plan *plan, size_t C);

/* slot_scale (slots) = weight (N, K) rearranged by slot. */
void mom_routed_slot_scale(const mom_exec *x, float *slot_scale, const float *weight, const mom_routing_plan *plan);

/* dweight[t, k] += <dh[slot], h> + <dout, bias[m]>: the gradient of a score without the module's
 * output (h is the product's input, dh = dout * W^T not yet multiplied by the score). h is read by slot
 * or gathered; dout (N, Out) is gathered. Afterwards dh[slot] *= weight[t, k] (weight NULL: left). */
void mom_routed_score_backward(const mom_exec *x, float *dweight, float *dh, const float *h, int h_gathered,
                               const float *dout, const float *const *bias, const float *weight,
                               const mom_routing_plan *plan, size_t In, size_t Out);

/* Layer normalisation of a pool: out (slots, C) = LN with module m's weight[m], bias[m] of inp[token], where
 * mean and rstd (N) are per token. */
void mom_routed_layernorm_forward(const mom_exec *x, float *out, const float *inp, const float *mean,
                                  const float *rstd, const float *const *weight, const float *const *bias,
                                  const mom_routing_plan *plan, size_t C);

/* dinp (N, C) added to; dweight[m], dbias[m] (C) added to. dout (slots, C) is overwritten (scratch). */
mom_status mom_routed_layernorm_backward(const mom_exec *x, float *dinp, float *const *dweight, float *const *dbias,
                                         float *dout, const float *inp, const float *mean, const float *rstd,
                                         const float *const *weight, const mom_routing_plan *plan, size_t C,
                                         mom_error *err);

#endif
