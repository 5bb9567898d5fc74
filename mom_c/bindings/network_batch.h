/* The arguments of Network.forward. */
#ifndef MOM_BINDINGS_NETWORK_BATCH_H
#define MOM_BINDINGS_NETWORK_BATCH_H

#include "bindings/network_interventions.h"

/* What Network.forward returns beside the losses. */
typedef struct {
    int logits; /* of the batch's `rows`, or of all rows; of a classifier, one row per sequence */
    int routes;
} mom_wanted;

/* Fills *batch, which borrows the arrays' memory from args and kwargs, *wanted and *held. Checks every shape, every id and
 * every combination of arguments. Returns -1 with an exception set if one is wrong; there is then nothing to release. */
int mom_read_batch(PyObject *args, PyObject *kwargs, const mom_gpt *gpt, mom_batch *batch, mom_wanted *wanted,
                   mom_held_interventions **held);

/* Reads row numbers below N from a one-dimensional int32 array (borrowed). Returns -1 with an exception set on
 * failure. */
int mom_read_rows(PyObject *object, size_t N, const int32_t **rows, size_t *count);

#endif
