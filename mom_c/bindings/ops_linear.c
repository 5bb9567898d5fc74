/* Linear layers, sums of columns and matrix products on plain arrays. */
#include "bindings/operators.h"

#include <string.h>

#include "bindings/call.h"
#include "ops/linear.h"
#include "ops/yardsticks.h"

/* ------------------------------------------------------------------ linear */

static void linear_forward(mom_call *call) {
    const int out_in = mom_arg_flag(call, "out_in");
    const float *inp = mom_arg_f32(call, "inp", "... I");
    const float *weight = mom_arg_f32(call, "weight", out_in ? "O I" : "I O");
    const float *bias = mom_arg_optional_f32(call, "bias", "O");
    const int accumulate = mom_arg_given(call, "add_to");
    float *out = accumulate ? mom_new_sum(call, "out", 0, 1, "... O") : mom_new_f32(call, "... O");
    const size_t N = mom_leading(call), In = mom_size(call, 'I'), Out = mom_size(call, 'O');
    const mom_weight_layout layout = out_in ? MOM_WEIGHT_OUT_IN : MOM_WEIGHT_IN_OUT;
    const mom_linear_shape linear = {layout, N, In, Out};
    MOM_RUN(call, call->status = mom_linear_forward(&call->exec, out, inp, weight, bias, accumulate, &linear, &call->error));
}

static void linear_backward(mom_call *call) {
    const int out_in = mom_arg_flag(call, "out_in");
    const char *shape = out_in ? "O I" : "I O";
    const float *inp = mom_arg_f32(call, "inp", "... I+");
    const float *weight = mom_arg_f32(call, "weight", shape);
    const float *dout = mom_arg_f32(call, "dout", "... O");
    const int accumulate = mom_arg_given(call, "add_to");
    float *dinp = accumulate ? mom_new_sum(call, "dinp", 0, 3, "... I") : mom_new_f32(call, "... I");
    float *dweight = mom_new_sum(call, "dweight", 1, 3, shape);
    float *dbias = mom_new_sum(call, "dbias", 2, 3, "O");
    const size_t N = mom_leading(call), In = mom_size(call, 'I'), Out = mom_size(call, 'O');
    const mom_weight_layout layout = out_in ? MOM_WEIGHT_OUT_IN : MOM_WEIGHT_IN_OUT;
    const mom_linear_shape linear = {layout, N, In, Out};
    MOM_RUN(call, {
        call->status = mom_linear_backward_input(&call->exec, dinp, dout, weight, accumulate, &linear, &call->error);
        if (call->status == MOM_OK)
            call->status = mom_linear_backward_weight(&call->exec, dweight, dbias, inp, dout, &linear, &call->error);
    });
}

static void column_sum(mom_call *call) {
    const float *inp = mom_arg_f32(call, "inp", "R C");
    mom_set_size(call, 'N', mom_size(call, 'R'));
    const int32_t *rows = NULL;
    if (mom_arg_given(call, "rows")) {
        call->sizes['N' - 'A'] = -1;
        rows = mom_arg_i32(call, "rows", "N", mom_size(call, 'R'));
    }
    const float *scale = mom_arg_optional_f32(call, "scale", "N");
    float *out = mom_new_sum(call, "out", 0, 1, "C");
    const size_t N = mom_size(call, 'N'), C = mom_size(call, 'C');
    MOM_RUN(call, mom_column_sum(&call->exec, out, inp, scale, rows, N, C));
}

/* ------------------------------------------------------------------ matrix products */

#define PRODUCT "a, b, transpose_a, transpose_b, a_rows, b_rows, bias, k_scale, c"

/* A factor of a product: the rows `rows` of the stored matrix, transposed if asked for. */
static mom_matrix operand(const float *data, size_t columns, const int32_t *rows, int transpose) {
    mom_matrix m = transpose ? mom_matrix_transposed(data, columns) : mom_matrix_rows(data, columns);
    *(transpose ? &m.col_index : &m.row_index) = rows;
    return m;
}

/* One product of a call: (M, N) out of (M, K) and (K, N). R and Q are the rows and columns of `a` in memory, S the rows
 * of `b`. The products of a group may differ in all sizes, so for each product the letters start as unknown. The result
 * is appended to the call's results. */
