/* The execution context: what an operator needs besides its arguments.
 *
 * A dry run goes through a computation to learn how much memory it allocates, and computes nothing. Arrays are
 * allocated as usual, but nobody writes to them: parallel loops have no tasks, mom_zero and mom_copy do nothing. So an
 * operator needs no code of its own for a dry run, unless serial code takes sizes or indices from arrays that tasks
 * have filled. Such code checks `dry_run`.
 */
#ifndef MOM_BASE_EXEC_H
#define MOM_BASE_EXEC_H

#include "base/arena.h"
#include "base/bf16.h"
#include "base/parallel.h"

typedef struct mom_kernels mom_kernels;

/* MOM_DRY_ANY_ROUTES: the memory must also do if rows spread over the products of a group in any other way. */
typedef enum { MOM_COMPUTE, MOM_DRY, MOM_DRY_ANY_ROUTES } mom_dry_run;

typedef struct {
    const mom_kernels *k;
    int threads;
    mom_arena *workspace; /* temporaries; operators release what they take */
    mom_dtype precision;  /* of the factors of linear layers */
    mom_dry_run dry_run;
} mom_exec;

/* Runs `tasks` tasks on x->threads threads; see mom_parallel_run. A dry run skips them. */
void mom_parallel_for(const mom_exec *x, size_t tasks, mom_task run, void *context);

/* memset with 0, and memcpy. A dry run leaves `out` alone. */
void mom_zero(const mom_exec *x, void *out, size_t bytes);
void mom_copy(const mom_exec *x, void *out, const void *from, size_t bytes);
/* Copies `rows` rows of `bytes` bytes each; rows begin `out_stride` and `from_stride` bytes apart. */
void mom_copy_rows(const mom_exec *x, void *out, size_t out_stride, const void *from, size_t from_stride, size_t rows,
                   size_t bytes);

#endif
