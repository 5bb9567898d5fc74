/* What the last forward pass keeps for backward, for logits and for callers that read routes. Arrays come from
 * the arena `saved`, except dwte and packed, which lie in the workspace. They last until the next forward pass, but backward
 * releases most of them as it goes. */
#ifndef MOM_MODEL_ACTIVATIONS_H
#define MOM_MODEL_ACTIVATIONS_H

#include "model/batch.h"
#include "model/pool.h"

/* The terms of the loss. Backward takes a scale for each; the gradient is that of the scaled sum. */
typedef enum { MOM_TERM_LM, MOM_TERM_BALANCE, MOM_TERM_Z, MOM_TERM_PATH, MOM_TERM_ROUTE, MOM_TERM_COUPLING, MOM_TERMS } mom_term;
extern const char *const mom_term_names[MOM_TERMS];

typedef struct {
    int has[MOM_TERMS];      /* the pass has this term */
    double value[MOM_TERMS]; /* lm: mean over labelled positions (or the classification loss), NaN without any */
    size_t labelled;         /* number of positions with a label */
} mom_losses;

/* With checkpoints, what forward keeps of a round. Backward computes the rest again from it. */
typedef struct {
    const float *x;         /* (N, C) residual stream before the round */
    const float *states[2]; /* (N, R) of the round before, by half; or NULL */
} mom_round_input;

typedef struct {
    mom_pass pass;
    mom_exec exec; /* of the pass */
    mom_rows rows;
    mom_losses losses;
    double z_count; /* rows in the mean of the z-loss, for one half: unmasked tokens times the rounds of blocks that ran */
    double path_count; /* rows in the mean of the path loss, for one half: unmasked tokens times blocks */
    double route_count; /* rows in the mean of the route loss, for both halves: unmasked tokens with a choice, in all rounds */
    int has_routes, can_backward; /* a pass that begins in the middle has neither */
    int keep, checkpoint; /* as in mom_batch */
    const mom_observer *observer; /* while forward runs */
    const mom_begin *begin;       /* while forward runs; NULL: it begins with the embedding */
    mom_half_saved **halves;  /* by place: rounds * 2 entries, attention then feed-forward */
    mom_round_input **inputs; /* by place and round, with checkpoint */
    mom_packed_pool packed[2]; /* of the current place, by half */
    float *embedded;            /* (N, C) the embedding, or the stream with which the pass begins */
    float *x;                   /* (N, C) before the final LayerNorm */
    float *hidden, *mean, *rstd; /* (N, C), (N), (N) final LayerNorm; hidden is NULL once backward has used it */
    float *dhidden, *dwte;       /* (N, C), (V, C): gradients of the sum of losses through the head, with keep; or NULL */
    mom_arena_mark head_start;   /* of saved: below the final LayerNorm's arrays */
    mom_arena_mark head_end;     /* of the workspace: above dwte */
    /* classification */
    mom_label_loss label_loss;
    int32_t *classes;                                /* (B) or NULL */
    float *values, *pooled_logits, *pooled_hidden;   /* (B, num_labels), (B, num_labels), (B, C) */
} mom_activations;

static inline mom_half_saved *mom_saved_half(const mom_activations *a, size_t place, size_t round, int half) {
    return &a->halves[place][2 * round + (size_t)half];
}

#endif
