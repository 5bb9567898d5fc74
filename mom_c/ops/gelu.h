/* GELU in its tanh form, 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
 *
 * A plain definition: mom.ops exposes it. The network applies GELU while factors are packed and to blocks of results
 * (ops/routed_half.h). Source: Hendrycks and Gimpel, arXiv:1606.08415. */
#ifndef MOM_OPS_GELU_H
#define MOM_OPS_GELU_H

#include "kernels/kernels.h"

/* out, inp (n) */
void mom_gelu_forward(const mom_exec *x, float *out, const float *inp, size_t n);
/* dinp (n) = dout * gelu'(inp). In place on dout allowed. */
void mom_gelu_backward(const mom_exec *x, float *dinp, const float *dout, const float *inp, size_t n);

#endif
