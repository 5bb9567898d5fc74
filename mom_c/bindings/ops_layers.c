/* Layer normalisation, GELU, dropout, random numbers and embeddings on plain arrays. */
#include "bindings/operators.h"

#include <math.h>

#include "bindings/call.h"
#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/gelu.h"
#include "ops/layernorm.h"

/* ------------------------------------------------------------------ layer normalisation */

static void check_eps(mom_call *call, float eps) {
    if (!(eps >= 0.0f && isfinite(eps)))
        mom_call_fail(call, PyExc_ValueError, "eps: expected a non-negative finite number");
}

static PyObject *layernorm_forward(PyObject *module, PyObject *args) {
    PyObject *inp_o, *weight_o, *bias_o;
    float eps;
    if (!PyArg_ParseTuple(args, "OOOf:layernorm_forward", &inp_o, &weight_o, &bias_o, &eps))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    check_eps(&call, eps);
    const float *inp = mom_arg_f32(&call, "inp", inp_o, "... C+");
    const float *weight = mom_arg_f32(&call, "weight", weight_o, "C");
    const float *bias = mom_arg_f32(&call, "bias", bias_o, "C");
    float *out = mom_new_f32(&call, "... C");
    float *mean = mom_new_f32(&call, "...");
    float *rstd = mom_new_f32(&call, "...");
    const size_t N = mom_leading(&call), C = mom_size(&call, 'C');
    const mom_layernorm norm = {weight, bias, eps};
    MOM_RUN(&call, mom_layernorm_forward(&call.exec, out, mean, rstd, inp, &norm, N, C));
    return mom_call_end(&call);
}

static PyObject *layernorm_stats(PyObject *module, PyObject *args) {
    PyObject *inp_o;
    float eps;
    if (!PyArg_ParseTuple(args, "Of:layernorm_stats", &inp_o, &eps))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    check_eps(&call, eps);
    const float *inp = mom_arg_f32(&call, "inp", inp_o, "... C+");
    float *mean = mom_new_f32(&call, "...");
    float *rstd = mom_new_f32(&call, "...");
    const size_t N = mom_leading(&call), C = mom_size(&call, 'C');
    MOM_RUN(&call, mom_layernorm_stats(&call.exec, mean, rstd, inp, eps, N, C));
    return mom_call_end(&call);
}

static PyObject *layernorm_backward(PyObject *module, PyObject *args) {
    PyObject *dout_o, *inp_o, *weight_o, *mean_o, *rstd_o, *add_to;
    if (!PyArg_ParseTuple(args, "OOOOOO:layernorm_backward", &dout_o, &inp_o, &weight_o, &mean_o, &rstd_o, &add_to))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const float *inp = mom_arg_f32(&call, "inp", inp_o, "... C+");
    const float *dout = mom_arg_f32(&call, "dout", dout_o, "... C");
    const float *weight = mom_arg_f32(&call, "weight", weight_o, "C");
    const float *mean = mom_arg_f32(&call, "mean", mean_o, "...");
    const float *rstd = mom_arg_f32(&call, "rstd", rstd_o, "...");
    float *dinp = mom_new_sum(&call, "dinp", add_to, 0, 3, "... C");
    float *dweight = mom_new_sum(&call, "dweight", add_to, 1, 3, "C");
    float *dbias = mom_new_sum(&call, "dbias", add_to, 2, 3, "C");
    const mom_normed_rows rows = {inp, mean, rstd, mom_leading(&call), mom_size(&call, 'C')};
    MOM_RUN(&call, call.status = mom_layernorm_backward(&call.exec, dinp, dweight, dbias, dout, weight, &rows, &call.error));
    return mom_call_end(&call);
}

/* ------------------------------------------------------------------ GELU */

static PyObject *gelu_forward(PyObject *module, PyObject *args) {
    PyObject *inp_o;
    if (!PyArg_ParseTuple(args, "O:gelu_forward", &inp_o))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const float *inp = mom_arg_f32(&call, "inp", inp_o, "...");
    float *out = mom_new_f32(&call, "...");
    MOM_RUN(&call, mom_gelu_forward(&call.exec, out, inp, mom_leading(&call)));
    return mom_call_end(&call);
}

static PyObject *gelu_backward(PyObject *module, PyObject *args) {
    PyObject *dout_o, *inp_o;
    if (!PyArg_ParseTuple(args, "OO:gelu_backward", &dout_o, &inp_o))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const float *inp = mom_arg_f32(&call, "inp", inp_o, "...");
    const float *dout = mom_arg_f32(&call, "dout", dout_o, "...");
    float *dinp = mom_new_f32(&call, "...");
    MOM_RUN(&call, mom_gelu_backward(&call.exec, dinp, dout, inp, mom_leading(&call)));
    return mom_call_end(&call);
}

/* ------------------------------------------------------------------ dropout and random numbers */

static PyObject *dropout(PyObject *module, PyObject *args) {
    PyObject *inp_o;
    mom_dropout_args d;
    if (!PyArg_ParseTuple(args, "OfKKK:dropout", &inp_o, &d.p, &d.seed, &d.counter, &d.site))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const mom_dropout how = mom_arg_dropout(&call, d);
    const float *inp = mom_arg_f32(&call, "inp", inp_o, "...");
    float *out = mom_new_f32(&call, "...");
    MOM_RUN(&call, mom_dropout_apply(&call.exec, out, inp, how, mom_leading(&call)));
    return mom_call_end(&call);
}

