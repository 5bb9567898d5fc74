/* What a caller changes in a pass and copies out of it, as plain arrays.
 *
 * A pass has N rows, one per token. Rules of users (which rounds, which tokens) are resolved by the caller; the core only
 * reads arrays with an entry per row. All arrays belong to the caller, and must live until the next forward pass, because
 * backward reads and writes them, too. A pass without interventions has NULL in their place.
 *
 * Order of effects in a half-round: bias on the router's outputs, softmax, top-k, forced choices.
 * Derivation: docs/derivations/routing_interventions.md.
 */
#ifndef MOM_MODEL_INTERVENTIONS_H
#define MOM_MODEL_INTERVENTIONS_H

#include <stddef.h>
#include <stdint.h>

/* Changes to the routing of one half-round. NULL: none. */
typedef struct {
    const int16_t *forced; /* (N, K): see ops/forced_choices.h */
    const float *bias;     /* (N, S), or (1, S) for all rows; -inf forbids a choice */
    size_t bias_stride;    /* S, or 0 for one row */
} mom_route_change;

/* Where activations can be read and changed. */
typedef enum {
    MOM_SITE_EMBEDDING, /* residual stream before the first place */
    MOM_SITE_INPUT,     /* residual stream before a half-round */
    MOM_SITE_STATE,     /* recurrent state after a round's router, from which its outputs are computed */
    MOM_SITE_MODULE,    /* what one module adds to the stream; zero for rows that did not choose it */
    MOM_SITE_OUTPUT,    /* what a half-round adds to the stream */
    MOM_SITE_FINAL,     /* residual stream before the last LayerNorm */
    MOM_SITE_HIDDEN,    /* after it */
    MOM_SITE_KINDS
} mom_site_kind;

/* place, round and half: of INPUT, STATE, MODULE and OUTPUT, else 0. module: of MODULE, else 0. */
typedef struct {
    mom_site_kind kind;
    size_t place, round;
    int half;
    size_t module;
} mom_site;

/* row = factor * row + value. With factor 0 it does not matter what the row holds. No gradient passes through value. */
typedef struct {
    mom_site site;
    const int32_t *value_row; /* (N) which row of values, or -1: the row stays as it is */
    const float *values;      /* (any, width) or NULL: zeros */
    float factor;
    int64_t *touched; /* MODULE: rows that chose the module are counted here, in forward */
} mom_patch;

/* A copy after patches. Rows that a pass does not compute are left alone. */
typedef struct {
    mom_site site;
    float *values;    /* (N, width) */
    float *gradients; /* (N, width), written by backward; or NULL */
} mom_capture;

/* The routes of every row of one half-round, written by a decoder. NULL: not wanted. */
typedef struct {
    int16_t *index; /* (N, K) kept choices */
    float *kept;    /* (N, K) their weights */
    float *scores;  /* (N, S) */
} mom_route_record;

/* Probabilities of one attention half-round: see ops/attention_probabilities.h. */
typedef struct {
    size_t place, round;
    const int32_t *rows; /* (row_count) sequences */
    size_t row_count;
    float *out; /* (row_count, H, T, T) */
} mom_attention_capture;

typedef struct {
    const mom_route_change *const *routes; /* by place: rounds * 2 entries, attention then feed-forward; or NULL */
    size_t choices[2];                     /* kept choices of a half's rounds in place of the configuration's; 0: those */
    const mom_patch *patches;
    size_t patch_count;
    const mom_capture *captures;
    size_t capture_count;
    const mom_attention_capture *attention; /* or NULL */
    const mom_route_record *const *records; /* by place: rounds * 2 entries, as routes; or NULL */
    float *token_losses; /* (N) the loss of each row with a label; the others are left alone. Or NULL */
    int all_outputs; /* a dry run: as if every half-round had a patch and a capture of its outputs */
} mom_interventions;

#endif
