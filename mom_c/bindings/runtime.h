/* Level and threads of the process. */
#ifndef MOM_BINDINGS_RUNTIME_H
#define MOM_BINDINGS_RUNTIME_H

#include "bindings/numpy_api.h"
#include "kernels/kernels.h"

/* The active level's kernels and the number of threads, with the caller's workspace (NULL if the callee brings its own).
 * In the main thread, signals can end the call (bindings/signals.h). Needs the GIL. */
mom_exec mom_current_exec(mom_arena *workspace);
/* Returns -1 with an exception set if `n` threads are not possible; `what` names the argument. */
int mom_check_threads(Py_ssize_t n, const char *what);

/* Reads MOM_CPU and OMP_NUM_THREADS, once per process. Adds the functions that change and show both settings. */
int mom_add_runtime(PyObject *module);

#endif
