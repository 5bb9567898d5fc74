#include "bindings/call.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "bindings/errors.h"
#include "bindings/plan_type.h"
#include "ops/forced_choices.h"
#include "ops/label_loss.h"

#define MAX_DIMS 8

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

void mom_call_hide_results(mom_call *call) {
    if (call->failed)
        return;
    keep(call, &call->held, call->results);
    call->results = PyList_New(0);
    call->failed |= !call->results;
}

/* ------------------------------------------------------------------ operators as functions of the module */

static PyObject *end(mom_call *call) {
    PyObject *result = NULL;
    mom_arena_free(&call->workspace);
    if (!call->failed && call->status != MOM_OK) {
        mom_raise(call->module, &call->error);
    } else if (!call->failed) {
        const int one = !call->results_as_list && PyList_GET_SIZE(call->results) == 1;
        result = one                     ? Py_NewRef(PyList_GET_ITEM(call->results, 0))
                 : call->results_as_list ? Py_NewRef(call->results)
                                         : PyList_AsTuple(call->results);
    }
    Py_XDECREF(call->held);
    Py_XDECREF(call->results);
    return result;
}

PyObject *mom_run_operator(PyObject *self, PyObject *args) {
    const mom_operator *operator = PyCapsule_GetPointer(PyTuple_GET_ITEM(self, 1), NULL);
    mom_call call = {.module = PyTuple_GET_ITEM(self, 0), .leading_ndim = -1};
    for (int i = 0; i < 26; i++)
        call.sizes[i] = -1;
    mom_arena_init(&call.workspace, "workspace");
    call.exec = mom_current_exec(&call.workspace);
    call.results = PyList_New(0);
    call.failed = !call.results;
    mom_enter_tuple(&call, operator->method.ml_name, args, operator->parameters);
    operator->run(&call);
    return end(&call);
}

