/* Coupling loss of a linear router and the modules of its pool: the row of the map that selects a module shall excite this
 * module more than the others. Source: Lv et al., arXiv:2512.23447; derivation: docs/derivations/coupling_loss.md.
 *
 * The first layer of every module j is applied to every row i, times random numbers in training. With e_ij the lengths of the
 * results, the loss is 1 / M^2 * sum over i and j != i of max(e_ij - e_ii, 0) + max(e_ji - e_ii, 0). Products are in float32
 * whatever the precision of x, and are not counted. Memory: M * M rows of the first layer's outputs. */
#ifndef MOM_OPS_COUPLING_LOSS_H
#define MOM_OPS_COUPLING_LOSS_H

#include "ops/routed_half.h"

typedef struct {
    const float *map; /* (maps, S, C) of the router: one for all rounds, or one for each; the loss is about their mean */
    size_t maps, S;
    size_t M, C;      /* the first M of the S rows of a map belong to modules */
    const float *const *ln_weight, *const *ln_bias; /* by module: (C) */
    float ln_eps;
    mom_half_layer layer; /* the modules' first layer */
    int training;         /* rows are multiplied by random numbers */
    uint64_t key;         /* of these: component c of row i has index i * C + c */
} mom_coupling;

/* Adds the loss to *sum. A dry run leaves it as it is. */
mom_status mom_coupling_loss_add(const mom_exec *x, double *sum, const mom_coupling *in, mom_error *err);

/* dmap, as the map, and the gradients of the modules += scale * d(that loss). */
mom_status mom_coupling_loss_backward(const mom_exec *x, float *dmap, const mom_half_gradient *gradient,
                                      const mom_coupling *in, float scale, mom_error *err);

#endif
