/* The module's state: its types and exceptions. */
#ifndef MOM_BINDINGS_STATE_H
#define MOM_BINDINGS_STATE_H

#include "bindings/numpy_api.h"

#include "base/status.h"

typedef struct {
    PyObject *network_type;                    /* _core.Network */
    PyObject *plan_type;                       /* _core.RoutingPlan */
    PyObject *exceptions[MOM_ERR_STATE + 1];   /* by mom_status */
} mom_state;

static inline mom_state *mom_get_state(PyObject *module) { return PyModule_GetState(module); }

#endif
