/* One half of a round: a pool of modules, its router, and what forward saves for backward.
 *
 * A half adds its modules' outputs to the residual stream. Order of calls, once per round and half:
 *   mom_attention_pool_forward or mom_ffn_pool_forward
 *   ... and, in reverse order of the rounds, the matching backward.
 * A half that is not routed (an anchor layer, or a pool with a single module) runs its module for every token.
 */
#ifndef MOM_MODEL_POOL_H
#define MOM_MODEL_POOL_H

#include "model/gradients.h"
#include "model/pass.h"
#include "ops/path_loss.h"
#include "ops/route_loss.h"
#include "ops/routed_half.h"

/* Routing of one half-round. mom_route_allocate allocates the first part, which may outlive the rest. */
typedef struct {
    float *outputs;  /* (N, S) what the router computes; without a softmax the same array as `scores` */
    float *scores;   /* (N, S) outputs after the softmax, if there is one */
    size_t K;        /* kept choices */
    int16_t *index;  /* (N, K) kept choices in falling order; >= M means SKIP. Interventions: see ops/forced_choices.h */
    float *kept;     /* (N, K) kept scores (renormalised with softmax), before any straight-through sign */
    uint8_t *reached; /* (M) whether a token goes there */
    /* balance loss of this half-round, if there is one */
    double *counts, *prob_sums; /* (S) */
    double tokens;
    int left_out;    /* the round is left out of this pass; no token has a choice */

    float *read, *read_mean, *read_rstd; /* (N, C), (N), (N): what the router reads, if that is not the stream itself */
    mom_router_saved router;
    float *used;     /* (N, plan.K) what multiplies the modules' outputs */
    mom_routing_plan plan;
} mom_route;

typedef struct {
    const float *input;        /* (N, C) residual stream before this half */
    float *mean, *rstd;        /* (N) */
    mom_route route;           /* if the half is not routed, only the plan is set */
    mom_routing_plan needed;   /* attention with unneeded rows: the plan of the needed rows; only they have queries */
    void *inner;               /* attention: mixed q, k, v (N, 3C); FFN: before GELU (slots, F); of the config's dtype */
    void *heads;               /* attention: (N, C), as inner */
    float *lse;                /* attention: (N, H) */
    const uint8_t *active;     /* attention: (N) tokens with a module, or NULL: all */
    const uint8_t *queries;    /* attention: (N) tokens that are needed, or NULL: all */
    mom_arena_mark start, end; /* of `saved`: around what backward needs; the stream after the half is above `end` */
    mom_arena_mark before_inner; /* attention: backward needs nothing above it once it has dqkv */
} mom_half_saved;

/* x_in (N, C): residual stream. If *x_out is x_in, the stream is updated in place; else *x_out = x_in + output. If *x_out
 * is NULL, it becomes an array above saved->end. state (N, R): recurrent state of the round before, or NULL. */
mom_status mom_attention_pool_forward(const mom_pass *pass, const mom_half_round *at, mom_half_saved *saved, float **x_out,
                                      const float *x_in, const float *state);
mom_status mom_ffn_pool_forward(const mom_pass *pass, const mom_half_round *at, mom_half_saved *saved, float **x_out,
                                const float *x_in, const float *state);

/* What backward needs to know about the balance loss of this half: the totals from which the loss is computed. */
typedef struct {
    int active;
    const double *counts; /* (S) */
    double count_tokens, tokens;
    float scale; /* d(total loss) / d(this balance loss) */
} mom_balance_terms;

/* Gradients that backward of a half-round reads and writes. */
typedef struct {
    float *dx; /* (N, C) gradient of the residual stream: after the half on entry, before the half on return */
    mom_pool_gradients *pool;
    const float *state; /* (N, R) recurrent state after the round before, or NULL */
    float *dstate;      /* (N, R) gradient of this round's state on entry, of the earlier state on return; or NULL */
    int has_dstate;     /* the next round has written dstate; otherwise it counts as zero on entry */
    mom_balance_terms balance;
    float z_scale; /* d(total loss) / d(squared log-sum-exp of a token's router outputs); 0: no z-loss */
    const mom_path *path; /* scores of this half in all rounds of the block that ran */
    float path_scale;     /* d(total loss) / d(path loss of a token); 0: no path loss */
    float route_scale;    /* d(total loss) / d(route loss of a token in a half-round); 0: no route loss */
} mom_half_backward;

