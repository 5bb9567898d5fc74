/* The whole network: forward, backward and losses in one call each.
 *
 * Order of calls: init; any number of { forward; backward }; free. backward belongs to the last forward made with
 * `keep` and may follow it once. Parameters and gradients are plain memory that the caller may read and write
 * between calls. One thread at a time may use a network; the calls themselves use several.
 */
#ifndef MOM_MODEL_GPT_H
#define MOM_MODEL_GPT_H

#include "model/pool.h"

/* Called after every half of a forward pass, in order, while the half's activations are there. */
typedef struct {
    void (*half_done)(void *context, const mom_run *run, size_t place, size_t round, int half,
                      const mom_half_saved *saved);
    void *context;
} mom_observer;

/* The first random stream of the halves; each half of each round takes MOM_STREAMS of them, in order. */
#define MOM_SITE_FIRST_HALF 16

/* N rows are the tokens of B sequences one after the other: T each, or as many as their lengths say. */
typedef struct {
    size_t B, T;              /* T: tokens of the longest sequence */
    const int32_t *lengths;   /* (B) at least 1, or NULL: T each */
    const int32_t *tokens;    /* (N) ids below V */
    const int32_t *labels;    /* (N) or NULL: position t is scored against label t + 1; MOM_IGNORED_LABEL */
    const uint8_t *mask;      /* (N) of 0/1 or NULL */
    const int32_t *positions; /* (N) below P, or NULL: 0, 1, 2, ... in every sequence */
    /* Which of the N rows of final states are wanted: all of them, or these and those with a label. With neither it is those
     * with a label, without labels all. For the others what nothing else depends on may be left out. */
    int all_rows;
    const int32_t *rows; /* (row_count) or NULL */
    size_t row_count;
    /* sequence classification */
    const int32_t *pooled;    /* (B) position of the pooled token in each sequence, or NULL: the last */
    const int32_t *classes;   /* (B) or NULL */
    const float *values;      /* (B, num_labels) or NULL */
    mom_label_loss label_loss;
    int keep;     /* keep activations for backward */
    int checkpoint; /* with keep: of every round just its input, backward computes the rest again */
    int training; /* dropout */
    const mom_observer *observer; /* or NULL */
} mom_batch;

typedef struct {
    int has_loss, has_balance;
    double lm_loss;      /* mean over labelled positions (or the classification loss); NaN without any */
    double balance_loss;
    size_t labelled;     /* positions that were scored */
} mom_losses;

/* Bytes of a network in use. The middle three are one block, the arena, at its fullest moment. */
typedef struct {
    size_t parameters, gradients, moments;
    size_t activations; /* what backward and the caller can still ask for */
    size_t packed;      /* weights packed for the rounds of a block */
    size_t workspace;   /* temporaries */
    size_t most_workspace; /* at its own fullest moment */
} mom_memory_plan;

static inline size_t mom_memory_plan_arena(const mom_memory_plan *p) { return p->activations + p->packed + p->workspace; }
static inline size_t mom_memory_plan_total(const mom_memory_plan *p) {
    return p->parameters + p->gradients + p->moments + mom_memory_plan_arena(p);
}

/* What forward keeps of a round from which backward computes the rest. */
typedef struct {
    const float *x;           /* (N, C) residual stream before the round */
    const float *states[2];   /* (N, R) of the round before, by half; or NULL */
    uint64_t site;
} mom_round_input;

/* What a plan depends on. */
typedef struct {
    size_t B, T, N; /* N tokens in all, B * T unless the sequences differ in length; T is the longest's */
    int labels, keep, checkpoint, training, threads;
    const mom_kernels *k;
} mom_memory_key;

