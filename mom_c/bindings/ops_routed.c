/* Routing plans and routed layers on plain arrays. */
#include "bindings/operators.h"

#include <string.h>

#include "bindings/call.h"
#include "bindings/plan_type.h"
#include "ops/routed_linear.h"
#include "ops/routed_rows.h"

/* ------------------------------------------------------------------ routing plans */

static void check_choices(mom_call *call, const int16_t *index, size_t N, size_t K, size_t M) {
    for (size_t t = 0; t < N && !call->failed; t++)
        for (size_t k = 0; k < K; k++)
            for (size_t q = 0; q < k; q++)
                if (index[t * K + k] == index[t * K + q] && (size_t)index[t * K + k] < M)
                    mom_call_fail(call, PyExc_ValueError, "index: token %zu chooses module %d twice", t,
                                  (int)index[t * K + k]);
}

static PyObject *routing_plan(PyObject *module, PyObject *args) {
    PyObject *index_o;
    Py_ssize_t M;
    if (!PyArg_ParseTuple(args, "On:routing_plan", &index_o, &M))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    if (M < 0 || M > INT16_MAX)
        mom_call_fail(&call, PyExc_ValueError, "num_modules: %zd, expected 0 to %d", M, INT16_MAX);
    const int16_t *index = mom_arg_i16(&call, "index", index_o, "N K");
    const size_t N = mom_size(&call, 'N'), K = mom_size(&call, 'K');
    check_choices(&call, index, N, K, (size_t)M);
    mom_plan_object *plan = call.failed ? NULL : mom_plan_new(module); /* new reference */
    if (plan)
        MOM_RUN(&call, call.status = mom_routing_plan_init(&call.exec, &plan->plan, &plan->arena, index, N, K, (size_t)M,
                                                           &call.error));
    mom_new_object(&call, (PyObject *)plan);
    return mom_call_end(&call);
}

static PyObject *routing_plan_dense(PyObject *module, PyObject *args) {
    Py_ssize_t N, M;
    if (!PyArg_ParseTuple(args, "nn:routing_plan_dense", &N, &M))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    if (N < 0 || M < 0)
        mom_call_fail(&call, PyExc_ValueError, "%s: %zd is negative", N < 0 ? "num_tokens" : "num_modules",
                      N < 0 ? N : M);
    mom_plan_object *plan = call.failed ? NULL : mom_plan_new(module); /* new reference */
    if (plan)
        MOM_RUN(&call, call.status = mom_routing_plan_init_dense(&call.exec, &plan->plan, &plan->arena, (size_t)N, (size_t)M,
                                                                 &call.error));
    mom_new_object(&call, (PyObject *)plan);
    return mom_call_end(&call);
}

/* ------------------------------------------------------------------ routed layers */

/* The pointer to each module's part of an array, as operators expect them. */
static const float *const *modules(mom_call *call, const float *data, size_t stride) {
    return (const float *const *)mom_module_pointers(call, data, stride);
}

static PyObject *routed_linear_forward(PyObject *module, PyObject *args) {
    PyObject *inp_o, *weights_o, *biases_o, *plan_o;
    int gathered;
    if (!PyArg_ParseTuple(args, "OOOOp:routed_linear_forward", &inp_o, &weights_o, &biases_o, &plan_o, &gathered))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const mom_routing_plan *plan = mom_arg_plan(&call, plan_o);
    const float *weights = mom_arg_f32(&call, "weights", weights_o, "M I O");
    const float *biases = mom_arg_optional_f32(&call, "biases", biases_o, "M O");
    const float *inp = mom_arg_f32(&call, "inp", inp_o, gathered ? "N I" : "P I");
    float *out = mom_new_f32(&call, "P O");
    const size_t In = mom_size(&call, 'I'), Out = mom_size(&call, 'O');
    const float *const *weight = modules(&call, weights, In * Out), *const *bias = modules(&call, biases, Out);
    const mom_routed_layer layer = {weight, bias, In, Out};
    const mom_routed_rows rows = {inp, gathered};
    MOM_RUN(&call, call.status = mom_routed_linear_forward(&call.exec, out, rows, &layer, plan, &call.error));
    return mom_call_end(&call);
}

