/* Routers on plain arrays: their cell, scores and choices. */
#include "bindings/operators.h"

#include <stddef.h>

#include "bindings/call.h"
#include "bindings/routes.h"
#include "ops/forced_choices.h"
#include "ops/router.h"

/* ------------------------------------------------------------------ router cell */

typedef struct {
    mom_router_spec spec;
    mom_router_tensors weights;
    mom_router_inputs inputs;
    int recurrent;
} router_call;

#define TENSORS "in_weight, in_bias, state_weight, state_bias, out_weight, out_bias"
#define TENSOR(name, shape) {#name, shape, offsetof(mom_router_tensors, name)}

/* D is the width of what the last map reads. */
static const struct {
    const char *name, *shape;
    size_t offset;
} tensors[6] = {TENSOR(in_weight, "G C"), TENSOR(in_bias, "G"),      TENSOR(state_weight, "G R"),
                TENSOR(state_bias, "G"),  TENSOR(out_weight, "S D"), TENSOR(out_bias, "S")};

/* Whether routers of the kind have tensor i. */
static int has_tensor(const router_call *r, int i) {
    const mom_router_type *type = mom_router_type_of(&r->spec);
    for (size_t p = 0; p < type->param_count; p++)
        if (type->params[p].offset == tensors[i].offset)
            return 1;
    return 0;
}

static float **tensor_of(mom_router_tensors *all, int i) {
    return (float **)(void *)((unsigned char *)all + tensors[i].offset);
}

/* The arguments that forward and backward share. The letter G stands for the rows of in_weight: gates * R for recurrent
 * routers, R for others. */
static void read_router(mom_call *call, router_call *r) {
    const size_t kind = mom_arg_size(call, "kind");
    *r = (router_call){.spec = {.random = mom_arg_flag(call, "random")}};
    if (kind >= MOM_ROUTER_KINDS)
        mom_call_fail(call, PyExc_ValueError, "kind: %zu is unknown", kind);
    if (!call->failed && !mom_router_types[kind].param_count)
        mom_call_fail(call, PyExc_ValueError, "kind: a hash router reads the ids of tokens, which only a model has");
    if (call->failed)
        return;
    mom_router_spec *spec = &r->spec;
    spec->kind = (mom_router_kind)kind;
    r->recurrent = mom_router_type_of(spec)->recurrent;
    spec->random &= r->recurrent;
    r->inputs = (mom_router_inputs){.weights = &r->weights, .inp = mom_arg_f32(call, "inp", "N C"),
                                    .noise_key = mom_arg_key(call), .N = mom_size(call, 'N')};
    const mom_arguments outer = mom_enter_tuple(call, "tensors", mom_arg(call, "tensors"), TENSORS);
    const mom_router_type *type = mom_router_type_of(spec);
    (void)mom_arg_f32(call, "out_bias", "S");
    if (type->hidden) /* the others' sizes depend on R */
        (void)(type->outputs ? mom_arg_f32(call, "in_weight", "R C") : mom_arg_f32(call, "out_weight", "S R"));
    spec->C = mom_size(call, 'C');
    spec->R = type->hidden ? mom_size(call, 'R') : 0;
    spec->S = mom_size(call, 'S');
    mom_set_size(call, 'D', type->hidden ? spec->R : spec->C);
    mom_set_size(call, 'G', r->recurrent ? mom_router_gates(spec) * spec->R : spec->R);
    /* The cast drops const because the same struct holds weights or gradients. Operators only read the weights. */
    for (int i = 0; i < 6; i++)
        if (has_tensor(r, i))
            *tensor_of(&r->weights, i) = (float *)mom_arg_f32(call, tensors[i].name, tensors[i].shape);
    call->arguments = outer;
    if (r->recurrent)
        r->inputs.state = mom_arg_optional_f32(call, "state", "N R");
}

/* A result, or None where there is none. */
static float *new_if(mom_call *call, int wanted, const char *shape) {
    if (wanted)
        return mom_new_f32(call, shape);
    mom_new_none(call);
    return NULL;
}

static void router_forward(mom_call *call) {
    router_call r;
    read_router(call, &r);
    float *logits = mom_new_f32(call, "N S");
    mom_router_saved saved = {.hidden = new_if(call, mom_router_type_of(&r.spec)->hidden, "N R")};
    saved.gates = new_if(call, r.recurrent, "N G");
    saved.h_n = new_if(call, r.recurrent, "N R");
    MOM_RUN(call, call->status = mom_router_forward(&call->exec, logits, &saved, &r.inputs, &r.spec, &call->error));
}

