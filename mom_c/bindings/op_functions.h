/* Single operators on plain arrays, for mom.ops, tests and notebooks. */
#ifndef MOM_BINDINGS_OP_FUNCTIONS_H
#define MOM_BINDINGS_OP_FUNCTIONS_H

#include "bindings/numpy_api.h"

int mom_add_op_functions(PyObject *module);      /* op_functions.c: layers, losses, products, optimizer */
int mom_add_routing_functions(PyObject *module); /* routing_functions.c: routers, plans, routed layers, balance loss */

#endif
