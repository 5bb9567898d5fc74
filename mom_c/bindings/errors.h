/* Translates the core's errors to Python exceptions. */
#ifndef MOM_BINDINGS_ERRORS_H
#define MOM_BINDINGS_ERRORS_H

#include "bindings/state.h"

/* Fills state->exceptions. */
void mom_init_exceptions(mom_state *state);

/* Sets the exception that belongs to *err and returns NULL. `owner` is the module or one of its types. */
PyObject *mom_raise(PyObject *owner, const mom_error *err);

#endif