static void router_backward(mom_call *call) {
    router_call r;
    read_router(call, &r);
    const float *dlogits = mom_arg_f32(call, "dlogits", "N S"), *dstate_out = NULL;
    const mom_arguments outer = mom_enter_tuple(call, "saved", mom_arg(call, "saved"), "hidden, gates, h_n");
    mom_router_saved saved = {0};
    if (mom_router_type_of(&r.spec)->hidden)
        saved.hidden = (float *)mom_arg_f32(call, "hidden", "N R");
    if (r.recurrent) {
        saved.gates = (float *)mom_arg_f32(call, "gates", "N G");
        saved.h_n = (float *)mom_arg_f32(call, "h_n", "N R");
    }
    call->arguments = outer;
    if (r.recurrent)
        dstate_out = mom_arg_optional_f32(call, "dstate", "N R");
    float *dinp = mom_new_sum(call, "dinp", 0, 7, "N C"), *dstate_in = new_if(call, r.inputs.state != NULL, "N R");
    mom_router_tensors dweights = {0};
    for (int i = 0; i < 6; i++) {
        if (has_tensor(&r, i))
            *tensor_of(&dweights, i) = mom_new_sum(call, tensors[i].name, i + 1, 7, tensors[i].shape);
        else
            mom_new_none(call);
    }
    const mom_router_gradients gradients = {dinp, dstate_in, &dweights};
    MOM_RUN(call, call->status = mom_router_backward(&call->exec, &gradients, dlogits, dstate_out, &r.inputs, &saved,
                                                     &r.spec, &call->error));
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

static void router_scores_forward(mom_call *call) {
    const int softmax = mom_arg_flag(call, "softmax");
    const float temperature = mom_arg_float(call, "temperature");
    check_temperature(call, softmax, temperature);
    const float *logits = mom_arg_f32(call, "logits", "N S+");
    float *scores = mom_new_f32(call, "N S");
    const size_t N = mom_size(call, 'N'), S = mom_size(call, 'S');
    MOM_RUN(call, mom_router_scores_forward(&call->exec, scores, logits, softmax, temperature, N, S));
}

static void router_scores_backward(mom_call *call) {
    const int softmax = mom_arg_flag(call, "softmax");
    const float temperature = mom_arg_float(call, "temperature");
    check_temperature(call, softmax, temperature);
    const float *scores = mom_arg_f32(call, "scores", "N S+");
    const float *dscores = mom_arg_f32(call, "dscores", "N S");
    float *dlogits = mom_new_f32(call, "N S");
    const size_t N = mom_size(call, 'N'), S = mom_size(call, 'S');
    MOM_RUN(call, mom_router_scores_backward(&call->exec, dlogits, dscores, scores, softmax, temperature, N, S));
}

static void topk_forward(mom_call *call) {
    const size_t k = mom_arg_size(call, "k");
    const int renormalise = mom_arg_flag(call, "renormalise");
    const float *scores = mom_arg_f32(call, "scores", "N S");
    const size_t N = mom_size(call, 'N'), S = mom_size(call, 'S');
    if (S >= INT16_MAX)
        mom_call_fail(call, PyExc_ValueError, "scores: %zu choices, expected fewer than %d", S, INT16_MAX);
    if (k > S)
        mom_call_fail(call, PyExc_ValueError, "k: %zu, expected 0 to %zu", k, S);
    mom_set_size(call, 'K', k);
    int16_t *index = mom_new_i16(call, "N K");
    float *weight = mom_new_f32(call, "N K");
    const mom_topk_spec spec = {N, S, k, renormalise};
    MOM_RUN(call, mom_router_topk_forward(&call->exec, index, weight, scores, &spec));
}

static void topk_backward(mom_call *call) {
    const int renormalise = mom_arg_flag(call, "renormalise");
    const float *scores = mom_arg_f32(call, "scores", "N S");
    const float *weight = mom_arg_f32(call, "weight", "N K");
    const float *dweight = mom_arg_f32(call, "dweight", "N K");
    const int16_t *index = mom_arg_i16(call, "index", "N K");
    const size_t N = mom_size(call, 'N'), S = mom_size(call, 'S'), K = mom_size(call, 'K');
    for (size_t i = 0; !call->failed && i < N * K; i++)
        if ((size_t)index[i] >= S)
            mom_call_fail(call, PyExc_ValueError, "index: value %d, expected [0, %zu)", (int)index[i], S);
    float *dscores = mom_new_sum(call, "dscores", 0, 1, "N S");
    const mom_topk_spec spec = {N, S, K, renormalise};
    MOM_RUN(call, mom_router_topk_backward(&call->exec, dscores, dweight, index, weight, scores, &spec));
}

static void forced_choices_forward(mom_call *call) {
    const size_t k = mom_arg_size(call, "k"), M = mom_arg_size(call, "num_modules");
    mom_forced_choices in = {.scores = mom_arg_f32(call, "scores", "N S"), .outputs = mom_arg_f32(call, "outputs", "N S"),
                             .M = M, .scored = mom_arg_flag(call, "scored")};
    const size_t N = mom_size(call, 'N'), S = mom_size(call, 'S');
    in.topk = (mom_topk_spec){N, S, k, mom_arg_flag(call, "renormalise")};
    if (S >= INT16_MAX)
        mom_call_fail(call, PyExc_ValueError, "scores: %zu choices, expected fewer than %d", S, INT16_MAX);
    if (k > S)
        mom_call_fail(call, PyExc_ValueError, "k: %zu, expected 0 to %zu", k, S);
    if (M > S)
        mom_call_fail(call, PyExc_ValueError, "num_modules: %zu, expected 0 to %zu", M, S);
    mom_set_size(call, 'K', k);
    if (mom_arg_given(call, "forced"))
        in.forced = mom_arg_choices(call, "forced", "N K");
    if (!call->failed && in.forced)
        call->failed = !mom_check_forced("forced", in.forced, &in.topk, M);
    int16_t *index = mom_new_i16(call, "N K");
    float *weight = mom_new_f32(call, "N K");
    MOM_RUN(call, call->status = mom_forced_choices_forward(&call->exec, index, weight, &in, &call->error));
}

/* The backward of top-k, which leaves entries without a score alone. */
static void forced_choices_backward(mom_call *call) {
    const int renormalise = mom_arg_flag(call, "renormalise");
    const float *scores = mom_arg_f32(call, "scores", "N S");
    const float *weight = mom_arg_f32(call, "weight", "N K");
    const float *dweight = mom_arg_f32(call, "dweight", "N K");
    const int16_t *index = mom_arg_choices(call, "index", "N K");
    const mom_topk_spec spec = {mom_size(call, 'N'), mom_size(call, 'S'), mom_size(call, 'K'), renormalise};
    float *dscores = mom_new_sum(call, "dscores", 0, 1, "N S");
    MOM_RUN(call, mom_router_topk_backward(&call->exec, dscores, dweight, index, weight, scores, &spec));
}

static void ste_forward(mom_call *call) {
    const float *weight = mom_arg_f32(call, "weight", "...");
    float *out = mom_new_f32(call, "...");
    MOM_RUN(call, mom_router_ste_forward(&call->exec, out, weight, mom_leading(call)));
}

static void ste_backward(mom_call *call) {
    const float *dout = mom_arg_f32(call, "dout", "...");
    float *out = mom_new_f32(call, "...");
    MOM_RUN(call, mom_router_ste_backward(&call->exec, out, dout, mom_leading(call)));
}

static PyMethodDef functions[] = {
    {"router_kinds", router_kinds, METH_NOARGS,
     "router_kinds($module, /)\n--\n\n(name, recurrent, names of parameters) of every kind, by number."},
    {NULL, NULL, 0, NULL}};

static mom_operator operators[] = {
    MOM_OPERATOR(router_forward, "inp, tensors, kind, random, state, seed, counter, site",
                 "logits, hidden, gates, h_n"),
    MOM_OPERATOR(router_backward,
                 "dlogits, inp, saved, dstate, tensors, kind, random, state, seed, counter, site, add_to",
                 "dinp, dstate, and the gradients of the six tensors"),
    MOM_OPERATOR(router_scores_forward, "logits, softmax, temperature", "scores"),
    MOM_OPERATOR(router_scores_backward, "dscores, scores, softmax, temperature", "dlogits"),
    MOM_OPERATOR(topk_forward, "scores, k, renormalise", "index, weight"),
    MOM_OPERATOR(topk_backward, "dweight, index, weight, scores, renormalise, add_to", "dscores"),
    MOM_OPERATOR(forced_choices_forward, "scores, outputs, forced, k, num_modules, renormalise, scored", "index, weight"),
    MOM_OPERATOR(forced_choices_backward, "dweight, index, weight, scores, renormalise, add_to", "dscores"),
    MOM_OPERATOR(ste_forward, "weight", "signs"),
    MOM_OPERATOR(ste_backward, "dout", "clamped gradient"),
};

int mom_add_router_functions(PyObject *module) {
    if (mom_add_operators(module, operators, sizeof operators / sizeof *operators) < 0)
        return -1;
    return PyModule_AddFunctions(module, functions);
}
