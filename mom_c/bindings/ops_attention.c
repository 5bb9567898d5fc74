/* Attention on plain arrays. */
#include "bindings/operators.h"

#include <math.h>
#include <string.h>

#include "bindings/call.h"
#include "ops/attention.h"

typedef struct {
    Py_ssize_t heads;
    PyObject *mask, *active, *queries, *lengths, *scale;
    int reference, bf16;
    mom_dropout_args dropout;
} attention_args;

typedef struct {
    mom_attention_spec spec;
    const void *qkv;
    size_t size; /* N * C */
} attention_call;

/* The data in the operator's number format: the float32 array itself, or a copy rounded to bfloat16. */
static const void *in_dtype(mom_call *call, const float *data, size_t n, mom_dtype dtype) {
    if (call->failed || dtype == MOM_F32)
        return data;
    mom_bf16 *copy = mom_call_alloc(call, n, sizeof *copy);
    if (copy)
        call->exec.k->vec.to_bf16(copy, data, n);
    return copy;
}

/* The memory that the operator writes a result to: the float32 array itself, or bfloat16 memory that widen_result later
 * copies to the array. */
static void *result_in_dtype(mom_call *call, float *data, size_t n, mom_dtype dtype) {
    return call->failed || dtype == MOM_F32 ? data : mom_call_alloc(call, n, sizeof(mom_bf16));
}

static void widen_result(mom_call *call, float *data, const void *result, size_t n, mom_dtype dtype) {
    if (!call->failed && call->status == MOM_OK && dtype == MOM_BF16)
        call->exec.k->vec.from_bf16(data, result, n);
}

/* For packed rows: sets B, T and offsets from the lengths of the sequences. The lengths must add up to N, the rows of
 * qkv. */
static void set_lengths(mom_call *call, mom_attention_spec *spec, PyObject *lengths) {
    const size_t N = mom_size(call, 'N');
    const int32_t *length = mom_arg_i32(call, "lengths", lengths, "B", 0, (int64_t)INT32_MAX + 1, 0);
    int32_t *offsets = mom_call_alloc(call, mom_size(call, 'B') + 1, sizeof *offsets);
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

/* The arguments that forward and backward share. "..." becomes (B, T), or (N) if there are lengths. */
static attention_call attention_call_init(mom_call *call, PyObject *qkv_o, const attention_args *a) {
    const int packed = a->lengths != Py_None;
    const float *qkv = mom_arg_f32(call, "qkv", qkv_o, packed ? "N 3C" : "B T 3C");
    attention_call c = {.spec = {.C = mom_size(call, 'C'),
                                 .H = (size_t)a->heads,
                                 .masked_query = a->reference ? MOM_MASKED_QUERY_REFERENCE : MOM_MASKED_QUERY_CAUSAL,
                                 .dropout = mom_arg_dropout(call, a->dropout),
                                 .dtype = a->bf16 ? MOM_BF16 : MOM_F32}};
    mom_attention_spec *spec = &c.spec;
    if (!call->failed && (a->heads < 1 || spec->C % spec->H))
        mom_call_fail(call, PyExc_ValueError, "num_heads: %zd, expected a divisor of C = %zu", a->heads, spec->C);
    if (call->failed)
        return c;
    mom_set_size(call, 'H', spec->H);
    if (a->scale == Py_None) {
        spec->scale = spec->C ? mom_attention_scale(spec->C / spec->H) : 1.0f;
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
    spec->mask = mom_arg_mask(call, "mask", a->mask, "...");
    spec->active = mom_arg_mask(call, "active", a->active, "...");
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
    MOM_RUN(&call, call.status = mom_attention_forward(&call.exec, result, lse, c.qkv, &c.spec, &call.error));
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
    MOM_RUN(&call, call.status = mom_attention_backward(&call.exec, result, dout, c.qkv, out, lse, &c.spec, &call.error));
    widen_result(&call, dqkv, result, 3 * c.size, dtype);
    return mom_call_end(&call);
}

static PyMethodDef functions[] = {
    {"attention_forward", attention_forward, METH_VARARGS,
     "attention_forward($module, qkv, num_heads, mask, active, queries, lengths, scale, reference, bfloat16, p, seed, "
     "counter, site, /)\n--\n\nout, lse"},
    {"attention_backward", attention_backward, METH_VARARGS,
     "attention_backward($module, dout, qkv, out, lse, num_heads, mask, active, queries, lengths, scale, reference, bfloat16, "
     "p, seed, counter, site, /)\n--\n\ndqkv"},
    {NULL, NULL, 0, NULL}};

int mom_add_attention_functions(PyObject *module) { return PyModule_AddFunctions(module, functions); }
