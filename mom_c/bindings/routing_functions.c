/* Routers, routing plans, routed layers and the balance loss on plain arrays. Arguments are positional and complete;
 * mom.ops gives them names and defaults. Modules' tensors come as one array with the module first, e.g. weights
 * (M, In, Out). Shapes: see the operator's header. */
#include "bindings/op_functions.h"

#include <string.h>

#include "base/rng.h"
#include "bindings/call.h"
#include "bindings/plan_type.h"
#include "ops/balance_loss.h"
#include "ops/routed_linear.h"
#include "ops/router.h"

static const float *optional_f32(mom_call *call, const char *name, PyObject *value, const char *shape) {
    return value == Py_None ? NULL : mom_arg_f32(call, name, value, shape);
}

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

/* G is here the number of rows of in_weight: R for naive, gates * R else. */
static router_inputs read_router(mom_call *call, const router_args *a) {
    router_inputs in = {.noise_key = mom_rng_key(a->seed, a->counter, a->site)};
    if (a->kind < MOM_ROUTER_NAIVE || a->kind > MOM_ROUTER_GRU_DEV)
        mom_call_fail(call, PyExc_ValueError, "kind: %d is unknown", a->kind);
    const int naive = a->kind == MOM_ROUTER_NAIVE;
    in.inp = mom_arg_f32(call, "inp", a->inp, "N C");
    const float *out_weight = mom_arg_f32(call, tensor_names[4], a->tensors[4], tensor_shapes[4]);
    in.spec = (mom_router_spec){.kind = (mom_router_kind)a->kind, .random = a->random && !naive,
                                .C = mom_size(call, 'C'), .R = mom_size(call, 'R'), .S = mom_size(call, 'S')};
    mom_set_size(call, 'G', naive ? in.spec.R : mom_router_gates(&in.spec) * in.spec.R);
    const float *pointers[6] = {NULL};
    for (int i = 0; i < 6; i++) {
        const int of_state = i == 2 || i == 3;
        if (naive && of_state)
            continue;
        pointers[i] = i == 4 ? out_weight : mom_arg_f32(call, tensor_names[i], a->tensors[i], tensor_shapes[i]);
    }
    /* The struct serves weights and gradients; operators do not write through the weights'. */
    in.weights = (mom_router_tensors){.in_weight = (float *)pointers[0], .in_bias = (float *)pointers[1],
                                      .state_weight = (float *)pointers[2], .state_bias = (float *)pointers[3],
                                      .out_weight = (float *)pointers[4], .out_bias = (float *)pointers[5]};
    in.state = naive ? NULL : optional_f32(call, "state", a->state, "N R");
    return in;
}

static PyObject *router_forward(PyObject *module, PyObject *args) {
    router_args a;
    if (!PyArg_ParseTuple(args, "O(OOOOOO)ipOKKK:router_forward", &a.inp, &a.tensors[0], &a.tensors[1], &a.tensors[2],
                          &a.tensors[3], &a.tensors[4], &a.tensors[5], &a.kind, &a.random, &a.state, &a.seed,
                          &a.counter, &a.site))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const router_inputs in = read_router(&call, &a);
    const int naive = in.spec.kind == MOM_ROUTER_NAIVE;
    float *logits = mom_new_f32(&call, "N S");
    mom_router_saved saved = {.hidden = mom_new_f32(&call, "N R")};
    if (naive) {
        mom_new_none(&call);
        mom_new_none(&call);
    } else {
        saved.gates = mom_new_f32(&call, "N G");
        saved.h_n = mom_new_f32(&call, "N R");
    }
    const size_t N = mom_size(&call, 'N');
    MOM_RUN(&call, call.status = mom_router_forward(&call.exec, logits, &saved, in.inp, in.state, &in.weights,
                                                    in.noise_key, &in.spec, N, &call.error));
    return mom_call_end(&call);
}

