/* A slab: some columns of all products of a group, cut into tasks. For the files of gemm/ only.
 *
 * A slab's tasks first pack b, then compute. A task that computes waits until its own b is packed; there is no barrier.
 */
#ifndef MOM_GEMM_SLAB_H
#define MOM_GEMM_SLAB_H

#include "gemm/packing.h"

/* Columns [begin, begin + width) of every product that has them. */
typedef struct {
    const mom_exec *x;
    const mom_gemm *products;
    size_t count;
    size_t begin, width;
    size_t task_columns; /* columns of a task; see mom_slab_task_columns */
} mom_slab;

/* A product's b in a slab. */
typedef struct {
    const mom_gemm *g;
    const mom_item *b;      /* packed, or NULL if each task packs its own columns or reads b where it lies */
    size_t columns, first;  /* packed columns, rounded up to nr; the first one's place in c */
    /* Tasks that pack it and are not done. The counter has a cache line of its own, since many threads read the rest. */
    _Alignas(MOM_ALIGNMENT) atomic_size_t unpacked;
} mom_slab_product;

/* Computes rows [i0, i0 + m), columns [j0, j0 + n) of c. With m = 0: the sums over these columns of b, for k_sums. */
typedef struct {
    const mom_slab_product *of;
    size_t i0, m, j0, n;
} mom_block_task;

/* What the tasks of a slab share. Tasks that pack come first in the list, then those that compute. */
typedef struct {
    const mom_kernels *k;
    const mom_pack_task *packs;
    mom_slab_product **packed; /* the product of each pack */
    size_t pack_count;
    const mom_block_task *blocks;
    /* Scratch memory per thread, and its size in items: a packed block of a; a panel of b, for products of few rows; a
     * block of sums, for products with `finish`. */
    mom_item *a, *panel;
    float *sums;
    size_t a_size, panel_size, sums_size;
} mom_slab_job;

/* How many of a product's columns are in the slab. */
static inline size_t mom_slab_columns(const mom_slab *s, const mom_gemm *g) {
    return g->k && g->m && g->n > s->begin ? mom_min(s->width, g->n - s->begin) : 0;
}

/* Chooses the columns of a task (gemm/slab.c). */
size_t mom_slab_task_columns(const mom_slab *s);
/* Cuts the slab into tasks that compute: writes them to `blocks` unless that is NULL, and returns how many they are. */
size_t mom_slab_blocks(const mom_slab *s, const mom_slab_product *products, mom_block_task *blocks);

/* What a slab needs memory for: items per thread, packed items, and tasks. */
typedef struct {
    size_t a, panel, sums, packed, packs, blocks;
} mom_slab_sizes;

#define MOM_MOST_PACKED ((size_t)16 << 20) /* bytes of b that are packed at a time, unless even the narrowest slab has more */

/* Sizes of the memory that a slab needs. In a dry run with MOM_DRY_ANY_ROUTES it must also be enough for any other
 * distribution of rows, or steps of k, over the products of the group. */
mom_slab_sizes mom_slab_measure(const mom_slab *s);

/* Runs one task of a slab; context is a mom_slab_job (gemm/compute.c). */
void mom_slab_task(void *context, size_t task, int thread);

#endif
