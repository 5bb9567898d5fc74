/* Layers, losses, matrix products and the optimizer on plain arrays. Arguments are positional and complete; mom.ops
 * gives them names and defaults. Inputs are never written: what an operator adds to is copied first (`add_to`).
 * Shapes: see the operator's header; the letters here are the same. */
#include "bindings/op_functions.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "bindings/call.h"
#include "ops/adamw.h"
#include "ops/attention.h"
#include "ops/cross_entropy.h"
#include "ops/embedding.h"
#include "ops/gelu.h"
#include "ops/layernorm.h"
#include "ops/linear.h"
#include "ops/machine.h"

#define NO_LIMIT ((int64_t)INT32_MAX + 1)

typedef struct {
    float p;
    unsigned long long seed, counter, site;
} dropout_args;

static mom_dropout make_dropout(mom_call *call, dropout_args d) {
    if (!(d.p >= 0.0f && d.p < 1.0f)) {
        PyObject *p = PyFloat_FromDouble((double)d.p); /* PyErr_Format has no format for a float */
        mom_call_fail(call, PyExc_ValueError, "dropout: %S, expected [0, 1)", p ? p : Py_None);
        Py_XDECREF(p);
    }
    return (mom_dropout){d.p, mom_rng_key(d.seed, d.counter, d.site)};
}

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
    const float *inp = mom_arg_f32(&call, "inp", inp_o, "... C");
    const float *weight = mom_arg_f32(&call, "weight", weight_o, "C");
    const float *bias = mom_arg_f32(&call, "bias", bias_o, "C");
    float *out = mom_new_f32(&call, "... C");
    float *mean = mom_new_f32(&call, "...");
    float *rstd = mom_new_f32(&call, "...");
    const size_t N = mom_leading(&call), C = mom_size(&call, 'C');
    MOM_RUN(&call, mom_layernorm_forward(&call.exec, out, mean, rstd, inp, weight, bias, eps, N, C));
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
    const float *inp = mom_arg_f32(&call, "inp", inp_o, "... C");
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
    const float *inp = mom_arg_f32(&call, "inp", inp_o, "... C");
    const float *dout = mom_arg_f32(&call, "dout", dout_o, "... C");
    const float *weight = mom_arg_f32(&call, "weight", weight_o, "C");
    const float *mean = mom_arg_f32(&call, "mean", mean_o, "...");
    const float *rstd = mom_arg_f32(&call, "rstd", rstd_o, "...");
    float *dinp = mom_new_sum(&call, "dinp", add_to, 0, 3, "... C");
    float *dweight = mom_new_sum(&call, "dweight", add_to, 1, 3, "C");
    float *dbias = mom_new_sum(&call, "dbias", add_to, 2, 3, "C");
    const size_t N = mom_leading(&call), C = mom_size(&call, 'C');
    MOM_RUN(&call, call.status = mom_layernorm_backward(&call.exec, dinp, dweight, dbias, dout, inp, weight, mean, rstd,
                                                        N, C, &call.error));
    return mom_call_end(&call);
}

/* ------------------------------------------------------------------ linear */

static const float *optional_f32(mom_call *call, const char *name, PyObject *value, const char *shape) {
    return value == Py_None ? NULL : mom_arg_f32(call, name, value, shape);
}

static PyObject *linear_forward(PyObject *module, PyObject *args) {
    PyObject *inp_o, *weight_o, *bias_o, *add_to;
    int out_in;
    if (!PyArg_ParseTuple(args, "OOOpO:linear_forward", &inp_o, &weight_o, &bias_o, &out_in, &add_to))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const float *inp = mom_arg_f32(&call, "inp", inp_o, "... I");
    const float *weight = mom_arg_f32(&call, "weight", weight_o, out_in ? "O I" : "I O");
    const float *bias = optional_f32(&call, "bias", bias_o, "O");
    const int accumulate = add_to != Py_None;
    float *out = accumulate ? mom_new_sum(&call, "out", add_to, 0, 1, "... O") : mom_new_f32(&call, "... O");
    const size_t N = mom_leading(&call), In = mom_size(&call, 'I'), Out = mom_size(&call, 'O');
    const mom_weight_layout layout = out_in ? MOM_WEIGHT_OUT_IN : MOM_WEIGHT_IN_OUT;
    MOM_RUN(&call, call.status = mom_linear_forward(&call.exec, out, inp, weight, bias, layout, accumulate, N, In, Out,
                                                    &call.error));
    return mom_call_end(&call);
}

static PyObject *linear_backward(PyObject *module, PyObject *args) {
    PyObject *dout_o, *inp_o, *weight_o, *add_to;
    int out_in;
    if (!PyArg_ParseTuple(args, "OOOpO:linear_backward", &dout_o, &inp_o, &weight_o, &out_in, &add_to))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const char *shape = out_in ? "O I" : "I O";
    const float *inp = mom_arg_f32(&call, "inp", inp_o, "... I");
    const float *weight = mom_arg_f32(&call, "weight", weight_o, shape);
    const float *dout = mom_arg_f32(&call, "dout", dout_o, "... O");
    const int accumulate = add_to != Py_None;
    float *dinp = accumulate ? mom_new_sum(&call, "dinp", add_to, 0, 3, "... I") : mom_new_f32(&call, "... I");
    float *dweight = mom_new_sum(&call, "dweight", add_to, 1, 3, shape);
    float *dbias = mom_new_sum(&call, "dbias", add_to, 2, 3, "O");
    const size_t N = mom_leading(&call), In = mom_size(&call, 'I'), Out = mom_size(&call, 'O');
    const mom_weight_layout layout = out_in ? MOM_WEIGHT_OUT_IN : MOM_WEIGHT_IN_OUT;
    MOM_RUN(&call, {
        call.status = mom_linear_backward_input(&call.exec, dinp, dout, weight, layout, accumulate, N, In, Out,
                                                &call.error);
        if (call.status == MOM_OK)
            call.status = mom_linear_backward_weight(&call.exec, dweight, dbias, inp, dout, layout, N, In, Out,
                                                     &call.error);
    });
    return mom_call_end(&call);
}