static PyObject *routed_linear_backward(PyObject *module, PyObject *args) {
    PyObject *dout_o, *inp_o, *weights_o, *plan_o, *scale_o, *add_to;
    int gathered, dout_gathered;
    if (!PyArg_ParseTuple(args, "OOOOppOO:routed_linear_backward", &dout_o, &inp_o, &weights_o, &plan_o, &gathered,
                          &dout_gathered, &scale_o, &add_to))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const mom_routing_plan *plan = mom_arg_plan(&call, plan_o);
    const float *weights = mom_arg_f32(&call, "weights", weights_o, "M I+ O");
    const float *inp = mom_arg_f32(&call, "inp", inp_o, gathered ? "N I" : "P I");
    const float *dout = mom_arg_f32(&call, "dout", dout_o, dout_gathered ? "N O" : "P O");
    const float *scale = mom_arg_optional_f32(&call, "slot_scale", scale_o, "P");
    float *dinp = mom_new_f32(&call, "P I");
    float *dweights = mom_new_sum(&call, "dweights", add_to, 0, 2, "M I O");
    float *dbiases = mom_new_sum(&call, "dbiases", add_to, 1, 2, "M O");
    const size_t In = mom_size(&call, 'I'), Out = mom_size(&call, 'O');
    const float *const *weight = modules(&call, weights, In * Out);
    float *const *dweight = mom_module_pointers(&call, dweights, In * Out);
    float *const *dbias = mom_module_pointers(&call, dbiases, Out);
    const mom_routed_layer layer = {weight, NULL, In, Out};
    const mom_routed_gradient gradient = {dweight, dbias, In, Out};
    const mom_routed_rows rows = {inp, gathered}, drows = {dout, dout_gathered};
    MOM_RUN(&call, {
        call.status = mom_routed_linear_backward_input(&call.exec, dinp, drows, &layer, plan, &call.error);
        if (call.status == MOM_OK)
            call.status = mom_routed_linear_backward_weight(&call.exec, &gradient, rows, drows, scale, plan, &call.error);
    });
    return mom_call_end(&call);
}

static PyObject *routed_combine_forward(PyObject *module, PyObject *args) {
    PyObject *y_o, *weight_o, *plan_o, *add_to;
    if (!PyArg_ParseTuple(args, "OOOO:routed_combine_forward", &y_o, &weight_o, &plan_o, &add_to))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const mom_routing_plan *plan = mom_arg_plan(&call, plan_o);
    const float *y = mom_arg_f32(&call, "y", y_o, "P C");
    const float *weight = mom_arg_optional_f32(&call, "weight", weight_o, "N K");
    const int accumulate = add_to != Py_None;
    float *out = accumulate ? mom_new_sum(&call, "out", add_to, 0, 1, "N C") : mom_new_f32(&call, "N C");
    const size_t C = mom_size(&call, 'C');
    MOM_RUN(&call, mom_routed_combine_forward(&call.exec, out, y, weight, plan, C, accumulate));
    return mom_call_end(&call);
}

static PyObject *routed_combine_backward(PyObject *module, PyObject *args) {
    PyObject *dout_o, *y_o, *weight_o, *plan_o;
    if (!PyArg_ParseTuple(args, "OOOO:routed_combine_backward", &dout_o, &y_o, &weight_o, &plan_o))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const mom_routing_plan *plan = mom_arg_plan(&call, plan_o);
    const float *y = mom_arg_f32(&call, "y", y_o, "P C");
    const float *dout = mom_arg_f32(&call, "dout", dout_o, "N C");
    const float *weight = mom_arg_optional_f32(&call, "weight", weight_o, "N K");
    float *dweight = mom_new_f32(&call, "N K");
    float *dy = mom_new_f32(&call, "P C");
    const size_t C = mom_size(&call, 'C');
    MOM_RUN(&call, mom_routed_combine_backward(&call.exec, dweight, dy, dout, y, weight, plan, C));
    return mom_call_end(&call);
}

