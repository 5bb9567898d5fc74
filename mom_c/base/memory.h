/* The only place where the core calls malloc.
 *
 * Blocks begin at multiples of 64 bytes. Sizes are checked for overflow, and live and peak bytes are counted. Tests can
 * make the n-th allocation fail, so that they reach every failure path. Large blocks are mappings of their own: a page
 * takes up memory once it is touched, and all pages go back to the system when the block is freed.
 */
#ifndef MOM_BASE_MEMORY_H
#define MOM_BASE_MEMORY_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define MOM_ALIGNMENT 64 /* bytes: of blocks, and of a cache line */

/* Returns NULL and sets MOM_ERR_MEMORY if count * size overflows or memory is refused. `what` names the thing in the
 * message. A request for zero bytes gives a valid pointer. calloc's memory is zero; large blocks cost nothing until
 * they are touched. */
void *mom_memory_alloc(size_t count, size_t size, const char *what, mom_error *err);
void *mom_memory_calloc(size_t count, size_t size, const char *what, mom_error *err);
/* Reserves addresses for a dry run (base/exec.h). They are hardly ever touched, so the block does not count as live. */
void *mom_memory_reserve(size_t count, size_t size, const char *what, mom_error *err);
void mom_memory_free(void *block); /* a block from any of the three; NULL is allowed */
/* Returns freed memory that the heap still holds to the system. */
void mom_memory_trim(void);

/* The n-th allocation from now (1 = the next) fails, once; 0 switches this off. */
void mom_memory_fail_at(long n);
/* Counts down by one. Returns 1 for the call that reaches 0, and 0 for all others. A count of 0 or less stays. */
int mom_count_down(atomic_long *count);
size_t mom_memory_live_bytes(void);
size_t mom_memory_peak_bytes(void);
void mom_memory_reset_peak(void);

#endif
