/* The memory of a network's passes, and the plan of how much a pass needs.
 *
 * One block, the region, holds the arrays that a pass keeps (`saved`, from the bottom) and temporaries (`workspace`,
 * from the top). Before the first pass of a kind, a dry run of forward and backward measures how large the region must
 * be. So no list of arrays has to be maintained: a plan includes what a new operator allocates.
 */
#ifndef MOM_MODEL_MEMORY_PLAN_H
#define MOM_MODEL_MEMORY_PLAN_H

#include "model/batch.h"

typedef struct mom_gpt mom_gpt; /* model/gpt.h */

/* What a plan depends on. */
typedef struct {
    size_t B, T, N; /* N tokens in all, B * T unless the sequences differ in length; T is the greatest length */
    int labels, keep, checkpoint, training, threads;
    size_t choices[2]; /* kept by the rounds of a half; 0: as many as the configuration says */
    int outputs;       /* outputs of halves or modules are patched or captured */
    const mom_kernels *k;
} mom_memory_key;

/* Bytes that a network uses. The last three are parts of the region at the moment of its largest use. */
typedef struct {
    size_t parameters, gradients, moments;
    size_t activations; /* kept for backward and for the caller's questions */
    size_t packed;      /* weights packed for the rounds of a block */
    size_t workspace;   /* temporaries */
} mom_memory_plan;

typedef struct {
    mom_region region;
    mom_arena saved, workspace;
    mom_memory_key planned[2]; /* without and with keep: what the region is large enough for */
    size_t limit;              /* largest plan in bytes, or 0: none */
} mom_memory;

static inline size_t mom_memory_plan_region(const mom_memory_plan *p) { return p->activations + p->packed + p->workspace; }

void mom_memory_init(mom_memory *memory);
void mom_memory_release(mom_memory *memory); /* frees everything */

/* Bytes that passes of this kind need. */
mom_status mom_gpt_plan(mom_gpt *gpt, const mom_memory_key *key, mom_memory_plan *plan, mom_error *err);
/* Makes the region large enough for a forward pass and the backward pass that may follow. If that would exceed the
 * limit, nothing changes and an error is returned. */
mom_status mom_gpt_prepare_memory(mom_gpt *gpt, const mom_exec *exec, const mom_batch *batch, mom_error *err);
/* Forgets all plans, so that the next pass is planned anew. */
void mom_gpt_forget_plans(mom_gpt *gpt);

#endif
