/* Path loss: how much a token keeps to the same modules over the rounds of a block. With P the mean of its probabilities over
 * the R rounds that ran, and M modules, it is M * (sum of P_m^2) / (sum of P_m)^2 over modules: 1 for a token that is spread
 * evenly over the modules, M for one that never leaves a module, however much it skips. 0 for one without any probability of
 * a module. Derivation: docs/derivations/path_loss.md. */
#ifndef MOM_OPS_PATH_LOSS_H
#define MOM_OPS_PATH_LOSS_H

#include "kernels/kernels.h"

/* The scores of one router in all rounds of a block. */
typedef struct {
    const float *const *scores; /* by round: (N, S) probabilities */
    size_t rounds;
    const uint8_t *mask;        /* (N) of 0 and 1, or NULL */
    size_t N, S, M;
} mom_path;

/* Adds the losses of the unmasked tokens to *sum and sets *tokens to their number. A dry run leaves both as they are. */
mom_status mom_path_loss_add(const mom_exec *x, double *sum, double *tokens, const mom_path *path, mom_error *err);

/* dscores (N, S), of any of the rounds, += scale * d(that sum)/d(scores) */
void mom_path_loss_backward(const mom_exec *x, float *dscores, const mom_path *path, float scale);

#endif
