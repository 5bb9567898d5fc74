/* The balance loss of a whole network. This file decides which half-rounds are counted together as a group, and adds up
 * the groups. The loss of one group is in ops/balance_loss.h. Derivation: docs/derivations/balance_loss.md. */
#ifndef MOM_MODEL_BALANCE_H
#define MOM_MODEL_BALANCE_H

#include "model/pool.h"

typedef struct {
    double *counts, *prob_sums; /* (S) */
    double count_tokens, tokens;
    size_t S;                   /* 0: no half-round contributes */
} mom_balance_group;

/* Pooled: one group per half. Depthwise: one per block, round and half. */
typedef struct {
    mom_balance_group *groups;
    size_t count;
    double factor; /* of each group's loss */
} mom_balance_groups;

/* Counts since gradients were last zeroed, for balance_step_counts; NULL before there are any. */
typedef struct {
    double *counts; /* (groups, widest router) */
    double *tokens; /* (groups) */
} mom_balance_step;

void mom_balance_step_free(mom_balance_step *step);
void mom_balance_step_clear(mom_balance_step *step, const mom_config *config);

/* The groups of a pass. halves: by place, two entries per round. With balance_step_counts the shares are taken over all
 * micro-batches since gradients were last zeroed. `remember` adds this pass to them; backward sets it. */
mom_status mom_balance_collect(mom_balance_groups *out, const mom_pass *pass, const mom_params *params,
                               mom_half_saved *const *halves, mom_balance_step *step, int remember, mom_arena *arena);

/* The loss. *any is set to whether any half-round contributes. */
double mom_balance_total(const mom_balance_groups *groups, int *any);

/* What backward of a half-round needs to know. `scale` is the scale of the balance loss. */
mom_balance_terms mom_balance_terms_of(const mom_balance_groups *groups, const mom_config *config, size_t block, size_t round,
                                       int half, float scale);

#endif
