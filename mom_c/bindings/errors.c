/* Translates the core's error codes to built-in exceptions: ValueError for shapes and values, TypeError for dtypes,
 * MemoryError for memory, RuntimeError for a wrong order of calls. */
#include "bindings/errors.h"

void mom_init_exceptions(mom_state *state) {
    state->exceptions[MOM_OK] = Py_NewRef(PyExc_SystemError); /* an error without a code is a bug in the core */
    state->exceptions[MOM_ERR_VALUE] = Py_NewRef(PyExc_ValueError);
    state->exceptions[MOM_ERR_TYPE] = Py_NewRef(PyExc_TypeError);
    state->exceptions[MOM_ERR_MEMORY] = Py_NewRef(PyExc_MemoryError);
    state->exceptions[MOM_ERR_STATE] = Py_NewRef(PyExc_RuntimeError);
}

PyObject *mom_raise(PyObject *owner, const mom_error *err) {
    const mom_state *state =
        PyType_Check(owner) ? PyType_GetModuleState((PyTypeObject *)owner) : PyModule_GetState(owner);
    if (err->code != MOM_ERR_STOPPED) /* a signal's handler has set the exception */
        PyErr_SetString(state->exceptions[err->code], err->text);
    return NULL;
}
