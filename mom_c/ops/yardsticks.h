/* What this machine can do at the active level: the yardsticks of benchmarks. */
#ifndef MOM_OPS_YARDSTICKS_H
#define MOM_OPS_YARDSTICKS_H

#include "kernels/kernels.h"

double mom_clock_seconds(void); /* a clock that only ever advances */

/* Floating-point operations per second of all threads together, the best of short bursts over about `seconds`.
 * bf16: products of bfloat16 instead of float32. */
double mom_yardstick_peak(const mom_exec *x, int bf16, double seconds);

typedef struct {
    double triad;  /* out = a + factor * b, 12 bytes per element; lines of `out` that the processor reads first not counted */
    double stream; /* the same, written past the caches if the processor can: all that moves is counted */
    double read;   /* reading only */
} mom_bandwidth;

/* Bytes per second, best of `repeats`, on arrays of `floats` floats. They come from the workspace; to measure memory
 * they must be larger than the caches. */
mom_status mom_yardstick_bandwidth(const mom_exec *x, mom_bandwidth *best, size_t floats, size_t repeats, mom_error *err);

#endif
