/* AdamW with decoupled weight decay, and gradient-norm clipping, over lists of tensors.
 * Source: Loshchilov and Hutter, arXiv:1711.05101; derivation in docs/derivations/adamw.md. */
#ifndef MOM_OPS_ADAMW_H
#define MOM_OPS_ADAMW_H

#include "kernels/kernels.h"

typedef struct {
    float *param;
    float *grad;
    float *exp_avg, *exp_avg_sq;
    size_t n;
    double step;  /* updates this tensor has had, before this one; written: + 1 when used */
    int decay;    /* weight decay applies */
    int used;     /* 0: no gradient in this step: nothing changes, not even the step count */
    int leave_grad; /* zero_grad skips this gradient: it is zero already, or the next product overwrites it */
    /* Of an embedding, else 0 and NULL: n = rows * width. */
    size_t width;
    const uint8_t *touched; /* by row: whether its gradient may differ from zero; NULL: all may */
    uint8_t *fresh;         /* by row: both moments are zero; a step clears it where they no longer are; NULL: none */
    size_t first_chunk; /* the functions below number chunks of work here */
} mom_adamw_tensor;

typedef struct {
    double lr, beta1, beta2, eps, weight_decay;
    float grad_scale; /* the gradient counts times this: clipping without a pass of its own */
    int zero_grad;    /* gradients are zero afterwards, also those of tensors that are not used, unless leave_grad */
} mom_adamw_spec;

/* param -= lr * (weight_decay * param) first, then the Adam update with bias correction by the tensor's own step.
 * Gradients scaled by mom_grad_scale before and a grad_scale of 1 give the same bits as grad_scale. Rows that are not
 * touched cost less, to the same bits: their gradients are not read, and of fresh ones, which only decay, no moments. */
void mom_adamw_step(const mom_exec *x, mom_adamw_tensor *tensors, size_t count, const mom_adamw_spec *spec);

/* Elements that these functions take at a time of a tensor with this width. Chunks begin at the tensor's first element. */
size_t mom_adamw_chunk(size_t width);
/* Number of chunks of all used gradients. */
size_t mom_grad_chunks(mom_adamw_tensor *tensors, size_t count);
/* The sum of squares of each of these chunks in float64, of an embedding row by row. partial: (mom_grad_chunks). A tensor
 * may be a part of a longer one that begins at one of its chunks: the sums are then those of its chunks. */
void mom_grad_squares(const mom_exec *x, double *partial, mom_adamw_tensor *tensors, size_t count);
/* Square root of the sum of such sums, added in their order. */
double mom_norm_of_squares(const double *partial, size_t chunks);
/* The norm of all used gradients. */
mom_status mom_grad_norm(const mom_exec *x, double *norm, mom_adamw_tensor *tensors, size_t count, mom_error *err);
/* min(1, max_norm / (norm + 1e-6)); 1 for a norm that is not finite. */
float mom_clip_factor(double norm, double max_norm);
/* Multiplies all used gradients by factor. */
void mom_grad_scale(const mom_exec *x, mom_adamw_tensor *tensors, size_t count, float factor);

#endif
