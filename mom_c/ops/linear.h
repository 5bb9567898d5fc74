/* Linear layer, forward and backward. Weights stored [in, out] (GPT-2) or [out, in] (routers, heads). */
#ifndef MOM_OPS_LINEAR_H
#define MOM_OPS_LINEAR_H

#include "gemm/gemm.h"

typedef enum { MOM_WEIGHT_IN_OUT, MOM_WEIGHT_OUT_IN } mom_weight_layout;

/* Rows of inputs (N, In) and of outputs (N, Out), and how the weight between them lies in memory. */
typedef struct {
    mom_weight_layout layout;
    size_t N, In, Out;
} mom_linear_shape;

/* out = or, with accumulate, += inp * W + bias. bias (Out) or NULL. */
mom_status mom_linear_forward(const mom_exec *x, float *out, const float *inp, const float *weight, const float *bias,
                              int accumulate, const mom_linear_shape *shape, mom_error *err);

/* dinp = or += dout * W^T */
mom_status mom_linear_backward_input(const mom_exec *x, float *dinp, const float *dout, const float *weight, int accumulate,
                                     const mom_linear_shape *shape, mom_error *err);

/* dweight += inp^T * dout, in the weight's layout. dbias (Out), or NULL, += column sums of dout; in bfloat16 they may be
 * sums of what the product rounds dout to. */
mom_status mom_linear_backward_weight(const mom_exec *x, float *dweight, float *dbias, const float *inp, const float *dout,
                                      const mom_linear_shape *shape, mom_error *err);

/* out (C) += sum over N rows of scale[i] * inp[row_index[i]] (., C). scale and row_index (N) may be NULL. Rows are summed
 * in order; each task has some columns. */
void mom_column_sum(const mom_exec *x, float *out, const float *inp, const float *scale, const int32_t *row_index, size_t N,
                    size_t C);

#endif
