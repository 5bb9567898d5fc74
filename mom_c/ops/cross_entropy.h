/* Cross entropy with ignored labels; the tied language-model head with it, forward and backward apart.
 *
 * Plain definitions: mom.ops exposes them, and tests compare the head of the network (ops/lm_head.h) with them. The
 * network does not use them. */
#ifndef MOM_OPS_CROSS_ENTROPY_H
#define MOM_OPS_CROSS_ENTROPY_H

#include "ops/label_loss.h"
#include "ops/lm_head.h"

/* loss (N): lse - logit of the label, 0 where ignored; lse (N): log-sum-exp of the row; logits (N, V); labels (N). */
void mom_cross_entropy_forward(const mom_exec *x, float *loss, float *lse, const float *logits, const int32_t *labels,
                               size_t N, size_t V);

/* dlogits (N, V) = scale * (softmax - one_hot), 0 for ignored rows. Overwrites; in place on logits allowed. */
void mom_cross_entropy_backward(const mom_exec *x, float *dlogits, const float *logits, const float *lse,
                                const int32_t *labels, float scale, size_t N, size_t V);

/* Head and loss of the labelled rows. Writes loss_sum (float64, added up row by row in order) and lse (n). Logits exist
 * for one chunk of rows at a time. */
mom_status mom_lm_head_forward(const mom_exec *x, double *loss_sum, float *lse, const mom_lm_head *head, mom_error *err);

/* Adds to dhidden (N, C) at the labelled rows, and to dwte (V, C). scale = d(total) / d(loss_sum). */
mom_status mom_lm_head_backward(const mom_exec *x, float *dhidden, float *dwte, const mom_lm_head *head, const float *lse,
                                float scale, mom_error *err);

#endif