static mom_gemm read_product(mom_call *call) {
    for (const char *letter = "MNKRSQ"; *letter; letter++)
        call->sizes[*letter - 'A'] = -1;
    const int transpose_a = mom_arg_flag(call, "transpose_a"), transpose_b = mom_arg_flag(call, "transpose_b");
    const int some_a = mom_arg_given(call, "a_rows"), some_b = mom_arg_given(call, "b_rows");
    const int32_t *a_rows = NULL, *b_rows = NULL;
    const float *a = mom_arg_f32(call, "a", some_a ? "R Q" : transpose_a ? "K M" : "M K");
    if (some_a) {
        mom_set_size(call, transpose_a ? 'M' : 'K', mom_size(call, 'Q'));
        a_rows = mom_arg_i32(call, "a_rows", transpose_a ? "K" : "M", mom_size(call, 'R'));
    }
    const char *b_shape = some_b ? (transpose_b ? "S K" : "S N") : transpose_b ? "N K" : "K N";
    const float *b = mom_arg_f32(call, "b", b_shape);
    if (some_b)
        b_rows = mom_arg_i32(call, "b_rows", transpose_b ? "N" : "K", mom_size(call, 'S'));
    mom_gemm g = {.bias = mom_arg_optional_f32(call, "bias", "N"), .k_scale = mom_arg_optional_f32(call, "k_scale", "K"),
                  .accumulate = mom_arg_given(call, "c")};
    g.c = g.accumulate ? mom_new_copy(call, "c", mom_arg(call, "c"), "M N") : mom_new_f32(call, "M N");
    g.m = mom_size(call, 'M');
    g.n = g.ldc = mom_size(call, 'N');
    g.k = mom_size(call, 'K');
    g.a = operand(a, transpose_a ? g.m : g.k, a_rows, transpose_a);
    g.b = operand(b, transpose_b ? g.k : g.n, b_rows, transpose_b);
    return g;
}

/* Packs every b in a separate pass, as layers do with weights that several products use. */
static mom_status prepack_factors(mom_call *call, mom_gemm *problems, size_t count) {
    mom_gemm_packing *packings;
    MOM_ARENA_NEW(packings, &call->workspace, count, &call->error);
    for (size_t i = 0; i < count; i++) {
        mom_gemm *g = &problems[i];
        const size_t bytes = mom_gemm_packed_size(call->exec.k, g->precision, g->n, g->k);
        void *packed;
        MOM_ARENA_NEW_SIZED(packed, &call->workspace, bytes, 1, &call->error);
        packings[i] = (mom_gemm_packing){packed, g->b, g->k_scale, g->n, g->k, g->precision};
        g->packed_b = packed;
    }
    return mom_gemm_pack(&call->exec, packings, count, &call->error);
}

/* Reads all products of a call and allocates their results. Returns NULL if the call has failed. */
static mom_gemm *read_products(mom_call *call, size_t *count) {
    const mom_dtype precision = mom_arg_flag(call, "bf16") ? MOM_BF16 : MOM_F32;
    const int prepack = mom_arg_flag(call, "prepack");
    PyObject *products = mom_arg_list(call, "products"); /* borrowed */
    *count = products ? (size_t)PyTuple_GET_SIZE(products) : 0;
    mom_gemm *problems = mom_call_alloc(call, *count, sizeof *problems);
    for (size_t i = 0; i < *count && !call->failed; i++) {
        PyObject *product = PyTuple_GET_ITEM(products, (Py_ssize_t)i); /* borrowed */
        const mom_arguments outer = mom_enter_tuple(call, "products", product, PRODUCT);
        problems[i] = read_product(call);
        problems[i].precision = precision;
        call->arguments = outer;
    }
    if (prepack && !call->failed && prepack_factors(call, problems, *count) != MOM_OK)
        mom_call_fail(call, PyExc_MemoryError, "%s", call->error.text);
    return problems;
}

static void gemm(mom_call *call) {
    size_t count;
    const mom_gemm *problems = read_products(call, &count);
    call->results_as_list = 1;
    MOM_RUN(call, call->status = mom_gemm_run(&call->exec, problems, count, &call->error));
}

/* For benchmarks: computes the same products once to warm up, then `repeats` times, always into the same memory.
 * Returns the seconds of each repeat. */
static void gemm_seconds(mom_call *call) {
    const size_t repeats = mom_arg_size(call, "repeats");
    if (!repeats)
        mom_call_fail(call, PyExc_ValueError, "repeats: 0 is less than 1");
    size_t count;
    const mom_gemm *problems = read_products(call, &count);
    mom_call_hide_results(call); /* Python gets only the times */
    mom_set_size(call, 'Z', repeats);
    double *seconds = mom_new_f64(call, "Z");
    mom_arena workspace; /* not the call's: it is empty after each repeat and keeps its memory */
    mom_arena_init(&workspace, "workspace");
    mom_exec exec = call->exec;
    exec.workspace = &workspace;
    MOM_RUN(call, {
        call->status = mom_gemm_run(&exec, problems, count, &call->error);
        for (size_t i = 0; i < repeats && call->status == MOM_OK; i++) {
            const double started = mom_clock_seconds();
            call->status = mom_gemm_run(&exec, problems, count, &call->error);
            seconds[i] = mom_clock_seconds() - started;
        }
    });
    mom_arena_free(&workspace);
}

static mom_operator operators[] = {
    MOM_OPERATOR(linear_forward, "inp, weight, bias, out_in, add_to", "out"),
    MOM_OPERATOR(linear_backward, "dout, inp, weight, out_in, add_to", "dinp, dweight, dbias"),
    MOM_OPERATOR(column_sum, "inp, scale, rows, add_to", "out"),
    MOM_OPERATOR(gemm, "products, bf16, prepack",
                 "Results of independent products, each given as a tuple (" PRODUCT ")."),
    MOM_OPERATOR(gemm_seconds, "products, bf16, prepack, repeats", "Seconds of each of so many times."),
};

int mom_add_linear_functions(PyObject *module) {
    return mom_add_operators(module, operators, sizeof operators / sizeof *operators);
}
