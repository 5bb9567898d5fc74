/* Linear layer, forward and backward. Weights stored [in, out] (GPT-2) or [out, in] (routers, heads). */
#ifndef MOM_OPS_LINEAR_H
#define MOM_OPS_LINEAR_H

#include "gemm/gemm.h"

typedef enum { MOM_WEIGHT_IN_OUT, MOM_WEIGHT_OUT_IN } mom_weight_layout;

/* out (N, Out) = inp (N, In) * W + bias; accumulate: added to out (bias included). bias may be NULL. */
mom_status mom_linear_forward(const mom_exec *x, float *out, const float *inp, const float *weight, const float *bias,
                              mom_weight_layout layout, int accumulate, size_t N, size_t In, size_t Out, mom_error *err);

/* dinp (N, In) = or += dout (N, Out) * W^T */
mom_status mom_linear_backward_input(const mom_exec *x, float *dinp, const float *dout, const float *weight,
                                     mom_weight_layout layout, int accumulate, size_t N, size_t In, size_t Out, mom_error *err);

/* dweight += inp^T * dout (in the weight's layout); dbias (Out) += column sums of dout, which
 * in bfloat16 may be rounded as the factor of the product is. dbias may be NULL. */
mom_status mom_linear_backward_weight(const mom_exec *x, float *dweight, float *dbias, const float *inp, const float *dout,
                                      mom_weight_layout layout, size_t N, size_t In, size_t Out, mom_error *err);

/* out (C) += sum over rows of scale[i] * inp[row_index[i]] (., C); scale and row_index (N) may be NULL. Rows are summed in
 * order, threads own columns. */
void mom_column_sum(const mom_exec *x, float *out, const float *inp, const float *scale, const int32_t *row_index, size_t N,
                    size_t C);

#endif