static PyObject *routed_slot_scale(PyObject *module, PyObject *args) {
    PyObject *weight_o, *plan_o;
    if (!PyArg_ParseTuple(args, "OO:routed_slot_scale", &weight_o, &plan_o))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const mom_routing_plan *plan = mom_arg_plan(&call, plan_o);
    const float *weight = mom_arg_f32(&call, "weight", weight_o, "N K");
    float *scale = mom_new_f32(&call, "P");
    MOM_RUN(&call, mom_routed_slot_scale(&call.exec, scale, weight, plan));
    return mom_call_end(&call);
}

static PyObject *routed_score_backward(PyObject *module, PyObject *args) {
    PyObject *dh_o, *h_o, *dout_o, *biases_o, *weight_o, *plan_o, *add_to;
    int gathered;
    if (!PyArg_ParseTuple(args, "OOOOOOpO:routed_score_backward", &dh_o, &h_o, &dout_o, &biases_o, &weight_o, &plan_o,
                          &gathered, &add_to))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const mom_routing_plan *plan = mom_arg_plan(&call, plan_o);
    const float *h = mom_arg_f32(&call, "h", h_o, gathered ? "N I" : "P I");
    const float *dh_in = mom_arg_f32(&call, "dh", dh_o, "P I");
    const float *dout = mom_arg_f32(&call, "dout", dout_o, "N O");
    const float *biases = mom_arg_f32(&call, "biases", biases_o, "M O");
    const float *weight = mom_arg_optional_f32(&call, "weight", weight_o, "N K");
    float *dweight = mom_new_sum(&call, "dweight", add_to, 0, 1, "N K");
    PyObject *copied = call.failed ? NULL : PyTuple_Pack(1, dh_o); /* new reference */
    float *dh = dh_in ? mom_new_sum(&call, "dh", copied ? copied : Py_None, 0, 1, "P I") : NULL;
    Py_XDECREF(copied);
    const size_t In = mom_size(&call, 'I'), Out = mom_size(&call, 'O');
    const mom_routed_layer layer = {NULL, modules(&call, biases, Out), In, Out};
    const mom_routed_rows rows = {h, gathered};
    MOM_RUN(&call, mom_routed_score_backward(&call.exec, dweight, dh, rows, dout, &layer, weight, plan));
    return mom_call_end(&call);
}

static PyObject *routed_layernorm_forward(PyObject *module, PyObject *args) {
    PyObject *inp_o, *mean_o, *rstd_o, *weights_o, *biases_o, *plan_o;
    if (!PyArg_ParseTuple(args, "OOOOOO:routed_layernorm_forward", &inp_o, &mean_o, &rstd_o, &weights_o, &biases_o,
                          &plan_o))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const mom_routing_plan *plan = mom_arg_plan(&call, plan_o);
    const float *inp = mom_arg_f32(&call, "inp", inp_o, "N C+");
    const float *mean = mom_arg_f32(&call, "mean", mean_o, "N"), *rstd = mom_arg_f32(&call, "rstd", rstd_o, "N");
    const float *weights = mom_arg_f32(&call, "weights", weights_o, "M C");
    const float *biases = mom_arg_f32(&call, "biases", biases_o, "M C");
    float *out = mom_new_f32(&call, "P C");
    const size_t C = mom_size(&call, 'C');
    const float *const *weight = modules(&call, weights, C), *const *bias = modules(&call, biases, C);
    const mom_normed_rows rows = {inp, mean, rstd, mom_size(&call, 'N'), C};
    MOM_RUN(&call, mom_routed_layernorm_forward(&call.exec, out, &rows, weight, bias, plan));
    return mom_call_end(&call);
}

