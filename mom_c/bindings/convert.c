#include "bindings/convert.h"

#include <stdio.h>
#include <string.h>

size_t mom_format_shape(char *text, size_t size, int ndim, const npy_intp *shape) {
    size_t n = 0;
    for (int i = 0; i < ndim && n + 32 < size; i++) {
        const char *separator = i ? ", " : "(";
        n += shape[i] < 0 ? (size_t)snprintf(text + n, size - n, "%sany", separator)
                          : (size_t)snprintf(text + n, size - n, "%s%zd", separator, (Py_ssize_t)shape[i]);
    }
    return n + (size_t)snprintf(text + n, size - n, ndim == 0 ? "()" : ndim == 1 ? ",)" : ")");
}

static const char *type_name(int type) {
    switch (type) {
    case NPY_FLOAT32: return "float32";
    case NPY_FLOAT64: return "float64";
    case NPY_INT16: return "int16";
    case NPY_INT32: return "int32";
    default: return "uint8"; /* the only other type that a caller asks for */
    }
}

PyArrayObject *mom_check_storage(PyObject *object, const char *name, int type, int writable) {
    if (!PyArray_Check(object)) {
        PyErr_Format(PyExc_TypeError, "%s: %s, expected an ndarray of %s", name, Py_TYPE(object)->tp_name,
                     type_name(type));
        return NULL;
    }
    PyArrayObject *array = (PyArrayObject *)object;
    if (PyArray_TYPE(array) != type) {
        PyErr_Format(PyExc_TypeError, "%s: dtype %S, expected %s", name, (PyObject *)PyArray_DESCR(array),
                     type_name(type));
        return NULL;
    }
    const char *fault = !PyArray_ISNOTSWAPPED(array)       ? "is not in native byte order"
                        : !PyArray_IS_C_CONTIGUOUS(array)  ? "is not C-contiguous (numpy.ascontiguousarray makes it so)"
                        : !PyArray_ISALIGNED(array)        ? "is not aligned (its copy is)"
                        : writable && !PyArray_ISWRITEABLE(array) ? "is read-only, expected a writable array"
                                                                  : NULL;
    if (fault) {
        PyErr_Format(PyExc_ValueError, "%s: %s", name, fault);
        return NULL;
    }
    return array;
}

PyArrayObject *mom_check_array(PyObject *object, const char *name, int type, int ndim, const npy_intp *shape,
                               int writable) {
    PyArrayObject *array = mom_check_storage(object, name, type, writable);
    if (!array)
        return NULL;
    int fits = PyArray_NDIM(array) == ndim;
    for (int i = 0; fits && i < ndim; i++)
        fits = shape[i] < 0 || PyArray_DIM(array, i) == shape[i];
    if (fits)
        return array;
    char have[256], want[256];
    mom_format_shape(have, sizeof have, PyArray_NDIM(array), PyArray_DIMS(array));
    mom_format_shape(want, sizeof want, ndim, shape);
    PyErr_Format(PyExc_ValueError, "%s: shape %s, expected %s", name, have, want);
    return NULL;
}

/* Makes an ndarray of any kind from an array or nested sequences. On failure returns NULL, and the exception names the
 * argument. */
static PyArrayObject *as_array(PyObject *object, const char *name, const char *wanted) {
    PyArrayObject *array = (PyArrayObject *)PyArray_FROM_O(object); /* new reference */
    if (!array && !PyErr_ExceptionMatches(PyExc_MemoryError)) {
        PyErr_Clear();
        PyErr_Format(PyExc_TypeError, "%s: %s, expected an array of %s", name, Py_TYPE(object)->tp_name, wanted);
    }
    return array;
}

static PyArrayObject *cast(PyArrayObject *array, int type) {
    return (PyArrayObject *)PyArray_FROM_OTF((PyObject *)array, type, NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ALIGNED |
                                                                          NPY_ARRAY_FORCECAST | NPY_ARRAY_NOTSWAPPED);
}

/* As int64, unsigned values from 2^63 up look negative. They are never in range, not even if *also is negative. */
static int in_range(const int64_t *values, npy_intp n, int is_unsigned, const char *name, int64_t low, int64_t high,
                    const int64_t *also) {
    for (npy_intp i = 0; i < n; i++) {
        const int beyond = is_unsigned && values[i] < 0;
        if (!beyond && ((values[i] >= low && values[i] < high) || (also && values[i] == *also)))
            continue;
        char allowed[32] = "", value[32];
        if (also)
            snprintf(allowed, sizeof allowed, " or %lld", (long long)*also);
        if (is_unsigned)
            snprintf(value, sizeof value, "%llu", (unsigned long long)values[i]);
        else
            snprintf(value, sizeof value, "%lld", (long long)values[i]);
        PyErr_Format(PyExc_ValueError, "%s: value %s, expected [%lld, %lld)%s", name, value, (long long)low,
                     (long long)high, allowed);
        return 0;
    }
    return 1;
}

PyArrayObject *mom_convert_integers(PyObject *object, const char *name, int type, int64_t low, int64_t high,
                                    const int64_t *also) {
    PyArrayObject *array = as_array(object, name, "integers"), *wide = NULL, *result = NULL; /* new references */
    if (!array)
        return NULL;
    if (!PyArray_ISINTEGER(array) && PyArray_SIZE(array)) {
        PyErr_Format(PyExc_TypeError, "%s: dtype %S, expected integers", name, (PyObject *)PyArray_DESCR(array));
        goto done;
    }
    wide = cast(array, NPY_INT64);
    if (!wide ||
        !in_range(PyArray_DATA(wide), PyArray_SIZE(wide), PyArray_ISUNSIGNED(array), name, low, high, also))
        goto done;
    result = cast(wide, type);
done:
    Py_DECREF(array);
    Py_XDECREF(wide);
    return result;
}

PyArrayObject *mom_convert_mask(PyObject *object, const char *name) {
    PyArrayObject *array = as_array(object, name, "0 and 1"), *result = NULL; /* new references */
    if (!array)
        return NULL;
    if (PyArray_ISBOOL(array) || PyArray_ISINTEGER(array) || PyArray_ISFLOAT(array) || !PyArray_SIZE(array))
        result = cast(array, NPY_BOOL);
    else
        PyErr_Format(PyExc_TypeError, "%s: dtype %S, expected booleans or 0 and 1", name,
                     (PyObject *)PyArray_DESCR(array));
    Py_DECREF(array);
    return result;
}

PyObject *mom_copy_array(int ndim, const npy_intp *dims, int type, const void *data) {
    PyObject *out = PyArray_SimpleNew(ndim, dims, type); /* new reference */
    if (out && PyArray_SIZE((PyArrayObject *)out) > 0)
        memcpy(PyArray_DATA((PyArrayObject *)out), data, (size_t)PyArray_NBYTES((PyArrayObject *)out));
    return out;
}

PyObject *mom_view_array(int ndim, const npy_intp *dims, int type, void *data, PyObject *owner) {
    PyObject *view = PyArray_SimpleNewFromData(ndim, dims, type, data); /* new reference */
    if (view && PyArray_SetBaseObject((PyArrayObject *)view, Py_NewRef(owner)) < 0) /* steals, also on failure */
        Py_CLEAR(view);
    return view;
}
