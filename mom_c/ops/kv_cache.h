/* Keys and values of one sequence in one attention half, and attention of single queries over them.
 *
 * SHAPES      keys (H, capacity / MOM_PANEL, D, MOM_PANEL): panels of 64 keys, so that the scores of a panel are sums
 *             over D without any across lanes; values (H, capacity, D). capacity is a multiple of MOM_PANEL.
 * DEFINITION  out = sum_j p_j v_j, p = softmax over j < keys of scale <q, k_j> and over `skipped` further scores of 0
 *             with values of 0. These belong to tokens that chose no module: they have k = v = 0 and are only counted.
 */
#ifndef MOM_OPS_KV_CACHE_H
#define MOM_OPS_KV_CACHE_H

#include "kernels/kernels.h"

typedef struct {
    float *keys, *values;
    size_t capacity;
} mom_kv;

/* Floats of keys and values together. */
static inline size_t mom_kv_floats(size_t capacity, size_t C) { return 2 * capacity * C; }

/* Writes head h of one key (D) and value (D), both of type dtype, to place `slot` < capacity. */
void mom_kv_write(const mom_kv *kv, size_t slot, const void *key, const void *value, mom_dtype dtype, size_t h, size_t D);

/* Copies `count` places into another cache, of any capacity that holds them. */
void mom_kv_copy(const mom_kv *to, const mom_kv *from, size_t count, size_t H, size_t D);

typedef struct {
    float *out;     /* (C) */
    const float *q; /* (C) */
    mom_kv kv;
    size_t keys, skipped; /* keys + skipped >= 1 */
} mom_kv_query;

mom_status mom_kv_attention(const mom_exec *x, const mom_kv_query *queries, size_t count, float scale, size_t H,
                            size_t D, mom_error *err);

#endif
