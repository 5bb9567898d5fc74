/* Routers on plain arrays: their cell, scores and choices. */
#include "bindings/operators.h"

#include "base/rng.h"
#include "bindings/call.h"
#include "ops/router.h"

/* ------------------------------------------------------------------ router cell */

typedef struct {
    int kind, random;
    PyObject *inp, *state, *tensors[6]; /* in the order of mom_router_tensors */
    unsigned long long seed, counter, site;
} router_args;

typedef struct {
    mom_router_spec spec;
    mom_router_tensors weights;
    const float *inp, *state;
    uint64_t noise_key;
} router_inputs;

static const char *const tensor_names[6] = {"in_weight",    "in_bias",    "state_weight",
                                            "state_bias",   "out_weight", "out_bias"};
static const char *const tensor_shapes[6] = {"G C", "G", "G R", "G", "S R", "S"};

/* The letter G stands for the rows of in_weight: gates * R for recurrent routers, R for others. */
static router_inputs read_router(mom_call *call, const router_args *a) {
    router_inputs in = {.noise_key = mom_rng_key(a->seed, a->counter, a->site)};
    if (a->kind < MOM_ROUTER_NAIVE || a->kind >= MOM_ROUTER_KINDS)
        mom_call_fail(call, PyExc_ValueError, "kind: %d is unknown", a->kind);
    const int recurrent = !call->failed && mom_router_types[a->kind].recurrent;
    in.inp = mom_arg_f32(call, "inp", a->inp, "N C");
    const float *out_weight = mom_arg_f32(call, tensor_names[4], a->tensors[4], tensor_shapes[4]);
    in.spec = (mom_router_spec){.kind = (mom_router_kind)a->kind, .random = a->random && recurrent,
                                .C = mom_size(call, 'C'), .R = mom_size(call, 'R'), .S = mom_size(call, 'S')};
    mom_set_size(call, 'G', recurrent ? mom_router_gates(&in.spec) * in.spec.R : in.spec.R);
    const float *pointers[6] = {NULL};
    for (int i = 0; i < 6; i++) {
        const int of_state = i == 2 || i == 3;
        if (!recurrent && of_state)
            continue;
        pointers[i] = i == 4 ? out_weight : mom_arg_f32(call, tensor_names[i], a->tensors[i], tensor_shapes[i]);
    }
    /* The casts drop const because the same struct holds weights or gradients. Operators only read the weights. */
    in.weights = (mom_router_tensors){.in_weight = (float *)pointers[0], .in_bias = (float *)pointers[1],
                                      .state_weight = (float *)pointers[2], .state_bias = (float *)pointers[3],
                                      .out_weight = (float *)pointers[4], .out_bias = (float *)pointers[5]};
    in.state = recurrent ? mom_arg_optional_f32(call, "state", a->state, "N R") : NULL;
    return in;
}

/* Reads the tensors from a tuple, which keeps them alive. */
static int read_tensors(PyObject *tuple, router_args *a) {
    return PyArg_ParseTuple(tuple, "OOOOOO:router", &a->tensors[0], &a->tensors[1], &a->tensors[2], &a->tensors[3],
                            &a->tensors[4], &a->tensors[5]);
}

static PyObject *router_forward(PyObject *module, PyObject *args) {
    router_args a;
    PyObject *tensors;
    if (!PyArg_ParseTuple(args, "OO!ipOKKK:router_forward", &a.inp, &PyTuple_Type, &tensors, &a.kind, &a.random, &a.state,
                          &a.seed, &a.counter, &a.site) ||
        !read_tensors(tensors, &a))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const router_inputs in = read_router(&call, &a);
    const int recurrent = !call.failed && mom_router_type_of(&in.spec)->recurrent;
    float *logits = mom_new_f32(&call, "N S");
    mom_router_saved saved = {.hidden = mom_new_f32(&call, "N R")};
    if (recurrent) {
        saved.gates = mom_new_f32(&call, "N G");
        saved.h_n = mom_new_f32(&call, "N R");
    } else {
        mom_new_none(&call);
        mom_new_none(&call);
    }
    const mom_router_inputs inputs = {.weights = &in.weights, .inp = in.inp, .state = in.state,
                                      .noise_key = in.noise_key, .N = mom_size(&call, 'N')};
    MOM_RUN(&call, call.status = mom_router_forward(&call.exec, logits, &saved, &inputs, &in.spec, &call.error));
    return mom_call_end(&call);
}

