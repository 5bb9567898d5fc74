/* Losses of sequence classification and regression, in float64. */
#ifndef MOM_OPS_LABEL_LOSS_H
#define MOM_OPS_LABEL_LOSS_H

#include "kernels/kernels.h"

#define MOM_IGNORED_LABEL (-100)

typedef enum { MOM_LOSS_MSE, MOM_LOSS_CROSS_ENTROPY, MOM_LOSS_BCE } mom_label_loss;

/* Returns the mean loss of pooled outputs: logits (B, L). Cross entropy takes classes (B), of which MOM_IGNORED_LABEL is
 * left out; the others take values (B, L). dlogits (B, L) or NULL is overwritten with scale * gradient. Serial, as B is
 * small. */
double mom_label_loss_compute(const mom_exec *x, float *dlogits, const float *logits, const int32_t *classes,
                              const float *values, mom_label_loss kind, float scale, size_t B, size_t L);

#endif
