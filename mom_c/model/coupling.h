/* The coupling loss of a whole network: which halves have one, and their mean. The loss of one half is in ops/coupling_loss.h. */
#ifndef MOM_MODEL_COUPLING_H
#define MOM_MODEL_COUPLING_H

#include "model/gradients.h"
#include "model/pass.h"

/* Whether a half of a place has a coupling loss: there is a router that chooses between modules. */
static inline int mom_is_coupled(const mom_place *place, int half) {
    return place->rounds > 0 && mom_place_pool(place, half)->M > 1;
}

/* The mean over all halves that have one. *any is set to whether any half has. */
mom_status mom_coupling_total(const mom_pass *pass, const mom_params *params, double *mean, int *any);

/* Adds scale times the gradients of this mean to those of routers and modules, in all places that backward goes through. */
mom_status mom_coupling_total_backward(const mom_pass *pass, const mom_params *params, const mom_gradients *gradients,
                                       float scale);

#endif
