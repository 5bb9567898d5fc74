/* How a product is cut into blocks of k, and which of its factors are packed. For the files of gemm/ only.
 *
 * Packed factors are counted in items of 32 bits: a float32, or two steps of k in bfloat16.
 */
#ifndef MOM_GEMM_BLOCKING_H
#define MOM_GEMM_BLOCKING_H

#include "base/sizes.h"
#include "gemm/gemm.h"

typedef uint32_t mom_item;

static inline int mom_uses_tiles(const mom_kernels *k, mom_dtype precision) {
    return precision == MOM_BF16 && k->gemm.tiles.items;
}

/* Items of a row or column of kk steps. Tiles take whole chunks (mom_gemm_tile_kernels). */
static inline size_t mom_items(const mom_kernels *k, mom_dtype precision, size_t kk) {
    const size_t items = precision == MOM_BF16 ? mom_div_up(kk, 2) : kk;
    return mom_uses_tiles(k, precision) ? mom_round_up(items, k->gemm.tiles.items) : items;
}

/* Most steps of a block of k. */
static inline size_t mom_most_depth(const mom_kernels *k, mom_dtype precision) {
    return precision == MOM_BF16 ? k->gemm.kc_bf16 : k->gemm.kc;
}

/* Steps of a block of k when there are kk steps in all. There are as few blocks as the caches allow, of nearly equal
 * size. Counted in items, the size is an odd multiple of 4, like kc. Otherwise neighbouring panels would fall on the
 * same sets of a cache while packing writes to several panels. On tiles the size is a number of whole chunks. */
size_t mom_block_depth(const mom_kernels *k, mom_dtype precision, size_t kk);

/* Items of n packed columns. The last block of k may end in half a pair, or in a part of a chunk. */
static inline size_t mom_packed_items(const mom_kernels *k, mom_dtype precision, size_t n, size_t kk) {
    return mom_round_up(n, k->gemm.nr) * mom_items(k, precision, kk);
}

/* Whether whole panels of a are read where they lie, by rows or by columns. */
int mom_reads_rows(const mom_kernels *k, const mom_gemm *g);
int mom_reads_columns(const mom_kernels *k, const mom_gemm *g);
/* Whether b can be read where it lies. */
int mom_reads_b(const mom_kernels *k, const mom_gemm *g);
/* Whether a product has few rows: each task then reads its panels of b in place or packs them itself. Hardly any other
 * task would use the same packed panels. */
int mom_has_few_rows(const mom_kernels *k, const mom_gemm *g);

/* Rows that the micro-kernel takes at a time: a panel, on tiles two. */
static inline size_t mom_row_unit(const mom_kernels *k, const mom_gemm *g) {
    return mom_uses_tiles(k, g->precision) ? 2 * k->gemm.mr : k->gemm.mr;
}

/* Most rows of a task of a product with m rows. */
static inline size_t mom_block_rows(const mom_kernels *k, const mom_gemm *g, size_t m) {
    return mom_min(k->gemm.mc, mom_round_up(m, mom_row_unit(k, g)));
}

#endif
