/* The Python type of the optimizer's state, and the function clip_grad_norm. */
#ifndef MOM_BINDINGS_OPTIMIZER_TYPE_H
#define MOM_BINDINGS_OPTIMIZER_TYPE_H

#include "bindings/numpy_api.h"

extern PyType_Spec mom_optimizer_spec;
int mom_add_clipping(PyObject *module);

#endif
