/* Memory that is taken and given back like a stack.
 *
 * mom_arena
 *     To allocate is to add to a counter. A mark records how much is in use. Releasing to a mark gives back everything
 *     allocated since, and the arena keeps the memory for the next use. Blocks are never moved, so pointers stay valid
 *     until they are released. When an arena with several blocks becomes empty, a single larger block replaces them. So
 *     a loop soon stops calling malloc.
 * mom_region
 *     One block of a known size that two arenas share: the lower arena takes from the bottom, the upper one from the
 *     top. The block need only be large enough for what both use at the same time. An allocation that does not fit goes
 *     to one of the arena's own blocks and sets `full`.
 */
#ifndef MOM_BASE_ARENA_H
#define MOM_BASE_ARENA_H

#include "base/memory.h"

typedef struct mom_arena_block {
    struct mom_arena_block *previous;
    size_t capacity, used; /* bytes */
    unsigned char *data;
} mom_arena_block;

typedef enum { MOM_LOWER, MOM_UPPER } mom_region_side;

typedef struct {
    unsigned char *data; /* NULL: the region only counts, and memory comes from the arenas' own blocks */
    size_t capacity;
    size_t used[2];    /* by side */
    size_t peak;       /* largest sum of both sides so far */
    size_t at_peak[2]; /* `used` of each side at that moment */
    size_t tagged, tagged_at_peak; /* bytes of the upper side that its user counts separately */
    int full;          /* an allocation did not fit */
} mom_region;

typedef struct {
    mom_arena_block *top;   /* newest block, linked to the earlier ones */
    mom_arena_block *spare; /* one emptied block kept for reuse */
    const char *name;       /* in error messages */
    size_t live, peak;      /* bytes in use; largest value of it since the arena was last empty */
    int grown;              /* has had more than one block since it was last empty */
    mom_region *region;     /* or NULL */
    mom_region_side side;
    int dry;                /* of a dry run: blocks are reserved addresses that are hardly ever touched */
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
void mom_arena_clear(mom_arena *arena); /* releases everything and keeps one block of the peak size */

/* The n-th allocation of any arena from now (1 = the next) fails, once, also if its block has room; 0 switches this off.
 * An arena rarely asks for memory, so mom_memory_fail_at alone would not reach most failure paths. */
void mom_arena_fail_at(long n);

/* Allocates the region's memory. Its arenas must be empty and have no blocks. */
mom_status mom_region_init(mom_region *region, size_t capacity, const char *name, mom_error *err);
void mom_region_free(mom_region *region); /* arenas must be empty */
void mom_arena_attach(mom_arena *arena, mom_region *region, mom_region_side side); /* of an empty arena */

/* Allocations that return MOM_ERR_MEMORY from the calling function on failure: of `count` items of the target's type, or
 * of a given size. */
#define MOM_ARENA_NEW(target, arena, count, err) MOM_ARENA_NEW_SIZED(target, arena, count, sizeof *(target), err)
#define MOM_ARENA_NEW_SIZED(target, arena, count, size, err)                                          \
    do {                                                                                              \
        (target) = mom_arena_alloc((arena), (count), (size), (err));                                  \
        if (!(target))                                                                                \
            return MOM_ERR_MEMORY;                                                                    \
    } while (0)

#endif
