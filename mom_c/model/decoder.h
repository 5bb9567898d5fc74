/* Generating token by token with a cache of keys and values.
 *
 * A decoder belongs to a network and holds a batch of sequences: their keys and values, one pair per place, round and
 * token that chose a module, and the logits after their last tokens. Router states live within a token's own pass
 * over the rounds, so there is nothing of theirs to carry from token to token.
 *
 * Order of calls: init; append (the first one makes the batch, later ones continue every sequence), then any number of
 * append, generate and reorder; clear begins a new batch; free. Any cutting of a text into calls of append gives the
 * same results up to rounding: a long first one is a forward pass of the network, anything else goes through steps.
 * After an error the sequences are as they were before the call (of generate: as they were after its last
 * complete token).
 *
 * Weights: float32 reads the network's own in place. bfloat16 and int8 use copies of the modules' matrices and of the
 * head made by init, so later changes of those weights are not seen; routers, biases, LayerNorms and embeddings stay
 * float32 and are read in place. A forward pass always uses the network's own weights.
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
    int32_t *active; /* per place and round: keys in the cache; the other tokens skipped */
    size_t capacity, length; /* tokens that fit; tokens in the cache */
    int32_t pending; /* a generated token that is not in the cache yet, or -1 */
} mom_sequence;

/* Routing of each sequence's last token in one half and round. */
typedef struct {
    float *scores, *kept; /* (B, S), (B, K) */
    int16_t *index;       /* (B, K) */
} mom_decoder_route;

typedef struct {
    mom_arena arena;
    size_t B;
    mom_sequence *sequences;     /* (B) */
    mom_decoder_route **routes;  /* per place: rounds * 2, as mom_gpt.halves */
    float *logits;               /* (B, V) */
} mom_decoder_batch;

typedef struct {
    mom_gemv_matrix *in, *out; /* (M) */
} mom_decoder_pool;

typedef struct {
    mom_decoder_pool halves[2]; /* attention, FFN */
    size_t first_entry;         /* of this place's rounds among the cache's entries */
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
} mom_decoder;

mom_status mom_decoder_init(mom_decoder *decoder, mom_gpt *gpt, mom_gemv_format format, const mom_exec *exec,
                            mom_error *err);
void mom_decoder_free(mom_decoder *decoder);
void mom_decoder_clear(mom_decoder *decoder);

/* Makes room for `capacity` tokens (at most P) in every sequence, so that the cache need not grow later. */
mom_status mom_decoder_reserve(mom_decoder *decoder, size_t capacity, mom_error *err);

/* Appends tokens[b][0 .. lengths[b] - 1] of tokens (B, T) to each sequence and computes the logits after them. What lies
 * to the right of a row's length is not read. In the first call every length is at least 1. lengths NULL: T for all. */
mom_status mom_decoder_append(mom_decoder *decoder, const mom_exec *exec, const int32_t *tokens, const int32_t *lengths,
                              size_t B, size_t T, mom_error *err);

/* Chooses tokens and appends them, n times: out (n, B). `sampling->step` is that of the first and rises by one per token.
 * A sequence that chose stop_token (negative: none) sets finished[b]; finished ones get stop_token in out, cost nothing
 * and draw nothing. Ends early when all are finished. *made: rows of out that are written. */
mom_status mom_decoder_generate(mom_decoder *decoder, const mom_exec *exec, int32_t *out, uint8_t *finished, size_t *made,
                                const mom_sampling *sampling, int32_t stop_token, size_t n, mom_error *err);

/* New sequence i is the old sequence rows[i]; rows may repeat and need not name all. */
mom_status mom_decoder_reorder(mom_decoder *decoder, const int32_t *rows, size_t count, mom_error *err);

/* Bytes of copied weights, cache, logits and workspace. */
size_t mom_decoder_bytes(const mom_decoder *decoder);

/* Tokens of a sequence, the pending one included. */
static inline size_t mom_sequence_length(const mom_sequence *s) { return s->length + (s->pending >= 0); }

#endif
