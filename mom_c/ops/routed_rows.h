/* Passes over the rows of a module pool: from slots back to tokens, and layer normalisation. Sums over the slots of a
 * token or of a module go in the order of the slots. */
#ifndef MOM_OPS_ROUTED_ROWS_H
#define MOM_OPS_ROUTED_ROWS_H

#include "base/sizes.h"
#include "kernels/kernels.h"
#include "ops/layernorm.h"
#include "ops/routing_plan.h"

#define MOM_TASK_ROWS ((size_t)32) /* tokens or slots per task of a pass over them */

/* The module that owns a slot. Empty modules share their first slot with the next module, so the last candidate is the
 * right one. */
size_t mom_module_of_slot(const mom_routing_plan *plan, size_t slot);

/* slot_scale (slots) = weight (N, K), by slot. */
void mom_routed_slot_scale(const mom_exec *x, float *slot_scale, const float *weight, const mom_routing_plan *plan);

/* out (N, C) += or = sum over the token's slots of weight[t, k] * y[slot]; weight (N, K) or NULL for 1.
 * Tokens without slots get 0 when accumulate is 0. */
void mom_routed_combine_forward(const mom_exec *x, float *out, const float *y, const float *weight,
                                const mom_routing_plan *plan, size_t C, int accumulate);

/* Layer normalisation of a pool: out (slots, C) = LN of the slot's token, with module m's weight[m], bias[m] (C). */
void mom_routed_layernorm_forward(const mom_exec *x, float *out, const mom_normed_rows *rows, const float *const *weight,
                                  const float *const *bias, const mom_routing_plan *plan);

/* Adds to dinp (N, C), dweight[m] and dbias[m] (C). dout (slots, C) is overwritten: it is all the scratch memory
 * needed. */
void mom_routed_layernorm_backward(const mom_exec *x, float *dinp, float *const *dweight, float *const *dbias, float *dout,
                                   const mom_normed_rows *rows, const float *const *weight, const mom_routing_plan *plan);

#endif
