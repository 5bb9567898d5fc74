#include "gemm/blocking.h"

/* Largest numbers of rows of a for which b is read in place; with more rows, packing b first is as fast. The second number
 * holds if a has to be packed anyway and the second cache holds the rows of a panel of b (stays_cached). It saves 1 to 2 %
 * of a step with 160 tokens. */
#define MOST_ROWS_IN_PLACE ((size_t)12)
#define MOST_PACKED_ROWS ((size_t)192)
/* See mom_gemm_least_prepack; where b cannot be read in place. */
#define LEAST_ROWS_PACKED ((size_t)4)

size_t mom_block_depth(const mom_kernels *k, mom_dtype precision, size_t kk) {
    const size_t steps = precision == MOM_BF16 ? 2 : 1, most = mom_most_depth(k, precision);
    if (kk <= most)
        return kk;
    const size_t even = mom_div_up(kk, mom_div_up(kk, most)), unit = 8 * steps;
    if (mom_uses_tiles(k, precision))
        return mom_round_up(even, steps * k->gemm.tiles.items);
    return mom_min(most, mom_round_up(even + unit / 2, unit) - unit / 2);
}

/* Whether a factor is float32 as it stands in memory and in the product: nothing has to be done to its elements. */
static int is_plain(const mom_gemm *g, const mom_matrix *factor) {
    return g->precision == MOM_F32 && factor->dtype == MOM_F32 && !factor->norm && !factor->gelu;
}

/* Cache lines this many elements apart fall on the same set of the first cache. A set holds 8 or 12 lines, so the rows of
 * a micro-tile leave hardly any line of the set for other data. */
#define ALIASED ((size_t)1024)

int mom_reads_rows(const mom_kernels *k, const mom_gemm *g) {
    const mom_matrix *a = &g->a;
    return k->gemm.f32.a_rows && is_plain(g, a) && a->cs == 1 && !a->col_index && (a->row_index || a->rs % ALIASED);
}

int mom_reads_columns(const mom_kernels *k, const mom_gemm *g) {
    const mom_matrix *a = &g->a;
    return k->gemm.f32.a_columns && is_plain(g, a) && a->rs == 1 && !a->row_index && !a->col_index && a->cs % ALIASED;
}

int mom_reads_b(const mom_kernels *k, const mom_gemm *g) {
    const mom_matrix *b = &g->b;
    return k->gemm.f32.b_rows && is_plain(g, b) && b->cs == 1 && !b->row_index && !b->col_index && !g->k_scale;
}

/* Addresses this many bytes apart fall on the same set of a second cache; a set holds CACHE_WAYS lines. */
#define CACHE_WAY ((size_t)128 << 10)
#define CACHE_WAYS ((size_t)8)

/* Whether the rows of a panel of b, read where they lie, stay in the second cache together. */
static int stays_cached(const mom_kernels *k, const mom_gemm *g) {
    const size_t stride = g->b.rs * sizeof(float), step = stride & (~stride + 1); /* the largest power of 2 that divides it */
    const size_t apart = step && step < CACHE_WAY ? CACHE_WAY / step : 1;         /* stride 0: b has no columns */
    return mom_block_depth(k, g->precision, g->k) <= CACHE_WAYS * apart;
}

int mom_has_few_rows(const mom_kernels *k, const mom_gemm *g) {
    const int packs_a = !mom_reads_rows(k, g) && !mom_reads_columns(k, g);
    const size_t in_place = packs_a && stays_cached(k, g) ? MOST_PACKED_ROWS : MOST_ROWS_IN_PLACE;
    return !g->packed_b && !g->k_sums && g->m <= (mom_reads_b(k, g) ? in_place : k->gemm.mr);
}

size_t mom_gemm_least_prepack(const mom_kernels *k, mom_dtype precision) {
    return precision == MOM_F32 && k->gemm.f32.b_rows ? MOST_ROWS_IN_PLACE + 1 : LEAST_ROWS_PACKED;
}
