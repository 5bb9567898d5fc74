/* Arithmetic of sizes. */
#ifndef MOM_BASE_SIZES_H
#define MOM_BASE_SIZES_H

#include <stddef.h>

static inline size_t mom_min(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t mom_max(size_t a, size_t b) { return a > b ? a : b; }
/* n / by, rounded up: the number of groups of `by` things that hold n things. */
static inline size_t mom_div_up(size_t n, size_t by) { return (n + by - 1) / by; }
/* The smallest multiple of `to` that is at least n. */
static inline size_t mom_round_up(size_t n, size_t to) { return mom_div_up(n, to) * to; }

#endif
