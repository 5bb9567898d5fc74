/* The Python type of the optimizer's state, and functions on networks. */
#ifndef MOM_BINDINGS_OPTIMIZER_TYPE_H
#define MOM_BINDINGS_OPTIMIZER_TYPE_H

#include "bindings/numpy_api.h"

int mom_add_optimizer(PyObject *module);

#endif
