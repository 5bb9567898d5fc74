/* The kernels of one instruction-set level: a table of small tables.
 *
 * There is one table per level. The bodies in *.inc are compiled once per level by level_<name>.c. The matrix
 * micro-kernels are written by hand in gemm_ukr_<name>.c. kernels.c chooses a table.
 *
 * Kernels are serial, allocate nothing, keep no state and know no model; operators split the work over threads. Unless a
 * contract says otherwise, arrays are contiguous float32, may be unaligned and of any length (0 included), and no two
 * arguments overlap ("in place allowed" says otherwise).
 */
#ifndef MOM_KERNELS_KERNELS_H
#define MOM_KERNELS_KERNELS_H

#include "base/exec.h"
#include "kernels/product_kernels.h"
#include "kernels/row_kernels.h"

struct mom_kernels {
    const char *name; /* of the level */
    mom_gemm_kernels gemm;
    mom_pack_kernels pack;
    mom_gemv_kernels gemv;
    mom_vec_kernels vec;
    mom_norm_kernels norm;
    mom_gru_kernels gru;
    mom_attention_kernels attention;
    mom_optimizer_kernels optimizer;
    mom_yardsticks yardsticks;
};

/* Levels this machine can run, best last; NULL-terminated list of names. */
const char *const *mom_kernels_available(void);
/* The table of a level; NULL if unknown or not supported here. */
const mom_kernels *mom_kernels_get(const char *level);
/* The best table of this machine. */
const mom_kernels *mom_kernels_best(void);

#endif
