/* Dropout from counter-based random numbers. Element i of a site is kept if its draw is at least p, and is then scaled by
 * 1 / (1 - p). Nothing is stored: backward draws the same numbers again. model/pass.h lists the sites. */
#ifndef MOM_BASE_DROPOUT_H
#define MOM_BASE_DROPOUT_H

#include "base/rng.h"

typedef struct {
    float p;      /* 0: no dropout */
    uint64_t key; /* of this site, from mom_rng_key */
} mom_dropout;

static inline float mom_dropout_scale(mom_dropout d, uint64_t index) {
    return mom_rng_uniform(d.key, index) >= d.p ? 1.0f / (1.0f - d.p) : 0.0f;
}

#endif
