/* Contracts: linear.h. A transposed matrix is the same memory read with swapped strides, so nothing is copied. */
#include "ops/linear.h"

#include <string.h>

#include "base/sizes.h"

#define BIAS_ROWS 64 /* rows per task of the bias pass */
/* Tile of a column sum. The rows of each tile are summed apart and the tiles added in order, because short chains of
 * additions round less. SUM_ROWS is part of the result's bits, so it does not depend on the threads. */
#define SUM_ROWS ((size_t)256)
#define SUM_COLUMNS ((size_t)128)

typedef struct {
    const mom_kernels *k;
    float *out;
    const float *bias;
    size_t Out;
} bias_job;

static void add_bias_task(const void *context, size_t begin, size_t end) {
    const bias_job *job = context;
    for (size_t i = begin; i < end; i++)
        job->k->vec.add(job->out + i * job->Out, job->bias, job->Out);
}

mom_status mom_linear_forward(const mom_exec *x, float *out, const float *inp, const float *weight, const float *bias,
                              int accumulate, const mom_linear_shape *shape, mom_error *err) {
    const size_t N = shape->N, In = shape->In, Out = shape->Out;
    const mom_gemm product = {
        .m = N,
        .n = Out,
        .k = In,
        .a = mom_matrix_rows(inp, In),
        .b = shape->layout == MOM_WEIGHT_IN_OUT ? mom_matrix_rows(weight, Out) : mom_matrix_transposed(weight, In),
        .c = out,
        .ldc = Out,
        .bias = bias,
        .accumulate = accumulate,
        .precision = x->precision,
    };
    MOM_TRY(mom_gemm_run(x, &product, 1, err));
    if (accumulate && bias) { /* the product takes a bias only where it overwrites */
        bias_job job = {x->k, out, bias, Out};
        mom_parallel_rows(x, N, BIAS_ROWS, add_bias_task, &job);
    }
    return MOM_OK;
}

mom_status mom_linear_backward_input(const mom_exec *x, float *dinp, const float *dout, const float *weight, int accumulate,
                                     const mom_linear_shape *shape, mom_error *err) {
    const size_t In = shape->In, Out = shape->Out;
    const mom_gemm product = {
        .m = shape->N,
        .n = In,
        .k = Out,
        .a = mom_matrix_rows(dout, Out),
        .b = shape->layout == MOM_WEIGHT_IN_OUT ? mom_matrix_transposed(weight, Out) : mom_matrix_rows(weight, In),
        .c = dinp,
        .ldc = In,
        .accumulate = accumulate,
        .precision = x->precision,
    };
    return mom_gemm_run(x, &product, 1, err);
}

mom_status mom_linear_backward_weight(const mom_exec *x, float *dweight, float *dbias, const float *inp, const float *dout,
                                      const mom_linear_shape *shape, mom_error *err) {
    const size_t N = shape->N, In = shape->In, Out = shape->Out;
    const int in_out = shape->layout == MOM_WEIGHT_IN_OUT;
    mom_gemm product = {.k = N, .c = dweight, .accumulate = 1, .precision = x->precision};
    if (in_out) {
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
    if (dbias && !in_out)
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
} column_sum_job;

static void column_sum_task(void *context, size_t task, int thread) {
    const column_sum_job *job = context;
    (void)thread;
    const mom_kernels *k = job->k;
    const size_t first = task * SUM_COLUMNS;
    const size_t columns = mom_min(job->C - first, SUM_COLUMNS);
    float tile[SUM_COLUMNS];
    for (size_t begin = 0; begin < job->N; begin += SUM_ROWS) {
        const size_t end = mom_min(job->N, begin + SUM_ROWS);
        memset(tile, 0, sizeof tile);
        for (size_t i = begin; i < end; i++) {
            const float *row = job->inp + (job->row_index ? (size_t)job->row_index[i] : i) * job->C + first;
            if (job->scale)
                k->vec.axpy(tile, job->scale[i], row, columns);
            else
                k->vec.add(tile, row, columns);
        }
        k->vec.add(job->out + first, tile, columns);
    }
}

void mom_column_sum(const mom_exec *x, float *out, const float *inp, const float *scale, const int32_t *row_index, size_t N,
                    size_t C) {
    column_sum_job job = {x->k, out, inp, scale, row_index, N, C};
    mom_parallel_for(x, mom_div_up(C, SUM_COLUMNS), column_sum_task, &job);
}
