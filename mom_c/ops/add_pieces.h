/* Sums of several arrays in a given order. Ranks of a data-parallel run and the parts of a step add their gradients so. */
#ifndef MOM_OPS_ADD_PIECES_H
#define MOM_OPS_ADD_PIECES_H

#include "kernels/kernels.h"

/* pieces[to] += pieces[from] */
typedef struct {
    size_t to, from;
} mom_addition;

/* Makes the additions one after the other. pieces: arrays (n) that do not overlap. */
void mom_add_pieces(const mom_exec *x, float *const *pieces, size_t n, const mom_addition *additions, size_t count);

#endif
