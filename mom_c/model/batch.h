/* The caller's batch, and the copies and lists of rows that a pass makes of it.
 *
 * A row is one token of one sequence. The N rows are the tokens of B sequences one after the other.
 */
#ifndef MOM_MODEL_BATCH_H
#define MOM_MODEL_BATCH_H

#include "model/config.h"
#include "model/interventions.h"

typedef struct mom_observer mom_observer; /* model/gpt.h */

/* The half-round with which a pass begins in the middle, and what an earlier pass over the same tokens had there. The pass
 * then gives the bits of a whole one. What the caller changes may only concern what comes after `stream` and `states`. */
typedef struct {
    size_t place, round;
    int half;
    const float *stream;    /* (N, C) residual stream, after the site MOM_SITE_INPUT; NULL: the pass begins with the embedding */
    const float *states[2]; /* by half: (N, R) recurrent state of its last round before; NULL if there is none */
} mom_begin;

/* The caller's arrays; they need not outlive the call. */
typedef struct {
    size_t B, T;              /* T: tokens of the longest sequence */
    const int32_t *lengths;   /* (B) each at least 1; NULL: all are T */
    const int32_t *tokens;    /* (N) ids below V */
    const int32_t *labels;    /* (N) or NULL: position t is scored against label t + 1; MOM_IGNORED_LABEL */
    const uint8_t *mask;      /* (N) of 0/1 or NULL */
    const int32_t *positions; /* (N) below P, or NULL: 0, 1, 2, ... in every sequence */
    /* Which final states the caller wants: all of them, or `rows` and the rows with a label. If neither `rows` nor
     * `all_rows` is given, the rows with a label are wanted, or all rows if there are no labels. Work on other rows is
     * skipped where no wanted row depends on it. */
    int all_rows;
    const int32_t *rows; /* (row_count) or NULL */
    size_t row_count;
    /* sequence classification */
    const int32_t *pooled;    /* (B) position of the pooled token in each sequence, or NULL: the last */
    const int32_t *classes;   /* (B) or NULL */
    const float *values;      /* (B, num_labels) or NULL */
    mom_label_loss label_loss;
    int keep;       /* keep activations for backward */
    int checkpoint; /* with keep: keep only the input of every round; backward computes the rest again */
    int training;   /* dropout */
    mom_begin begin; /* without keep */
    const mom_observer *observer; /* or NULL */
    const mom_interventions *interventions; /* or NULL */
} mom_batch;

/* A pass's own copies and lists; arrays come from its arena. */
typedef struct {
    size_t B, N;
    int32_t *offsets;            /* (B + 1) sequence b is rows offsets[b] .. offsets[b + 1] - 1 */
    int32_t *tokens, *positions; /* (N) */
    uint8_t *mask;               /* (N) or NULL */
    int32_t *scored, *labels;    /* (scored_count) rows with a label, and their labels */
    size_t scored_count;
    int32_t *pooled;             /* (B) rows that are classified; NULL for a language model */
    int16_t *unneeded;           /* (N) 1 for rows with final states that are not wanted, else 0; or NULL: none */
} mom_rows;

size_t mom_batch_tokens(const mom_batch *batch); /* N */

/* In a dry run all rows are seen, scored and wanted, because that needs the most memory. */
mom_status mom_rows_init(mom_rows *rows, const mom_exec *x, const mom_config *config, const mom_batch *batch,
                         mom_arena *arena, mom_error *err);

#endif
