/* One half of a round: a pool of modules, its router, and what forward saves for backward.
 *
 * A half adds its modules' outputs to the residual stream. Order of calls, once per round and half:
 *   mom_attention_pool_forward or mom_ffn_pool_forward
 *   ... and, in reverse order of the rounds, the matching backward.
 * A half that is not routed (an anchor layer, or a pool with a single module) runs its module for every token.
 */
#ifndef MOM_MODEL_POOL_H
#define MOM_MODEL_POOL_H

#include "base/dropout.h"
#include "model/params.h"
#include "ops/routed_half.h"

/* One call of the network, seen from a pool. */
typedef struct {
    const mom_exec *exec;
    const mom_config *config;
    mom_arena *saved;     /* activations for backward and routes */
    size_t B, T, N;       /* sequences, tokens of the longest, tokens of all */
    const uint8_t *mask;  /* (N) keys, or NULL */
    const int32_t *offsets; /* (B + 1) sequence b is rows offsets[b] .. offsets[b+1]-1 */
    const int16_t *unneeded; /* (N) 1 for rows whose output nothing depends on, else 0, in a half that is not routed; or NULL */
    int training;         /* dropout is active */
    uint64_t seed, counter; /* of the random streams of this call */
    int apart;            /* large halves: less memory in backward, see mom_half */
    int few_rows;         /* a step of generation: routers read their weights once, balance loss is left out */
    mom_error *err;
} mom_run;

/* Routing of one half in one round. The first part, mom_route_room, may be allocated before and outlive the rest. */
typedef struct {
    float *scores;   /* (N, S) what the router returns */
    int16_t *index;  /* (N, K) kept choices in falling order; >= M means SKIP */
    float *kept;     /* (N, K) kept scores (renormalised with softmax), before any straight-through sign */
    uint8_t *reached; /* (M) whether a token goes there */
    /* balance loss of this half and round, if there is one */
    double *counts, *prob_sums; /* (S) */
    double tokens;

    mom_router_saved router;
    float *used;     /* (N, plan.K) what multiplies the modules' outputs */
    mom_routing_plan plan;
} mom_route;

typedef struct {
    const float *input;        /* (N, C) residual stream before this half */
    float *mean, *rstd;        /* (N) */
    mom_route route;           /* of a half that is not routed: just the plan */
    mom_routing_plan needed;   /* attention with unneeded rows: the plan of the others, which alone are queries */
    void *inner;               /* attention: mixed q, k, v (N, 3C); FFN: before GELU (slots, F); of the config's dtype */
    void *heads;               /* attention: (N, C), as inner */
    float *lse;                /* attention: (N, H) */
    const uint8_t *active;     /* attention: (N) tokens with a module, or NULL: all */
    const uint8_t *queries;    /* attention: (N) tokens that are needed, or NULL: all */
    uint64_t site;             /* identifies this half and round among the random streams */
    mom_arena_mark start, end; /* of `saved`, around what this half's backward needs: above it lies the stream after it */
    mom_arena_mark before_inner; /* attention: above it lies what backward has no use for once it has dqkv */
} mom_half_saved;

/* Streams within a half and round, added to `site`. */
enum { MOM_STREAM_NOISE, MOM_STREAM_ATTENTION, MOM_STREAM_OUTPUT, MOM_STREAMS };

/* x (N, C): residual stream, updated in place when *x_out == x_in, else *x_out = x_in + output; if *x_out is NULL it becomes
 * an array above saved->end. state (N, R): recurrent state of the round before, or NULL. */
mom_status mom_attention_pool_forward(const mom_run *run, const mom_pool *pool, mom_half_saved *saved, float **x_out,
                                      const float *x_in, const float *state);
mom_status mom_ffn_pool_forward(const mom_run *run, const mom_pool *pool, mom_half_saved *saved, float **x_out,
                                const float *x_in, const float *state);

/* What backward needs to know about the balance loss of this half: the totals it is computed from. */
typedef struct {
    int active;
    const double *counts; /* (S) */
    double count_tokens, tokens;
    float scale; /* d(total loss) / d(this balance loss) */
} mom_balance_terms;

/* dx (N, C): gradient of the residual stream after the half on entry, before the half on return.
 * dstate (N, R): gradient of this round's recurrent state, coming from the next round (has_dstate), replaced by the
 * gradient of the previous round's state; NULL for routers without state. */
mom_status mom_attention_pool_backward(const mom_run *run, mom_pool *pool, const mom_half_saved *saved, float *dx,
                                       const float *state, float *dstate, int has_dstate, const mom_balance_terms *balance);
mom_status mom_ffn_pool_backward(const mom_run *run, mom_pool *pool, const mom_half_saved *saved, float *dx,
                                 const float *state, float *dstate, int has_dstate, const mom_balance_terms *balance);

/* ---- shared by the two kinds (pool.c) */

/* The plan that sends every needed token to the only module. */
mom_status mom_plan_needed(const mom_run *run, mom_routing_plan *plan);
/* Statistics' memory, and the route, or the plan that sends every token, of a feed-forward half every needed one, to the
 * only module. */
mom_status mom_half_start(const mom_run *run, const mom_pool *pool, mom_half_saved *saved, const float *state);
/* After everything that backward needs: see x_out above. */
mom_status mom_half_end(const mom_run *run, mom_half_saved *saved, float **x_out);
mom_half mom_half_of(const mom_run *run, const mom_pool *pool, const mom_half_saved *saved);
mom_half_layer mom_half_in_layer(const mom_pool *pool);
mom_half_layer mom_half_out_layer(const mom_pool *pool);
mom_half_gradient mom_half_in_gradient(const mom_pool *pool);
mom_half_gradient mom_half_out_gradient(const mom_pool *pool);

/* Packs the weights that all rounds of a place use, forward as they are or backward transposed, into the workspace, until
 * mom_pool_unpack; without effect where it would not pay. */
mom_status mom_pool_pack(const mom_run *run, mom_pool *pool, size_t rounds, int transposed);
void mom_pool_unpack(mom_pool *pool);

mom_status mom_route_room(const mom_run *run, const mom_pool *pool, mom_route *route);
/* Makes room unless there is some. */
mom_status mom_route_forward(const mom_run *run, const mom_pool *pool, mom_half_saved *saved, const float *state);

/* dused (N, plan.K): gradient of the used weights, one array per use (the straight-through clamp acts on each),
 * dused2 may be NULL. */
mom_status mom_route_backward(const mom_run *run, mom_pool *pool, const mom_half_saved *saved, float *dx, float *dused,
                              float *dused2, const float *state, float *dstate, int has_dstate,
                              const mom_balance_terms *balance);
mom_dropout mom_run_dropout(const mom_run *run, float p, uint64_t stream);

#endif