static PyObject *column_sum(PyObject *module, PyObject *args) {
    PyObject *inp_o, *scale_o, *rows_o, *add_to;
    if (!PyArg_ParseTuple(args, "OOOO:column_sum", &inp_o, &scale_o, &rows_o, &add_to))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const float *inp = mom_arg_f32(&call, "inp", inp_o, "R C");
    mom_set_size(&call, 'N', mom_size(&call, 'R'));
    const int32_t *rows = NULL;
    if (rows_o != Py_None) {
        call.sizes['N' - 'A'] = -1;
        rows = mom_arg_i32(&call, "rows", rows_o, "N", 0, (int64_t)mom_size(&call, 'R'), 0);
    }
    const float *scale = optional_f32(&call, "scale", scale_o, "N");
    float *out = mom_new_sum(&call, "out", add_to, 0, 1, "C");
    const size_t N = mom_size(&call, 'N'), C = mom_size(&call, 'C');
    MOM_RUN(&call, mom_column_sum(&call.exec, out, inp, scale, rows, N, C));
    return mom_call_end(&call);
}

/* ------------------------------------------------------------------ GELU, dropout, embedding */

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

static PyObject *dropout(PyObject *module, PyObject *args) {
    PyObject *inp_o;
    dropout_args d;
    if (!PyArg_ParseTuple(args, "OfKKK:dropout", &inp_o, &d.p, &d.seed, &d.counter, &d.site))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const mom_dropout how = make_dropout(&call, d);
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

static PyObject *embedding_forward(PyObject *module, PyObject *args) {
    PyObject *tokens_o, *positions_o, *wte_o, *wpe_o;
    dropout_args d;
    if (!PyArg_ParseTuple(args, "OOOOfKKK:embedding_forward", &tokens_o, &positions_o, &wte_o, &wpe_o, &d.p, &d.seed,
                          &d.counter, &d.site))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const mom_dropout how = make_dropout(&call, d);
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
    dropout_args d;
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
    const mom_dropout how = make_dropout(&call, d);
    const float *dout = mom_arg_f32(&call, "dout", dout_o, "... C");
    const int32_t *tokens = mom_arg_i32(&call, "tokens", tokens_o, "...", 0, V, 0);
    const int32_t *positions = mom_arg_i32(&call, "positions", positions_o, "...", 0, P, 0);
    float *dwte = mom_new_sum(&call, "dwte", add_to, 0, 2, "V C");
    float *dwpe = mom_new_sum(&call, "dwpe", add_to, 1, 2, "P C");
    const size_t N = mom_leading(&call), C = mom_size(&call, 'C');
    MOM_RUN(&call, mom_embedding_backward(&call.exec, dwte, dwpe, dout, tokens, positions, how, N, C));
    return mom_call_end(&call);
}

/* ------------------------------------------------------------------ attention */

typedef struct {
    Py_ssize_t heads;
    PyObject *mask, *active, *queries, *lengths, *scale;
    int reference, bf16;
    dropout_args dropout;
} attention_args;

typedef struct {
    mom_attention_spec spec;
    const uint8_t *mask, *active;
    const void *qkv;
    size_t size; /* N * C */
} attention_call;

static void *from_workspace(mom_call *call, size_t n, size_t size) {
    void *block = call->failed ? NULL : mom_arena_alloc(&call->workspace, n, size, &call->error);
    if (!block)
        mom_call_fail(call, PyExc_MemoryError, "%s", call->error.text);
    return block;
}

/* An array as the operator takes it: as it is, or a copy rounded to bfloat16. */
static const void *in_dtype(mom_call *call, const float *data, size_t n, mom_dtype dtype) {
    if (call->failed || dtype == MOM_F32)
        return data;
    mom_bf16 *copy = from_workspace(call, n, sizeof *copy);
    if (copy)
        call->exec.k->vec.to_bf16(copy, data, n);
    return copy;
}

/* Room for a result, and the result widened into the array that is returned. */
static void *result_in_dtype(mom_call *call, float *data, size_t n, mom_dtype dtype) {
    return call->failed || dtype == MOM_F32 ? data : from_workspace(call, n, sizeof(mom_bf16));
}

static void widen_result(mom_call *call, float *data, const void *result, size_t n, mom_dtype dtype) {
    if (!call->failed && call->status == MOM_OK && dtype == MOM_BF16)
        call->exec.k->vec.from_bf16(data, result, n);
}

/* Rows of sequences of the given lengths, which must cover the N rows of qkv. */
static void set_lengths(mom_call *call, mom_attention_spec *spec, PyObject *lengths) {
    const size_t N = mom_size(call, 'N');
    const int32_t *length = mom_arg_i32(call, "lengths", lengths, "B", 0, NO_LIMIT, 0);
    int32_t *offsets = from_workspace(call, mom_size(call, 'B') + 1, sizeof *offsets);
    if (!offsets)
        return;
    size_t total = 0;
    offsets[0] = 0;
    for (size_t b = 0; b < mom_size(call, 'B') && total <= N; b++) {
        total += (size_t)length[b];
        spec->T = (size_t)length[b] > spec->T ? (size_t)length[b] : spec->T;
        offsets[b + 1] = (int32_t)total;
    }
    if (total != N)
        mom_call_fail(call, PyExc_ValueError, "lengths: sum %s%zu, expected %zu like the rows of qkv",
                      total > N ? "of at least " : "", total, N);
    spec->B = mom_size(call, 'B');
    spec->offsets = offsets;
}

/* Arguments of both directions. "..." becomes (B, T), or (N) with lengths. */
static attention_call attention_call_init(mom_call *call, PyObject *qkv_o, const attention_args *a) {
    const int packed = a->lengths != Py_None;
    const float *qkv = mom_arg_f32(call, "qkv", qkv_o, packed ? "N 3C" : "B T 3C");
    attention_call c = {.spec = {.C = mom_size(call, 'C'),
                                 .H = (size_t)a->heads,
                                 .masked_query = a->reference ? MOM_MASKED_QUERY_REFERENCE : MOM_MASKED_QUERY_CAUSAL,
                                 .dropout = make_dropout(call, a->dropout),
                                 .dtype = a->bf16 ? MOM_BF16 : MOM_F32}};
    mom_attention_spec *spec = &c.spec;
    if (!call->failed && (a->heads < 1 || spec->C % spec->H))
        mom_call_fail(call, PyExc_ValueError, "num_heads: %zd, expected a divisor of C = %zu", a->heads, spec->C);
    if (call->failed)
        return c;
    mom_set_size(call, 'H', spec->H);
    if (a->scale == Py_None) {
        spec->scale = spec->C ? 1.0f / sqrtf((float)(spec->C / spec->H)) : 1.0f;
    } else {
        const double scale = PyFloat_AsDouble(a->scale);
        if (scale == -1.0 && PyErr_Occurred())
            call->failed = 1;
        spec->scale = (float)scale;
    }
    if (packed) {
        set_lengths(call, spec, a->lengths);
    } else {
        spec->B = mom_size(call, 'B');
        spec->T = mom_size(call, 'T');
    }
    call->leading_ndim = packed ? 1 : 2;
    call->leading[0] = (npy_intp)mom_size(call, packed ? 'N' : 'B');
    call->leading[1] = (npy_intp)mom_size(call, 'T');
    c.mask = mom_arg_mask(call, "mask", a->mask, "...");
    c.active = mom_arg_mask(call, "active", a->active, "...");
    spec->queries = mom_arg_mask(call, "queries", a->queries, "...");
    c.size = mom_leading(call) * spec->C;
    c.qkv = in_dtype(call, qkv, 3 * c.size, spec->dtype);
    return c;
}

static PyObject *attention_forward(PyObject *module, PyObject *args) {
    PyObject *qkv_o;
    attention_args a;
    if (!PyArg_ParseTuple(args, "OnOOOOOppfKKK:attention_forward", &qkv_o, &a.heads, &a.mask, &a.active, &a.queries,
                          &a.lengths, &a.scale, &a.reference, &a.bf16, &a.dropout.p, &a.dropout.seed,
                          &a.dropout.counter, &a.dropout.site))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const attention_call c = attention_call_init(&call, qkv_o, &a);
    float *out = mom_new_f32(&call, "... C");
    float *lse = mom_new_f32(&call, "... H");
    void *result = result_in_dtype(&call, out, c.size, c.spec.dtype);
    if (c.spec.queries && !call.failed) {
        memset(result, 0, c.size * mom_dtype_size(c.spec.dtype));
        memset(lse, 0, mom_leading(&call) * c.spec.H * sizeof *lse);
    }
    MOM_RUN(&call, call.status = mom_attention_forward(&call.exec, result, lse, c.qkv, c.mask, c.active, &c.spec,
                                                       &call.error));
    widen_result(&call, out, result, c.size, c.spec.dtype);
    return mom_call_end(&call);
}

static PyObject *attention_backward(PyObject *module, PyObject *args) {
    PyObject *dout_o, *qkv_o, *out_o, *lse_o;
    attention_args a;
    if (!PyArg_ParseTuple(args, "OOOOnOOOOOppfKKK:attention_backward", &dout_o, &qkv_o, &out_o, &lse_o, &a.heads,
                          &a.mask, &a.active, &a.queries, &a.lengths, &a.scale, &a.reference, &a.bf16, &a.dropout.p,
                          &a.dropout.seed, &a.dropout.counter, &a.dropout.site))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const attention_call c = attention_call_init(&call, qkv_o, &a);
    const mom_dtype dtype = c.spec.dtype;
    const void *dout = in_dtype(&call, mom_arg_f32(&call, "dout", dout_o, "... C"), c.size, dtype);
    const void *out = in_dtype(&call, mom_arg_f32(&call, "out", out_o, "... C"), c.size, dtype);
    const float *lse = mom_arg_f32(&call, "lse", lse_o, "... H");
    float *dqkv = mom_new_f32(&call, "... 3C");
    void *result = result_in_dtype(&call, dqkv, 3 * c.size, dtype);
    if (c.spec.queries && !call.failed)
        memset(result, 0, 3 * c.size * mom_dtype_size(dtype));
    MOM_RUN(&call, call.status = mom_attention_backward(&call.exec, result, dout, c.qkv, out, lse, c.mask, c.active,
                                                        &c.spec, &call.error));
    widen_result(&call, dqkv, result, 3 * c.size, dtype);
    return mom_call_end(&call);
}

/* ------------------------------------------------------------------ losses */

static PyObject *cross_entropy_forward(PyObject *module, PyObject *args) {
    PyObject *logits_o, *labels_o;
    if (!PyArg_ParseTuple(args, "OO:cross_entropy_forward", &logits_o, &labels_o))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const float *logits = mom_arg_f32(&call, "logits", logits_o, "N V");
    const size_t N = mom_size(&call, 'N'), V = mom_size(&call, 'V');
    const int32_t *labels = mom_arg_i32(&call, "labels", labels_o, "N", 0, (int64_t)V, MOM_IGNORED_LABEL);
    float *loss = mom_new_f32(&call, "N");
    float *lse = mom_new_f32(&call, "N");
    MOM_RUN(&call, mom_cross_entropy_forward(&call.exec, loss, lse, logits, labels, N, V));
    return mom_call_end(&call);
}

static PyObject *cross_entropy_backward(PyObject *module, PyObject *args) {
    PyObject *logits_o, *lse_o, *labels_o;
    float scale;
    if (!PyArg_ParseTuple(args, "OOOf:cross_entropy_backward", &logits_o, &lse_o, &labels_o, &scale))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const float *logits = mom_arg_f32(&call, "logits", logits_o, "N V");
    const float *lse = mom_arg_f32(&call, "lse", lse_o, "N");
    const size_t N = mom_size(&call, 'N'), V = mom_size(&call, 'V');
    const int32_t *labels = mom_arg_i32(&call, "labels", labels_o, "N", 0, (int64_t)V, MOM_IGNORED_LABEL);
    float *dlogits = mom_new_f32(&call, "N V");
    MOM_RUN(&call, mom_cross_entropy_backward(&call.exec, dlogits, logits, lse, labels, scale, N, V));
    return mom_call_end(&call);
}

/* The labelled rows and their labels, from the workspace. */
typedef struct {
    int32_t *rows, *labels;
    size_t n;
} labelled_rows;

static labelled_rows find_labelled(mom_call *call, const int32_t *labels, size_t N) {
    labelled_rows found = {0};
    if (call->failed)
        return found;
    found.rows = mom_arena_alloc(&call->workspace, N, sizeof *found.rows, &call->error);
    if (found.rows)
        found.labels = mom_arena_alloc(&call->workspace, N, sizeof *found.labels, &call->error);
    if (!found.labels) {
        mom_call_fail(call, PyExc_MemoryError, "%s", call->error.text);
        return found;
    }
    for (size_t i = 0; i < N; i++) {
        if (labels[i] == MOM_IGNORED_LABEL)
            continue;
        found.rows[found.n] = (int32_t)i;
        found.labels[found.n++] = labels[i];
    }
    return found;
}

typedef struct {
    const float *hidden, *wte; /* (N, C), (V, C) */
    size_t N, V, C;
    labelled_rows at;
} head_inputs;

static head_inputs read_head(mom_call *call, PyObject *hidden, PyObject *wte, PyObject *labels) {
    head_inputs in;
    in.hidden = mom_arg_f32(call, "hidden", hidden, "N C");
    in.wte = mom_arg_f32(call, "wte", wte, "V C");
    in.N = mom_size(call, 'N');
    in.V = mom_size(call, 'V');
    in.C = mom_size(call, 'C');
    in.at = find_labelled(call, mom_arg_i32(call, "labels", labels, "N", 0, (int64_t)in.V, MOM_IGNORED_LABEL), in.N);
    return in;
}

static PyObject *lm_head_forward(PyObject *module, PyObject *args) {
    PyObject *hidden_o, *wte_o, *labels_o;
    if (!PyArg_ParseTuple(args, "OOO:lm_head_forward", &hidden_o, &wte_o, &labels_o))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const head_inputs in = read_head(&call, hidden_o, wte_o, labels_o);
    mom_set_size(&call, 'L', in.at.n);
    double total = 0.0;
    float *lse = mom_new_f32(&call, "L");
    MOM_RUN(&call, call.status = mom_lm_head_forward(&call.exec, &total, lse, in.hidden, in.wte, in.at.rows, in.at.labels,
                                                     in.at.n, in.V, in.C, &call.error));
    mom_new_number(&call, total);
    return mom_call_end(&call);
}

static PyObject *lm_head_backward(PyObject *module, PyObject *args) {
    PyObject *hidden_o, *wte_o, *lse_o, *labels_o, *add_to;
    float scale;
    if (!PyArg_ParseTuple(args, "OOOOfO:lm_head_backward", &hidden_o, &wte_o, &lse_o, &labels_o, &scale, &add_to))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const head_inputs in = read_head(&call, hidden_o, wte_o, labels_o);
    mom_set_size(&call, 'L', in.at.n);
    const float *lse = mom_arg_f32(&call, "lse", lse_o, "L");
    float *dhidden = mom_new_sum(&call, "dhidden", add_to, 0, 2, "N C");
    float *dwte = mom_new_sum(&call, "dwte", add_to, 1, 2, "V C");
    MOM_RUN(&call, call.status = mom_lm_head_backward(&call.exec, dhidden, dwte, in.hidden, in.wte, lse, in.at.rows,
                                                      in.at.labels, scale, in.at.n, in.V, in.C, &call.error));
    return mom_call_end(&call);
}

/* Loss, and unless loss_only its gradients: zeros for rows without a label. */
static PyObject *lm_head_gradient(PyObject *module, PyObject *args) {
    PyObject *hidden_o, *wte_o, *labels_o;
    int bf16, loss_only;
    if (!PyArg_ParseTuple(args, "OOOpp:lm_head_gradient", &hidden_o, &wte_o, &labels_o, &bf16, &loss_only))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const head_inputs in = read_head(&call, hidden_o, wte_o, labels_o);
    float *dhidden = loss_only ? NULL : mom_new_sum(&call, "dhidden", Py_None, 0, 2, "N C");
    float *dwte = loss_only ? NULL : mom_new_sum(&call, "dwte", Py_None, 1, 2, "V C");
    double total = 0.0;
    call.exec.precision = bf16 ? MOM_BF16 : MOM_F32;
    MOM_RUN(&call, call.status = mom_lm_head_gradient(&call.exec, &total, dhidden, dwte, in.hidden, in.wte, in.at.rows,
                                                      in.at.labels, in.at.n, in.V, in.C, &call.error));
    mom_new_number(&call, total);
    return mom_call_end(&call);
}

static PyObject *label_loss(PyObject *module, PyObject *args) {
    PyObject *logits_o, *labels_o;
    int kind;
    float scale;
    if (!PyArg_ParseTuple(args, "OOif:label_loss", &logits_o, &labels_o, &kind, &scale))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    if (kind < MOM_LOSS_MSE || kind > MOM_LOSS_BCE)
        mom_call_fail(&call, PyExc_ValueError, "kind: %d is unknown", kind);
    const float *logits = mom_arg_f32(&call, "logits", logits_o, "B L");
    const size_t B = mom_size(&call, 'B'), L = mom_size(&call, 'L');
    const int32_t *classes = NULL;
    const float *values = NULL;
    if (kind == MOM_LOSS_CROSS_ENTROPY)
        classes = mom_arg_i32(&call, "labels", labels_o, "B", 0, (int64_t)L, MOM_IGNORED_LABEL);
    else
        values = mom_arg_f32(&call, "labels", labels_o, "B L");
    double loss = 0.0;
    float *dlogits = mom_new_f32(&call, "B L");
    MOM_RUN(&call, loss = mom_label_loss_compute(&call.exec, dlogits, logits, classes, values, (mom_label_loss)kind,
                                                 scale, B, L));
    mom_new_number(&call, loss);
    return mom_call_end(&call);
}

/* ------------------------------------------------------------------ matrix products */

typedef struct {
    PyObject *a, *b, *a_rows, *b_rows, *bias, *k_scale, *c;
    int transpose_a, transpose_b;
} gemm_args;

/* Stored rows `rows` of a matrix, then transposed if asked for. */
static mom_matrix operand(const float *data, size_t columns, const int32_t *rows, int transpose) {
    mom_matrix m = transpose ? mom_matrix_transposed(data, columns) : mom_matrix_rows(data, columns);
    *(transpose ? &m.col_index : &m.row_index) = rows;
    return m;
}

/* One product of a call; letters M, N, K, and R, S, Q for stored rows and columns. Each product of a group has sizes of
 * its own. The result is appended to the call's. */
static mom_gemm read_product(mom_call *call, const gemm_args *in) {
    for (const char *letter = "MNKRSQ"; *letter; letter++)
        call->sizes[*letter - 'A'] = -1;
    mom_gemm g = {0};
    const float *a = mom_arg_f32(call, "a", in->a, in->a_rows != Py_None ? "R Q" : in->transpose_a ? "K M" : "M K");
    const int32_t *a_rows = NULL, *b_rows = NULL;
    if (in->a_rows != Py_None) {
        mom_set_size(call, in->transpose_a ? 'M' : 'K', mom_size(call, 'Q'));
        a_rows = mom_arg_i32(call, "a_rows", in->a_rows, in->transpose_a ? "K" : "M", 0, (int64_t)mom_size(call, 'R'), 0);
    }
    const float *b;
    if (in->b_rows != Py_None) {
        b = mom_arg_f32(call, "b", in->b, in->transpose_b ? "S K" : "S N");
        b_rows = mom_arg_i32(call, "b_rows", in->b_rows, in->transpose_b ? "N" : "K", 0, (int64_t)mom_size(call, 'S'), 0);
    } else {
        b = mom_arg_f32(call, "b", in->b, in->transpose_b ? "N K" : "K N");
    }
    g.bias = optional_f32(call, "bias", in->bias, "N");
    g.k_scale = optional_f32(call, "k_scale", in->k_scale, "K");
    g.accumulate = in->c != Py_None;
    PyObject *add_to = g.accumulate ? PyTuple_Pack(1, in->c) : Py_NewRef(Py_None);
    if (!add_to)
        call->failed = 1;
    g.c = !g.accumulate ? mom_new_f32(call, "M N") : add_to ? mom_new_sum(call, "c", add_to, 0, 1, "M N") : NULL;
    Py_XDECREF(add_to);
    g.m = mom_size(call, 'M');
    g.n = g.ldc = mom_size(call, 'N');
    g.k = mom_size(call, 'K');
    g.a = operand(a, in->transpose_a ? g.m : g.k, a_rows, in->transpose_a);
    g.b = operand(b, in->transpose_b ? g.k : g.n, b_rows, in->transpose_b);
    return g;
}

static int parse_product(PyObject *args, gemm_args *in) {
    return PyTuple_Check(args) ? PyArg_ParseTuple(args, "OOppOOOOO:gemm", &in->a, &in->b, &in->transpose_a,
                                                  &in->transpose_b, &in->a_rows, &in->b_rows, &in->bias, &in->k_scale,
                                                  &in->c)
                               : (PyErr_SetString(PyExc_TypeError, "products: expected tuples"), 0);
}

/* Packs every b in a pass of its own, as layers do with weights that serve several products. */
static mom_status prepack_factors(mom_call *call, mom_gemm *problems, size_t count) {
    mom_gemm_packing *packings;
    MOM_ARENA_NEW(packings, &call->workspace, count, &call->error);
    for (size_t i = 0; i < count; i++) {
        mom_gemm *g = &problems[i];
        const size_t bytes = mom_gemm_packed_size(call->exec.k, g->precision, g->n, g->k);
        void *packed = mom_arena_alloc(&call->workspace, bytes, 1, &call->error);
        if (!packed)
            return MOM_ERR_MEMORY;
        packings[i] = (mom_gemm_packing){packed, g->b, g->k_scale, g->n, g->k, g->precision};
        g->packed_b = packed;
    }
    return mom_gemm_pack(&call->exec, packings, count, &call->error);
}

/* All products of a call, their results made; NULL with the call failed. */
static mom_gemm *read_products(mom_call *call, PyObject *products, int bf16, int prepack) {
    const Py_ssize_t count = PyList_GET_SIZE(products);
    mom_gemm *problems = mom_arena_alloc(&call->workspace, (size_t)count, sizeof *problems, &call->error);
    if (!problems)
        mom_call_fail(call, PyExc_MemoryError, "%s", call->error.text);
    for (Py_ssize_t i = 0; i < count && !call->failed; i++) {
        gemm_args in;
        if (parse_product(PyList_GET_ITEM(products, i), &in))
            problems[i] = read_product(call, &in);
        else
            call->failed = 1;
        problems[i].precision = bf16 ? MOM_BF16 : MOM_F32;
    }
    if (prepack && !call->failed && prepack_factors(call, problems, (size_t)count) != MOM_OK)
        mom_call_fail(call, PyExc_MemoryError, "%s", call->error.text);
    return problems;
}

static PyObject *gemm(PyObject *module, PyObject *args) {
    PyObject *products;
    int bf16, prepack;
    if (!PyArg_ParseTuple(args, "O!pp:gemm", &PyList_Type, &products, &bf16, &prepack))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const Py_ssize_t count = PyList_GET_SIZE(products);
    mom_gemm *problems = read_products(&call, products, bf16, prepack);
    MOM_RUN(&call, call.status = mom_gemm_run(&call.exec, problems, (size_t)count, &call.error));
    if (!call.results && !call.failed)
        call.results = PyList_New(0);
    PyObject *results = Py_XNewRef(call.results), *ended = mom_call_end(&call); /* new references */
    if (!ended)
        Py_CLEAR(results);
    Py_XDECREF(ended);
    return results;
}

/* The same products again and again with results that stay where they are: the seconds of each time, after one that does
 * not count. */
static PyObject *gemm_seconds(PyObject *module, PyObject *args) {
    PyObject *products;
    int bf16, prepack;
    Py_ssize_t repeats;
    if (!PyArg_ParseTuple(args, "O!ppn:gemm_seconds", &PyList_Type, &products, &bf16, &prepack, &repeats))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    if (repeats < 1)
        mom_call_fail(&call, PyExc_ValueError, "repeats: %zd is less than 1", repeats);
    const Py_ssize_t count = PyList_GET_SIZE(products);
    mom_gemm *problems = call.failed ? NULL : read_products(&call, products, bf16, prepack);
    PyObject *results = call.results; /* kept until the call ends, but only the times are returned */
    call.results = NULL;
    mom_set_size(&call, 'Z', call.failed ? 0 : (size_t)repeats);
    double *seconds = mom_new_f64(&call, "Z");
    mom_arena workspace; /* of its own: empty after each time, so that it keeps its memory */
    mom_arena_init(&workspace, "workspace");
    mom_exec exec = call.exec;
    exec.workspace = &workspace;
    MOM_RUN(&call, {
        call.status = mom_gemm_run(&exec, problems, (size_t)count, &call.error);
        for (Py_ssize_t i = 0; i < repeats && call.status == MOM_OK; i++) {
            const double started = mom_machine_seconds();
            call.status = mom_gemm_run(&exec, problems, (size_t)count, &call.error);
            seconds[i] = mom_machine_seconds() - started;
        }
    });
    mom_arena_free(&workspace);
    PyObject *times = mom_call_end(&call);
    Py_XDECREF(results);
    return times;
}

/* ------------------------------------------------------------------ kernels, for their tests */

static PyObject *kernel_map(PyObject *module, PyObject *args) {
    const char *name;
    PyObject *inp_o;
    if (!PyArg_ParseTuple(args, "sO:kernel_map", &name, &inp_o))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const mom_kernels *k = call.exec.k;
    const struct {
        const char *name;
        void (*run)(float *, const float *, size_t);
    } kernels[] = {{"exp", k->vec.exp}, {"tanh", k->vec.tanh}, {"gelu_forward", k->vec.gelu_forward}};
    void (*run)(float *, const float *, size_t) = NULL;
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++)
        if (strcmp(kernels[i].name, name) == 0)
            run = kernels[i].run;
    if (!run)
        mom_call_fail(&call, PyExc_ValueError, "name: '%s', expected exp, tanh or gelu_forward", name);
    const float *inp = mom_arg_f32(&call, "inp", inp_o, "N");
    float *out = mom_new_f32(&call, "N");
    MOM_RUN(&call, run(out, inp, mom_size(&call, 'N')));
    return mom_call_end(&call);
}

