/* Packing a factor b, cut into tasks. For the files of gemm/ only.
 *
 * A packed b is block after block of k. A block holds panels of nr columns (mom_pack_kernels.factor), `columns` columns
 * in all.
 */
#ifndef MOM_GEMM_PACKING_H
#define MOM_GEMM_PACKING_H

#include "gemm/blocking.h"

/* Packs a part of b: one block of k of some columns, at most the level's column_unit: enough work to be worth a task. */
typedef struct {
    mom_item *dst; /* of the whole packed b */
    const mom_matrix *b;
    const float *k_scale;
    mom_dtype precision;
    size_t p0, kc;       /* steps of the task */
    size_t j0, n;        /* columns of the task, counted from first_column; j0 is a multiple of nr */
    size_t first_column; /* of the packed columns */
    size_t columns;      /* packed columns, rounded up to nr */
} mom_pack_task;

/* How many tasks pack n columns of a b with kk steps. */
size_t mom_count_packs(const mom_kernels *k, mom_dtype precision, size_t n, size_t kk);
/* Writes the tasks that pack n columns of a b with kk steps, and returns how many they are. `shared` holds what all of
 * them have in common: dst, b, k_scale, precision and first_column. */
size_t mom_list_packs(const mom_kernels *k, mom_pack_task *tasks, const mom_pack_task *shared, size_t n, size_t kk);
/* Runs one task. */
void mom_pack_columns(const mom_kernels *k, const mom_pack_task *task);

#endif
