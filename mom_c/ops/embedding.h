/* Token and position embedding. */
#ifndef MOM_OPS_EMBEDDING_H
#define MOM_OPS_EMBEDDING_H

#include "base/dropout.h"
#include "kernels/kernels.h"

/* out (N, C) = wte[tokens] + wpe[positions], then dropout; tokens, positions (N); wte (V, C); wpe (P, C). */
void mom_embedding_forward(const mom_exec *x, float *out, const int32_t *tokens, const int32_t *positions,
                           const float *wte, const float *wpe, mom_dropout dropout, size_t N, size_t C);

/* dwte (V, C), dwpe (P, C) are added to. Threads own columns, rows are added in order. */
void mom_embedding_backward(const mom_exec *x, float *dwte, float *dwpe, const float *dout, const int32_t *tokens,
                            const int32_t *positions, mom_dropout dropout, size_t N, size_t C);

#endif
