/* What a pool needs to know about a pass of tokens through the network, and about one half-round of the pass.
 *
 * The random streams of dropout and router noise derive from the pass (seed, counter) and from the half-round's
 * position (place, round, half). So backward draws the same numbers as forward.
 */
#ifndef MOM_MODEL_PASS_H
#define MOM_MODEL_PASS_H

#include "base/dropout.h"
#include "model/interventions.h"
#include "model/params.h"

typedef struct {
    const mom_exec *exec;
    const mom_config *config;
    mom_arena *saved;       /* activations for backward, and routes */
    size_t B, T, N;         /* sequences, tokens of the longest, tokens of all */
    const int32_t *tokens;  /* (N) */
    const uint8_t *mask;    /* (N) keys, or NULL */
    const int32_t *offsets; /* (B + 1) sequence b is rows offsets[b] .. offsets[b+1]-1 */
    int training;           /* dropout is active */
    uint64_t seed, counter; /* of the random streams */
    int few_rows;           /* a step of generation: routers read their weights once, and there is no balance loss */
    const mom_interventions *interventions; /* or NULL */
    size_t first_row;       /* of the interventions' arrays: the pass is this part of a longer call */
    int again;              /* backward computes a round again: nothing is captured, and the stream is patched already */
    mom_error *err;
} mom_pass;

/* A pool's weights, packed once for all rounds of a block. All NULL if packing does not pay. */
typedef struct {
    const void **in, **out; /* by module */
    const void *router_in, *router_state;
} mom_packed_pool;

typedef struct {
    const mom_place *place;
    size_t index; /* of the place */
    size_t round;
    int half; /* 0: attention, 1: feed-forward */
    const mom_packed_pool *packed;
    const int16_t *before;   /* (N, K) choices of this half in the round before that ran; NULL in the first one */
    const int16_t *unneeded; /* half not routed: (N) 1 for rows with output that is not needed, else 0; or NULL */
} mom_half_round;

/* One of its sites; for a module's, the caller sets the module. */
static inline mom_site mom_half_round_site(const mom_half_round *at, mom_site_kind kind) {
    return (mom_site){.kind = kind, .place = at->index, .round = at->round, .half = at->half};
}

static inline const mom_pool *mom_half_round_pool(const mom_half_round *at) { return mom_place_pool(at->place, at->half); }

/* Streams of one half-round. */
enum { MOM_STREAM_NOISE, MOM_STREAM_ATTENTION, MOM_STREAM_OUTPUT, MOM_STREAMS };
/* Streams of the network itself. The streams of half-rounds come after them. */
enum { MOM_STREAM_EMBEDDING = 1, MOM_STREAM_ROUNDS, MOM_STREAM_COUPLING, MOM_STREAM_FIRST_HALF = 16 };

static inline uint64_t mom_pass_key(const mom_pass *pass, uint64_t stream) {
    return mom_rng_key(pass->seed, pass->counter, stream);
}

static inline uint64_t mom_half_round_key(const mom_pass *pass, const mom_half_round *at, uint64_t stream) {
    const uint64_t halves = 2 * (at->place->first_round + at->round) + (uint64_t)at->half;
    return mom_pass_key(pass, MOM_STREAM_FIRST_HALF + halves * MOM_STREAMS + stream);
}

/* Whether a round of a place is left out of this pass. */
static inline int mom_round_left_out(const mom_pass *pass, const mom_place *place, size_t round) {
    const int may = place->block && pass->training && !pass->exec->dry_run;
    const float p = may ? pass->config->round_pdrop : 0.0f;
    return p > 0.0f && mom_rng_uniform(mom_pass_key(pass, MOM_STREAM_ROUNDS), place->first_round + round) < p;
}

static inline mom_dropout mom_pass_dropout(const mom_pass *pass, float p, uint64_t key) {
    return (mom_dropout){pass->training ? p : 0.0f, key};
}

#endif
