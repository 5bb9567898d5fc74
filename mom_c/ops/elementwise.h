/* Element-wise operations over all threads. */
#ifndef MOM_OPS_ELEMENTWISE_H
#define MOM_OPS_ELEMENTWISE_H

#include "base/dropout.h"
#include "kernels/kernels.h"

/* out (n) += factor * in */
void mom_scaled_add(const mom_exec *x, float *out, float factor, const float *in, size_t n);
/* out (n) = inp * keep / (1 - p), in place allowed. Backward is the same function on gradients. */
void mom_dropout_apply(const mom_exec *x, float *out, const float *inp, mom_dropout dropout, size_t n);
/* Copies in bfloat16, rounded to nearest even, and back. */
void mom_to_bf16(const mom_exec *x, mom_bf16 *out, const float *in, size_t n);
void mom_from_bf16(const mom_exec *x, float *out, const mom_bf16 *in, size_t n);

#endif
