/* Layer normalisation, forward and backward.
 * Source: Ba et al. 2016, arXiv:1607.06450; derivation in docs/derivations/layernorm.md. */
#ifndef MOM_OPS_LAYERNORM_H
#define MOM_OPS_LAYERNORM_H

#include "kernels/kernels.h"

/* mean, rstd (N) of inp (N, C). Modules that share their input share these statistics. */
void mom_layernorm_stats(const mom_exec *x, float *mean, float *rstd, const float *inp, float eps, size_t N, size_t C);

typedef struct {
    const float *weight, *bias; /* (C) */
    float eps;
} mom_layernorm;

/* out (N, C) from inp (N, C). Writes mean and rstd (N) as well, for backward. */
void mom_layernorm_forward(const mom_exec *x, float *out, float *mean, float *rstd, const float *inp,
                           const mom_layernorm *norm, size_t N, size_t C);

/* Rows and their statistics, as forward read and wrote them: inp (N, C), mean and rstd (N). */
typedef struct {
    const float *inp, *mean, *rstd;
    size_t N, C;
} mom_normed_rows;

/* Adds to dinp (N, C), which is the gradient of the residual stream, and to dweight, dbias (C). dout (N, C). */
mom_status mom_layernorm_backward(const mom_exec *x, float *dinp, float *dweight, float *dbias, const float *dout,
                                  const float *weight, const mom_normed_rows *rows, mom_error *err);

#endif
