/* AdamW and clipping of gradients on plain arrays. */
#include "bindings/operators.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "bindings/call.h"
#include "ops/adamw.h"

/* The data of entry i of a list. The entry must have the shape of *like; if *like is NULL, the entry becomes *like. */
static float *list_entry(mom_call *call, const char *name, PyObject *items, Py_ssize_t i, int writable,
                         PyArrayObject **like) {
    if (call->failed)
        return NULL;
    PyArrayObject *array = mom_check_storage(PyTuple_GET_ITEM(items, i), name, NPY_FLOAT32, writable); /* borrowed */
    if (!array) {
        call->failed = 1;
        return NULL;
    }
    if (*like && !PyArray_SAMESHAPE(array, *like)) {
        char have[256], want[256];
        mom_format_shape(have, sizeof have, PyArray_NDIM(array), PyArray_DIMS(array));
        mom_format_shape(want, sizeof want, PyArray_NDIM(*like), PyArray_DIMS(*like));
        mom_call_fail(call, PyExc_ValueError, "%s: entry %zd has shape %s, expected %s", name, i, have, want);
        return NULL;
    }
    *like = array;
    return PyArray_DATA(array);
}

/* The entries of a list (borrowed). The list must have L entries. */
static PyObject *entries(mom_call *call, const char *name) {
    PyObject *items = mom_arg_list(call, name);
    const Py_ssize_t count = (Py_ssize_t)mom_size(call, 'L');
    if (items && PyTuple_GET_SIZE(items) != count)
        mom_call_fail(call, PyExc_ValueError, "%s: %zd entries, expected %zd", name, PyTuple_GET_SIZE(items), count);
    return items;
}

/* The entries of the list that decides how many tensors there are: that number is L. */
static PyObject *first_entries(mom_call *call, const char *name) {
    PyObject *items = mom_arg_list(call, name);
    mom_set_size(call, 'L', items ? (size_t)PyTuple_GET_SIZE(items) : 0);
    return items;
}

static mom_adamw_tensor *new_tensors(mom_call *call) {
    const size_t count = mom_size(call, 'L');
    mom_adamw_tensor *tensors = mom_call_alloc(call, count, sizeof *tensors);
    if (tensors)
        memset(tensors, 0, count * sizeof *tensors);
    return tensors;
}

static void check_settings(mom_call *call, const mom_adamw_spec *spec) {
    if (!isfinite(spec->lr) || !isfinite(spec->weight_decay))
        mom_call_fail(call, PyExc_ValueError, "lr, weight_decay: expected finite numbers");
    else if (!(spec->beta1 >= 0.0 && (float)spec->beta1 < 1.0f && spec->beta2 >= 0.0 && (float)spec->beta2 < 1.0f))
        mom_call_fail(call, PyExc_ValueError, "betas: expected two numbers of type float32 in [0, 1)");
    else if (!((float)spec->eps >= FLT_MIN && isfinite((float)spec->eps)))
        mom_call_fail(call, PyExc_ValueError, "eps: expected a positive finite number of type float32");
}

/* Updates params, exp_avg and exp_avg_sq in place (mom.ops passes copies) and returns the new steps. */
static void adamw_step(mom_call *call) {
    const mom_adamw_spec spec = {.lr = mom_arg_double(call, "lr"), .beta1 = mom_arg_double(call, "beta1"),
                                 .beta2 = mom_arg_double(call, "beta2"), .eps = mom_arg_double(call, "eps"),
                                 .weight_decay = mom_arg_double(call, "weight_decay"),
                                 .grad_scale = mom_arg_float(call, "grad_scale")};
    check_settings(call, &spec);
    PyObject *params = first_entries(call, "params"), *grads = entries(call, "grads"); /* borrowed */
    PyObject *first = entries(call, "exp_avg"), *second = entries(call, "exp_avg_sq"); /* borrowed */
    const Py_ssize_t count = (Py_ssize_t)mom_size(call, 'L');
    const double *steps = mom_arg_f64(call, "steps", "L");
    const uint8_t *decay = mom_arg_mask(call, "decay", "L"), *used = mom_arg_mask(call, "used", "L");
    mom_adamw_tensor *tensors = new_tensors(call);
    for (Py_ssize_t i = 0; i < count && !call->failed; i++) {
        PyArrayObject *like = NULL;
        tensors[i].param = list_entry(call, "params", params, i, 1, &like);
        tensors[i].grad = list_entry(call, "grads", grads, i, 0, &like);
        tensors[i].exp_avg = list_entry(call, "exp_avg", first, i, 1, &like);
        tensors[i].exp_avg_sq = list_entry(call, "exp_avg_sq", second, i, 1, &like);
        tensors[i].n = call->failed ? 0 : (size_t)PyArray_SIZE(like);
        tensors[i].step = call->failed ? 0.0 : steps[i];
        if (!(tensors[i].step >= 0.0))
            mom_call_fail(call, PyExc_ValueError, "steps: entry %zd is negative or not a number", i);
        tensors[i].decay = !decay || decay[i];
        tensors[i].used = !used || used[i];
    }
    double *new_steps = mom_new_f64(call, "L");
    MOM_RUN(call, {
        mom_adamw_step(&call->exec, tensors, (size_t)count, &spec);
        for (Py_ssize_t i = 0; i < count; i++)
            new_steps[i] = tensors[i].step;
    });
}

/* Scales the gradients in place so that their norm is at most max_norm. Returns the norm before scaling. If the norm is
 * infinite or NaN, nothing is changed. */
static void clip_gradients(mom_call *call) {
    double norm = 0.0;
    const double max_norm = mom_arg_double(call, "max_norm");
    PyObject *grads = first_entries(call, "grads"); /* borrowed */
    const Py_ssize_t count = (Py_ssize_t)mom_size(call, 'L');
    if (!(max_norm > 0.0))
        mom_call_fail(call, PyExc_ValueError, "max_norm: expected a positive number");
    mom_adamw_tensor *tensors = new_tensors(call);
    for (Py_ssize_t i = 0; i < count && !call->failed; i++) {
        PyArrayObject *like = NULL;
        tensors[i].grad = list_entry(call, "grads", grads, i, 1, &like);
        tensors[i].n = call->failed ? 0 : (size_t)PyArray_SIZE(like);
        tensors[i].used = 1;
    }
    MOM_RUN(call, {
        call->status = mom_grad_norm(&call->exec, &norm, tensors, (size_t)count, &call->error);
        const float factor = mom_clip_factor(norm, max_norm);
        if (call->status == MOM_OK && factor < 1.0f)
            mom_grad_scale(&call->exec, tensors, (size_t)count, factor);
    });
    mom_new_number(call, norm);
}

static mom_operator operators[] = {
    MOM_OPERATOR(adamw_step,
                 "params, grads, exp_avg, exp_avg_sq, steps, decay, used, lr, beta1, beta2, eps, weight_decay, grad_scale",
                 "In place on the lists' arrays; returns the new steps."),
    MOM_OPERATOR(clip_gradients, "grads, max_norm", "In place; returns the norm before."),
};

int mom_add_optimizer_functions(PyObject *module) {
    return mom_add_operators(module, operators, sizeof operators / sizeof *operators);
}
