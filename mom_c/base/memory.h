/* The only door to malloc.
 *
 * Blocks begin at multiples of 64 bytes, sizes are checked for overflow, live and peak bytes are counted. Tests can make
 * the n-th allocation fail, so that they reach every failure path. Large blocks are mappings of their own: their pages
 * exist once they are touched, and go back to the system when the block is freed.
 */
#ifndef MOM_BASE_MEMORY_H
#define MOM_BASE_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define MOM_ALIGNMENT 64

/* Returns NULL and sets MOM_ERR_MEMORY if count * size overflows or memory is refused. `what` names the thing in the
 * message. A request for zero bytes gives a valid pointer. calloc's memory is zero; large blocks cost nothing until
 * they are touched. */
void *mom_memory_alloc(size_t count, size_t size, const char *what, mom_error *err);
void *mom_memory_calloc(size_t count, size_t size, const char *what, mom_error *err);
/* Addresses for a dry run (base/exec.h): hardly any of them are ever touched, so the block does not count as live. */
void *mom_memory_reserve(size_t count, size_t size, const char *what, mom_error *err);
void mom_memory_free(void *block); /* of any of the three; NULL is allowed */
/* Gives back to the system what the heap holds of freed memory. */
void mom_memory_trim(void);

/* The n-th allocation from now (1 = the next) fails, once; 0 switches this off. */
void mom_memory_fail_at(long n);
size_t mom_memory_live_bytes(void);
size_t mom_memory_peak_bytes(void);
void mom_memory_reset_peak(void);

#endif
