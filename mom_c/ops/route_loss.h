/* Route loss: how improbable a router finds the choices that were made, which may be forced ones. It is the mean over the kept
 * choices of a token of -log softmax(outputs / temperature). Derivation: docs/derivations/route_loss.md. */
#ifndef MOM_OPS_ROUTE_LOSS_H
#define MOM_OPS_ROUTE_LOSS_H

#include "kernels/kernels.h"

/* What one router computes in one round, and the choices that were made. */
typedef struct {
    const float *outputs; /* (N, S) before temperature and softmax */
    const int16_t *index; /* (N, K); entries outside [0, S) are no choice of the router */
    const uint8_t *mask;  /* (N) of 0 and 1, or NULL */
    float temperature;
    size_t N, S, K;
} mom_made_choices;

/* Adds the losses of the unmasked tokens with a choice to *sum and their number to *tokens. A dry run leaves both as they
 * are. */
mom_status mom_route_loss_add(const mom_exec *x, double *sum, double *tokens, const mom_made_choices *in, mom_error *err);

/* doutputs (N, S) += scale * d(that sum)/d(outputs) */
void mom_route_loss_backward(const mom_exec *x, float *doutputs, const mom_made_choices *in, float scale);

#endif
