/* Attention on plain arrays. */
#include "bindings/operators.h"

#include <string.h>

#include "bindings/call.h"
#include "ops/attention_probabilities.h"

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
static void set_lengths(mom_call *call, mom_attention_spec *spec) {
    const size_t N = mom_size(call, 'N');
    const int32_t *length = mom_arg_i32(call, "lengths", "B", (size_t)INT32_MAX + 1);
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
static attention_call read_attention(mom_call *call) {
    const int packed = mom_arg_given(call, "lengths");
    const float *qkv = mom_arg_f32(call, "qkv", packed ? "N 3C" : "B T 3C");
    const size_t C = mom_size(call, 'C'), H = mom_arg_size(call, "num_heads");
    if (!call->failed && (!H || C % H))
        mom_call_fail(call, PyExc_ValueError, "num_heads: %zu, expected a divisor of C = %zu", H, C);
    const float scale = mom_arg_given(call, "scale") ? mom_arg_float(call, "scale")
                        : call->failed || !C         ? 1.0f
                                                     : mom_attention_scale(C / H);
    attention_call c = {.spec = {.C = C, .H = H, .scale = scale, .dropout = mom_arg_dropout(call),
                                 .masked_query = mom_arg_flag(call, "reference") ? MOM_MASKED_QUERY_REFERENCE
                                                                                 : MOM_MASKED_QUERY_CAUSAL,
                                 .dtype = mom_arg_flag(call, "bfloat16") ? MOM_BF16 : MOM_F32}};
    mom_attention_spec *spec = &c.spec;
    if (call->failed)
        return c;
    mom_set_size(call, 'H', H);
    if (packed) {
        set_lengths(call, spec);
    } else {
        spec->B = mom_size(call, 'B');
        spec->T = mom_size(call, 'T');
    }
    call->leading_ndim = packed ? 1 : 2;
    call->leading[0] = (npy_intp)mom_size(call, packed ? 'N' : 'B');
    call->leading[1] = (npy_intp)mom_size(call, 'T');
    spec->mask = mom_arg_mask(call, "mask", "...");
    spec->active = mom_arg_mask(call, "active", "...");
    spec->queries = mom_arg_mask(call, "queries", "...");
    c.size = mom_leading(call) * spec->C;
    c.qkv = in_dtype(call, qkv, 3 * c.size, spec->dtype);
    return c;
}

static void attention_forward(mom_call *call) {
    const attention_call c = read_attention(call);
    float *out = mom_new_f32(call, "... C");
    float *lse = mom_new_f32(call, "... H");
    void *result = result_in_dtype(call, out, c.size, c.spec.dtype);
    if (c.spec.queries && !call->failed) {
        memset(result, 0, c.size * mom_dtype_size(c.spec.dtype));
        memset(lse, 0, mom_leading(call) * c.spec.H * sizeof *lse);
    }
    MOM_RUN(call, call->status = mom_attention_forward(&call->exec, result, lse, c.qkv, &c.spec, &call->error));
    widen_result(call, out, result, c.size, c.spec.dtype);
}

static void attention_backward(mom_call *call) {
    const attention_call c = read_attention(call);
    const mom_dtype dtype = c.spec.dtype;
    const void *dout = in_dtype(call, mom_arg_f32(call, "dout", "... C"), c.size, dtype);
    const void *out = in_dtype(call, mom_arg_f32(call, "out", "... C"), c.size, dtype);
    const float *lse = mom_arg_f32(call, "lse", "... H");
    float *dqkv = mom_new_f32(call, "... 3C");
    void *result = result_in_dtype(call, dqkv, 3 * c.size, dtype);
    if (c.spec.queries && !call->failed)
        memset(result, 0, 3 * c.size * mom_dtype_size(dtype));
    MOM_RUN(call, call->status = mom_attention_backward(&call->exec, result, dout, c.qkv, out, lse, &c.spec,
                                                        &call->error));
    widen_result(call, dqkv, result, 3 * c.size, dtype);
}

static void attention_probabilities(mom_call *call) {
    const attention_call c = read_attention(call);
    mom_set_size(call, 'T', c.spec.T);
    const int32_t *rows = mom_arg_i32(call, "rows", "R", c.spec.B);
    float *out = mom_new_f32(call, "R H T T");
    const size_t count = mom_size(call, 'R');
    MOM_RUN(call, call->status = mom_attention_probabilities(&call->exec, out, c.qkv, &c.spec, rows, count, &call->error));
}

#define SHARED "num_heads, mask, active, queries, lengths, scale, reference, bfloat16, p, seed, counter, site"

static mom_operator operators[] = {
    MOM_OPERATOR(attention_forward, "qkv, " SHARED, "out, lse"),
    MOM_OPERATOR(attention_backward, "dout, qkv, out, lse, " SHARED, "dqkv"),
    MOM_OPERATOR(attention_probabilities, "qkv, rows, " SHARED, "probabilities"),
};

int mom_add_attention_functions(PyObject *module) {
    return mom_add_operators(module, operators, sizeof operators / sizeof *operators);
}
