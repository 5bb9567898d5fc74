/* Load-balancing loss over a set of router outputs: S * sum_m f_m * P_m.
 *
 * f_m is the share of unmasked tokens whose largest score is choice m; it has no gradient. P_m is the mean probability of
 * choice m. To pool over rounds and blocks, the caller accumulates several score arrays into the same counts and sums.
 * Source: Fedus et al., arXiv:2101.03961, eq. 4-6; derivation and the two definitions in
 * docs/derivations/balance_loss.md.
 */
#ifndef MOM_OPS_BALANCE_LOSS_H
#define MOM_OPS_BALANCE_LOSS_H

#include "kernels/kernels.h"

/* The scores of one router in one round. */
typedef struct {
    const float *scores; /* (N, S) */
    const uint8_t *mask; /* (N) of 0 and 1, or NULL */
    int softmax;         /* probabilities are the softmax of the scores (1), or the scores themselves (0) */
    size_t N, S;
    /* First choices to count in place of the largest scores: entry t * used_stride belongs to token t, and numbers outside of
     * [0, S) are not counted. With a stride of 0 no token has made a choice. Or NULL. */
    const int16_t *used;
    size_t used_stride;
} mom_balance_scores;

/* Adds to counts (S), prob_sums (S) and *tokens, the number of unmasked tokens. Sums over tokens are made in fixed chunks
 * of rows. */
mom_status mom_balance_accumulate(const mom_exec *x, double *counts, double *prob_sums, double *tokens,
                                  const mom_balance_scores *in, mom_error *err);

/* S * sum_m (counts[m] / count_tokens) * (prob_sums[m] / tokens); 0 when there is no token. */
double mom_balance_loss(const double *counts, double count_tokens, const double *prob_sums, double tokens, size_t S);

/* dscores (N, S) += scale * d(loss)/d(scores) */
void mom_balance_backward(const mom_exec *x, float *dscores, const mom_balance_scores *in, const double *counts,
                          double count_tokens, double tokens, float scale);

#endif
