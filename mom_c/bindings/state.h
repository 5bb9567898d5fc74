/* What the extension keeps: per module its types and exceptions; per process the active kernels and threads. */
#ifndef MOM_BINDINGS_STATE_H
#define MOM_BINDINGS_STATE_H

#include "bindings/numpy_api.h"

#include "kernels/kernels.h"

typedef struct {
    PyObject *network_type;                    /* _core.Network */
    PyObject *plan_type;                       /* _core.RoutingPlan */
    PyObject *exceptions[MOM_ERR_STATE + 1];   /* by mom_status */
} mom_state;

static inline mom_state *mom_get_state(PyObject *module) { return PyModule_GetState(module); }

/* The active level's kernels and the number of threads, with the caller's workspace (NULL if it brings its own).
 * Needs the GIL. */
mom_exec mom_current_exec(mom_arena *workspace);

#endif
