#include "bindings/call.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "bindings/errors.h"
#include "bindings/plan_type.h"

#define MAX_DIMS 8

void mom_call_begin(mom_call *call, PyObject *module) {
    memset(call, 0, sizeof *call);
    call->module = module;
    call->leading_ndim = -1;
    for (int i = 0; i < 26; i++)
        call->sizes[i] = -1;
    mom_arena_init(&call->workspace, "workspace");
    call->exec = mom_current_exec(&call->workspace);
}

PyObject *mom_call_end(mom_call *call) {
    PyObject *result = NULL;
    mom_arena_free(&call->workspace);
    if (!call->failed && call->status != MOM_OK)
        mom_raise(call->module, &call->error);
    else if (!call->failed && call->results)
        result = PyList_GET_SIZE(call->results) == 1 ? Py_NewRef(PyList_GET_ITEM(call->results, 0))
                                                     : PyList_AsTuple(call->results);
    Py_CLEAR(call->held);
    Py_CLEAR(call->results);
    return result;
}

void mom_call_fail(mom_call *call, PyObject *exception, const char *format, ...) {
    if (call->failed)
        return;
    call->failed = 1;
    va_list args;
    va_start(args, format);
    PyErr_FormatV(exception, format, args);
    va_end(args);
}

/* Appends to a list, which is made on first use. Steals the item. The item is NULL if an exception is set. */
static int keep(mom_call *call, PyObject **list, PyObject *item) {
    if (item && !*list)
        *list = PyList_New(0);
    const int ok = item && *list && PyList_Append(*list, item) == 0;
    Py_XDECREF(item);
    if (!ok)
        call->failed = 1;
    return ok;
}

size_t mom_size(const mom_call *call, char letter) {
    const npy_intp size = call->sizes[letter - 'A'];
    return size < 0 ? 0 : (size_t)size;
}

size_t mom_leading(const mom_call *call) {
    size_t n = 1;
    for (int i = 0; i < call->leading_ndim; i++)
        n *= (size_t)call->leading[i];
    return n;
}

void mom_set_size(mom_call *call, char letter, size_t size) { call->sizes[letter - 'A'] = (npy_intp)size; }

/* ------------------------------------------------------------------ the language of shapes */

typedef struct {
    int leading; /* begins with "..." */
    int count;   /* letters */
    struct {
        npy_intp factor;
        char letter;
        int positive; /* marked with '+' */
    } items[MAX_DIMS];
} shape_spec;

static shape_spec parse(const char *text) {
    shape_spec spec = {0};
    while (*text) {
        if (*text == ' ') {
            text++;
        } else if (*text == '.') {
            spec.leading = 1;
            text += 3;
        } else if (*text == '+') {
            spec.items[spec.count - 1].positive = 1;
            text++;
        } else {
            npy_intp factor = 1;
            if (*text >= '0' && *text <= '9')
                factor = *text++ - '0';
            spec.items[spec.count].factor = factor;
            spec.items[spec.count++].letter = *text++;
        }
    }
    return spec;
}

/* "(8, C)": known sizes as numbers. */
static void describe(const mom_call *call, const shape_spec *spec, char *text, size_t size) {
    size_t n = (size_t)snprintf(text, size, "(");
    if (spec->leading && call->leading_ndim < 0)
        n += (size_t)snprintf(text + n, size - n, "..., ");
    for (int i = 0; spec->leading && i < call->leading_ndim; i++)
        n += (size_t)snprintf(text + n, size - n, "%zd, ", (Py_ssize_t)call->leading[i]);
    for (int i = 0; i < spec->count; i++) {
        const npy_intp known = call->sizes[spec->items[i].letter - 'A'], factor = spec->items[i].factor;
        if (known >= 0)
            n += (size_t)snprintf(text + n, size - n, "%zd", (Py_ssize_t)(factor * known));
        else if (factor > 1)
            n += (size_t)snprintf(text + n, size - n, "%d%c", (int)factor, spec->items[i].letter);
        else
            n += (size_t)snprintf(text + n, size - n, "%c", spec->items[i].letter);
        if (i + 1 < spec->count)
            n += (size_t)snprintf(text + n, size - n, ", ");
    }
    if (!spec->count && n > 2) { /* "(2, 3, " or "(2, " */
        n -= 2;
        n += (size_t)snprintf(text + n, size - n, call->leading_ndim == 1 ? "," : "");
    }
    snprintf(text + n, size - n, spec->count == 1 && !spec->leading ? ",)" : ")");
}

