/* Choices of which some are given beforehand; the weights are computed from the router's scores as for its own choices.
 *
 * An entry of `forced` is the number of a choice, or one of the names below. Entries from M on mean SKIP. S itself is a SKIP
 * that has no score, for routers without SKIP. Numbers of choices in a row are distinct.
 *
 * A free entry that could only take a forbidden choice (an output of minus infinity) becomes MOM_NONE.
 * With `renormalise` the kept scores are divided by their sum. If the sum is 0, all kept choices weigh the same.
 * Derivation: docs/derivations/routing_interventions.md.
 */
#ifndef MOM_OPS_FORCED_CHOICES_H
#define MOM_OPS_FORCED_CHOICES_H

#include "ops/scores.h"

enum {
    MOM_FREE = -1, /* the router's best choice that is not in the row yet */
    MOM_NONE = -2, /* no choice: weight 0, and no module runs */
    MOM_SKIP = -3, /* the best SKIP that is not in the row yet, or S */
};

typedef struct {
    mom_topk_spec topk;
    size_t M;
    const float *scores, *outputs; /* (N, S) */
    const float *ranking;          /* (N, S) what free entries are chosen by, or NULL: the scores */
    const int16_t *forced;         /* (N, K) or NULL: all entries are free */
    int scored;                    /* 0: kept choices all have the same weight */
} mom_forced_choices;

/* index (N, K): numbers of choices, S or MOM_NONE; weight (N, K). */
mom_status mom_forced_choices_forward(const mom_exec *x, int16_t *index, float *weight, const mom_forced_choices *in,
                                      mom_error *err);

#endif