static PyObject *router_backward(PyObject *module, PyObject *args) {
    router_args a;
    PyObject *dlogits_o, *dstate_o, *hidden_o, *gates_o, *h_n_o, *add_to;
    if (!PyArg_ParseTuple(args, "OO(OOO)O(OOOOOO)ipOKKKO:router_backward", &dlogits_o, &a.inp, &hidden_o, &gates_o,
                          &h_n_o, &dstate_o, &a.tensors[0], &a.tensors[1], &a.tensors[2], &a.tensors[3], &a.tensors[4],
                          &a.tensors[5], &a.kind, &a.random, &a.state, &a.seed, &a.counter, &a.site, &add_to))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const router_inputs in = read_router(&call, &a);
    const int naive = in.spec.kind == MOM_ROUTER_NAIVE;
    const float *dlogits = mom_arg_f32(&call, "dlogits", dlogits_o, "N S");
    mom_router_saved saved = {.hidden = (float *)mom_arg_f32(&call, "hidden", hidden_o, "N R")};
    const float *dstate_out = NULL;
    if (!naive) {
        saved.gates = (float *)mom_arg_f32(&call, "gates", gates_o, "N G");
        saved.h_n = (float *)mom_arg_f32(&call, "h_n", h_n_o, "N R");
        dstate_out = optional_f32(&call, "dstate", dstate_o, "N R");
    }
    float *dinp = mom_new_sum(&call, "dinp", add_to, 0, 7, "N C"), *dstate_in = NULL;
    if (in.state)
        dstate_in = mom_new_f32(&call, "N R");
    else
        mom_new_none(&call);
    float *dtensors[6] = {NULL};
    for (int i = 0; i < 6; i++) {
        if (naive && (i == 2 || i == 3))
            mom_new_none(&call);
        else
            dtensors[i] = mom_new_sum(&call, tensor_names[i], add_to, i + 1, 7, tensor_shapes[i]);
    }
    mom_router_tensors dweights = {.in_weight = dtensors[0], .in_bias = dtensors[1], .state_weight = dtensors[2],
                                   .state_bias = dtensors[3], .out_weight = dtensors[4], .out_bias = dtensors[5]};
    const size_t N = mom_size(&call, 'N');
    MOM_RUN(&call, call.status = mom_router_backward(&call.exec, dinp, dstate_in, &dweights, dlogits, dstate_out,
                                                     in.inp, in.state, &saved, &in.weights, in.noise_key, &in.spec, N,
                                                     &call.error));
    return mom_call_end(&call);
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
    const float *logits = mom_arg_f32(&call, "logits", logits_o, "N S");
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
    const float *scores = mom_arg_f32(&call, "scores", scores_o, "N S");
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
    MOM_RUN(&call, mom_router_topk_forward(&call.exec, index, weight, scores, renormalise, N, S, (size_t)k));
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
    MOM_RUN(&call, mom_router_topk_backward(&call.exec, dscores, dweight, index, weight, scores, renormalise, N, S, K));
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

/* Pointers per module as the operators want them. */
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
    const float *biases = optional_f32(&call, "biases", biases_o, "M O");
    const float *inp = mom_arg_f32(&call, "inp", inp_o, gathered ? "N I" : "P I");
    float *out = mom_new_f32(&call, "P O");
    const size_t In = mom_size(&call, 'I'), Out = mom_size(&call, 'O');
    const float *const *weight = modules(&call, weights, In * Out), *const *bias = modules(&call, biases, Out);
    MOM_RUN(&call, call.status = mom_routed_linear_forward(&call.exec, out, inp, gathered, weight, bias, plan, In, Out,
                                                           &call.error));
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
    const float *weights = mom_arg_f32(&call, "weights", weights_o, "M I O");
    const float *inp = mom_arg_f32(&call, "inp", inp_o, gathered ? "N I" : "P I");
    const float *dout = mom_arg_f32(&call, "dout", dout_o, dout_gathered ? "N O" : "P O");
    const float *scale = optional_f32(&call, "slot_scale", scale_o, "P");
    float *dinp = mom_new_f32(&call, "P I");
    float *dweights = mom_new_sum(&call, "dweights", add_to, 0, 2, "M I O");
    float *dbiases = mom_new_sum(&call, "dbiases", add_to, 1, 2, "M O");
    const size_t In = mom_size(&call, 'I'), Out = mom_size(&call, 'O');
    const float *const *weight = modules(&call, weights, In * Out);
    float *const *dweight = mom_module_pointers(&call, dweights, In * Out);
    float *const *dbias = mom_module_pointers(&call, dbiases, Out);
    MOM_RUN(&call, {
        call.status = mom_routed_linear_backward_input(&call.exec, dinp, dout, dout_gathered, weight, plan, In, Out,
                                                       &call.error);
        if (call.status == MOM_OK)
            call.status = mom_routed_linear_backward_weight(&call.exec, dweight, dbias, inp, gathered, dout,
                                                            dout_gathered, scale, plan, In, Out, &call.error);
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
    const float *weight = optional_f32(&call, "weight", weight_o, "N K");
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
    const float *weight = optional_f32(&call, "weight", weight_o, "N K");
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
    const float *weight = optional_f32(&call, "weight", weight_o, "N K");
    float *dweight = mom_new_sum(&call, "dweight", add_to, 0, 1, "N K");
    PyObject *copied = call.failed ? NULL : PyTuple_Pack(1, dh_o); /* new reference */
    float *dh = dh_in ? mom_new_sum(&call, "dh", copied ? copied : Py_None, 0, 1, "P I") : NULL;
    Py_XDECREF(copied);
    const size_t In = mom_size(&call, 'I'), Out = mom_size(&call, 'O');
    const float *const *bias = modules(&call, biases, Out);
    MOM_RUN(&call, mom_routed_score_backward(&call.exec, dweight, dh, h, gathered, dout, bias, weight, plan, In, Out));
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
    const float *inp = mom_arg_f32(&call, "inp", inp_o, "N C");
    const float *mean = mom_arg_f32(&call, "mean", mean_o, "N"), *rstd = mom_arg_f32(&call, "rstd", rstd_o, "N");
    const float *weights = mom_arg_f32(&call, "weights", weights_o, "M C");
    const float *biases = mom_arg_f32(&call, "biases", biases_o, "M C");
    float *out = mom_new_f32(&call, "P C");
    const size_t C = mom_size(&call, 'C');
    const float *const *weight = modules(&call, weights, C), *const *bias = modules(&call, biases, C);
    MOM_RUN(&call, mom_routed_layernorm_forward(&call.exec, out, inp, mean, rstd, weight, bias, plan, C));
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
    const float *inp = mom_arg_f32(&call, "inp", inp_o, "N C"), *dout = mom_arg_f32(&call, "dout", dout_o, "P C");
    const float *mean = mom_arg_f32(&call, "mean", mean_o, "N"), *rstd = mom_arg_f32(&call, "rstd", rstd_o, "N");
    const float *weights = mom_arg_f32(&call, "weights", weights_o, "M C");
    float *dinp = mom_new_sum(&call, "dinp", add_to, 0, 3, "N C");
    float *dweights = mom_new_sum(&call, "dweights", add_to, 1, 3, "M C");
    float *dbiases = mom_new_sum(&call, "dbiases", add_to, 2, 3, "M C");
    const size_t C = mom_size(&call, 'C'), slots = mom_size(&call, 'P');
    const float *const *weight = modules(&call, weights, C);
    float *const *dweight = mom_module_pointers(&call, dweights, C);
    float *const *dbias = mom_module_pointers(&call, dbiases, C);
    float *scratch = call.failed ? NULL : mom_arena_alloc(&call.workspace, slots * C, sizeof *scratch, &call.error);
    if (!scratch)
        mom_call_fail(&call, PyExc_MemoryError, "%s", call.error.text);
    else
        memcpy(scratch, dout, slots * C * sizeof *scratch);
    MOM_RUN(&call, call.status = mom_routed_layernorm_backward(&call.exec, dinp, dweight, dbias, scratch, inp, mean,
                                                               rstd, weight, plan, C, &call.error));
    return mom_call_end(&call);
}

/* ------------------------------------------------------------------ balance loss */

static PyObject *balance_counts(PyObject *module, PyObject *args) {
    PyObject *scores_o, *mask_o;
    int softmax;
    if (!PyArg_ParseTuple(args, "OOp:balance_counts", &scores_o, &mask_o, &softmax))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const float *scores = mom_arg_f32(&call, "scores", scores_o, "N S");
    const uint8_t *mask = mom_arg_mask(&call, "mask", mask_o, "N");
    const size_t N = mom_size(&call, 'N'), S = mom_size(&call, 'S');
    double *counts = mom_new_f64(&call, "S"), *prob_sums = mom_new_f64(&call, "S"), tokens = 0.0;
    for (size_t i = 0; i < S && !call.failed; i++)
        counts[i] = prob_sums[i] = 0.0;
    MOM_RUN(&call, call.status = mom_balance_accumulate(&call.exec, counts, prob_sums, &tokens, scores, mask, softmax,
                                                        N, S, &call.error));
    mom_new_number(&call, tokens);
    return mom_call_end(&call);
}

static PyObject *balance_loss(PyObject *module, PyObject *args) {
    PyObject *counts_o, *prob_sums_o;
    double count_tokens, tokens;
    if (!PyArg_ParseTuple(args, "OdOd:balance_loss", &counts_o, &count_tokens, &prob_sums_o, &tokens))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const double *counts = mom_arg_f64(&call, "counts", counts_o, "S");
    const double *prob_sums = mom_arg_f64(&call, "prob_sums", prob_sums_o, "S");
    mom_new_number(&call, call.failed ? 0.0
                                      : mom_balance_loss(counts, count_tokens, prob_sums, tokens, mom_size(&call, 'S')));
    return mom_call_end(&call);
}

static PyObject *balance_backward(PyObject *module, PyObject *args) {
    PyObject *scores_o, *mask_o, *counts_o, *add_to;
    double count_tokens, tokens;
    float scale;
    int softmax;
    if (!PyArg_ParseTuple(args, "OOOddfpO:balance_backward", &scores_o, &mask_o, &counts_o, &count_tokens, &tokens,
                          &scale, &softmax, &add_to))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const float *scores = mom_arg_f32(&call, "scores", scores_o, "N S");
    const uint8_t *mask = mom_arg_mask(&call, "mask", mask_o, "N");
    const double *counts = mom_arg_f64(&call, "counts", counts_o, "S");
    float *dscores = mom_new_sum(&call, "dscores", add_to, 0, 1, "N S");
    const size_t N = mom_size(&call, 'N'), S = mom_size(&call, 'S');
    MOM_RUN(&call, mom_balance_backward(&call.exec, dscores, scores, mask, counts, count_tokens, tokens, scale, softmax,
                                        N, S));
    return mom_call_end(&call);
}

static PyMethodDef functions[] = {
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
    {"balance_counts", balance_counts, METH_VARARGS,
     "balance_counts($module, scores, mask, softmax, /)\n--\n\ncounts, prob_sums, tokens"},
    {"balance_loss", balance_loss, METH_VARARGS,
     "balance_loss($module, counts, count_tokens, prob_sums, tokens, /)\n--\n\nloss"},
    {"balance_backward", balance_backward, METH_VARARGS,
     "balance_backward($module, scores, mask, counts, count_tokens, tokens, scale, softmax, add_to, /)\n--\n\ndscores"},
    {NULL, NULL, 0, NULL}};

int mom_add_routing_functions(PyObject *module) { return PyModule_AddFunctions(module, functions); }