/* Compares an array's shape with its spec and, if they agree, gives unknown letters their sizes. If a letter marked
 * with '+' is 0, *empty becomes that letter. */
static int match(mom_call *call, const shape_spec *spec, const PyArrayObject *array, char *empty) {
    const int ndim = PyArray_NDIM(array), leading = ndim - spec->count;
    const npy_intp *dims = PyArray_DIMS((PyArrayObject *)array);
    npy_intp sizes[26];
    if (leading < 0 || leading > MAX_DIMS || (!spec->leading && leading))
        return 0;
    if (spec->leading && call->leading_ndim >= 0) {
        if (leading != call->leading_ndim)
            return 0;
        for (int i = 0; i < leading; i++)
            if (dims[i] != call->leading[i])
                return 0;
    }
    memcpy(sizes, call->sizes, sizeof sizes);
    for (int i = 0; i < spec->count; i++) {
        const npy_intp have = dims[leading + i], factor = spec->items[i].factor;
        npy_intp *known = &sizes[spec->items[i].letter - 'A'];
        if (*known < 0 && have % factor == 0)
            *known = have / factor;
        else if (*known < 0 || *known * factor != have)
            return 0;
        if (spec->items[i].positive && !have) {
            *empty = spec->items[i].letter;
            return 0;
        }
    }
    memcpy(call->sizes, sizes, sizeof sizes);
    if (spec->leading && call->leading_ndim < 0) {
        call->leading_ndim = leading;
        memcpy(call->leading, dims, (size_t)leading * sizeof *dims);
    }
    return 1;
}

static int check_shape(mom_call *call, const char *name, const PyArrayObject *array, const char *shape) {
    const shape_spec spec = parse(shape);
    char have[256], want[256], empty = 0;
    if (match(call, &spec, array, &empty))
        return 1;
    mom_format_shape(have, sizeof have, PyArray_NDIM(array), PyArray_DIMS((PyArrayObject *)array));
    describe(call, &spec, want, sizeof want);
    if (empty)
        mom_call_fail(call, PyExc_ValueError, "%s: shape %s, expected %s with %c at least 1", name, have, want, empty);
    else
        mom_call_fail(call, PyExc_ValueError, "%s: shape %s, expected %s", name, have, want);
    return 0;
}

static int resolve(const mom_call *call, const char *shape, npy_intp *dims) {
    const shape_spec spec = parse(shape);
    int n = 0;
    for (int i = 0; spec.leading && i < call->leading_ndim; i++)
        dims[n++] = call->leading[i];
    for (int i = 0; i < spec.count; i++)
        dims[n++] = spec.items[i].factor * (npy_intp)mom_size(call, spec.items[i].letter);
    return n;
}

/* ------------------------------------------------------------------ arguments */

static const void *checked(mom_call *call, const char *name, PyObject *value, int type, const char *shape) {
    if (call->failed)
        return NULL;
    PyArrayObject *array = mom_check_storage(value, name, type, 0); /* borrowed: the caller's arguments keep it alive */
    if (!array) {
        call->failed = 1;
        return NULL;
    }
    return check_shape(call, name, array, shape) ? PyArray_DATA(array) : NULL;
}

static const void *converted(mom_call *call, const char *name, PyArrayObject *array, const char *shape) {
    if (!keep(call, &call->held, (PyObject *)array))
        return NULL;
    return check_shape(call, name, array, shape) ? PyArray_DATA(array) : NULL;
}

const float *mom_arg_f32(mom_call *call, const char *name, PyObject *value, const char *shape) {
    return checked(call, name, value, NPY_FLOAT32, shape);
}

const double *mom_arg_f64(mom_call *call, const char *name, PyObject *value, const char *shape) {
    return checked(call, name, value, NPY_FLOAT64, shape);
}

const int32_t *mom_arg_i32(mom_call *call, const char *name, PyObject *value, const char *shape, int64_t low,
                           int64_t high, int64_t also) {
    return call->failed
               ? NULL
               : converted(call, name, mom_convert_integers(value, name, NPY_INT32, low, high, also), shape);
}

const int16_t *mom_arg_i16(mom_call *call, const char *name, PyObject *value, const char *shape) {
    return call->failed
               ? NULL
               : converted(call, name, mom_convert_integers(value, name, NPY_INT16, 0, INT16_MAX, 0), shape);
}

const uint8_t *mom_arg_mask(mom_call *call, const char *name, PyObject *value, const char *shape) {
    return call->failed || value == Py_None ? NULL : converted(call, name, mom_convert_mask(value, name), shape);
}

