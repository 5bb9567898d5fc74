/* The Python type of the optimizer's state, and the functions clip_grad_norm and sample. */
#ifndef MOM_BINDINGS_OPTIMIZER_TYPE_H
#define MOM_BINDINGS_OPTIMIZER_TYPE_H

#include "bindings/numpy_api.h"

int mom_add_optimizer(PyObject *module);

#endif