static PyObject *kernel_reduce(PyObject *module, PyObject *args) {
    const char *name;
    PyObject *a_o, *b_o;
    if (!PyArg_ParseTuple(args, "sOO:kernel_reduce", &name, &a_o, &b_o))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const mom_kernels *k = call.exec.k;
    const float *a = mom_arg_f32(&call, "a", a_o, "N"), *b = optional_f32(&call, "b", b_o, "N");
    const size_t n = mom_size(&call, 'N');
    if (strcmp(name, "sum") == 0)
        mom_new_number(&call, call.failed ? 0.0 : (double)k->vec.sum(a, n));
    else if (strcmp(name, "max") == 0)
        mom_new_number(&call, call.failed ? 0.0 : (double)k->vec.max(a, n));
    else if (strcmp(name, "sum_squares") == 0)
        mom_new_number(&call, call.failed ? 0.0 : k->vec.sum_squares(a, n));
    else if (strcmp(name, "dot") == 0 && b)
        mom_new_number(&call, (double)k->vec.dot(a, b, n));
    else
        mom_call_fail(&call, PyExc_ValueError, "name: '%s', expected sum, max, sum_squares or dot with b", name);
    return mom_call_end(&call);
}

static PyObject *kernel_exp_sum(PyObject *module, PyObject *args) {
    PyObject *inp_o;
    float factor, offset, total = 0.0f;
    if (!PyArg_ParseTuple(args, "Off:kernel_exp_sum", &inp_o, &factor, &offset))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const float *inp = mom_arg_f32(&call, "inp", inp_o, "N");
    float *out = mom_new_f32(&call, "N");
    MOM_RUN(&call, total = call.exec.k->vec.exp_sum(out, inp, factor, offset, mom_size(&call, 'N')));
    mom_new_number(&call, (double)total);
    return mom_call_end(&call);
}

