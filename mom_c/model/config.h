/* Shape and behaviour of a network, as the core needs them. The fields are those of mom.MoMConfig (Python), with
 * derived sizes already worked out. mom_config_check checks every size that the core relies on. */
#ifndef MOM_MODEL_CONFIG_H
#define MOM_MODEL_CONFIG_H

#include <math.h>
#include <stddef.h>

#include "base/status.h"
#include "ops/attention.h"
#include "ops/label_loss.h"
#include "ops/router.h"

/* What a recurrent router knows of the rounds before. */
typedef enum { MOM_STATE_KEPT, MOM_STATE_DETACHED, MOM_STATE_RESET, MOM_STATES } mom_router_state;

typedef struct {
    size_t V, P, C, H, F; /* vocabulary, positions, channels, heads, inner width */
    size_t bottom, chunks, top; /* anchor layers below, blocks, anchor layers above */
    int anchor_between;         /* an anchor layer after every block */
    int vanilla;                /* chunks == 0: plain GPT-2 with Hugging Face's parameter names */
    size_t num_attn, num_ffn, rounds;
    size_t choices_attn, choices_ffn; /* router outputs S */
    size_t top_k;
    mom_router_kind router_kind;
    int router_softmax, router_random;
    size_t R;
    float temperature;
    int renormalise;  /* kept probabilities are divided by their sum */
    float jitter;     /* in training: uniform noise of this size on the router's outputs */
    mom_router_state router_state;
    int router_normed, router_embedded, router_own_maps; /* see mom_router_spec */
    int router_frozen;  /* routers keep their first weights */
    float bias_rate;    /* of the bias that balances choices; 0: there is none */
    int final_skip;     /* a token that skips in a half skips there in all later rounds of the block */
    int route_single;   /* a half with a single module has a router, too */
    int share_attn, share_ffn; /* all blocks have the modules of the first one */
    float round_pdrop;  /* in training: probability that a round is left out */
    int use_ste, weighted_qkv, all_paths;
    int balance_enabled;   /* output_router_logits */
    int balance_reference; /* definition: 1 "reference", 0 "switch" */
    int balance_depthwise;
    int balance_step_counts; /* counts are added up since gradients were last zeroed */
    int balance_used;        /* counts are of first choices as they were made, not as the router preferred them */
    int z_loss, path_loss, route_loss, coupling_loss; /* there is such a loss of the routers */
    mom_masked_query masked_query;
    float embd_pdrop, attn_pdrop, resid_pdrop;
    float ln_eps;
    int scale_attention;
    float init_range, anchor_proj_range; /* standard deviations of fresh weights */
    mom_dtype dtype; /* of stored activations and of the factors of products */
    size_t num_labels; /* 0: language model */
} mom_config;

/* Whether a call without dropout draws random numbers. */
static inline int mom_config_draws(const mom_config *c) {
    return c->router_random && c->chunks && mom_router_types[c->router_kind].recurrent;
}

/* The factor of the attention scores. */
static inline float mom_config_attention_scale(const mom_config *c) {
    return c->scale_attention ? mom_attention_scale(c->C / c->H) : 1.0f;
}

mom_status mom_config_check(const mom_config *config, mom_error *err);

#endif
