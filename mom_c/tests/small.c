#include "tests/small.h"

#include "base/rng.h"

mom_config small_config(unsigned options) {
    mom_config c = {.V = SMALL_V, .P = 24, .C = 24, .H = 3, .F = 40, .bottom = 1, .chunks = 2, .top = 1, .num_attn = 3,
                    .num_ffn = 4, .rounds = 2, .choices_attn = 4, .choices_ffn = 5, .top_k = 2,
                    .router_kind = MOM_ROUTER_GRU,
                    .router_softmax = 1, .R = 16, .temperature = 1.0f, .renormalise = 1, .balance_enabled = 1, .z_loss = 1, .ln_eps = 1e-5f,
                    .scale_attention = 1, .init_range = 0.2f, .anchor_proj_range = 0.2f};
    if (options & SMALL_PLAIN) {
        c.vanilla = 1;
        c.chunks = 0;
        c.balance_enabled = 0;
    }
    if (options & SMALL_NAIVE)
        c.router_kind = MOM_ROUTER_NAIVE;
    if (options & SMALL_LINEAR)
        c.router_kind = MOM_ROUTER_LINEAR;
    if (options & SMALL_NORM)
        c.router_kind = MOM_ROUTER_NORM;
    if (options & SMALL_OPTIONS) {
        c.router_normed = c.path_loss = c.share_ffn = c.final_skip = 1;
        c.router_own_maps = c.router_kind != MOM_ROUTER_NORM;
        c.router_embedded = !c.router_own_maps;
        c.rounds = 3;
    }
    if (options & SMALL_SINGLE) {
        c.num_attn = c.route_single = 1;
        c.choices_attn = 2;
        c.top_k = 1;
        c.renormalise = 0;
        c.round_pdrop = 0.3f;
        c.jitter = 0.2f;
    }
    if (options & SMALL_COUPLED) {
        c.coupling_loss = 1;
        c.top_k = 1;
    }
    if (options & SMALL_DROPOUT)
        c.embd_pdrop = c.attn_pdrop = c.resid_pdrop = 0.1f;
    c.all_paths = !!(options & SMALL_ALL_PATHS);
    c.weighted_qkv = !!(options & SMALL_WEIGHTED);
    c.router_random = !!(options & SMALL_RANDOM);
    c.dtype = options & SMALL_BFLOAT16 ? MOM_BF16 : MOM_F32;
    return c;
}

void small_batch_init(small_batch *b, unsigned options) {
    *b = (small_batch){0};
    for (size_t i = 0; i < SMALL_B * SMALL_T; i++) {
        b->tokens[i] = b->labels[i] = (int32_t)(mom_rng_u64(3, i) % SMALL_V);
        b->mask[i] = i >= 2; /* the first sequence begins with padding */
    }
    b->labels[0] = b->labels[1] = b->labels[2] = b->labels[20] = MOM_IGNORED_LABEL;
    b->batch = (mom_batch){.B = SMALL_B, .T = SMALL_T, .tokens = b->tokens, .labels = b->labels, .mask = b->mask, .keep = 1,
                           .training = !(options & SMALL_COUPLED) || options & SMALL_DROPOUT,
                           .checkpoint = !!(options & SMALL_CHECKPOINT)};
}

mom_status small_init(mom_gpt *gpt, unsigned options, mom_error *err) {
    const mom_config config = small_config(options);
    MOM_TRY(mom_gpt_init(gpt, &config, err));
    const mom_exec x = {.threads = 1};
    mom_params_randomize(&x, &gpt->params, 5);
    return MOM_OK;
}
