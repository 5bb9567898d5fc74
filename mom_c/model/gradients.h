/* The gradients of a network: memory that the network (mom_gpt) owns, laid out like the parameters.
 *
 * The memory is allocated when it is first needed. Zeroing the gradients touches as little of it as possible:
 *  - The matrices of modules stay as they are and are marked `overwrite`; their next product overwrites instead of adding.
 *  - Of the embeddings only the rows that have a gradient are zeroed; `touched` marks them.
 *  - Everything else that backward has written is zeroed.
 * Once a caller has seen the gradients (mom_gradients_show), their memory must hold their values at all times, so
 * zeroing writes all of it.
 */
#ifndef MOM_MODEL_GRADIENTS_H
#define MOM_MODEL_GRADIENTS_H

#include "model/params.h"

/* What is known about one parameter's gradient. */
typedef struct {
    int used;     /* it is trained and has a gradient since gradients were last zeroed */
    int written;  /* its memory may have been written since then */
    int trained;  /* optimizers update the parameter; see mom_gradients_set_trained */
    int computed; /* backward may write to it */
    _Atomic size_t held; /* number of optimizers that hold moments of it in memory */
    size_t moments;      /* floats of a moment that an optimizer here holds; ranks of one run share them */
    uint8_t *touched;   /* of an embedding: by row, 0 if its gradient is zero; else NULL */
    uint8_t *overwrite; /* of a module's matrix: its entry in mom_pool_gradients; else NULL */
} mom_gradient;

/* Gradients of a pool. */
typedef struct {
    mom_pool_tensors tensors;
    mom_router_tensors router;
    uint8_t *in_overwrite, *out_overwrite; /* by module: the gradient counts as zero, whatever its memory holds */
    int frozen; /* no module is trained, so gradients of matrices and their biases are not computed */
} mom_pool_gradients;

typedef struct {
    float *values; /* (params.total), or NULL until first needed */
    int shown;     /* a caller has views of it */
    int lent;      /* a caller has a view of all values, which hold gradients only after mom_gradients_lend */
    mom_gradient *table; /* by parameter */
    mom_pool_gradients (*pools)[2]; /* by place and half */
    size_t lowest_place; /* lowest place that backward goes through; 0: the embeddings, too */
    _Atomic size_t optimizers; /* optimizers of this network; they are made and deleted without claiming it */
    mom_arena arena;     /* holds table and pools */
    mom_arena pointers;  /* holds the arrays that point into values */
} mom_gradients;

mom_status mom_gradients_init(mom_gradients *g, const mom_params *params, mom_error *err);
void mom_gradients_free(mom_gradients *g);

/* Allocates the memory, filled with zeros, unless it exists already. With `dry` it only reserves addresses for a dry
 * run. */
mom_status mom_gradients_allocate(mom_gradients *g, const mom_params *params, int dry, mom_error *err);
/* The same for a caller that will see the gradients. From now on their memory always holds their values. */
mom_status mom_gradients_show(mom_gradients *g, const mom_params *params, mom_error *err);

/* Allocates and fills the memory as mom_gradients_show does, but only once: later passes may leave some of it to count
 * as zero. From now on the memory is not freed before the network is. */
mom_status mom_gradients_lend(mom_gradients *g, const mom_params *params, mom_error *err);

void mom_gradients_zero(const mom_exec *x, mom_gradients *g, const mom_params *params);
/* Forgets the gradients without zeroing. The caller has already zeroed what mom_gradients_zero would zero. */
void mom_gradients_forget(mom_gradients *g, const mom_params *params);
/* Zeroes the memory of one parameter's gradient where it counts as zero. */
void mom_gradient_settle(mom_gradients *g, const mom_params *params, size_t i);
/* Marks the given rows of an embedding as touched; all rows if `rows` is NULL. */
void mom_gradient_touch(mom_gradients *g, const mom_params *params, size_t i, const int32_t *rows, size_t count);
/* Notes that a caller has written sums over several passes or ranks into the memory, of which no part counts as zero
 * any more (mom_gradient_settle). used: (params.count), whether any of these passes has a gradient of the parameter. */
void mom_gradients_take(mom_gradients *g, const mom_params *params, const uint8_t *used);
/* Notes that backward is about to write all gradients that it computes. */
void mom_gradients_mark_written(mom_gradients *g, const mom_params *params);

/* trained: (params.count), 0 where no gradient is wanted. Backward then stops at the lowest place with a trained
 * parameter, and the matrices of a half in which no module is trained get no gradients. Other untrained parameters may
 * still get gradients. Unused memory is freed. */
void mom_gradients_set_trained(mom_gradients *g, const mom_params *params, const uint8_t *trained);

/* Makes the same selection as another network's gradients. */
void mom_gradients_select_like(mom_gradients *g, const mom_params *params, const mom_gradients *other);

/* Bytes of the gradients that backward computes, or of all gradients once a caller has seen them. */
size_t mom_gradients_bytes(const mom_gradients *g, const mom_params *params);
/* Bytes of the moments that `optimizers` optimizers have for trained parameters, plus the existing moments of other
 * parameters. */
size_t mom_gradients_moment_bytes(const mom_gradients *g, const mom_params *params, size_t optimizers);

static inline float *mom_param_grad(const mom_gradients *g, const mom_params *p, size_t i) {
    return g->values + p->table[i].offset;
}

#endif
