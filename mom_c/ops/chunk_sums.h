/* Sums over tokens. They are made in chunks of rows, each with float64 partial sums of its own, which are then added in order.
 * The size of a chunk is part of the result's bits and does not depend on the threads. */
#ifndef MOM_OPS_CHUNK_SUMS_H
#define MOM_OPS_CHUNK_SUMS_H

#include "base/sizes.h"
#include "kernels/kernels.h"

#define MOM_CHUNK_ROWS 256

static inline size_t mom_chunk_count(size_t N) { return mom_div_up(N, MOM_CHUNK_ROWS); }

/* Adds to *sum and *count what tokens [begin, end) have. */
typedef void (*mom_chunk_sum)(const void *context, size_t begin, size_t end, double *sum, double *count);

/* Adds the sums of all N tokens to *sum, and sets *count to the number of those that count. A dry run leaves both as they
 * are. */
mom_status mom_chunk_sums(const mom_exec *x, double *sum, double *count, size_t N, mom_chunk_sum of_chunk, const void *context,
                          mom_error *err);

#endif
