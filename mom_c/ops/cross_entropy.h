/* Cross entropy with ignored labels; the tied language-model head with it, in chunks; losses of sequence classification. */
#ifndef MOM_OPS_CROSS_ENTROPY_H
#define MOM_OPS_CROSS_ENTROPY_H

#include "gemm/gemm.h"

#define MOM_IGNORED_LABEL (-100)

/* loss (N): lse - logit of the label, 0 where ignored; lse (N): log-sum-exp of the row; logits (N, V); labels (N). */
void mom_cross_entropy_forward(const mom_exec *x, float *loss, float *lse, const float *logits, const int32_t *labels,
                               size_t N, size_t V);

/* dlogits (N, V) = scale * (softmax - one_hot), 0 for ignored rows. Overwrites; in place on logits allowed. */
void mom_cross_entropy_backward(const mom_exec *x, float *dlogits, const float *logits, const float *lse,
                                const int32_t *labels, float scale, size_t N, size_t V);

/* Head and loss over labelled rows only. hidden (N, C); wte (V, C); rows (n): positions with a label; labels (n).
 * Writes loss_sum (float64, sum over rows in order) and lse (n). Logits exist for one chunk of rows at a time. */
mom_status mom_lm_head_forward(const mom_exec *x, double *loss_sum, float *lse, const float *hidden, const float *wte,
                               const int32_t *rows, const int32_t *labels, size_t n, size_t V, size_t C, mom_error *err);

/* dhidden (N, C) added to at the labelled rows; dwte (V, C) added to. scale = d(total) / d(loss_sum). */
mom_status mom_lm_head_backward(const mom_exec *x, float *dhidden, float *dwte, const float *hidden, const float *wte,
                                const float *lse, const int32_t *rows, const int32_t *labels, float scale, size_t n,
                                size_t V, size_t C, mom_error *err);

/* Both at once, for scale 1 (lm_head.c): loss_sum; rows `rows` of dhidden (N, C) are overwritten, so is dwte (V, C), unless
 * n is 0. Every logit is computed once. With dhidden and dwte NULL only the loss, with
 * dwte NULL that and dhidden, of the same bits. */
mom_status mom_lm_head_gradient(const mom_exec *x, double *loss_sum, float *dhidden, float *dwte, const float *hidden,
                                const float *wte, const int32_t *rows, const int32_t *labels, size_t n, size_t V,
                                size_t C, mom_error *err);

/* out (n) = factor * in, and out (n) += factor * in */
void mom_scaled(const mom_exec *x, float *out, float factor, const float *in, size_t n);
void mom_scaled_add(const mom_exec *x, float *out, float factor, const float *in, size_t n);

typedef enum { MOM_LOSS_MSE, MOM_LOSS_CROSS_ENTROPY, MOM_LOSS_BCE } mom_label_loss;

/* Mean loss of pooled outputs (serial: B is small). logits (B, L). Cross entropy: classes (B), -100 ignored;
 * otherwise values (B, L). dlogits (B, L) may be NULL; it gets scale * gradient of the mean loss. */
double mom_label_loss_compute(const mom_exec *x, float *dlogits, const float *logits, const int32_t *classes,
                              const float *values, mom_label_loss kind, float scale, size_t B, size_t L);

#endif