/* ------------------------------------------------------------------ optimizer and gradient norm */

/* Data of entry i of a list, checked against the shape of *like, which the first call of an entry (NULL) sets. */
static float *list_entry(mom_call *call, const char *name, PyObject *list, Py_ssize_t i, int writable,
                         PyArrayObject **like) {
    if (call->failed)
        return NULL;
    PyArrayObject *array = mom_check_storage(PyList_GET_ITEM(list, i), name, NPY_FLOAT32, writable); /* borrowed */
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

static void check_length(mom_call *call, const char *name, PyObject *list, Py_ssize_t count) {
    if (PyList_GET_SIZE(list) != count)
        mom_call_fail(call, PyExc_ValueError, "%s: %zd entries, expected %zd", name, PyList_GET_SIZE(list), count);
}

static mom_adamw_tensor *new_tensors(mom_call *call, Py_ssize_t count) {
    mom_adamw_tensor *tensors = mom_arena_alloc(&call->workspace, (size_t)count, sizeof *tensors, &call->error);
    if (!tensors)
        mom_call_fail(call, PyExc_MemoryError, "%s", call->error.text);
    else
        memset(tensors, 0, (size_t)count * sizeof *tensors);
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

/* Updates params, exp_avg, exp_avg_sq and steps in place: mom.ops passes copies. */
static PyObject *adamw_step(PyObject *module, PyObject *args) {
    PyObject *params, *grads, *first, *second, *steps_o, *decay_o, *used_o;
    mom_adamw_spec spec = {0};
    if (!PyArg_ParseTuple(args, "O!O!O!O!OOOdddddf:adamw_step", &PyList_Type, &params, &PyList_Type, &grads,
                          &PyList_Type, &first, &PyList_Type, &second, &steps_o, &decay_o, &used_o, &spec.lr,
                          &spec.beta1, &spec.beta2, &spec.eps, &spec.weight_decay, &spec.grad_scale))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const Py_ssize_t count = PyList_GET_SIZE(params);
    mom_set_size(&call, 'L', (size_t)count);
    check_settings(&call, &spec);
    check_length(&call, "grads", grads, count);
    check_length(&call, "exp_avg", first, count);
    check_length(&call, "exp_avg_sq", second, count);
    const double *steps = mom_arg_f64(&call, "steps", steps_o, "L");
    const uint8_t *decay = mom_arg_mask(&call, "decay", decay_o, "L"), *used = mom_arg_mask(&call, "used", used_o, "L");
    mom_adamw_tensor *tensors = new_tensors(&call, count);
    for (Py_ssize_t i = 0; i < count && !call.failed; i++) {
        PyArrayObject *like = NULL;
        tensors[i].param = list_entry(&call, "params", params, i, 1, &like);
        tensors[i].grad = list_entry(&call, "grads", grads, i, 0, &like);
        tensors[i].exp_avg = list_entry(&call, "exp_avg", first, i, 1, &like);
        tensors[i].exp_avg_sq = list_entry(&call, "exp_avg_sq", second, i, 1, &like);
        tensors[i].n = call.failed ? 0 : (size_t)PyArray_SIZE(like);
        tensors[i].step = call.failed ? 0.0 : steps[i];
        if (!(tensors[i].step >= 0.0))
            mom_call_fail(&call, PyExc_ValueError, "steps: entry %zd is negative or not a number", i);
        tensors[i].decay = !decay || decay[i];
        tensors[i].used = !used || used[i];
    }
    double *new_steps = mom_new_f64(&call, "L");
    MOM_RUN(&call, {
        mom_adamw_step(&call.exec, tensors, (size_t)count, &spec);
        for (Py_ssize_t i = 0; i < count; i++)
            new_steps[i] = tensors[i].step;
    });
    return mom_call_end(&call);
}

/* Scales the gradients in place so that their norm is at most max_norm (not when it is infinite or NaN); returns the
 * norm before. */
static PyObject *clip_gradients(PyObject *module, PyObject *args) {
    PyObject *grads;
    double max_norm, norm = 0.0;
    if (!PyArg_ParseTuple(args, "O!d:clip_gradients", &PyList_Type, &grads, &max_norm))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const Py_ssize_t count = PyList_GET_SIZE(grads);
    if (!(max_norm > 0.0))
        mom_call_fail(&call, PyExc_ValueError, "max_norm: expected a positive number");
    mom_adamw_tensor *tensors = new_tensors(&call, count);
    for (Py_ssize_t i = 0; i < count && !call.failed; i++) {
        PyArrayObject *like = NULL;
        tensors[i].grad = list_entry(&call, "grads", grads, i, 1, &like);
        tensors[i].n = call.failed ? 0 : (size_t)PyArray_SIZE(like);
        tensors[i].used = 1;
    }
    MOM_RUN(&call, {
        call.status = mom_grad_norm(&call.exec, &norm, tensors, (size_t)count, &call.error);
        const float factor = mom_clip_factor(norm, max_norm);
        if (call.status == MOM_OK && factor < 1.0f)
            mom_grad_scale(&call.exec, tensors, (size_t)count, factor);
    });
    mom_new_number(&call, norm);
    return mom_call_end(&call);
}

static PyMethodDef functions[] = {
    {"layernorm_forward", layernorm_forward, METH_VARARGS,
     "layernorm_forward($module, inp, weight, bias, eps, /)\n--\n\nout, mean, rstd"},
    {"layernorm_stats", layernorm_stats, METH_VARARGS, "layernorm_stats($module, inp, eps, /)\n--\n\nmean, rstd"},
    {"layernorm_backward", layernorm_backward, METH_VARARGS,
     "layernorm_backward($module, dout, inp, weight, mean, rstd, add_to, /)\n--\n\ndinp, dweight, dbias"},
    {"linear_forward", linear_forward, METH_VARARGS,
     "linear_forward($module, inp, weight, bias, out_in, add_to, /)\n--\n\nout"},
    {"linear_backward", linear_backward, METH_VARARGS,
     "linear_backward($module, dout, inp, weight, out_in, add_to, /)\n--\n\ndinp, dweight, dbias"},
    {"column_sum", column_sum, METH_VARARGS, "column_sum($module, inp, scale, rows, add_to, /)\n--\n\nout"},
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
    {"attention_forward", attention_forward, METH_VARARGS,
     "attention_forward($module, qkv, num_heads, mask, active, queries, lengths, scale, reference, bfloat16, p, seed, "
     "counter, site, /)\n--\n\nout, lse"},
    {"attention_backward", attention_backward, METH_VARARGS,
     "attention_backward($module, dout, qkv, out, lse, num_heads, mask, active, queries, lengths, scale, reference, bfloat16, "
     "p, seed, counter, site, /)\n--\n\ndqkv"},
    {"cross_entropy_forward", cross_entropy_forward, METH_VARARGS,
     "cross_entropy_forward($module, logits, labels, /)\n--\n\nloss, lse"},
    {"cross_entropy_backward", cross_entropy_backward, METH_VARARGS,
     "cross_entropy_backward($module, logits, lse, labels, scale, /)\n--\n\ndlogits"},
    {"lm_head_forward", lm_head_forward, METH_VARARGS,
     "lm_head_forward($module, hidden, wte, labels, /)\n--\n\nlse of the labelled rows, sum of losses"},
    {"lm_head_backward", lm_head_backward, METH_VARARGS,
     "lm_head_backward($module, hidden, wte, lse, labels, scale, add_to, /)\n--\n\ndhidden, dwte"},
    {"lm_head_gradient", lm_head_gradient, METH_VARARGS,
     "lm_head_gradient($module, hidden, wte, labels, bfloat16, loss_only, /)\n--\n\ndhidden, dwte, sum of losses; or the "
     "sum alone"},
    {"label_loss", label_loss, METH_VARARGS,
     "label_loss($module, logits, labels, kind, scale, /)\n--\n\ndlogits, loss"},
    {"gemm", gemm, METH_VARARGS,
     "gemm($module, products, bf16, prepack, /)\n--\n\nResults of independent products, each given as a tuple (a, b, "
     "transpose_a, transpose_b, a_rows, b_rows, bias, k_scale, c)."},
    {"gemm_seconds", gemm_seconds, METH_VARARGS,
     "gemm_seconds($module, products, bf16, prepack, repeats, /)\n--\n\nSeconds of each of so many times."},
    {"kernel_map", kernel_map, METH_VARARGS, "kernel_map($module, name, inp, /)\n--\n\nAn element-wise kernel."},
    {"kernel_reduce", kernel_reduce, METH_VARARGS, "kernel_reduce($module, name, a, b, /)\n--\n\nA reduction kernel."},
    {"kernel_exp_sum", kernel_exp_sum, METH_VARARGS,
     "kernel_exp_sum($module, inp, factor, offset, /)\n--\n\nexp(inp * factor - offset), its sum"},
    {"adamw_step", adamw_step, METH_VARARGS,
     "adamw_step($module, params, grads, exp_avg, exp_avg_sq, steps, decay, used, lr, beta1, beta2, eps, weight_decay, "
     "grad_scale, /)\n--\n\nIn place on the lists' arrays; returns the new steps."},
    {"clip_gradients", clip_gradients, METH_VARARGS,
     "clip_gradients($module, grads, max_norm, /)\n--\n\nIn place; returns the norm before."},
    {NULL, NULL, 0, NULL}};

int mom_add_op_functions(PyObject *module) { return PyModule_AddFunctions(module, functions); }
