/* The end of the network: final LayerNorm, tied head or classifier, and their losses. */
#ifndef MOM_MODEL_HEAD_H
#define MOM_MODEL_HEAD_H

#include "model/activations.h"

/* Computes `hidden` from x and then, if the batch has labels, the loss. With `keep` the gradients of a language model's
 * head are computed along with the loss, so that no logit is computed twice. The gradient of wte stays at the bottom of
 * the workspace until backward adds it. If `embeddings` is 0, it is not computed. */
mom_status mom_head_forward(mom_activations *a, const mom_params *params, const mom_batch *batch, int embeddings);

/* Adds the head's gradients, times `scale`, to the gradients of the parameters. dhidden (N, C) gets the gradient of
 * `hidden`; it is NULL if only a classifier's own parameters are trained. For a language model, forward has computed it
 * already. */
mom_status mom_head_backward(mom_activations *a, const mom_params *params, mom_gradients *gradients, float *dhidden,
                             float scale);

/* Logits: out (count, V). `rows` names count of the N rows; NULL means all N. Rows that were not asked for are an
 * error. */
mom_status mom_head_logits(const mom_activations *a, const mom_exec *x, const mom_params *params, float *out,
                           const int32_t *rows, size_t count, mom_error *err);

#endif