mom_status mom_attention_pool_backward(const mom_pass *pass, const mom_half_round *at, const mom_half_saved *saved,
                                       const mom_half_backward *b);
mom_status mom_ffn_pool_backward(const mom_pass *pass, const mom_half_round *at, const mom_half_saved *saved,
                                 const mom_half_backward *b);

/* ---- shared by the two kinds (pool.c, route.c) */

/* The plan that sends every needed token to the only module. */
mom_status mom_plan_needed(const mom_pass *pass, const mom_half_round *at, mom_routing_plan *plan);
/* Allocates the LayerNorm's statistics and makes the plan. In a routed half the router makes it. Otherwise every token
 * goes to the only module; in a feed-forward half, every needed token. */
mom_status mom_half_start(const mom_pass *pass, const mom_half_round *at, mom_half_saved *saved, const float *state);
/* Marks the end of what backward needs and provides the output array; see x_out above. */
mom_status mom_half_end(const mom_pass *pass, mom_half_saved *saved, float **x_out);
/* The last layer of a half with the visits of its outputs (model/sites.h): *x_out = x_in + output. */
mom_status mom_half_output_forward(const mom_pass *pass, const mom_half_round *at, const mom_half *half,
                                   mom_half_output *output, float *x_out);
/* Its backward. dx (N, C): gradient of the stream after the half. dused, inner and dinner as dscore, inner and dinner of
 * mom_half_last_layer_backward. */
mom_status mom_half_output_backward(const mom_pass *pass, const mom_half_round *at, const mom_half *half,
                                    mom_half_output *output, const mom_half_backward *b, float *dused, void *inner,
                                    void *dinner);
mom_half mom_half_of(const mom_pass *pass, const mom_pool *pool, const mom_half_saved *saved);
mom_half_layer mom_half_in_layer(const mom_pool *pool, const mom_packed_pool *packed);
mom_half_layer mom_half_out_layer(const mom_pool *pool, const mom_packed_pool *packed);
mom_half_gradient mom_half_in_gradient(const mom_pool_gradients *gradients);
mom_half_gradient mom_half_out_gradient(const mom_pool_gradients *gradients);

/* Packs the weights that all rounds of a place use into the workspace, for forward as they are and for backward
 * transposed. Leaves *packed as it is if packing does not pay. */
mom_status mom_pool_pack(const mom_pass *pass, const mom_pool *pool, size_t rounds, int transposed, mom_packed_pool *packed);

/* What the route loss reads of a route. */
static inline mom_made_choices mom_route_made(const mom_pass *pass, const mom_pool *pool, const mom_route *route) {
    const float temperature = pass->config->router_softmax ? pass->config->temperature : 1.0f;
    return (mom_made_choices){route->outputs, route->index, pass->mask, temperature, pass->N, pool->S, route->K};
}
mom_status mom_route_allocate(const mom_pass *pass, const mom_pool *pool, mom_route *route);
/* Kept choices of the pool's half-rounds in this pass. */
size_t mom_pass_choices(const mom_pass *pass, const mom_pool *pool);
/* Fills the route, which is allocated, of a round that is left out: no token has a choice. */
void mom_route_leave_out(const mom_pass *pass, const mom_pool *pool, mom_route *route);
/* Computes the route. Allocates it first, unless that has been done. */
mom_status mom_route_forward(const mom_pass *pass, const mom_half_round *at, mom_half_saved *saved, const float *state);

/* dused, dused2 (N, plan.K): gradients of the used weights, one array per use, since the straight-through clamp acts on
 * each. dused2 may be NULL. */
mom_status mom_route_backward(const mom_pass *pass, const mom_half_round *at, const mom_half_saved *saved,
                              const mom_half_backward *b, float *dused, float *dused2);

#endif
