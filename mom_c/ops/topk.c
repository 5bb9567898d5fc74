/* Contract: topk.h. Source of the selection: Musser 1997, "Introspective sorting and selection algorithms". */
#include "ops/topk.h"

#include <string.h>

typedef struct {
    float score;
    int16_t index;
} entry;

/* a goes before b */
static int before(entry a, entry b) { return (a.score != a.score && b.score == b.score) || a.score > b.score; }

static void swap(entry *a, entry *b) {
    const entry t = *a;
    *a = *b;
    *b = t;
}

static void insertion_sort(entry *first, entry *last) {
    for (entry *i = first; i < last; i++) {
        const entry moved = *i;
        entry *hole = i;
        while (hole > first && before(moved, hole[-1])) {
            *hole = hole[-1];
            hole--;
        }
        *hole = moved;
    }
}

static void median_to_first(entry *result, entry *a, entry *b, entry *c) {
    if (before(*a, *b))
        swap(result, before(*b, *c) ? b : before(*a, *c) ? c : a);
    else
        swap(result, before(*a, *c) ? a : before(*b, *c) ? c : b);
}

/* Partition around the median of three, which afterwards stands at *first; returns the cut. */
static entry *partition(entry *first, entry *last) {
    median_to_first(first, first + 1, first + (last - first) / 2, last - 1);
    const entry pivot = *first;
    entry *low = first + 1, *high = last;
    for (;;) {
        while (before(*low, pivot))
            low++;
        high--;
        while (before(pivot, *high))
            high--;
        if (low >= high)
            return low;
        swap(low++, high);
    }
}

/* Moves to `nth` the element that a full sort would put there, with no smaller element before it. The GNU library
 * changes to a heap after 2 log2(n) unlucky partitions. For the sizes here that only bounds the cost, so it is left
 * out. */
static void nth_element(entry *first, entry *nth, entry *last) {
    while (last - first > 3) {
        entry *cut = partition(first, last);
        if (cut <= nth)
            first = cut;
        else
            last = cut;
    }
    insertion_sort(first, last);
}

/* The largest score after `previous` in falling order, ties by rising index; previous = S: the largest of all. */
static size_t next_largest(const float *scores, size_t S, size_t previous) {
    size_t best = S;
    for (size_t m = 0; m < S; m++) {
        const entry e = {scores[m], 0};
        if (previous < S) {
            const entry p = {scores[previous], 0};
            if (before(e, p) || (!before(p, e) && m <= previous))
                continue;
        }
        if (best == S || before(e, (entry){scores[best], 0}))
            best = m;
    }
    return best;
}

void mom_topk(int16_t *index, const float *scores, size_t S, size_t K) {
    if (!K)
        return;
    if (S > MOM_TOPK_EXACT) {
        size_t chosen = S;
        for (size_t k = 0; k < K; k++) {
            chosen = next_largest(scores, S, chosen);
            index[k] = (int16_t)chosen;
        }
        return;
    }
    entry order[MOM_TOPK_EXACT];
    for (size_t m = 0; m < S; m++)
        order[m] = (entry){scores[m], (int16_t)m};
    nth_element(order, order + K - 1, order + S);
    insertion_sort(order, order + K - 1);
    for (size_t k = 0; k < K; k++)
        index[k] = order[k].index;
}
