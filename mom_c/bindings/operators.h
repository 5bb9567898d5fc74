/* Functions of the extension on plain arrays, by family. All their arguments are positional and required; mom.ops adds
 * names and defaults. Inputs are never written: an operator that adds to an array copies the array first (`add_to`).
 * Shapes and letters are those of the operator's header. Tensors of several modules are passed as one array, with the
 * module as first dimension, for instance weights (M, In, Out). */
#ifndef MOM_BINDINGS_OPERATORS_H
#define MOM_BINDINGS_OPERATORS_H

#include "bindings/numpy_api.h"

/* Each adds the functions of its file to the module. Returns -1 with an exception set on failure. */
int mom_add_layer_functions(PyObject *module);     /* ops_layers.c */
int mom_add_linear_functions(PyObject *module);    /* ops_linear.c */
int mom_add_attention_functions(PyObject *module); /* ops_attention.c */
int mom_add_loss_functions(PyObject *module);      /* ops_losses.c */
int mom_add_optimizer_functions(PyObject *module); /* ops_optimizer.c */
int mom_add_router_functions(PyObject *module);    /* ops_router.c */
int mom_add_routed_functions(PyObject *module);    /* ops_routed.c */
int mom_add_test_functions(PyObject *module);      /* test_functions.c: what only tests and benchmarks call */

#endif
