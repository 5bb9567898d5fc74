/* z-loss of routers: the mean over tokens of the squared log-sum-exp of a router's outputs (arXiv:2202.08906, equation 5).
 * Derivation: docs/derivations/z_loss.md. */
#ifndef MOM_OPS_Z_LOSS_H
#define MOM_OPS_Z_LOSS_H

#include "kernels/kernels.h"

/* What one router computes in one round, before temperature and softmax. */
typedef struct {
    const float *outputs; /* (N, S) */
    const uint8_t *mask;  /* (N) of 0 and 1, or NULL */
    size_t N, S;
} mom_router_outputs;

/* Adds the squares of the unmasked tokens to *sum, in fixed chunks of rows, and sets *tokens to the number of these tokens.
 * A dry run leaves both as they are. */
mom_status mom_z_loss_add(const mom_exec *x, double *sum, double *tokens, const mom_router_outputs *in, mom_error *err);

/* doutputs (N, S) += scale * d(that sum)/d(outputs) */
void mom_z_loss_backward(const mom_exec *x, float *doutputs, const mom_router_outputs *in, float scale);

#endif
