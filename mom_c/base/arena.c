#if defined(__linux__)
#define _GNU_SOURCE
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "base/arena.h"
#include "base/sizes.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

static _Atomic size_t live_bytes, peak_bytes;
static _Atomic long fail_countdown;

/* Every block carries its size in the 64 bytes before the data, for the statistics. */
typedef struct {
    void *base;
    size_t bytes;
    size_t mapped; /* bytes of the mapping that begins at base; 0: base is from malloc */
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

static block_header *header_of(void *block) {
    return (block_header *)(void *)((unsigned char *)block - MOM_ALIGNMENT);
}

#if defined(__linux__)
/* Of memory that can be given back; 4 KB on most machines, up to 64 KB on some. */
static size_t page_size(void) {
    const long size = sysconf(_SC_PAGESIZE);
    return size > 0 ? (size_t)size : 4096;
}

/* Zeroed memory of its own, data at the beginning of a huge page; NULL if there is none. */
static void *map_block(size_t bytes, int reserve) {
    const size_t room = bytes + 2 * HUGE_PAGE, page = page_size(); /* a page in front of the data holds the header */
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | (reserve ? MAP_NORESERVE : 0);
    unsigned char *base = mmap(NULL, room, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (base == MAP_FAILED)
        return NULL;
    const size_t before = HUGE_PAGE - ((uintptr_t)base & (HUGE_PAGE - 1)); /* a huge page at most, a page at least */
    const size_t end = (before + bytes + page - 1) / page * page;
    if (before > page)
        (void)munmap(base, before - page);
    if (end < room)
        (void)munmap(base + end, room - end);
    unsigned char *data = base + before;
    *header_of(data) = (block_header){data - page, bytes, page + end - before};
#if defined(MADV_HUGEPAGE)
    if (!reserve)
        (void)madvise(data, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE); /* advice: a refusal changes nothing */
#endif
    return data;
}

static void unmap_block(block_header *header) { (void)munmap(header->base, header->mapped); }
#else
static void *map_block(size_t bytes, int reserve) {
    (void)bytes;
    (void)reserve;
    return NULL;
}

static void unmap_block(block_header *header) { (void)header; }
#endif

static void *heap_block(size_t bytes) {
    unsigned char *base = malloc(bytes + 2 * MOM_ALIGNMENT);
    if (!base)
        return NULL;
    const uintptr_t address = ((uintptr_t)base + 2 * MOM_ALIGNMENT - 1) & ~(uintptr_t)(MOM_ALIGNMENT - 1);
    unsigned char *data = base + (address - (uintptr_t)base);
    *header_of(data) = (block_header){base, bytes, 0};
    return data;
}

static void *allocate(size_t count, size_t size, int reserve, const char *what, mom_error *err) {
    if (size && count > (SIZE_MAX / 2 - 2 * HUGE_PAGE) / size) {
        mom_error_set(err, MOM_ERR_MEMORY, "%s: %zu items of %zu bytes are more than can be addressed", what, count, size);
        return NULL;
    }
    const size_t bytes = count * size;
    void *data = NULL;
    if (!told_to_fail()) {
        if (bytes >= HUGE_BLOCK)
            data = map_block(bytes, reserve);
        if (!data)
            data = heap_block(bytes);
    }
    if (!data) {
        mom_error_set(err, MOM_ERR_MEMORY, "%s: cannot allocate %zu bytes", what, bytes);
        return NULL;
    }
    if (reserve)
        return data;
    const size_t live = atomic_fetch_add(&live_bytes, bytes) + bytes;
    size_t peak = atomic_load(&peak_bytes);
    while (live > peak && !atomic_compare_exchange_weak(&peak_bytes, &peak, live)) {
    }
    return data;
}

static void give_back(void *block, int reserve) {
    if (!block)
        return;
    block_header *header = header_of(block);
    if (!reserve)
        atomic_fetch_sub(&live_bytes, header->bytes);
    if (header->mapped)
        unmap_block(header);
    else
        free(header->base);
}

void *mom_memory_alloc(size_t count, size_t size, const char *what, mom_error *err) {
    return allocate(count, size, 0, what, err);
}

void *mom_memory_calloc(size_t count, size_t size, const char *what, mom_error *err) {
    void *data = mom_memory_alloc(count, size, what, err);
    if (data && !header_of(data)->mapped)
        memset(data, 0, count * size);
    return data;
}

void mom_memory_free(void *block) { give_back(block, 0); }

int mom_memory_is_mapped(void *block) { return header_of(block)->mapped > 0; }

void mom_memory_clear(void *block) {
    const block_header *header = header_of(block);
    size_t gone = 0;
#if defined(__linux__)
    /* Private pages without a file come back as zeros. The rest is not worth hundreds of small pages. */
    const size_t whole = header->bytes / HUGE_PAGE * HUGE_PAGE;
    if (header->mapped && madvise(block, whole, MADV_DONTNEED) == 0)
        gone = whole;
#endif
    memset((unsigned char *)block + gone, 0, header->bytes - gone);
}

void mom_memory_trim(void) {
#if defined(__GLIBC__)
    (void)malloc_trim(0);
#endif
}

void mom_memory_fail_at(long n) { atomic_store(&fail_countdown, n); }
size_t mom_memory_live_bytes(void) { return atomic_load(&live_bytes); }
size_t mom_memory_peak_bytes(void) { return atomic_load(&peak_bytes); }
void mom_memory_reset_peak(void) { atomic_store(&peak_bytes, atomic_load(&live_bytes)); }

#define MIN_BLOCK ((size_t)1 << 20)
#define MAX_GROWTH ((size_t)1 << 25)

void mom_arena_init(mom_arena *arena, const char *name) { *arena = (mom_arena){.name = name}; }

static void free_block(mom_arena_block *block, int reserve) {
    if (block) {
        give_back(block->data, reserve);
        mom_memory_free(block);
    }
}

void mom_arena_free(mom_arena *arena) {
    while (arena->top) {
        mom_arena_block *previous = arena->top->previous;
        free_block(arena->top, arena->reserve);
        arena->top = previous;
    }
    free_block(arena->spare, arena->reserve);
    arena->spare = NULL;
    arena->live = arena->peak = 0;
    if (arena->region)
        arena->region->used[arena->side] = 0;
}

static mom_arena_block *new_block(const mom_arena *arena, size_t capacity, mom_error *err) {
    mom_arena_block *block = mom_memory_alloc(1, sizeof *block, arena->name, err);
    if (!block)
        return NULL;
    block->data = allocate(capacity, 1, arena->reserve, arena->name, err);
    if (!block->data) {
        mom_memory_free(block);
        return NULL;
    }
    block->capacity = capacity;
    block->used = 0;
    block->previous = NULL;
    return block;
}

mom_status mom_region_init(mom_region *region, size_t capacity, const char *name, mom_error *err) {
    *region = (mom_region){.capacity = capacity / MOM_ALIGNMENT * MOM_ALIGNMENT};
    region->data = mom_memory_alloc(capacity, 1, name, err);
    return region->data ? MOM_OK : MOM_ERR_MEMORY;
}

void mom_region_free(mom_region *region) {
    mom_memory_free(region->data);
    *region = (mom_region){0};
}

#if defined(__linux__)
static size_t huge_floor(size_t bytes) { return bytes / HUGE_PAGE * HUGE_PAGE; }
static size_t huge_ceil(size_t bytes) { return huge_floor(bytes + HUGE_PAGE - 1); }

/* Memory of whole huge pages goes from one place to another, whose own is lost; what it leaves behind reads as zero. Page by
 * page, since pages that have moved are mappings of their own. Returns how many bytes from the end of both went. */
static size_t move_pages(unsigned char *to, unsigned char *from, size_t bytes) {
    size_t moved = 0;
#if defined(MREMAP_DONTUNMAP)
    static atomic_int refused; /* Linux before 5.7 */
    for (; moved < bytes && !atomic_load(&refused); moved += HUGE_PAGE) {
        unsigned char *target = to + (bytes - moved - HUGE_PAGE), *source = from + (bytes - moved - HUGE_PAGE);
        if (mremap(source, HUGE_PAGE, HUGE_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, target) == target)
            continue;
        atomic_store(&refused, 1);
        /* It may have failed only after the target was unmapped. */
        (void)mmap(target, HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        break;
    }
#else
    (void)to;
    (void)from;
    (void)bytes;
#endif
    return moved;
}

/* Bytes [begin, end) of the region, whole huge pages so that none is split, lose their memory, to the bare part of another
 * block as far as there is room. */
static void discard(const mom_region *region, size_t begin, size_t end, mom_bare *bare) {
    if (begin >= end)
        return;
    const size_t most = bare ? mom_min(bare->end - bare->begin, end - begin) : 0;
    if (most && bare->upwards) {
        end -= move_pages(bare->data + bare->begin, region->data + end - most, most);
        bare->begin += most;
    } else if (most) {
        const size_t moved = move_pages(bare->data + bare->end - most, region->data + end - most, most);
        bare->end -= moved;
        end -= moved;
    }
    if (begin < end)
        (void)madvise(region->data + begin, end - begin, MADV_DONTNEED);
}

static int has_pages(const mom_region *region) { return region->data && header_of(region->data)->mapped; }

void mom_bare_limit(mom_bare *bare, size_t begin, size_t end) {
    bare->begin = huge_ceil(begin);
    bare->end = mom_min(bare->end, huge_floor(end));
    if (bare->begin > bare->end || !header_of(bare->data)->mapped)
        bare->begin = bare->end;
}

void mom_region_shrink(mom_region *region, size_t most, size_t top, mom_bare *bare) {
    if (!has_pages(region))
        return;
    /* Either arena may have touched what the other one holds now: only what lies between them goes. */
    const size_t first = huge_ceil(region->used[0]), last = huge_floor(region->capacity - region->used[1]);
    const size_t low = region->touched[0], high = region->touched[1];
    const size_t most_low = mom_max(first, most > top ? huge_floor(most - top) : 0);
    if (low > most_low) {
        discard(region, most_low, mom_min(huge_ceil(low), last), bare);
        region->touched[0] = most_low;
    }
    const size_t most_high = most > region->touched[0] ? most - region->touched[0] : 0;
    const size_t end = mom_min(last, most_high < region->capacity ? huge_ceil(region->capacity - most_high) : 0);
    if (region->capacity - high < end) {
        discard(region, mom_max(huge_floor(region->capacity - high), first), end, bare);
        region->touched[1] = region->capacity - end;
    }
}

void mom_region_forget(mom_region *region, const void *data, size_t done, size_t bytes, mom_bare *bare) {
    const size_t begin = has_pages(region) ? (size_t)((uintptr_t)data - (uintptr_t)region->data) : SIZE_MAX;
    if (begin < region->capacity && bytes <= region->capacity - begin)
        discard(region, mom_max(huge_ceil(begin), huge_floor(begin + done)), huge_floor(begin + bytes), bare);
}

void mom_region_refill(mom_region *region, const size_t most[2], void *block) {
    size_t left = huge_floor(header_of(block)->bytes);
    unsigned char *data = block;
    if (has_pages(region) && header_of(block)->mapped) {
        const size_t begin = huge_ceil(region->touched[0]), end = huge_floor(region->capacity - region->touched[1]);
        const size_t low = mom_min(huge_floor(most[0]), end);
        const size_t high = mom_max(huge_ceil(region->capacity - mom_min(most[1], region->capacity)), mom_max(begin, low));
        if (begin < low) {
            const size_t bytes = mom_min(low - begin, left);
            const size_t moved = move_pages(region->data + begin, data + left - bytes, bytes);
            left -= moved;
            if (moved == bytes)
                region->touched[0] = begin + moved;
        }
        if (high < end) {
            const size_t bytes = mom_min(end - high, left);
            const size_t moved = move_pages(region->data + end - bytes, data + left - bytes, bytes);
            left -= moved;
            region->touched[1] = mom_max(region->touched[1], region->capacity - (end - moved));
        }
    }
    mom_memory_clear(block);
}
#else
void mom_bare_limit(mom_bare *bare, size_t begin, size_t end) {
    (void)end;
    bare->begin = bare->end = begin;
}

void mom_region_shrink(mom_region *region, size_t most, size_t top, mom_bare *bare) {
    (void)region;
    (void)most;
    (void)top;
    (void)bare;
}

void mom_region_forget(mom_region *region, const void *data, size_t done, size_t bytes, mom_bare *bare) {
    (void)region;
    (void)data;
    (void)done;
    (void)bytes;
    (void)bare;
}

void mom_region_refill(mom_region *region, const size_t most[2], void *block) {
    (void)region;
    (void)most;
    mom_memory_clear(block);
}
#endif

void mom_arena_attach(mom_arena *arena, mom_region *region, int side) {
    mom_arena_free(arena);
    arena->region = region;
    arena->side = side;
}

/* Memory of the region, or NULL if it is full or just counts. */
static void *take(mom_region *region, int side, size_t bytes) {
    const size_t sum = region->used[0] + region->used[1];
    if (region->data && region->capacity - sum < bytes) {
        region->full = 1;
        return NULL;
    }
    region->used[side] += bytes;
    if (sum + bytes > region->peak) {
        region->peak = sum + bytes;
        region->noted_at_peak = region->noted;
        memcpy(region->at_peak, region->used, sizeof region->at_peak);
    }
    if (region->used[side] > region->touched[side])
        region->touched[side] = region->used[side];
    if (!region->data)
        return NULL;
    return region->data + (side ? region->capacity - region->used[1] : region->used[0] - bytes);
}

void *mom_arena_alloc(mom_arena *arena, size_t count, size_t size, mom_error *err) {
    if (size && count > (SIZE_MAX - MOM_ALIGNMENT) / size) {
        mom_error_set(err, MOM_ERR_MEMORY, "%s: %zu items of %zu bytes are more than can be addressed", arena->name, count, size);
        return NULL;
    }
    const size_t bytes = (count * size + MOM_ALIGNMENT - 1) / MOM_ALIGNMENT * MOM_ALIGNMENT;
    mom_arena_block *top = arena->top;
    if (arena->region && (!top || !arena->region->data)) {
        void *shared = take(arena->region, arena->side, bytes);
        if (shared) {
            arena->live += bytes;
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
    block->used = 0;
    if (!arena->spare || arena->spare->capacity < block->capacity) {
        mom_arena_block *smaller = arena->spare;
        arena->spare = block;
        block = smaller;
    }
    free_block(block, arena->reserve);
}

void mom_arena_release(mom_arena *arena, mom_arena_mark mark) {
    while (arena->top != mark.block)
        drop_top(arena);
    arena->live = mark.live;
    if (arena->region)
        arena->region->used[arena->side] = mark.shared;
    if (arena->top) {
        arena->top->used = mark.used;
        return;
    }
    if (arena->region && arena->region->data) { /* whoever made the region makes a larger one */
        free_block(arena->spare, arena->reserve);
        arena->spare = NULL;
        arena->grown = 0;
        return;
    }
    /* A block as large as everything that was in use at once ends the growth. The old spare goes
     * first, so that both never exist together; if memory is refused, growth just starts anew. */
    if (arena->grown && (!arena->spare || arena->spare->capacity < arena->peak)) {
        free_block(arena->spare, arena->reserve);
        arena->spare = new_block(arena, arena->peak, NULL);
    }
    arena->grown = 0;
    arena->peak = 0;
}

void mom_arena_clear(mom_arena *arena) { mom_arena_release(arena, (mom_arena_mark){NULL, 0, 0, 0}); }