static PyObject *routed_layernorm_backward(PyObject *module, PyObject *args) {
    PyObject *dout_o, *inp_o, *mean_o, *rstd_o, *weights_o, *plan_o, *add_to;
    if (!PyArg_ParseTuple(args, "OOOOOOO:routed_layernorm_backward", &dout_o, &inp_o, &mean_o, &rstd_o, &weights_o,
                          &plan_o, &add_to))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const mom_routing_plan *plan = mom_arg_plan(&call, plan_o);
    const float *inp = mom_arg_f32(&call, "inp", inp_o, "N C+"), *dout = mom_arg_f32(&call, "dout", dout_o, "P C");
    const float *mean = mom_arg_f32(&call, "mean", mean_o, "N"), *rstd = mom_arg_f32(&call, "rstd", rstd_o, "N");
    const float *weights = mom_arg_f32(&call, "weights", weights_o, "M C");
    float *dinp = mom_new_sum(&call, "dinp", add_to, 0, 3, "N C");
    float *dweights = mom_new_sum(&call, "dweights", add_to, 1, 3, "M C");
    float *dbiases = mom_new_sum(&call, "dbiases", add_to, 2, 3, "M C");
    const size_t C = mom_size(&call, 'C'), slots = mom_size(&call, 'P');
    const float *const *weight = modules(&call, weights, C);
    float *const *dweight = mom_module_pointers(&call, dweights, C);
    float *const *dbias = mom_module_pointers(&call, dbiases, C);
    float *scratch = mom_call_alloc(&call, slots * C, sizeof *scratch);
    if (scratch)
        memcpy(scratch, dout, slots * C * sizeof *scratch);
    const mom_normed_rows rows = {inp, mean, rstd, mom_size(&call, 'N'), C};
    MOM_RUN(&call, mom_routed_layernorm_backward(&call.exec, dinp, dweight, dbias, scratch, &rows, weight, plan));
    return mom_call_end(&call);
}

static PyMethodDef functions[] = {
    {"routing_plan", routing_plan, METH_VARARGS, "routing_plan($module, index, num_modules, /)\n--\n\nRoutingPlan"},
    {"routing_plan_dense", routing_plan_dense, METH_VARARGS,
     "routing_plan_dense($module, num_tokens, num_modules, /)\n--\n\nRoutingPlan"},
    {"routed_linear_forward", routed_linear_forward, METH_VARARGS,
     "routed_linear_forward($module, inp, weights, biases, plan, gathered, /)\n--\n\nout"},
    {"routed_linear_backward", routed_linear_backward, METH_VARARGS,
     "routed_linear_backward($module, dout, inp, weights, plan, gathered, dout_gathered, slot_scale, add_to, "
     "/)\n--\n\ndinp, dweights, dbiases"},
    {"routed_combine_forward", routed_combine_forward, METH_VARARGS,
     "routed_combine_forward($module, y, weight, plan, add_to, /)\n--\n\nout"},
    {"routed_combine_backward", routed_combine_backward, METH_VARARGS,
     "routed_combine_backward($module, dout, y, weight, plan, /)\n--\n\ndweight, dy"},
    {"routed_slot_scale", routed_slot_scale, METH_VARARGS,
     "routed_slot_scale($module, weight, plan, /)\n--\n\nslot_scale"},
    {"routed_score_backward", routed_score_backward, METH_VARARGS,
     "routed_score_backward($module, dh, h, dout, biases, weight, plan, gathered, add_to, /)\n--\n\ndweight, dh"},
    {"routed_layernorm_forward", routed_layernorm_forward, METH_VARARGS,
     "routed_layernorm_forward($module, inp, mean, rstd, weights, biases, plan, /)\n--\n\nout"},
    {"routed_layernorm_backward", routed_layernorm_backward, METH_VARARGS,
     "routed_layernorm_backward($module, dout, inp, mean, rstd, weights, plan, add_to, /)\n--\n\n"
     "dinp, dweights, dbiases"},
    {NULL, NULL, 0, NULL}};

int mom_add_routed_functions(PyObject *module) { return PyModule_AddFunctions(module, functions); }
