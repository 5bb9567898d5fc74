/* The gradients of a network: plain memory with one owner, laid out like the parameters.
 *
 * The memory is allocated when it is first needed. Zeroing the gradients touches as little of it as possible:
 *  - The matrices of modules stay as they are and are marked `overwrite`; their next product overwrites instead of adding.
 *  - Of the embeddings only the rows that have a gradient are zeroed; `touched` marks them.
 *  - Everything else that backward has written is zeroed.
 * Once a caller has seen the gradients (mom_gradients_show), memory is what counts: zeroing then writes all of it.
 */
#ifndef MOM_MODEL_GRADIENTS_H
#define MOM_MODEL_GRADIENTS_H

#include "model/params.h"

/* What is known of one parameter's gradient. */
typedef struct {
    int used;     /* there is one since gradients were last zeroed */
    int written;  /* its memory may hold something since then */
    int trained;  /* optimizers are to update the parameter; see mom_gradients_set_trained */
    int computed; /* backward gives it a gradient */
    _Atomic size_t held; /* optimizers whose moments of it take up memory */
    uint8_t *touched;   /* of an embedding: by row, 0: its gradient is zero; else NULL */
    uint8_t *overwrite; /* of a module's matrix: its entry in mom_pool_gradients; else NULL */
} mom_gradient;

/* Gradients of a pool. */
typedef struct {
    mom_pool_tensors tensors;
    mom_router_tensors router;
    uint8_t *in_overwrite, *out_overwrite; /* by module: the matrix' gradient counts as zero, whatever its memory holds */
    int frozen; /* no module is trained: gradients of matrices and their biases are not computed */
} mom_pool_gradients;

typedef struct {
    float *values; /* (params.total), or NULL until first needed */
    int shown;     /* a caller has views of it */
    mom_gradient *table; /* by parameter */
    mom_pool_gradients (*pools)[2]; /* by place and half */
    size_t lowest_place; /* lowest place that backward goes through; 0: the embeddings, too */
    _Atomic size_t optimizers; /* of this network; they come and go without a claim on it */
    mom_arena arena;     /* holds table and pools */
    mom_arena pointers;  /* holds the arrays that point into values */
} mom_gradients;

mom_status mom_gradients_init(mom_gradients *g, const mom_params *params, mom_error *err);
void mom_gradients_free(mom_gradients *g);

/* Makes sure that there is memory, all zeros the first time. With `dry`, addresses for a dry run. */
mom_status mom_gradients_allocate(mom_gradients *g, const mom_params *params, int dry, mom_error *err);
/* The same, and from now on memory is what counts. */
mom_status mom_gradients_show(mom_gradients *g, const mom_params *params, mom_error *err);

void mom_gradients_zero(mom_gradients *g, const mom_params *params);
/* For gradients whose memory has been zeroed already, as far as mom_gradients_zero would have done. */
void mom_gradients_forget(mom_gradients *g, const mom_params *params);
/* Zeroes memory that counts as zero, of one parameter. */
void mom_gradient_settle(mom_gradients *g, const mom_params *params, size_t i);
/* Marks rows (count) of an embedding, or with rows NULL all of them, as touched. */
void mom_gradient_touch(mom_gradients *g, const mom_params *params, size_t i, const int32_t *rows, size_t count);
/* Backward is about to write all gradients that are computed. */
void mom_gradients_mark_written(mom_gradients *g, const mom_params *params);

/* trained: (params.count) 0 where no gradient is wanted. Backward then ends above the lowest parameter that is trained,
 * and the matrices of a half in which no module is trained get no gradients. Other parameters may get theirs all the
 * same. Memory that holds nothing is given back. */
void mom_gradients_set_trained(mom_gradients *g, const mom_params *params, const uint8_t *trained);

/* The same selection as that of another network's gradients. */
void mom_gradients_select_like(mom_gradients *g, const mom_params *params, const mom_gradients *other);

/* Bytes of the gradients that backward computes; of all once a caller has seen them. */
size_t mom_gradients_bytes(const mom_gradients *g, const mom_params *params);
/* Bytes of the moments that `optimizers` optimizers have of what is trained, and the present ones of the rest. */
size_t mom_gradients_moment_bytes(const mom_gradients *g, const mom_params *params, size_t optimizers);

static inline float *mom_param_grad(const mom_gradients *g, const mom_params *p, size_t i) {
    return g->values + p->table[i].offset;
}

#endif