static PyObject *router_backward(PyObject *module, PyObject *args) {
    router_args a;
    PyObject *dlogits_o, *saved_o, *dstate_o, *hidden_o, *gates_o, *h_n_o, *tensors, *add_to;
    if (!PyArg_ParseTuple(args, "OOO!OO!ipOKKKO:router_backward", &dlogits_o, &a.inp, &PyTuple_Type, &saved_o, &dstate_o,
                          &PyTuple_Type, &tensors, &a.kind, &a.random, &a.state, &a.seed, &a.counter, &a.site, &add_to) ||
        !read_tensors(tensors, &a) ||
        !PyArg_ParseTuple(saved_o, "OOO:router_backward", &hidden_o, &gates_o, &h_n_o))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const router_inputs in = read_router(&call, &a);
    const int recurrent = !call.failed && mom_router_type_of(&in.spec)->recurrent;
    const float *dlogits = mom_arg_f32(&call, "dlogits", dlogits_o, "N S");
    mom_router_saved saved = {.hidden = (float *)mom_arg_f32(&call, "hidden", hidden_o, "N R")};
    const float *dstate_out = NULL;
    if (recurrent) {
        saved.gates = (float *)mom_arg_f32(&call, "gates", gates_o, "N G");
        saved.h_n = (float *)mom_arg_f32(&call, "h_n", h_n_o, "N R");
        dstate_out = mom_arg_optional_f32(&call, "dstate", dstate_o, "N R");
    }
    float *dinp = mom_new_sum(&call, "dinp", add_to, 0, 7, "N C"), *dstate_in = NULL;
    if (in.state)
        dstate_in = mom_new_f32(&call, "N R");
    else
        mom_new_none(&call);
    float *dtensors[6] = {NULL};
    for (int i = 0; i < 6; i++) {
        if (!recurrent && (i == 2 || i == 3))
            mom_new_none(&call);
        else
            dtensors[i] = mom_new_sum(&call, tensor_names[i], add_to, i + 1, 7, tensor_shapes[i]);
    }
    mom_router_tensors dweights = {.in_weight = dtensors[0], .in_bias = dtensors[1], .state_weight = dtensors[2],
                                   .state_bias = dtensors[3], .out_weight = dtensors[4], .out_bias = dtensors[5]};
    const mom_router_inputs inputs = {.weights = &in.weights, .inp = in.inp, .state = in.state,
                                      .noise_key = in.noise_key, .N = mom_size(&call, 'N')};
    const mom_router_gradients gradients = {dinp, dstate_in, &dweights};
    MOM_RUN(&call, call.status = mom_router_backward(&call.exec, &gradients, dlogits, dstate_out, &inputs, &saved, &in.spec,
                                                     &call.error));
    return mom_call_end(&call);
}

static PyObject *router_kinds(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored)) {
    PyObject *list = PyList_New(0); /* new reference */
    for (int kind = 0; list && kind < MOM_ROUTER_KINDS; kind++) {
        const mom_router_type *type = &mom_router_types[kind];
        PyObject *names = PyTuple_New((Py_ssize_t)type->param_count); /* new reference */
        for (size_t i = 0; names && i < type->param_count; i++) {
            PyObject *name = PyUnicode_FromString(type->params[i].name); /* new reference */
            if (!name)
                Py_CLEAR(names);
            else
                PyTuple_SET_ITEM(names, (Py_ssize_t)i, name); /* steals */
        }
        PyObject *row = names ? Py_BuildValue("(sNN)", type->name, PyBool_FromLong(type->recurrent), names) : NULL; /* steals */
        if (!row || PyList_Append(list, row) < 0)
            Py_CLEAR(list);
        Py_XDECREF(row);
    }
    return list;
}

/* ------------------------------------------------------------------ scores and choices */

static void check_temperature(mom_call *call, int softmax, float temperature) {
    if (softmax && !(temperature > 0.0f))
        mom_call_fail(call, PyExc_ValueError, "temperature: expected a positive number");
}

static PyObject *router_scores_forward(PyObject *module, PyObject *args) {
    PyObject *logits_o;
    int softmax;
    float temperature;
    if (!PyArg_ParseTuple(args, "Opf:router_scores_forward", &logits_o, &softmax, &temperature))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    check_temperature(&call, softmax, temperature);
    const float *logits = mom_arg_f32(&call, "logits", logits_o, "N S+");
    float *scores = mom_new_f32(&call, "N S");
    const size_t N = mom_size(&call, 'N'), S = mom_size(&call, 'S');
    MOM_RUN(&call, mom_router_scores_forward(&call.exec, scores, logits, softmax, temperature, N, S));
    return mom_call_end(&call);
}

static PyObject *router_scores_backward(PyObject *module, PyObject *args) {
    PyObject *dscores_o, *scores_o;
    int softmax;
    float temperature;
    if (!PyArg_ParseTuple(args, "OOpf:router_scores_backward", &dscores_o, &scores_o, &softmax, &temperature))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    check_temperature(&call, softmax, temperature);
    const float *scores = mom_arg_f32(&call, "scores", scores_o, "N S+");
    const float *dscores = mom_arg_f32(&call, "dscores", dscores_o, "N S");
    float *dlogits = mom_new_f32(&call, "N S");
    const size_t N = mom_size(&call, 'N'), S = mom_size(&call, 'S');
    MOM_RUN(&call, mom_router_scores_backward(&call.exec, dlogits, dscores, scores, softmax, temperature, N, S));
    return mom_call_end(&call);
}

