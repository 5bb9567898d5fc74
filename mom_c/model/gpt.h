/* The whole network: forward, backward and losses in one call each.
 *
 * Order of calls: init; any number of { forward; backward }; free. backward belongs to the last forward with `keep` and
 * may be called once for it. Parameters and gradients are plain memory that the caller may read and write between
 * calls. One thread at a time may use a network; the calls themselves use several.
 */
#ifndef MOM_MODEL_GPT_H
#define MOM_MODEL_GPT_H

#include "model/activations.h"
#include "model/balance.h"
#include "model/gradients.h"
#include "model/memory_plan.h"

/* Called after every half of a forward pass, in order, while the half's activations still exist. */
struct mom_observer {
    void (*half_done)(void *context, const mom_pass *pass, size_t place, size_t round, int half,
                      const mom_half_saved *saved);
    void *context;
};

struct mom_gpt {
    mom_config config;
    mom_params params;
    mom_gradients gradients;
    mom_memory memory;
    mom_activations last;  /* of the last forward pass */
    mom_balance_step step; /* balance counts since gradients were last zeroed */
    uint64_t seed, counter; /* random streams of dropout and noise; counter rises with every call that draws */
};

mom_status mom_gpt_init(mom_gpt *gpt, const mom_config *config, mom_error *err);
void mom_gpt_free(mom_gpt *gpt);

/* Runs a forward pass and fills *losses. After an error nothing that a caller can see has changed, except that backward
 * needs a new forward. `exec` supplies kernels and threads; the network uses its own workspace. */
mom_status mom_gpt_forward(mom_gpt *gpt, const mom_exec *exec, const mom_batch *batch, mom_losses *losses, mom_error *err);

/* Adds the gradients of the sum of scales[term] * losses.value[term]. Without a forward pass to go back from, it changes
 * nothing. If the pass itself fails, all gradients become zero, those of earlier passes, too, and the random streams are
 * those before the forward pass: the same forward pass draws the same numbers again. */
mom_status mom_gpt_backward(mom_gpt *gpt, const mom_exec *exec, const float scales[MOM_TERMS], mom_error *err);

/* Logits of the last forward pass: out (count, V). `rows` names count of the N rows; NULL means all N. Rows that the
 * batch did not ask for are an error. */
mom_status mom_gpt_logits(mom_gpt *gpt, const mom_exec *exec, float *out, const int32_t *rows, size_t count, mom_error *err);

/* See mom_gradients_set_trained. After this call, backward needs a new forward pass. */
void mom_gpt_set_trained(mom_gpt *gpt, const uint8_t *trained);

/* For a process made by a fork while a thread, which exists in the parent only, ran a pass: forgets the pass, its memory and
 * all gradients. The memory may be half made, so it is not freed. */
void mom_gpt_abandon_pass(mom_gpt *gpt);

void mom_gpt_zero_grad(mom_gpt *gpt, const mom_exec *exec);
/* The same for gradients with memory that has been zeroed already: see mom_gradients_forget. */
void mom_gpt_forget_grad(mom_gpt *gpt);

/* ---- network.c: forward and backward in memory that exists already; dry runs use these, too */

mom_status mom_gpt_forward_pass(mom_gpt *gpt, const mom_exec *exec, const mom_batch *batch, mom_error *err);
mom_status mom_gpt_backward_pass(mom_gpt *gpt, const mom_exec *exec, const float scales[MOM_TERMS], mom_error *err);

#endif
