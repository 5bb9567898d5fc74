/* Functions for data-parallel training: all parameters or gradients of a network as one array, and sums of such arrays. */
#ifndef MOM_BINDINGS_RANKS_H
#define MOM_BINDINGS_RANKS_H

#include "bindings/numpy_api.h"

int mom_add_rank_functions(PyObject *module);

#endif
