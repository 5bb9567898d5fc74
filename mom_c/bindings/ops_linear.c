/* Linear layers, sums of columns and matrix products on plain arrays. */
#include "bindings/operators.h"

#include <string.h>

#include "bindings/call.h"
#include "ops/linear.h"
#include "ops/yardsticks.h"

/* ------------------------------------------------------------------ linear */

static PyObject *linear_forward(PyObject *module, PyObject *args) {
    PyObject *inp_o, *weight_o, *bias_o, *add_to;
    int out_in;
    if (!PyArg_ParseTuple(args, "OOOpO:linear_forward", &inp_o, &weight_o, &bias_o, &out_in, &add_to))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const float *inp = mom_arg_f32(&call, "inp", inp_o, "... I");
    const float *weight = mom_arg_f32(&call, "weight", weight_o, out_in ? "O I" : "I O");
    const float *bias = mom_arg_optional_f32(&call, "bias", bias_o, "O");
    const int accumulate = add_to != Py_None;
    float *out = accumulate ? mom_new_sum(&call, "out", add_to, 0, 1, "... O") : mom_new_f32(&call, "... O");
    const size_t N = mom_leading(&call), In = mom_size(&call, 'I'), Out = mom_size(&call, 'O');
    const mom_weight_layout layout = out_in ? MOM_WEIGHT_OUT_IN : MOM_WEIGHT_IN_OUT;
    const mom_linear_shape linear = {layout, N, In, Out};
    MOM_RUN(&call, call.status = mom_linear_forward(&call.exec, out, inp, weight, bias, accumulate, &linear, &call.error));
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
    const float *inp = mom_arg_f32(&call, "inp", inp_o, "... I+");
    const float *weight = mom_arg_f32(&call, "weight", weight_o, shape);
    const float *dout = mom_arg_f32(&call, "dout", dout_o, "... O");
    const int accumulate = add_to != Py_None;
    float *dinp = accumulate ? mom_new_sum(&call, "dinp", add_to, 0, 3, "... I") : mom_new_f32(&call, "... I");
    float *dweight = mom_new_sum(&call, "dweight", add_to, 1, 3, shape);
    float *dbias = mom_new_sum(&call, "dbias", add_to, 2, 3, "O");
    const size_t N = mom_leading(&call), In = mom_size(&call, 'I'), Out = mom_size(&call, 'O');
    const mom_weight_layout layout = out_in ? MOM_WEIGHT_OUT_IN : MOM_WEIGHT_IN_OUT;
    const mom_linear_shape linear = {layout, N, In, Out};
    MOM_RUN(&call, {
        call.status = mom_linear_backward_input(&call.exec, dinp, dout, weight, accumulate, &linear, &call.error);
        if (call.status == MOM_OK)
            call.status = mom_linear_backward_weight(&call.exec, dweight, dbias, inp, dout, &linear, &call.error);
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
    const float *scale = mom_arg_optional_f32(&call, "scale", scale_o, "N");
    float *out = mom_new_sum(&call, "out", add_to, 0, 1, "C");
    const size_t N = mom_size(&call, 'N'), C = mom_size(&call, 'C');
    MOM_RUN(&call, mom_column_sum(&call.exec, out, inp, scale, rows, N, C));
    return mom_call_end(&call);
}

/* ------------------------------------------------------------------ matrix products */

typedef struct {
    PyObject *a, *b, *a_rows, *b_rows, *bias, *k_scale, *c;
    int transpose_a, transpose_b;
} gemm_args;

/* A factor of a product: the rows `rows` of the stored matrix, transposed if asked for. */
static mom_matrix operand(const float *data, size_t columns, const int32_t *rows, int transpose) {
    mom_matrix m = transpose ? mom_matrix_transposed(data, columns) : mom_matrix_rows(data, columns);
    *(transpose ? &m.col_index : &m.row_index) = rows;
    return m;
}

/* One product of a call: (M, N) out of (M, K) and (K, N). R and Q are the rows and columns of `a` in memory, S the rows
 * of `b`. The products of a group may differ in all sizes, so for each product the letters start as unknown. The result
 * is appended to the call's results. */
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
    g.bias = mom_arg_optional_f32(call, "bias", in->bias, "N");
    g.k_scale = mom_arg_optional_f32(call, "k_scale", in->k_scale, "K");
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

/* Packs every b in a separate pass, as layers do with weights that several products use. */
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

/* Reads all products of a call and allocates their results. Returns NULL if the call has failed. */
static mom_gemm *read_products(mom_call *call, PyObject *list, int bf16, int prepack, size_t *count) {
    PyObject *products = mom_arg_list(call, list); /* borrowed */
    *count = products ? (size_t)PyTuple_GET_SIZE(products) : 0;
    mom_gemm *problems = mom_call_alloc(call, *count, sizeof *problems);
    for (size_t i = 0; i < *count && !call->failed; i++) {
        gemm_args in;
        if (parse_product(PyTuple_GET_ITEM(products, (Py_ssize_t)i), &in))
            problems[i] = read_product(call, &in);
        else
            call->failed = 1;
        problems[i].precision = bf16 ? MOM_BF16 : MOM_F32;
    }
    if (prepack && !call->failed && prepack_factors(call, problems, *count) != MOM_OK)
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
    size_t count;
    mom_gemm *problems = read_products(&call, products, bf16, prepack, &count);
    MOM_RUN(&call, call.status = mom_gemm_run(&call.exec, problems, count, &call.error));
    if (!call.results && !call.failed)
        call.results = PyList_New(0);
    PyObject *results = Py_XNewRef(call.results), *ended = mom_call_end(&call); /* new references */
    if (!ended)
        Py_CLEAR(results);
    Py_XDECREF(ended);
    return results;
}

/* For benchmarks: computes the same products once to warm up, then `repeats` times, always into the same memory.
 * Returns the seconds of each repeat. */
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
    size_t count;
    mom_gemm *problems = read_products(&call, products, bf16, prepack, &count);
    PyObject *results = call.results; /* removed from the call, so that it returns only the times */
    call.results = NULL;
    mom_set_size(&call, 'Z', call.failed ? 0 : (size_t)repeats);
    double *seconds = mom_new_f64(&call, "Z");
    mom_arena workspace; /* not the call's: it is empty after each repeat and keeps its memory */
    mom_arena_init(&workspace, "workspace");
    mom_exec exec = call.exec;
    exec.workspace = &workspace;
    MOM_RUN(&call, {
        call.status = mom_gemm_run(&exec, problems, count, &call.error);
        for (Py_ssize_t i = 0; i < repeats && call.status == MOM_OK; i++) {
            const double started = mom_clock_seconds();
            call.status = mom_gemm_run(&exec, problems, count, &call.error);
            seconds[i] = mom_clock_seconds() - started;
        }
    });
    mom_arena_free(&workspace);
    PyObject *times = mom_call_end(&call);
    Py_XDECREF(results);
    return times;
}

static PyMethodDef functions[] = {
    {"linear_forward", linear_forward, METH_VARARGS,
     "linear_forward($module, inp, weight, bias, out_in, add_to, /)\n--\n\nout"},
    {"linear_backward", linear_backward, METH_VARARGS,
     "linear_backward($module, dout, inp, weight, out_in, add_to, /)\n--\n\ndinp, dweight, dbias"},
    {"column_sum", column_sum, METH_VARARGS, "column_sum($module, inp, scale, rows, add_to, /)\n--\n\nout"},
    {"gemm", gemm, METH_VARARGS,
     "gemm($module, products, bf16, prepack, /)\n--\n\nResults of independent products, each given as a tuple (a, b, "
     "transpose_a, transpose_b, a_rows, b_rows, bias, k_scale, c)."},
    {"gemm_seconds", gemm_seconds, METH_VARARGS,
     "gemm_seconds($module, products, bf16, prepack, repeats, /)\n--\n\nSeconds of each of so many times."},
    {NULL, NULL, 0, NULL}};

int mom_add_linear_functions(PyObject *module) { return PyModule_AddFunctions(module, functions); }
