/* Memory that is taken and given back like a stack.
 *
 * mom_arena
 *     Allocation is the addition of a number. A mark remembers a moment; release gives back everything allocated since
 *     and keeps the memory for the next use. Blocks are never moved, so pointers stay valid until they are released.
 *     An arena that had to grow merges its blocks into one as soon as it is empty. So a loop settles on a single block
 *     and calls malloc no more.
 * mom_region
 *     One block of a known size that two arenas share: the lower arena takes from the bottom, the upper one from the
 *     top. The block need only hold what both use at the same moment. What does not fit goes to blocks of the arena's
 *     own, and sets `full`.
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
    unsigned char *data; /* NULL: the region only counts, memory comes from the arenas' own blocks */
    size_t capacity;
    size_t used[2];    /* by side */
    size_t peak;       /* most of both sides together */
    size_t at_peak[2]; /* what each side had then */
    size_t tagged, tagged_at_peak; /* bytes of the upper side that its user counts apart */
    int full;          /* something did not fit */
} mom_region;

typedef struct {
    mom_arena_block *top;   /* newest block; earlier ones hang behind it */
    mom_arena_block *spare; /* one emptied block kept for reuse */
    const char *name;       /* in error messages */
    size_t live, peak;      /* bytes handed out now; most of them since the arena was last empty */
    int grown;              /* has had several blocks since then */
    mom_region *region;     /* or NULL */
    mom_region_side side;
    int dry;                /* of a dry run: blocks are addresses that hardly anybody touches */
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

/* Allocates the region's memory. Its arenas must be empty and have no blocks. */
mom_status mom_region_init(mom_region *region, size_t capacity, const char *name, mom_error *err);
void mom_region_free(mom_region *region); /* arenas must be empty */
void mom_arena_attach(mom_arena *arena, mom_region *region, mom_region_side side); /* of an empty arena */

/* Typed allocation that returns MOM_ERR_MEMORY from the calling function on failure. */
#define MOM_ARENA_NEW(target, arena, count, err)                                                      \
    do {                                                                                              \
        (target) = mom_arena_alloc((arena), (count), sizeof *(target), (err));                        \
        if (!(target))                                                                                \
            return MOM_ERR_MEMORY;                                                                    \
    } while (0)

#endif
