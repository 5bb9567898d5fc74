/* What can be read of a network's last forward pass, as copies. The network is claimed by the caller. */
#ifndef MOM_BINDINGS_NETWORK_RESULTS_H
#define MOM_BINDINGS_NETWORK_RESULTS_H

#include "bindings/model_type.h"

/* Each returns a new reference, or NULL with an exception set if there is no forward pass to take it from. */

/* Logits (count, V) at `rows`, or (N, V) at all rows for NULL. */
PyObject *mom_logits(mom_network *self, const int32_t *rows, size_t count);
/* Logits (B, num_labels) of a classifier. */
PyObject *mom_pooled_logits(mom_network *self);
/* {(place, round, half): {"scores": (N, S), "index": (N, K), "weight": (N, K)}} of all half-rounds with a router. */
PyObject *mom_routes(mom_network *self);

#endif
