#include "base/arena.h"

#include <string.h>

#define MIN_BLOCK ((size_t)1 << 20)
#define MAX_GROWTH ((size_t)1 << 25)

/* Under AddressSanitizer the parts of a block that are not handed out count as freed. So it finds accesses past the end of
 * an array, and to arrays that have been released. */
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
static void forbid(const void *data, size_t bytes) { ASAN_POISON_MEMORY_REGION(data, bytes); }
static void permit(const void *data, size_t bytes) { ASAN_UNPOISON_MEMORY_REGION(data, bytes); }
#else
static void forbid(const void *data, size_t bytes) { (void)data, (void)bytes; }
static void permit(const void *data, size_t bytes) { (void)data, (void)bytes; }
#endif

static atomic_long fail_countdown;

void mom_arena_fail_at(long n) { atomic_store(&fail_countdown, n); }

void mom_arena_init(mom_arena *arena, const char *name) { *arena = (mom_arena){.name = name}; }

/* Takes back what one side has beyond `used` bytes. */
static void shrink(mom_region *region, mom_region_side side, size_t used) {
    if (region->data) {
        const size_t had = region->used[side], begin = side == MOM_UPPER ? region->capacity - had : used;
        forbid(region->data + begin, had - used);
    }
    region->used[side] = used;
}

static void free_block(mom_arena_block *block) {
    if (block) {
        permit(block->data, block->capacity);
        mom_memory_free(block->data);
        mom_memory_free(block);
    }
}

void mom_arena_free(mom_arena *arena) {
    while (arena->top) {
        mom_arena_block *previous = arena->top->previous;
        free_block(arena->top);
        arena->top = previous;
    }
    free_block(arena->spare);
    arena->spare = NULL;
    arena->live = arena->peak = 0;
    if (arena->region)
        shrink(arena->region, arena->side, 0);
}

static mom_arena_block *new_block(const mom_arena *arena, size_t capacity, mom_error *err) {
    mom_arena_block *block = mom_memory_alloc(1, sizeof *block, arena->name, err);
    if (!block)
        return NULL;
    block->data = (arena->dry ? mom_memory_reserve : mom_memory_alloc)(capacity, 1, arena->name, err);
    if (!block->data) {
        mom_memory_free(block);
        return NULL;
    }
    forbid(block->data, capacity);
    block->capacity = capacity;
    block->used = 0;
    block->previous = NULL;
    return block;
}

mom_status mom_region_init(mom_region *region, size_t capacity, const char *name, mom_error *err) {
    *region = (mom_region){.capacity = capacity / MOM_ALIGNMENT * MOM_ALIGNMENT};
    region->data = mom_memory_alloc(capacity, 1, name, err);
    if (!region->data) {
        *region = (mom_region){0};
        return MOM_ERR_MEMORY;
    }
    forbid(region->data, region->capacity);
    return MOM_OK;
}

void mom_region_free(mom_region *region) {
    permit(region->data, region->capacity);
    mom_memory_free(region->data);
    *region = (mom_region){0};
}

void mom_arena_attach(mom_arena *arena, mom_region *region, mom_region_side side) {
    mom_arena_free(arena);
    arena->region = region;
    arena->side = side;
}

/* Takes memory from the region. Returns NULL if the region is full or only counts. */
static void *take(mom_region *region, mom_region_side side, size_t bytes) {
    const size_t sum = region->used[0] + region->used[1];
    if (region->data && region->capacity - sum < bytes) {
        region->full = 1;
        return NULL;
    }
    region->used[side] += bytes;
    if (sum + bytes > region->peak) {
        region->peak = sum + bytes;
        region->tagged_at_peak = region->tagged;
        memcpy(region->at_peak, region->used, sizeof region->at_peak);
    }
    if (!region->data)
        return NULL;
    return region->data + (side == MOM_UPPER ? region->capacity - region->used[MOM_UPPER] : region->used[MOM_LOWER] - bytes);
}

void *mom_arena_alloc(mom_arena *arena, size_t count, size_t size, mom_error *err) {
    if (size && count > (SIZE_MAX - MOM_ALIGNMENT) / size) {
        mom_error_set(err, MOM_ERR_MEMORY, "%s: %zu items of %zu bytes are more than can be addressed", arena->name, count, size);
        return NULL;
    }
    const size_t bytes = (count * size + MOM_ALIGNMENT - 1) / MOM_ALIGNMENT * MOM_ALIGNMENT;
    if (mom_count_down(&fail_countdown)) {
        mom_error_set(err, MOM_ERR_MEMORY, "%s: cannot allocate %zu bytes", arena->name, bytes);
        return NULL;
    }
    mom_arena_block *top = arena->top;
    if (arena->region && (!top || !arena->region->data)) {
        void *shared = take(arena->region, arena->side, bytes);
        if (shared) {
            arena->live += bytes;
            permit(shared, count * size);
            return shared;
        }
    }
    if (!top || top->capacity - top->used < bytes) {
        mom_arena_block *block;
        if (arena->spare && arena->spare->capacity >= bytes) {
            block = arena->spare;
            arena->spare = NULL;
        } else {
            size_t capacity = top ? top->capacity : MIN_BLOCK;
            if (capacity > MAX_GROWTH)
                capacity = MAX_GROWTH;
            block = new_block(arena, bytes > capacity ? bytes : capacity, err);
            if (!block)
                return NULL;
        }
        arena->grown |= top != NULL;
        block->previous = top;
        arena->top = top = block;
    }
    void *data = top->data + top->used;
    permit(data, count * size);
    top->used += bytes;
    arena->live += bytes;
    if (arena->live > arena->peak)
        arena->peak = arena->live;
    return data;
}

mom_arena_mark mom_arena_get_mark(const mom_arena *arena) {
    return (mom_arena_mark){arena->top, arena->top ? arena->top->used : 0,
                            arena->region ? arena->region->used[arena->side] : 0, arena->live};
}

static void drop_top(mom_arena *arena) {
    mom_arena_block *block = arena->top;
    arena->top = block->previous;
    forbid(block->data, block->used);
    block->used = 0;
    if (!arena->spare || arena->spare->capacity < block->capacity) {
        mom_arena_block *smaller = arena->spare;
        arena->spare = block;
        block = smaller;
    }
    free_block(block);
}

void mom_arena_release(mom_arena *arena, mom_arena_mark mark) {
    while (arena->top != mark.block)
        drop_top(arena);
    arena->live = mark.live;
    if (arena->region)
        shrink(arena->region, arena->side, mark.shared);
    if (arena->top) {
        forbid(arena->top->data + mark.used, arena->top->used - mark.used);
        arena->top->used = mark.used;
        return;
    }
    if (arena->region && arena->region->data) { /* the region's owner replaces it by a larger one */
        free_block(arena->spare);
        arena->spare = NULL;
        arena->grown = 0;
        return;
    }
    /* The new spare block is as large as the memory that was in use at once, so the next use needs no second block. The
     * old spare is freed first, so that the two never exist together. If memory is refused, the arena just grows
     * again. */
    if (arena->grown && (!arena->spare || arena->spare->capacity < arena->peak)) {
        free_block(arena->spare);
        arena->spare = new_block(arena, arena->peak, NULL);
    }
    arena->grown = 0;
    arena->peak = 0;
}

void mom_arena_clear(mom_arena *arena) { mom_arena_release(arena, (mom_arena_mark){NULL, 0, 0, 0}); }