const mom_routing_plan *mom_arg_plan(mom_call *call, PyObject *value) {
    if (call->failed)
        return NULL;
    const PyObject *type = mom_get_state(call->module)->plan_type;
    if ((const PyObject *)Py_TYPE(value) != type) {
        mom_call_fail(call, PyExc_TypeError, "plan: %s, expected a RoutingPlan", Py_TYPE(value)->tp_name);
        return NULL;
    }
    const mom_routing_plan *plan = mom_plan_of(value);
    mom_set_size(call, 'N', plan->N);
    mom_set_size(call, 'K', plan->K);
    mom_set_size(call, 'M', plan->M);
    mom_set_size(call, 'P', plan->slots);
    return plan;
}

float **mom_module_pointers(mom_call *call, const float *data, size_t stride) {
    if (call->failed || !data)
        return NULL;
    const size_t M = mom_size(call, 'M');
    float **pointers = mom_call_alloc(call, M, sizeof *pointers);
    for (size_t m = 0; pointers && m < M; m++)
        pointers[m] = (float *)data + m * stride;
    return pointers;
}

const float *mom_arg_optional_f32(mom_call *call, const char *name, PyObject *value, const char *shape) {
    return value == Py_None ? NULL : mom_arg_f32(call, name, value, shape);
}

PyObject *mom_arg_list(mom_call *call, PyObject *list) {
    if (call->failed)
        return NULL;
    PyObject *items = PyList_AsTuple(list); /* new reference */
    return keep(call, &call->held, items) ? items : NULL;
}

mom_dropout mom_arg_dropout(mom_call *call, mom_dropout_args args) {
    if (!(args.p >= 0.0f && args.p < 1.0f)) {
        PyObject *p = PyFloat_FromDouble((double)args.p); /* PyErr_Format cannot format a double */
        mom_call_fail(call, PyExc_ValueError, "dropout: %S, expected [0, 1)", p ? p : Py_None);
        Py_XDECREF(p);
    }
    return (mom_dropout){args.p, mom_rng_key(args.seed, args.counter, args.site)};
}

void *mom_call_alloc(mom_call *call, size_t n, size_t size) {
    void *block = call->failed ? NULL : mom_arena_alloc(&call->workspace, n, size, &call->error);
    if (!block && !call->failed) {
        call->failed = 1;
        mom_raise(call->module, &call->error);
    }
    return block;
}

/* ------------------------------------------------------------------ results */

static void *new_array(mom_call *call, int type, const char *shape) {
    if (call->failed)
        return NULL;
    npy_intp dims[2 * MAX_DIMS];
    const int ndim = resolve(call, shape, dims);
    PyObject *array = PyArray_SimpleNew(ndim, dims, type);
    return keep(call, &call->results, array) ? PyArray_DATA((PyArrayObject *)array) : NULL;
}

float *mom_new_f32(mom_call *call, const char *shape) { return new_array(call, NPY_FLOAT32, shape); }
int16_t *mom_new_i16(mom_call *call, const char *shape) { return new_array(call, NPY_INT16, shape); }
double *mom_new_f64(mom_call *call, const char *shape) { return new_array(call, NPY_FLOAT64, shape); }

float *mom_new_sum(mom_call *call, const char *name, PyObject *add_to, int i, int n, const char *shape) {
    if (call->failed)
        return NULL;
    PyObject *entry = Py_None; /* borrowed */
    if (add_to != Py_None) {
        if (!PyTuple_Check(add_to) || PyTuple_GET_SIZE(add_to) != n) {
            mom_call_fail(call, PyExc_TypeError, "add_to: expected a tuple of %d arrays, each of which may be None", n);
            return NULL;
        }
        entry = PyTuple_GET_ITEM(add_to, i);
    }
    const float *begin = NULL;
    if (entry != Py_None && !(begin = mom_arg_f32(call, name, entry, shape)))
        return NULL;
    npy_intp dims[2 * MAX_DIMS];
    const int ndim = resolve(call, shape, dims);
    PyObject *array = begin ? PyArray_NewCopy((PyArrayObject *)entry, NPY_CORDER) : PyArray_ZEROS(ndim, dims, NPY_FLOAT32, 0);
    return keep(call, &call->results, array) ? PyArray_DATA((PyArrayObject *)array) : NULL;
}

void mom_new_object(mom_call *call, PyObject *object) {
    if (call->failed)
        Py_XDECREF(object);
    else
        keep(call, &call->results, object);
}

void mom_new_number(mom_call *call, double value) { mom_new_object(call, PyFloat_FromDouble(value)); }
void mom_new_none(mom_call *call) { mom_new_object(call, Py_NewRef(Py_None)); }
