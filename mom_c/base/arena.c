#if defined(__linux__)
#define _GNU_SOURCE
#include <sys/mman.h>
#endif

#include "base/arena.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static _Atomic size_t live_bytes, peak_bytes;
static _Atomic long fail_countdown;

/* Every block carries its size in the 64 bytes before the data, for the statistics. */
typedef struct {
    void *base;
    size_t bytes;
} block_header;

_Static_assert(sizeof(block_header) <= MOM_ALIGNMENT, "the header must fit before the data");

static int told_to_fail(void) {
    long n = atomic_load(&fail_countdown);
    while (n > 0) {
        if (atomic_compare_exchange_weak(&fail_countdown, &n, n - 1))
            return n == 1;
    }
    return 0;
}

/* Large blocks begin at a huge page and ask for such pages: products walk through memory in strides of whole rows, and
 * with pages of 4 KB a good part of their time goes into address translation. */
#define HUGE_PAGE ((size_t)1 << 21)
#define HUGE_BLOCK ((size_t)1 << 22)

static size_t block_alignment(size_t bytes) { return bytes >= HUGE_BLOCK ? HUGE_PAGE : MOM_ALIGNMENT; }

static void ask_for_huge_pages(void *data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (bytes >= HUGE_BLOCK)
        (void)madvise(data, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE); /* advice: a refusal changes nothing */
#else
    (void)data;
    (void)bytes;
#endif
}

void *mom_memory_alloc(size_t count, size_t size, const char *what, mom_error *err) {
    if (size && count > (SIZE_MAX - 2 * HUGE_PAGE) / size) {
        mom_error_set(err, MOM_ERR_MEMORY, "%s: %zu items of %zu bytes are more than can be addressed", what, count, size);
        return NULL;
    }
    const size_t bytes = count * size, alignment = block_alignment(bytes);
    unsigned char *base = told_to_fail() ? NULL : malloc(bytes + MOM_ALIGNMENT + alignment);
    if (!base) {
        mom_error_set(err, MOM_ERR_MEMORY, "%s: cannot allocate %zu bytes", what, bytes);
        return NULL;
    }
    const uintptr_t address = ((uintptr_t)base + MOM_ALIGNMENT + alignment - 1) & ~(uintptr_t)(alignment - 1);
    unsigned char *data = base + (address - (uintptr_t)base);
    block_header *header = (block_header *)(void *)(data - MOM_ALIGNMENT);
    header->base = base;
    header->bytes = bytes;
    ask_for_huge_pages(data, bytes);
    const size_t live = atomic_fetch_add(&live_bytes, bytes) + bytes;
    size_t peak = atomic_load(&peak_bytes);
    while (live > peak && !atomic_compare_exchange_weak(&peak_bytes, &peak, live)) {
    }
    return data;
}

void *mom_memory_calloc(size_t count, size_t size, const char *what, mom_error *err) {
    void *data = mom_memory_alloc(count, size, what, err);
    if (data)
        memset(data, 0, count * size);
    return data;
}

void mom_memory_free(void *block) {
    if (!block)
        return;
    block_header *header = (block_header *)(void *)((unsigned char *)block - MOM_ALIGNMENT);
    atomic_fetch_sub(&live_bytes, header->bytes);
    free(header->base);
}

void mom_memory_fail_at(long n) { atomic_store(&fail_countdown, n); }
size_t mom_memory_live_bytes(void) { return atomic_load(&live_bytes); }
size_t mom_memory_peak_bytes(void) { return atomic_load(&peak_bytes); }
void mom_memory_reset_peak(void) { atomic_store(&peak_bytes, atomic_load(&live_bytes)); }

#define MIN_BLOCK ((size_t)1 << 20)
#define MAX_GROWTH ((size_t)1 << 25)

void mom_arena_init(mom_arena *arena, const char *name) { *arena = (mom_arena){.name = name}; }

static void free_block(mom_arena_block *block) {
    if (block) {
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
}

static mom_arena_block *new_block(size_t capacity, const char *name, mom_error *err) {
    mom_arena_block *block = mom_memory_alloc(1, sizeof *block, name, err);
    if (!block)
        return NULL;
    block->data = mom_memory_alloc(capacity, 1, name, err);
    if (!block->data) {
        mom_memory_free(block);
        return NULL;
    }
    block->capacity = capacity;
    block->used = 0;
    block->previous = NULL;
    return block;
}

void *mom_arena_alloc(mom_arena *arena, size_t count, size_t size, mom_error *err) {
    if (size && count > (SIZE_MAX - MOM_ALIGNMENT) / size) {
        mom_error_set(err, MOM_ERR_MEMORY, "%s: %zu items of %zu bytes are more than can be addressed", arena->name, count, size);
        return NULL;
    }
    const size_t bytes = (count * size + MOM_ALIGNMENT - 1) / MOM_ALIGNMENT * MOM_ALIGNMENT;
    mom_arena_block *top = arena->top;
    if (!top || top->capacity - top->used < bytes) {
        mom_arena_block *block;
        if (arena->spare && arena->spare->capacity >= bytes) {
            block = arena->spare;
            arena->spare = NULL;
        } else {
            size_t capacity = top ? top->capacity : MIN_BLOCK;
            if (capacity > MAX_GROWTH)
                capacity = MAX_GROWTH;
            block = new_block(bytes > capacity ? bytes : capacity, arena->name, err);
            if (!block)
                return NULL;
        }
        arena->grown |= top != NULL;
        block->previous = top;
        arena->top = top = block;
    }
    void *data = top->data + top->used;
    top->used += bytes;
    arena->live += bytes;
    if (arena->live > arena->peak)
        arena->peak = arena->live;
    return data;
}

mom_arena_mark mom_arena_get_mark(const mom_arena *arena) {
    return (mom_arena_mark){arena->top, arena->top ? arena->top->used : 0, arena->live};
}

static void drop_top(mom_arena *arena) {
    mom_arena_block *block = arena->top;
    arena->top = block->previous;
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
    if (arena->top) {
        arena->top->used = mark.used;
        return;
    }
    /* A block as large as everything that was in use at once ends the growth. The old spare goes
     * first, so that both never exist together; if memory is refused, growth just starts anew. */
    if (arena->grown && (!arena->spare || arena->spare->capacity < arena->peak)) {
        free_block(arena->spare);
        arena->spare = new_block(arena->peak, arena->name, NULL);
    }
    arena->grown = 0;
    arena->peak = 0;
}

void mom_arena_clear(mom_arena *arena) { mom_arena_release(arena, (mom_arena_mark){NULL, 0, 0}); }
