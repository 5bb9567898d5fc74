/* The tied language-model head: logits of the labelled rows, their loss and its gradients, in one pass.
 *
 * Shapes      hidden, dhidden (N, C); wte, dwte (V, C); rows (n): positions with a label; labels (n)
 * Definition  loss_sum = sum over i < n of lse_i - logit_i[labels[i]], with logit_i = hidden[rows[i]] * wte^T and lse_i
 * the log
 *             of the sum of exp(logit_i). ops/cross_entropy.h has the same definition step by step.
 */
#ifndef MOM_OPS_LM_HEAD_H
#define MOM_OPS_LM_HEAD_H

#include "gemm/gemm.h"

typedef struct {
    const float *hidden, *wte;
    const int32_t *rows, *labels;
    size_t n, V, C;
    float *losses; /* (N) or NULL: rows `rows` are written, each with its own loss */
} mom_lm_head;

/* Writes loss_sum (float64, added up row by row in order), rows `rows` of dhidden, and dwte. With n = 0 dwte is left
 * alone. With dwte NULL only loss and dhidden are computed, with dhidden and dwte NULL only the loss; the bits are the
 * same. */
mom_status mom_lm_head_gradient(const mom_exec *x, double *loss_sum, float *dhidden, float *dwte, const mom_lm_head *head,
                                mom_error *err);

#endif
