/* Converts Python objects to checked pointers. Every failure sets an exception. Its message names the argument, what
 * was passed and what was expected. */
#ifndef MOM_BINDINGS_CONVERT_H
#define MOM_BINDINGS_CONVERT_H

#include "bindings/numpy_api.h"

#include <stdint.h>

/* Returns `object` itself (borrowed) if it is an ndarray of NumPy type number `type` with the right layout:
 * C-contiguous, aligned, in native byte order and, if `writable` is set, writable. Otherwise returns NULL and sets
 * TypeError for a wrong kind or dtype, ValueError for a wrong layout. */
PyArrayObject *mom_check_storage(PyObject *object, const char *name, int type, int writable);

/* The same, but the array must also have the shape (shape[0], ..., shape[ndim - 1]). -1 stands for any size. */
PyArrayObject *mom_check_array(PyObject *object, const char *name, int type, int ndim, const npy_intp *shape,
                               int writable);

/* Converts integers of any integer dtype, layout and byte order, or nested sequences of them, to a new C-contiguous array
 * of `type` (NPY_INT16 or NPY_INT32). Values must be in [low, high), or equal to *also if `also` is not NULL.
 * New reference. */
PyArrayObject *mom_convert_integers(PyObject *object, const char *name, int type, int64_t low, int64_t high,
                                    const int64_t *also);

/* Converts a mask of any boolean, integer or floating dtype to a C-contiguous uint8 array of 0 and 1. New reference. */
PyArrayObject *mom_convert_mask(PyObject *object, const char *name);

/* A new array with a copy of `data`, which may be NULL if the array is empty. New reference. */
PyObject *mom_copy_array(int ndim, const npy_intp *dims, int type, const void *data);

/* A view of memory that `owner` holds; it keeps the owner alive. New reference. */
PyObject *mom_view_array(int ndim, const npy_intp *dims, int type, void *data, PyObject *owner);

/* Writes a shape as "(3, 4)". Returns the written length, at most size - 1. */
size_t mom_format_shape(char *text, size_t size, int ndim, const npy_intp *shape);

#endif