static PyObject *topk_forward(PyObject *module, PyObject *args) {
    PyObject *scores_o;
    Py_ssize_t k;
    int renormalise;
    if (!PyArg_ParseTuple(args, "Onp:topk_forward", &scores_o, &k, &renormalise))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const float *scores = mom_arg_f32(&call, "scores", scores_o, "N S");
    const size_t N = mom_size(&call, 'N'), S = mom_size(&call, 'S');
    if (S >= INT16_MAX)
        mom_call_fail(&call, PyExc_ValueError, "scores: %zu choices, expected fewer than %d", S, INT16_MAX);
    if (k < 0 || (size_t)k > S)
        mom_call_fail(&call, PyExc_ValueError, "k: %zd, expected 0 to %zu", k, S);
    mom_set_size(&call, 'K', call.failed ? 0 : (size_t)k);
    int16_t *index = mom_new_i16(&call, "N K");
    float *weight = mom_new_f32(&call, "N K");
    const mom_topk_spec spec = {N, S, (size_t)k, renormalise};
    MOM_RUN(&call, mom_router_topk_forward(&call.exec, index, weight, scores, &spec));
    return mom_call_end(&call);
}

static PyObject *topk_backward(PyObject *module, PyObject *args) {
    PyObject *dweight_o, *index_o, *weight_o, *scores_o, *add_to;
    int renormalise;
    if (!PyArg_ParseTuple(args, "OOOOpO:topk_backward", &dweight_o, &index_o, &weight_o, &scores_o, &renormalise,
                          &add_to))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const float *scores = mom_arg_f32(&call, "scores", scores_o, "N S");
    const float *weight = mom_arg_f32(&call, "weight", weight_o, "N K");
    const float *dweight = mom_arg_f32(&call, "dweight", dweight_o, "N K");
    const int16_t *index = mom_arg_i16(&call, "index", index_o, "N K");
    const size_t N = mom_size(&call, 'N'), S = mom_size(&call, 'S'), K = mom_size(&call, 'K');
    for (size_t i = 0; !call.failed && i < N * K; i++)
        if ((size_t)index[i] >= S)
            mom_call_fail(&call, PyExc_ValueError, "index: value %d, expected [0, %zu)", (int)index[i], S);
    float *dscores = mom_new_sum(&call, "dscores", add_to, 0, 1, "N S");
    const mom_topk_spec spec = {N, S, K, renormalise};
    MOM_RUN(&call, mom_router_topk_backward(&call.exec, dscores, dweight, index, weight, scores, &spec));
    return mom_call_end(&call);
}

static PyObject *ste_forward(PyObject *module, PyObject *args) {
    PyObject *weight_o;
    if (!PyArg_ParseTuple(args, "O:ste_forward", &weight_o))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const float *weight = mom_arg_f32(&call, "weight", weight_o, "...");
    float *out = mom_new_f32(&call, "...");
    MOM_RUN(&call, mom_router_ste_forward(out, weight, mom_leading(&call)));
    return mom_call_end(&call);
}

static PyObject *ste_backward(PyObject *module, PyObject *args) {
    PyObject *dout_o;
    if (!PyArg_ParseTuple(args, "O:ste_backward", &dout_o))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const float *dout = mom_arg_f32(&call, "dout", dout_o, "...");
    float *out = mom_new_f32(&call, "...");
    MOM_RUN(&call, mom_router_ste_backward(out, dout, mom_leading(&call)));
    return mom_call_end(&call);
}

static PyMethodDef functions[] = {
    {"router_kinds", router_kinds, METH_NOARGS,
     "router_kinds($module, /)\n--\n\n(name, recurrent, names of parameters) of every kind, by number."},
    {"router_forward", router_forward, METH_VARARGS,
     "router_forward($module, inp, tensors, kind, random, state, seed, counter, site, /)\n--\n\n"
     "logits, hidden, gates, h_n"},
    {"router_backward", router_backward, METH_VARARGS,
     "router_backward($module, dlogits, inp, saved, dstate, tensors, kind, random, state, seed, counter, site, add_to, "
     "/)\n--\n\ndinp, dstate, and the gradients of the six tensors"},
    {"router_scores_forward", router_scores_forward, METH_VARARGS,
     "router_scores_forward($module, logits, softmax, temperature, /)\n--\n\nscores"},
    {"router_scores_backward", router_scores_backward, METH_VARARGS,
     "router_scores_backward($module, dscores, scores, softmax, temperature, /)\n--\n\ndlogits"},
    {"topk_forward", topk_forward, METH_VARARGS,
     "topk_forward($module, scores, k, renormalise, /)\n--\n\nindex, weight"},
    {"topk_backward", topk_backward, METH_VARARGS,
     "topk_backward($module, dweight, index, weight, scores, renormalise, add_to, /)\n--\n\ndscores"},
    {"ste_forward", ste_forward, METH_VARARGS, "ste_forward($module, weight, /)\n--\n\nsigns"},
    {"ste_backward", ste_backward, METH_VARARGS, "ste_backward($module, dout, /)\n--\n\nclamped gradient"},
    {NULL, NULL, 0, NULL}};

int mom_add_router_functions(PyObject *module) { return PyModule_AddFunctions(module, functions); }
