/* What the files of a half-round share. Public functions are in routed_half.h.
 *
 * DESIGN  Every layer is one grouped product (gemm/gemm.h). Its results go to a `finish` function, which sees blocks of
 *         at most gemm.column_block columns while they are in cache. With one slot per token a result goes straight to
 *         its token's row. With several it is kept by slot, and a pass over tokens adds them up in the order of the
 *         token's choices.
 * COST    Beside the products: forward one pass over the residual stream, backward two over the slots. LayerNorm's and
 *         GELU's outputs are never stored.
 * BITS    Sums over a row (gradients of scores) are kept as one number per block of columns and added in order.
 */
#ifndef MOM_OPS_ROUTED_HALF_PARTS_H
#define MOM_OPS_ROUTED_HALF_PARTS_H

#include "base/sizes.h"
#include "ops/routed_half.h"
#include "ops/routed_rows.h"

static inline const void *mom_packed_of(const mom_half_layer *layer, size_t m) {
    return layer->packed ? layer->packed[m] : NULL;
}

static inline size_t mom_column_blocks(const mom_half *half, size_t width) {
    return mom_div_up(width, half->exec->k->gemm.column_block);
}

/* Where row `row` of an array of `width` columns begins, from column j on. */
static inline void *mom_half_at(const void *data, mom_dtype dtype, size_t row, size_t width, size_t j) {
    return (unsigned char *)(uintptr_t)data + (row * width + j) * mom_dtype_size(dtype);
}

/* ---- rows of module m: of its tokens, or of its slots */

/* Slots rise by token within a module, so a module that has all tokens has them in order. */
static inline int mom_has_all_tokens(const mom_routing_plan *plan, size_t m) { return mom_module_slots(plan, m) == plan->N; }

static inline mom_matrix mom_token_rows(const mom_routing_plan *plan, size_t m, const void *data, mom_dtype dtype,
                                        size_t width) {
    mom_matrix rows = mom_matrix_of(data, dtype, width);
    if (!mom_has_all_tokens(plan, m))
        rows.row_index = plan->token + plan->offsets[m];
    return rows;
}

static inline mom_matrix mom_slot_rows(const mom_routing_plan *plan, size_t m, const void *data, mom_dtype dtype,
                                       size_t width) {
    return mom_matrix_of(mom_half_at(data, dtype, (size_t)plan->offsets[m], width, 0), dtype, width);
}

static inline mom_matrix mom_rows_of(const mom_routing_plan *plan, size_t m, const void *data, mom_dtype dtype, size_t width,
                                     int by_token) {
    return by_token ? mom_token_rows(plan, m, data, dtype, width) : mom_slot_rows(plan, m, data, dtype, width);
}

/* ---- blocks of results (routed_half_finish.c) */

/* What a finish function knows of its product. */
typedef struct {
    const mom_half *half;
    size_t m, first; /* module, its first slot */
    size_t width;    /* of the arrays below */
    void *out;       /* results: see each function */
    mom_dtype out_dtype;
    int by_token;
    const float *weight; /* (N, K) or NULL */
    mom_dropout dropout;
    const void *inner;   /* other factor of the score's gradient */
    float *partial;      /* (slots, blocks): <sums, other factor> per block of columns */
    size_t blocks;
    float *slots;        /* (slots, width) a copy of the sums, or NULL */
} mom_half_block;

#define MOM_HALF_FINISH(name)                                                                                          \
    void name(const mom_kernels *k, const mom_gemm *g, float *sums, size_t ld, size_t i0, size_t m, size_t j0, size_t n)
MOM_HALF_FINISH(mom_half_finish_store);         /* out[slot or token] = weight * sums */
MOM_HALF_FINISH(mom_half_finish_residual);      /* out[token] = x[token] + dropout(weight * sums) */
MOM_HALF_FINISH(mom_half_finish_add);           /* out[token] += sums */
MOM_HALF_FINISH(mom_half_finish_gelu_backward); /* inner[slot] = weight * sums * gelu'(inner); partial: <sums, gelu(inner)> */
MOM_HALF_FINISH(mom_half_finish_scored);        /* out[slot or token] = weight * sums; partial: <sums, inner[token]> */
MOM_HALF_FINISH(mom_half_finish_scored_norm);   /* out[slot] = weight * sums; partial: <sums, LN_m(x)[token]> */

/* Writes a row times `factor`; the row may be overwritten. */
void mom_half_store_row(const mom_kernels *k, void *out, mom_dtype dtype, float *row, float factor, size_t n);
/* A row as float32: the row itself, or a copy in `buffer`. */
const float *mom_half_load_row(const mom_kernels *k, float *buffer, const void *row, mom_dtype dtype, size_t n);

/* ---- passes over tokens and slots (routed_half.c) */

typedef struct {
    const mom_half *half;
    void *out;
    mom_dtype out_dtype;
    const float *x; /* residual stream, or NULL for none */
    const float *y, *weight;
    mom_dropout dropout;
    size_t width;
    float *rows; /* (threads, width) */
} mom_half_mix_job;

/* out (N, width) = x + dropout(sum over a token's slots of weight * y). `rows` is allocated here. */
mom_status mom_half_run_mix(mom_half_mix_job *job);

typedef struct {
    const mom_half *half;
    float *dscore;
    const float *partial;
    size_t blocks;
    const void *dout;
    mom_dtype dtype;
    int by_token;
    const float *const *bias;
    size_t Out;
} mom_half_score_job;

/* dscore += sum of the blocks + <dout, bias>: the gradient of a score without the module's output. */
void mom_half_run_score(const mom_half_score_job *job);

/* ---- lists of products (routed_half.c) */

typedef struct {
    mom_gemm *products;
    mom_half_block *blocks;
    mom_gemm_norm *norms;
    size_t count;
} mom_half_products;

mom_status mom_half_products_init(mom_half_products *list, const mom_half *half, size_t most);
/* A product of module `module`, in which the module's slots are the rows or the steps of sums. */
mom_gemm *mom_half_add_product(mom_half_products *list, const mom_half *half, size_t module, size_t m, size_t n, size_t k);
/* Gives product g of module m a finish function. */
void mom_half_set_finish(mom_half_products *list, mom_gemm *g, mom_gemm_finish finish, size_t m, mom_half_block block);
/* x of module m's tokens, normalised, for product g. */
mom_matrix mom_half_normed_rows(mom_half_products *list, const mom_gemm *g, const mom_half *half, size_t m);
/* Runs the products and empties the list. */
mom_status mom_half_run_products(const mom_half *half, mom_half_products *list);

/* Columns [begin, end) of a layer for the tokens of half.plan. */
typedef struct {
    mom_half half;
    size_t begin, end;
} mom_layer_part;

void mom_split_layer(mom_layer_part parts[2], const mom_half *half, const mom_routing_plan *some, size_t columns,
                     const mom_half_layer *layer);

#endif
