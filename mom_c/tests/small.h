/* A small network with random weights, and a batch for it. */
#ifndef MOM_TESTS_SMALL_H
#define MOM_TESTS_SMALL_H

#include "model/gpt.h"

/* Options. */
#define SMALL_PLAIN 1u      /* a plain GPT-2 */
#define SMALL_NAIVE 2u      /* routers without state */
#define SMALL_ALL_PATHS 4u  /* every token goes to every module */
#define SMALL_WEIGHTED 8u   /* weighted_qkv */
#define SMALL_BFLOAT16 16u
#define SMALL_DROPOUT 32u
#define SMALL_CHECKPOINT 64u
#define SMALL_RANDOM 128u   /* noise in the routers */
#define SMALL_LINEAR 256u   /* routers of one linear map */
#define SMALL_NORM 512u     /* routers of lengths */
#define SMALL_OPTIONS 1024u /* routers with a LayerNorm and a map or, without one, a vector of each round; path loss; blocks
                             * share their feed-forward modules; a SKIP that is final */
#define SMALL_SINGLE 2048u  /* single attention modules with routers, one choice, rounds left out, jitter */
#define SMALL_COUPLED 4096u /* with linear routers: coupling loss, and one choice. Without dropout the pass is no training, since
                             * the random factors of the rows depend on the rows, which counts as no dependence. */

#define SMALL_B 3
#define SMALL_T 12
#define SMALL_V 37

typedef struct {
    int32_t tokens[SMALL_B * SMALL_T], labels[SMALL_B * SMALL_T];
    uint8_t mask[SMALL_B * SMALL_T];
    mom_batch batch; /* with labels and a mask, for training */
} small_batch;

mom_config small_config(unsigned options);
void small_batch_init(small_batch *b, unsigned options);
mom_status small_init(mom_gpt *gpt, unsigned options, mom_error *err);

#endif
