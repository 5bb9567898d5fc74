/* Generates text token by token with a cache of keys and values.
 *
 * A decoder belongs to a network and holds a batch of sequences. It keeps keys and values, one pair for each place,
 * round and token that chose a module, and the logits after the last token of each sequence. A router's state is only
 * passed from round to round of the same token, so no such state is kept between tokens.
 *
 * Order of calls: init; append; then any number of append, generate and reorder; free. The first append makes the
 * batch, later ones continue every sequence. clear begins a new batch. However a text is split into calls of append,
 * the results are the same up to rounding: a long first call is a forward pass of the network, all other calls are done
 * in steps. After an error the sequences are as they were before the call; after an error in generate, as they were
 * after its last complete token.
 *
 * Weights: a float32 decoder reads the network's own weights in place. A bfloat16 or int8 decoder uses copies of the
 * modules' matrices and of the head. They are made by init, so later changes of these weights have no effect. Routers,
 * biases, LayerNorms and embeddings stay float32 and are read in place. A forward pass always uses the network's own
 * weights.
 *
 * One thread at a time may use a decoder or its network.
 */
#ifndef MOM_MODEL_DECODER_H
#define MOM_MODEL_DECODER_H

#include "model/gpt.h"
#include "model/sample.h"
#include "ops/gemv.h"

typedef struct {
    float *kv;       /* per place and round mom_kv_floats(capacity, C) */
    int32_t *active; /* per place and round: number of keys in the cache; tokens that skipped have none */
    size_t capacity, length; /* number of tokens that fit, and that are in the cache */
    int32_t pending; /* a generated token that is not in the cache yet, or -1 */
} mom_sequence;

/* Routing of each sequence's last token in one half and round. */
typedef struct {
    float *scores, *kept; /* (B, S) */
    int16_t *index;       /* (B, S): kept choices, then MOM_NONE, as a call can keep up to S choices */
    size_t K;             /* kept by the last call */
} mom_decoder_route;

typedef struct {
    mom_arena arena;
    size_t B;
    mom_sequence *sequences;     /* (B) */
    mom_decoder_route **routes;  /* per place: rounds * 2 entries, as mom_activations.halves */
    float *logits;               /* (B, V) */
} mom_decoder_batch;

typedef struct {
    mom_gemv_matrix *in, *out; /* (M) */
} mom_decoder_pool;

typedef struct {
    mom_decoder_pool halves[2]; /* attention, FFN */
    size_t first_entry;         /* index of this place's first round among the cache's entries */
} mom_decoder_place;

typedef struct {
    mom_gpt *gpt;
    mom_gemv_format format;
    mom_arena tables, workspace;
    void *packed; /* copies of weights; NULL for float32 */
    size_t packed_bytes;
    mom_decoder_place *places;
    mom_gemv_matrix head;
    size_t entries; /* attention halves of all rounds */
    mom_decoder_batch batch;
    const mom_interventions *interventions; /* of the next call, or NULL: see mom_decoder_append */
} mom_decoder;

mom_status mom_decoder_init(mom_decoder *decoder, mom_gpt *gpt, mom_gemv_format format, const mom_exec *exec,
                            mom_error *err);
void mom_decoder_free(mom_decoder *decoder);
void mom_decoder_clear(mom_decoder *decoder);

/* Allocates the caches for `capacity` tokens (at most P) per sequence, so that they need not grow later. */
mom_status mom_decoder_reserve(mom_decoder *decoder, size_t capacity, mom_error *err);

/* Appends tokens[b][0 .. lengths[b] - 1] of tokens (B, T) to each sequence and computes the logits after them. Entries
 * of a row beyond its length are not read. In the first call every length is at least 1. If `lengths` is NULL, all are
 * T.
 * Interventions of the call have a row for each token that is added, sequence after sequence. A pending token comes before
 * the others of its sequence. Captures are not made; records of routes are. */
mom_status mom_decoder_append(mom_decoder *decoder, const mom_exec *exec, const int32_t *tokens, const int32_t *lengths,
                              size_t B, size_t T, mom_error *err);

/* Chooses a token for each sequence and appends it, n times: out (n, B). `sampling->step` is the step of the first
 * token and rises by one per token. When sequence b chooses stop_token (negative: none), finished[b] is set. For
 * finished sequences nothing is computed or drawn, and stop_token is written to out. The call ends early when all are
 * finished. *made is the number of rows of out that were written. */
mom_status mom_decoder_generate(mom_decoder *decoder, const mom_exec *exec, int32_t *out, uint8_t *finished, size_t *made,
                                const mom_sampling *sampling, int32_t stop_token, size_t n, mom_error *err);

/* New sequence i is the old sequence rows[i]. An old sequence may be named several times or not at all. */
mom_status mom_decoder_reorder(mom_decoder *decoder, const int32_t *rows, size_t count, mom_error *err);

/* Bytes of copied weights, cache, logits and workspace. */
size_t mom_decoder_bytes(const mom_decoder *decoder);

/* Tokens of a sequence, the pending one included. */
static inline size_t mom_sequence_length(const mom_sequence *s) { return s->length + (s->pending >= 0); }

#endif