static PyObject *random_uniform(PyObject *module, PyObject *args) {
    unsigned long long seed, counter, site;
    Py_ssize_t n;
    if (!PyArg_ParseTuple(args, "KKKn:random_uniform", &seed, &counter, &site, &n))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    if (n < 0)
        mom_call_fail(&call, PyExc_ValueError, "n: %zd is negative", n);
    mom_set_size(&call, 'N', n < 0 ? 0 : (size_t)n);
    float *out = mom_new_f32(&call, "N");
    const uint64_t key = mom_rng_key(seed, counter, site);
    MOM_RUN(&call, for (size_t i = 0; i < (size_t)n; i++) out[i] = mom_rng_uniform(key, i));
    return mom_call_end(&call);
}

/* ------------------------------------------------------------------ embedding */

static PyObject *embedding_forward(PyObject *module, PyObject *args) {
    PyObject *tokens_o, *positions_o, *wte_o, *wpe_o;
    mom_dropout_args d;
    if (!PyArg_ParseTuple(args, "OOOOfKKK:embedding_forward", &tokens_o, &positions_o, &wte_o, &wpe_o, &d.p, &d.seed,
                          &d.counter, &d.site))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const mom_dropout how = mom_arg_dropout(&call, d);
    const float *wte = mom_arg_f32(&call, "wte", wte_o, "V C");
    const float *wpe = mom_arg_f32(&call, "wpe", wpe_o, "P C");
    const int32_t *tokens = mom_arg_i32(&call, "tokens", tokens_o, "...", 0, (int64_t)mom_size(&call, 'V'), 0);
    const int32_t *positions =
        mom_arg_i32(&call, "positions", positions_o, "...", 0, (int64_t)mom_size(&call, 'P'), 0);
    float *out = mom_new_f32(&call, "... C");
    const size_t N = mom_leading(&call), C = mom_size(&call, 'C');
    MOM_RUN(&call, mom_embedding_forward(&call.exec, out, tokens, positions, wte, wpe, how, N, C));
    return mom_call_end(&call);
}

static PyObject *embedding_backward(PyObject *module, PyObject *args) {
    PyObject *dout_o, *tokens_o, *positions_o, *add_to;
    Py_ssize_t V, P;
    mom_dropout_args d;
    if (!PyArg_ParseTuple(args, "OOOnnfKKKO:embedding_backward", &dout_o, &tokens_o, &positions_o, &V, &P, &d.p,
                          &d.seed, &d.counter, &d.site, &add_to))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    if (V < 0 || P < 0)
        mom_call_fail(&call, PyExc_ValueError, "%s: %zd is negative", V < 0 ? "vocab_size" : "n_positions",
                      V < 0 ? V : P);
    mom_set_size(&call, 'V', V < 0 ? 0 : (size_t)V);
    mom_set_size(&call, 'P', P < 0 ? 0 : (size_t)P);
    const mom_dropout how = mom_arg_dropout(&call, d);
    const float *dout = mom_arg_f32(&call, "dout", dout_o, "... C");
    const int32_t *tokens = mom_arg_i32(&call, "tokens", tokens_o, "...", 0, V, 0);
    const int32_t *positions = mom_arg_i32(&call, "positions", positions_o, "...", 0, P, 0);
    float *dwte = mom_new_sum(&call, "dwte", add_to, 0, 2, "V C");
    float *dwpe = mom_new_sum(&call, "dwpe", add_to, 1, 2, "P C");
    const size_t N = mom_leading(&call), C = mom_size(&call, 'C');
    MOM_RUN(&call, mom_embedding_backward(&call.exec, dwte, dwpe, dout, tokens, positions, how, N, C));
    return mom_call_end(&call);
}

static PyMethodDef functions[] = {
    {"layernorm_forward", layernorm_forward, METH_VARARGS,
     "layernorm_forward($module, inp, weight, bias, eps, /)\n--\n\nout, mean, rstd"},
    {"layernorm_stats", layernorm_stats, METH_VARARGS, "layernorm_stats($module, inp, eps, /)\n--\n\nmean, rstd"},
    {"layernorm_backward", layernorm_backward, METH_VARARGS,
     "layernorm_backward($module, dout, inp, weight, mean, rstd, add_to, /)\n--\n\ndinp, dweight, dbias"},
    {"gelu_forward", gelu_forward, METH_VARARGS, "gelu_forward($module, inp, /)\n--\n\nout"},
    {"gelu_backward", gelu_backward, METH_VARARGS, "gelu_backward($module, dout, inp, /)\n--\n\ndinp"},
    {"dropout", dropout, METH_VARARGS, "dropout($module, inp, p, seed, counter, site, /)\n--\n\nout"},
    {"random_uniform", random_uniform, METH_VARARGS,
     "random_uniform($module, seed, counter, site, n, /)\n--\n\nfloat32 draws in [0, 1)"},
    {"embedding_forward", embedding_forward, METH_VARARGS,
     "embedding_forward($module, tokens, positions, wte, wpe, p, seed, counter, site, /)\n--\n\nout"},
    {"embedding_backward", embedding_backward, METH_VARARGS,
     "embedding_backward($module, dout, tokens, positions, vocab_size, n_positions, p, seed, counter, site, add_to, "
     "/)\n--\n\ndwte, dwpe"},
    {NULL, NULL, 0, NULL}};

int mom_add_layer_functions(PyObject *module) { return PyModule_AddFunctions(module, functions); }
