/* The Python type of a routing plan. */
#ifndef MOM_BINDINGS_PLAN_TYPE_H
#define MOM_BINDINGS_PLAN_TYPE_H

#include "bindings/numpy_api.h"

#include "ops/routing_plan.h"

extern PyType_Spec mom_plan_spec;

/* A new, empty plan object of state->plan_type. The mom_routing_plan_init functions of ops/routing_plan.h fill `plan`
 * with arrays from `arena`. */
typedef struct {
    PyObject_HEAD
    mom_routing_plan plan;
    mom_arena arena;
} mom_plan_object;

mom_plan_object *mom_plan_new(PyObject *module);

#endif
