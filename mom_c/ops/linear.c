/* Linear layer: a matrix product with a bias, and its two gradient products. Contracts: linear.h.
 *
 * Both layouts are the same memory read with swapped strides, so nothing is ever transposed in place.
 */
#include "ops/linear.h"

#include <string.h>


/* Rows per task of the bias pass, and the tile of a column sum. A tile's rows are summed apart and the
 * tiles added in order: short chains of additions round less, and both sizes are part of the result's
 * bits, so neither depends on the number of threads. */
#define BIAS_ROWS 64
#define SUM_ROWS 256
#define SUM_COLUMNS 128

typedef struct {
    const mom_kernels *k;
    float *out;
    const float *bias;
    size_t N, Out, tasks;
} bias_context;

static void run_add_bias(void *context, size_t task, int thread) {
    (void)thread;
    const bias_context *run = context;
    size_t begin, end;
    mom_range(run->N, run->tasks, task, &begin, &end);
    for (size_t i = begin; i < end; i++)
        run->k->vec.add(run->out + i * run->Out, run->bias, run->Out);
}

mom_status mom_linear_forward(const mom_exec *x, float *out, const float *inp, const float *weight, const float *bias,
                              mom_weight_layout layout, int accumulate, size_t N, size_t In, size_t Out,
                              mom_error *err) {
    const mom_gemm product = {
        .m = N,
        .n = Out,
        .k = In,
        .a = mom_matrix_rows(inp, In),
        .b = layout == MOM_WEIGHT_IN_OUT ? mom_matrix_rows(weight, Out) : mom_matrix_transposed(weight, In),
        .c = out,
        .ldc = Out,
        .bias = bias,
        .accumulate = accumulate,
        .precision = x->precision,
    };
    MOM_TRY(mom_gemm_run(x, &product, 1, err));
    if (accumulate && bias) { /* the product takes a bias only where it overwrites */
        bias_context run = {x->k, out, bias, N, Out, (N + BIAS_ROWS - 1) / BIAS_ROWS};
        mom_parallel_for(x, run.tasks, run_add_bias, &run);
    }
    return MOM_OK;
}

mom_status mom_linear_backward_input(const mom_exec *x, float *dinp, const float *dout, const float *weight,
                                     mom_weight_layout layout, int accumulate, size_t N, size_t In, size_t Out,
                                     mom_error *err) {
    const mom_gemm product = {
        .m = N,
        .n = In,
        .k = Out,
        .a = mom_matrix_rows(dout, Out),
        .b = layout == MOM_WEIGHT_IN_OUT ? mom_matrix_transposed(weight, Out) : mom_matrix_rows(weight, In),
        .c = dinp,
        .ldc = In,
        .accumulate = accumulate,
        .precision = x->precision,
    };
    return mom_gemm_run(x, &product, 1, err);
}

mom_status mom_linear_backward_weight(const mom_exec *x, float *dweight, float *dbias, const float *inp,
                                      const float *dout, mom_weight_layout layout, size_t N, size_t In, size_t Out,
                                      mom_error *err) {
    mom_gemm product = {.k = N, .c = dweight, .accumulate = 1, .precision = x->precision};
    if (layout == MOM_WEIGHT_IN_OUT) {
        product.m = In;
        product.n = product.ldc = Out;
        product.a = mom_matrix_transposed(inp, In);
        product.b = mom_matrix_rows(dout, Out);
        product.k_sums = dbias;
    } else {
        product.m = Out;
        product.n = product.ldc = In;
        product.a = mom_matrix_transposed(dout, Out);
        product.b = mom_matrix_rows(inp, In);
    }
    MOM_TRY(mom_gemm_run(x, &product, 1, err));
    if (dbias && layout != MOM_WEIGHT_IN_OUT)
        mom_column_sum(x, dbias, dout, NULL, NULL, N, Out);
    return MOM_OK;
}

typedef struct {
    const mom_kernels *k;
    float *out;
    const float *inp;
    const float *scale;
    const int32_t *row_index;
    size_t N, C;
} column_sum_context;

static void run_column_sum(void *context, size_t task, int thread) {
    (void)thread;
    const column_sum_context *run = context;
    const mom_kernels *k = run->k;
    const size_t first = task * SUM_COLUMNS;
    const size_t columns = run->C - first < SUM_COLUMNS ? run->C - first : SUM_COLUMNS;
    float tile[SUM_COLUMNS];
    for (size_t begin = 0; begin < run->N; begin += SUM_ROWS) {
        const size_t end = run->N - begin < SUM_ROWS ? run->N : begin + SUM_ROWS;
        memset(tile, 0, sizeof tile);
        for (size_t i = begin; i < end; i++) {
            const float *row = run->inp + (run->row_index ? (size_t)run->row_index[i] : i) * run->C + first;
            if (run->scale)
                k->vec.axpy(tile, run->scale[i], row, columns);
            else
                k->vec.add(tile, row, columns);
        }
        k->vec.add(run->out + first, tile, columns);
    }
}

void mom_column_sum(const mom_exec *x, float *out, const float *inp, const float *scale, const int32_t *row_index, size_t N,
                    size_t C) {
    column_sum_context run = {x->k, out, inp, scale, row_index, N, C};
    mom_parallel_for(x, (C + SUM_COLUMNS - 1) / SUM_COLUMNS, run_column_sum, &run);
}