int mom_add_operators(PyObject *module, mom_operator *operators, size_t count) {
    PyObject *name = PyModule_GetNameObject(module); /* new reference */
    int failed = !name;
    for (size_t i = 0; i < count && !failed; i++) {
        PyObject *self = Py_BuildValue("(ON)", module, PyCapsule_New(&operators[i], NULL, NULL)); /* new reference */
        PyObject *function = self ? PyCFunction_NewEx(&operators[i].method, self, name) : NULL;   /* new reference */
        failed = !function || PyModule_AddObjectRef(module, operators[i].method.ml_name, function) < 0;
        Py_XDECREF(function);
        Py_XDECREF(self);
    }
    Py_XDECREF(name);
    return failed ? -1 : 0;
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
        for (int i = 0; i < leading; i++) /* an array without dimensions has no list of them */
            call->leading[i] = dims[i];
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

PyObject *mom_arg(mom_call *call, const char *name) {
    const size_t length = strlen(name);
    Py_ssize_t i = 0;
    for (const char *at = call->arguments.names; !call->failed && *at; i++) {
        const size_t n = strcspn(at, ",");
        if (n == length && memcmp(at, name, n) == 0)
            return PyTuple_GET_ITEM(call->arguments.values, i);
        at += n + strspn(at + n, ", ");
    }
    mom_call_fail(call, PyExc_SystemError, "%s: not among the arguments", name);
    return Py_None;
}

mom_arguments mom_enter_tuple(mom_call *call, const char *what, PyObject *tuple, const char *names) {
    const mom_arguments before = call->arguments;
    Py_ssize_t count = 1;
    for (const char *at = names; *at; at++)
        count += *at == ',';
    if (!PyTuple_Check(tuple) || PyTuple_GET_SIZE(tuple) != count)
        mom_call_fail(call, PyExc_TypeError, "%s: expected (%s)", what, names);
    call->arguments = (mom_arguments){names, tuple};
    return before;
}

int mom_arg_given(mom_call *call, const char *name) { return mom_arg(call, name) != Py_None; }

/* Makes the call fail if a conversion has set an exception. Returns whether the call goes on. */
static int went_well(mom_call *call) {
    call->failed |= PyErr_Occurred() != NULL;
    return !call->failed;
}

double mom_arg_double(mom_call *call, const char *name) {
    PyObject *value = mom_arg(call, name); /* borrowed */
    if (!call->failed && PyBool_Check(value))
        mom_call_fail(call, PyExc_TypeError, "%s: bool, expected a number", name);
    const double number = call->failed ? 0.0 : PyFloat_AsDouble(value);
    return went_well(call) ? number : 0.0;
}

float mom_arg_float(mom_call *call, const char *name) { return (float)mom_arg_double(call, name); }

int mom_arg_flag(mom_call *call, const char *name) {
    PyObject *value = mom_arg(call, name); /* borrowed */
    if (!call->failed && !PyLong_Check(value) && !PyArray_IsScalar(value, Bool))
        mom_call_fail(call, PyExc_TypeError, "%s: %s, expected True or False", name, Py_TYPE(value)->tp_name);
    const int flag = call->failed ? 0 : PyObject_IsTrue(value);
    return went_well(call) ? flag : 0;
}

size_t mom_arg_size(mom_call *call, const char *name) {
    PyObject *value = mom_arg(call, name); /* borrowed */
    if (!call->failed && PyBool_Check(value))
        mom_call_fail(call, PyExc_TypeError, "%s: bool, expected an integer", name);
    const Py_ssize_t size = call->failed ? 0 : PyNumber_AsSsize_t(value, PyExc_OverflowError);
    if (went_well(call) && size < 0)
        mom_call_fail(call, PyExc_ValueError, "%s: %zd is negative", name, size);
    return call->failed ? 0 : (size_t)size;
}

const char *mom_arg_text(mom_call *call, const char *name) {
    const char *text = call->failed ? NULL : PyUnicode_AsUTF8(mom_arg(call, name));
    return went_well(call) ? text : NULL;
}

uint64_t mom_arg_bits(mom_call *call, const char *name) {
    const uint64_t bits = call->failed ? 0 : PyLong_AsUnsignedLongLongMask(mom_arg(call, name));
    return went_well(call) ? bits : 0;
}

uint64_t mom_arg_key(mom_call *call) {
    const uint64_t seed = mom_arg_bits(call, "seed"), counter = mom_arg_bits(call, "counter");
    return mom_rng_key(seed, counter, mom_arg_bits(call, "site"));
}

mom_dropout mom_arg_dropout(mom_call *call) {
    const float p = mom_arg_float(call, "p");
    if (!(p >= 0.0f && p < 1.0f))
        mom_call_fail(call, PyExc_ValueError, "dropout: %S, expected [0, 1)", mom_arg(call, "p"));
    return (mom_dropout){p, mom_arg_key(call)};
}

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

const float *mom_arg_f32(mom_call *call, const char *name, const char *shape) {
    return checked(call, name, mom_arg(call, name), NPY_FLOAT32, shape);
}

const float *mom_arg_optional_f32(mom_call *call, const char *name, const char *shape) {
    return mom_arg_given(call, name) ? mom_arg_f32(call, name, shape) : NULL;
}

const double *mom_arg_f64(mom_call *call, const char *name, const char *shape) {
    return checked(call, name, mom_arg(call, name), NPY_FLOAT64, shape);
}

static const void *converted(mom_call *call, const char *name, PyArrayObject *array, const char *shape) {
    if (!keep(call, &call->held, (PyObject *)array))
        return NULL;
    return check_shape(call, name, array, shape) ? PyArray_DATA(array) : NULL;
}

/* Values must be in [0, below), or *also if `also` is not NULL. */
static const void *integers(mom_call *call, const char *name, const char *shape, int type, size_t below,
                            const int64_t *also) {
    PyObject *value = mom_arg(call, name); /* borrowed */
    return call->failed ? NULL
                        : converted(call, name, mom_convert_integers(value, name, type, 0, (int64_t)below, also), shape);
}

const int32_t *mom_arg_i32(mom_call *call, const char *name, const char *shape, size_t below) {
    return integers(call, name, shape, NPY_INT32, below, NULL);
}

const int32_t *mom_arg_labels(mom_call *call, const char *name, const char *shape, size_t below) {
    const int64_t ignored = MOM_IGNORED_LABEL;
    return integers(call, name, shape, NPY_INT32, below, &ignored);
}

const int16_t *mom_arg_i16(mom_call *call, const char *name, const char *shape) {
    return integers(call, name, shape, NPY_INT16, INT16_MAX, NULL);
}

const int16_t *mom_arg_choices(mom_call *call, const char *name, const char *shape) {
    PyObject *value = mom_arg(call, name); /* borrowed */
    return call->failed
               ? NULL
               : converted(call, name, mom_convert_integers(value, name, NPY_INT16, MOM_SKIP, INT16_MAX, NULL), shape);
}

const uint8_t *mom_arg_mask(mom_call *call, const char *name, const char *shape) {
    PyObject *value = mom_arg(call, name); /* borrowed; None also after a failure */
    return value == Py_None ? NULL : converted(call, name, mom_convert_mask(value, name), shape);
}

const mom_routing_plan *mom_arg_plan(mom_call *call) {
    PyObject *value = mom_arg(call, "plan"); /* borrowed */
    const PyObject *type = mom_get_state(call->module)->plan_type;
    if ((const PyObject *)Py_TYPE(value) != type) {
        mom_call_fail(call, PyExc_TypeError, "plan: %s, expected a RoutingPlan", Py_TYPE(value)->tp_name);
        return NULL;
    }
    const mom_routing_plan *plan = &((mom_plan_object *)value)->plan;
    mom_set_size(call, 'N', plan->N);
    mom_set_size(call, 'K', plan->K);
    mom_set_size(call, 'M', plan->M);
    mom_set_size(call, 'P', plan->slots);
    return plan;
}

PyObject *mom_arg_list(mom_call *call, const char *name) {
    PyObject *list = mom_arg(call, name); /* borrowed */
    if (!call->failed && !PyList_Check(list))
        mom_call_fail(call, PyExc_TypeError, "%s: %s, expected a list", name, Py_TYPE(list)->tp_name);
    if (call->failed)
        return NULL;
    PyObject *items = PyList_AsTuple(list); /* new reference */
    return keep(call, &call->held, items) ? items : NULL;
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
int32_t *mom_new_i32(mom_call *call, const char *shape) { return new_array(call, NPY_INT32, shape); }
int16_t *mom_new_i16(mom_call *call, const char *shape) { return new_array(call, NPY_INT16, shape); }
double *mom_new_f64(mom_call *call, const char *shape) { return new_array(call, NPY_FLOAT64, shape); }

float *mom_new_copy(mom_call *call, const char *name, PyObject *value, const char *shape) {
    if (call->failed || (value != Py_None && !checked(call, name, value, NPY_FLOAT32, shape)))
        return NULL;
    npy_intp dims[2 * MAX_DIMS];
    const int ndim = resolve(call, shape, dims);
    PyObject *array = value != Py_None ? PyArray_NewCopy((PyArrayObject *)value, NPY_CORDER)
                                       : PyArray_ZEROS(ndim, dims, NPY_FLOAT32, 0);
    return keep(call, &call->results, array) ? PyArray_DATA((PyArrayObject *)array) : NULL;
}

float *mom_new_sum(mom_call *call, const char *name, int i, int n, const char *shape) {
    PyObject *add_to = mom_arg(call, "add_to"); /* borrowed */
    if (add_to == Py_None)
        return mom_new_copy(call, name, Py_None, shape);
    if (!PyTuple_Check(add_to) || PyTuple_GET_SIZE(add_to) != n) {
        mom_call_fail(call, PyExc_TypeError, "add_to: expected a tuple of %d arrays, each of which may be None", n);
        return NULL;
    }
    return mom_new_copy(call, name, PyTuple_GET_ITEM(add_to, i), shape);
}

void mom_new_object(mom_call *call, PyObject *object) {
    if (call->failed)
        Py_XDECREF(object);
    else
        keep(call, &call->results, object);
}

void mom_new_number(mom_call *call, double value) { mom_new_object(call, PyFloat_FromDouble(value)); }
void mom_new_none(mom_call *call) { mom_new_object(call, Py_NewRef(Py_None)); }