typedef struct {
    mom_config config;
    mom_params params;
    uint64_t seed, counter; /* random streams of dropout and noise; counter rises with every call that draws */

    /* Balance counts since gradients were last zeroed, for balance_step_counts: (groups, S) and (groups). */
    double *step_counts, *step_tokens;

    int gradients_absent; /* zero, and their whole huge pages not there: see make_up_for_gradients */
    int apart; /* of passes within the last plan for backward: see large_halves */
    int keeps_gradients; /* their pages stay when they are zeroed: there is little to gain from giving them back */
    size_t trained_from; /* lowest place that backward goes through; 0: embeddings, too; see mom_gpt_set_trained */
    _Atomic size_t optimizers; /* there are: their moments count in plans */
    size_t memory_limit; /* largest plan, or 0: none */

    /* ---- state of the last forward */
    mom_region region;           /* the arena: memory of the next two */
    mom_arena saved, workspace;
    mom_memory_key planned[2];   /* without and with keep: what the region is large enough for */
    int can_backward, has_routes;
    size_t resident[2]; /* bytes of the region that forward has touched, by side */
    size_t most_workspace; /* bytes of the workspace at its largest */
    /* Of absent gradients in backward, for pages of activations that go: up to the place at hand, and wte's. */
    mom_bare bare, bare_wte;
    mom_run run;
    mom_batch batch;
    mom_losses losses;
    int32_t *offsets;          /* (B + 1) as run.offsets */
    int32_t *tokens, *positions;
    uint8_t *mask;
    mom_half_saved **halves;   /* per place: rounds * 2 entries, attention then FFN */
    mom_round_input **inputs;  /* per place and round, with checkpoint */
    float *embedded;           /* (N, C) */
    float *x;                  /* (N, C) before the final LayerNorm */
    float *hidden, *mean, *rstd; /* (N, C), (N), (N) final LayerNorm */
    float *dhidden, *dwte;       /* (N, C), (V, C): gradients of the sum of losses through the head, with keep */
    mom_arena_mark head_mark;    /* of the workspace, above dwte */
    mom_arena_mark head_start;   /* of saved, below the final LayerNorm's */
    int32_t *rows, *row_labels; /* (labelled) */
    int32_t *classes, *pooled; /* (B) classification: classes; rows of the pooled tokens */
    int16_t *unneeded;         /* (N) 1 for rows whose final states nobody wants, else 0; NULL: all are wanted */
    float *values, *pooled_logits, *pooled_hidden; /* classification: values/logits (B, num_labels), (B, C) */
} mom_gpt;

mom_status mom_gpt_init(mom_gpt *gpt, const mom_config *config, mom_error *err);
void mom_gpt_free(mom_gpt *gpt);

/* Losses into *losses. On an error nothing that a caller can see has changed except that backward needs a new forward.
 * exec supplies kernels and threads; the network's own workspace is used. */
mom_status mom_gpt_forward(mom_gpt *gpt, const mom_exec *exec, const mom_batch *batch, mom_losses *losses, mom_error *err);

/* Adds to the gradients those of lm_scale * lm_loss + balance_scale * balance_loss. After an error the gradients hold a part
 * of that sum: zero them and run forward again. */
mom_status mom_gpt_backward(mom_gpt *gpt, const mom_exec *exec, float lm_scale, float balance_scale, mom_error *err);

/* Logits of the last forward at the given rows of the N, or with rows NULL at all: out (count, V). An error for rows that
 * the batch did not want. */
mom_status mom_gpt_logits(mom_gpt *gpt, const mom_exec *exec, float *out, const int32_t *rows, size_t count, mom_error *err);

/* Bytes that calls of this kind take, worked out by going through them without computing. */
mom_status mom_gpt_plan(mom_gpt *gpt, const mom_memory_key *key, mom_memory_plan *plan, mom_error *err);

/* trained: (params.count) 0 where no gradient is wanted. Backward ends above the lowest parameter that is trained, forward
 * keeps nothing for what lies below, and the matrices of a half in which no module is trained get no gradients. Other
 * parameters may get theirs nevertheless. A forward pass before this call has no backward. Memory of gradients is given back
 * if nothing has been written to it. */
void mom_gpt_set_trained(mom_gpt *gpt, const uint8_t *trained);
/* Bytes of the moments that so many optimizers have of what is trained, and those there are have of the rest. */
size_t mom_gpt_moments(const mom_gpt *gpt, size_t optimizers);

/* The next pass asks the limit again, whatever fitted before. */
void mom_gpt_forget_plans(mom_gpt *gpt);

void mom_gpt_zero_grad(mom_gpt *gpt);
/* The same for gradients that are zero already, but for matrices' (mom_params_unset_matrices): no parameter has one, and
 * the counts of a step begin anew. */
void mom_gpt_forget_grad(mom_gpt *gpt);

#endif
