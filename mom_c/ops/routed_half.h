/* The products of a half-round, fused with what surrounds them. Tokens are gathered, normalised and put through GELU
 * while they are packed. Scores, GELU's derivative and the residual sum are applied to blocks of results while these are
 * in cache. The plain operators of routed_linear.h, layernorm.h and gelu.h define the same maths step by step.
 *
 * A half with a single module has a plan in which every token has one slot (mom_routing_plan_init_dense). Stored
 * activations and the factors of products have the type `dtype`. Sums, the residual stream and the gradients of the
 * stream are float32.
 *
 * Shapes  x (N, C), mean (N), rstd (N); weight (N, K), or NULL for 1
 *         slots as in routing_plan.h; parameters by module
 */
#ifndef MOM_OPS_ROUTED_HALF_H
#define MOM_OPS_ROUTED_HALF_H

#include "base/dropout.h"
#include "gemm/gemm.h"
#include "ops/routing_plan.h"

typedef struct {
    const mom_exec *exec;
    const mom_routing_plan *plan;
    mom_dtype dtype;
    size_t C;
    const float *x, *mean, *rstd;                /* residual stream before the half, its statistics */
    const float *const *ln_weight, *const *ln_bias;
    mom_error *err;
} mom_half;

/* A layer of the pool: weight[m] (In, Out) and bias[m] (Out). packed[m] is the weight as mom_gemm_pack left it,
 * transposed in backward; NULL if the product has to pack it. */
typedef struct {
    size_t In, Out;
    const float *const *weight, *const *bias;
    const void *const *packed;
} mom_half_layer;

/* Where gradients are added to, by module. */
typedef struct {
    float *const *weight, *const *bias; /* of the layer: (In, Out), (Out); with weight NULL they are not computed */
    /* NULL, or by module whether the weight's gradient counts as zero, whatever its memory holds. Then it is overwritten,
     * and the flag cleared. */
    uint8_t *overwrite;
    float *const *ln_weight, *const *ln_bias; /* of LayerNorm, for the first layer: (C), (C) */
} mom_half_gradient;

/* The first layer of a half: out (slots, Out) = LN_m(x) W + b by slot. With by_token out is (N, Out), and each row is
 * multiplied by its weight; that needs a plan with at most one slot per token, and rows of tokens without a slot are not
 * written. */
mom_status mom_half_first_layer(const mom_half *half, void *out, mom_dtype out_dtype, int by_token, const float *weight,
                                const mom_half_layer *layer);

/* The same by token and in two parts, for a half with one module that every token uses. The first `columns` columns are
 * computed only for the tokens of the plan `some`, the other columns for all tokens. */
mom_status mom_half_first_layer_split(const mom_half *half, const mom_routing_plan *some, size_t columns, void *out,
                                      mom_dtype out_dtype, const mom_half_layer *layer);

/* The last layer of a half. Its inputs are the rows of `inner`, by slot or by token, after GELU if `gelu` is set. */
typedef struct {
    const void *inner; /* of type dtype */
    int by_token, gelu;
    const float *weight;  /* scores */
    mom_dropout dropout;  /* of the half's output; index t * C + c */
    float *slots; /* forward: where the modules' outputs are left, (slots, Out), before weight and dropout; or NULL */
} mom_half_output;

/* x_out = x + dropout(sum over a token's slots of weight * (inner W + b)); x_out may be x itself. */
mom_status mom_half_last_layer(const mom_half *half, float *x_out, const mom_half_output *output,
                               const mom_half_layer *layer);

/* out (N, width) = sum over a token's slots of weight * y (slots, width); rows without slots become zero. */
mom_status mom_half_mix(const mom_half *half, void *out, mom_dtype out_dtype, const float *y, const float *weight,
                        size_t width);

/* Backward of the last layer. dout (N, C): gradient of the output, with dropout already applied. Adds to the layer's
 * gradients and, unless that is NULL, to dscore (N, K). With GELU, inner is replaced by the gradient of GELU's input, by
 * slot. Without, dinner (N, In) of type dtype is written, by token. */
mom_status mom_half_last_layer_backward(const mom_half *half, const mom_half_gradient *gradient, float *dscore, void *inner,
                                        void *dinner, const mom_half_output *output, const float *dout,
                                        const mom_half_layer *layer);

/* Backward of the first layer. dout of type dtype, by slot or by token. Adds to the gradients, to dx (N, C) and, if weight
 * is given, to dscore (N, K). */
mom_status mom_half_first_layer_backward(const mom_half *half, const mom_half_gradient *gradient, float *dx, float *dscore,
                                         const void *dout, int by_token, const float *weight, const mom_half_layer *layer);

/* Backward of mom_half_first_layer_split. The first columns of dout are read only at the tokens of `some`; there must be at
 * least one. */
mom_status mom_half_first_layer_split_backward(const mom_half *half, const mom_routing_plan *some, size_t columns,
                                               const mom_half_gradient *gradient, float *dx, const void *dout,
                                               const mom_half_layer *layer);

#endif
