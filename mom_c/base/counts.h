/* Counters of useful work: multiply-adds of matrix products and of attention, by part of the network and by kind of work.
 *
 * A pass counts if its execution context has counters (mom_exec.counts). They belong to the caller of the pass, and only
 * the thread that runs the pass writes to them. Counting changes no result.
 *
 * COUNTED  A product counts m * n * k of its real shape, when it is handed to the threads. Rounding up to tiles does not
 *          count. Rows of padding, which the core computes, are left out: mom_gemm.uncounted, or mom_counts_leave_out.
 *          Attention counts visible pairs of a real query and a real key that both have a module: two products of D
 *          multiplications forward, four backward. Hidden scores within a tile do not count, nor do rows that see no real
 *          key. Backward computes the scores of each pair once more; that is counted as MOM_WORK_AGAIN. If backward is cut
 *          into tasks that compute the scores twice, the second time does not count.
 *          Sums, biases, LayerNorm, softmax, the coupling loss and optimizers do not count.
 */
#ifndef MOM_BASE_COUNTS_H
#define MOM_BASE_COUNTS_H

#include <stddef.h>
#include <stdint.h>

/* Parts of the network. MOM_PART_NONE stands for products that no part claims; passes of a network have none. */
typedef enum {
    MOM_PART_NONE,
    MOM_PART_QKV,
    MOM_PART_SCORES, /* q.k, and probabilities times v */
    MOM_PART_PROJECTION,
    MOM_PART_UP,
    MOM_PART_DOWN,
    MOM_PART_ROUTER,
    MOM_PART_STATE, /* a recurrent router's products with its state */
    MOM_PART_HEAD,
    MOM_PARTS
} mom_part;

/* MOM_WORK_AGAIN: what backward computes a second time. */
typedef enum { MOM_WORK_FORWARD, MOM_WORK_BACKWARD, MOM_WORK_AGAIN, MOM_WORKS } mom_work;

typedef struct {
    uint64_t sums[MOM_WORKS][MOM_PARTS]; /* multiply-adds */
    mom_work work; /* of the products that come next */
    mom_part part;
    const uint8_t *mask; /* (N) of the pass, 0 for padding; or NULL */
} mom_counts;

static inline void mom_counts_add(mom_counts *counts, mom_part part, size_t multiply_adds) {
    counts->sums[counts->work][part] += multiply_adds;
}

/* Of what was counted since `before` leaves out the share of padding among N rows. Each product since then must have all N
 * rows, or be one of several that have them together. */
static inline void mom_counts_leave_out(mom_counts *counts, const mom_counts *before, size_t N) {
    size_t real = 0;
    for (size_t t = 0; t < N; t++)
        real += !counts->mask || counts->mask[t];
    for (int part = 0; part < MOM_PARTS; part++) {
        const uint64_t old = before->sums[counts->work][part], added = counts->sums[counts->work][part] - old;
        counts->sums[counts->work][part] = old + added / N * real;
    }
}

#endif
