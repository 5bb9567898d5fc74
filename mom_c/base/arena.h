/* The only door to malloc, and a stack-like arena on top of it.
 *
 * mom_memory_alloc / mom_memory_free
 *     64-byte aligned blocks with overflow-checked sizes; counts live and peak bytes; can be told to
 *     fail at the n-th call, so that tests reach every failure path. Large blocks are mapped apart from
 *     the heap: their pages exist once touched and go back to the system when freed.
 * mom_arena
 *     alloc is a pointer bump; mark/release give back everything allocated since a mark and keep the
 *     memory for the next use. Blocks are never moved, so pointers stay valid until released. When an
 *     arena becomes empty after it had to grow, its blocks are merged into one, so that a loop settles on
 *     a single block and no further calls to malloc.
 * mom_region
 *     one block of a size known beforehand that two arenas share: one takes from the bottom, the other
 *     from the top, so that the block need only hold what both have at once. What does not fit goes to
 *     blocks of the arena's own.
 */
#ifndef MOM_BASE_ARENA_H
#define MOM_BASE_ARENA_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define MOM_ALIGNMENT 64

/* Returns NULL and sets MOM_ERR_MEMORY when count * size overflows or memory is refused.
 * `what` names the thing in the message. A request of zero bytes gives a valid pointer. */
void *mom_memory_alloc(size_t count, size_t size, const char *what, mom_error *err);
void *mom_memory_calloc(size_t count, size_t size, const char *what, mom_error *err);
void mom_memory_free(void *block);
/* Sets a whole block to zero; one that is mapped loses its whole huge pages until they are touched again. */
void mom_memory_clear(void *block);
int mom_memory_is_mapped(void *block);
/* Gives back to the system what the heap holds of freed memory. */
void mom_memory_trim(void);

/* The n-th allocation from now (1 = the next) fails, once; 0 switches this off. */
void mom_memory_fail_at(long n);
size_t mom_memory_live_bytes(void);
size_t mom_memory_peak_bytes(void);
void mom_memory_reset_peak(void);

typedef struct mom_arena_block {
    struct mom_arena_block *previous;
    size_t capacity, used; /* bytes */
    unsigned char *data;
} mom_arena_block;

typedef struct {
    unsigned char *data;   /* NULL: nothing but the counts, memory comes from elsewhere */
    size_t capacity;
    size_t used[2];        /* from the bottom, from the top */
    size_t touched[2];     /* most of either whose pages are there */
    size_t peak;           /* most of both together */
    size_t at_peak[2];     /* either's share of it */
    size_t noted, noted_at_peak; /* bytes of it that the user keeps account of */
    int full;              /* something did not fit */
} mom_region;

typedef struct {
    mom_arena_block *top; /* newest block; earlier ones hang behind it */
    mom_arena_block *spare; /* one emptied block kept for reuse */
    const char *name; /* in error messages */
    size_t live, peak; /* bytes handed out; most of them since the arena was last empty */
    int grown;         /* has had several blocks since then */
    mom_region *region; /* or NULL */
    int side;           /* of the region: 0 bottom, 1 top */
    int reserve;        /* pages are touched by accident only: none are set aside */
} mom_arena;

typedef struct {
    mom_arena_block *block;
    size_t used;   /* of that block */
    size_t shared; /* of the region */
    size_t live;
} mom_arena_mark;

void mom_arena_init(mom_arena *arena, const char *name);
void mom_arena_free(mom_arena *arena);
void *mom_arena_alloc(mom_arena *arena, size_t count, size_t size, mom_error *err);
mom_arena_mark mom_arena_get_mark(const mom_arena *arena);
void mom_arena_release(mom_arena *arena, mom_arena_mark mark);
void mom_arena_clear(mom_arena *arena); /* releases everything, keeps one block of the peak size */

/* The region's memory; its arenas must be empty, and have no other blocks afterwards. */
mom_status mom_region_init(mom_region *region, size_t capacity, const char *name, mom_error *err);
void mom_region_free(mom_region *region); /* arenas must be empty */

/* Bytes [begin, end) of a block that are still without pages and shall get some, from the end down or from the beginning
 * up: moving a page costs microseconds, while one that the system takes and gives again is zeroed. Where pages cannot be
 * moved, they come from the system when they are touched. Nothing may be left bare that the user writes to. */
typedef struct {
    unsigned char *data;
    size_t begin, end; /* whole huge pages */
    int upwards;
} mom_bare;

/* Bytes [begin, end) at most, whole huge pages of them and none past the present end; none if the block is not mapped. */
void mom_bare_limit(mom_bare *bare, size_t begin, size_t end);
/* Gives away pages between the two arenas so that no more than `most` bytes of the region are resident, and none of the
 * lower arena's that would stand in the way of `top` bytes of the upper one. They go to `bare`, with what is in them, as
 * far as it has room, else, or with bare NULL, to the system. */
void mom_region_shrink(mom_region *region, size_t most, size_t top, mom_bare *bare);
/* The same for the region's pages wholly within [data, data + bytes) but for those that went when it was called for the first
 * `done` bytes: what was there is no longer needed. They count as touched all the same. */
void mom_region_forget(mom_region *region, const void *data, size_t done, size_t bytes, mom_bare *bare);
/* mom_memory_clear(block), but its pages go to the region between the two arenas, until most[0] bytes from the bottom and
 * most[1] from the top have theirs. */
void mom_region_refill(mom_region *region, const size_t most[2], void *block);
void mom_arena_attach(mom_arena *arena, mom_region *region, int side); /* of an empty arena */

/* Typed allocation that returns MOM_ERR_MEMORY from the calling function on failure. */
#define MOM_ARENA_NEW(target, arena, count, err)                                                      \
    do {                                                                                              \
        (target) = mom_arena_alloc((arena), (count), sizeof *(target), (err));                        \
        if (!(target))                                                                                \
            return MOM_ERR_MEMORY;                                                                    \
    } while (0)

#endif
