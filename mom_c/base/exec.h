/* The execution context: kernels, threads, workspace and precision, which every operator needs beside its arguments.
 *
 * A dry run goes through a computation to learn how much memory it allocates, and computes nothing. Arrays are
 * allocated as usual, but parallel loops run no tasks, and mom_zero and mom_copy do nothing. So results, and what tasks
 * would fill, have no defined contents. Most operators need no code for dry runs. The exception is serial code that
 * takes sizes or indices from such arrays. That code checks `dry_run`. Serial code may fill small lists of its own.
 */
#ifndef MOM_BASE_EXEC_H
#define MOM_BASE_EXEC_H

#include "base/arena.h"
#include "base/bf16.h"
#include "base/counts.h"
#include "base/parallel.h"

typedef struct mom_kernels mom_kernels;

/* MOM_DRY_ANY_ROUTES: the memory must also be enough if rows are distributed over the products of a group in any other
 * way. */
typedef enum { MOM_COMPUTE, MOM_DRY, MOM_DRY_ANY_ROUTES } mom_dry_run;

typedef struct {
    const mom_kernels *k;
    int threads;
    mom_arena *workspace; /* for temporaries; operators that succeed release what they allocate */
    mom_dtype precision;  /* of the factors of linear layers */
    mom_dry_run dry_run;
    mom_counts *counts; /* or NULL: nothing is counted */
    int (*stop)(void); /* whether a long computation shall end now; or NULL: never. See mom_check_stop. */
} mom_exec;

/* Called between the parts of a long computation. If x->stop asks for an end, returns MOM_ERR_STOPPED, which the caller
 * handles like every other error. */
mom_status mom_check_stop(const mom_exec *x, mom_error *err);

/* The part and the kind of work that the next products count as. mom_count_work returns the kind of work before. */
static inline void mom_count_part(const mom_exec *x, mom_part part) {
    if (x->counts)
        x->counts->part = part;
}
static inline mom_work mom_count_work(const mom_exec *x, mom_work work) {
    const mom_work before = x->counts ? x->counts->work : MOM_WORK_FORWARD;
    if (x->counts)
        x->counts->work = work;
    return before;
}

/* Runs `tasks` tasks on x->threads threads; see base/parallel.h. A dry run skips them. */
void mom_parallel_for(const mom_exec *x, size_t tasks, mom_task run, void *context);
void mom_parallel_for_in_order(const mom_exec *x, size_t tasks, mom_task run, void *context);

/* A part [begin, end) of a loop over rows or elements. */
typedef void (*mom_rows_task)(const void *context, size_t begin, size_t end);
/* Runs a loop over [0, n) in tasks of `most` rows, the last of which may be shorter. A dry run skips them. */
void mom_parallel_rows(const mom_exec *x, size_t n, size_t most, mom_rows_task run, const void *context);

/* memset with 0, and memcpy, large ones on all threads. A dry run does not write to `out`. */
void mom_zero(const mom_exec *x, void *out, size_t bytes);
void mom_copy(const mom_exec *x, void *out, const void *from, size_t bytes);
/* The same as MOM_ARENA_NEW, filled with zeros. */
#define MOM_ARENA_ZEROS(target, x, arena, count, err)                                                 \
    do {                                                                                              \
        MOM_ARENA_NEW(target, arena, count, err);                                                     \
        mom_zero((x), (target), (count) * sizeof *(target));                                          \
    } while (0)

/* Copies `rows` rows of `bytes` bytes each; rows begin `out_stride` and `from_stride` bytes apart. */
void mom_copy_rows(const mom_exec *x, void *out, size_t out_stride, const void *from, size_t from_stride, size_t rows,
                   size_t bytes);

#endif
