/* Layer normalisation, forward and backward.
 * Source: Ba et al. 2016, arXiv:1607.06450; derivation in docs/derivations/layernorm.md. */
#ifndef MOM_OPS_LAYERNORM_H
#define MOM_OPS_LAYERNORM_H

#include "kernels/kernels.h"

/* Shapes  mean, rstd (N); inp (N, C). Statistics only: modules that share their input share these. */
void mom_layernorm_stats(const mom_exec *x, float *mean, float *rstd, const float *inp, float eps, size_t N, size_t C);

/* Shapes  out, inp (N, C); mean, rstd (N); weight, bias (C).  Saves mean, rstd. */
void mom_layernorm_forward(const mom_exec *x, float *out, float *mean, float *rstd, const float *inp,
                           const float *weight, const float *bias, float eps, size_t N, size_t C);

/* Shapes  dinp, dout, inp (N, C); dweight, dbias, weight (C); mean, rstd (N)
 * Writes  dinp, dweight, dbias are added to (dinp joins the residual stream's gradient). */
mom_status mom_layernorm_backward(const mom_exec *x, float *dinp, float *dweight, float *dbias, const float *dout,
                            const float *inp, const float *weight, const float *mean, const float *rstd, size_t N,
                            size_t C, mom_error *err);

#endif
