/* The one place that configures the Python and NumPy C APIs. Every file of bindings/ includes this first.
 *
 * module.c defines MOM_IMPORT_NUMPY before including it and calls import_array; the other files share module.c's table.
 * The extension is built against NumPy 2 and runs on every NumPy from 1.24 on. */
#ifndef MOM_BINDINGS_NUMPY_API_H
#define MOM_BINDINGS_NUMPY_API_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define NPY_NO_DEPRECATED_API NPY_1_24_API_VERSION
#define NPY_TARGET_VERSION NPY_1_24_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL mom_numpy_api
#ifndef MOM_IMPORT_NUMPY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

/* Runs statements while other Python threads may run. */
#define MOM_WITHOUT_GIL(...)   \
    do {                       \
        Py_BEGIN_ALLOW_THREADS \
        __VA_ARGS__;           \
        Py_END_ALLOW_THREADS   \
    } while (0)

#endif
