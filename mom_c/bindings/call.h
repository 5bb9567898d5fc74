/* One call of an operator on plain arrays: arguments in, results out, one place that cleans up.
 *
 * Order of calls: begin; arguments; results; MOM_RUN; end. The first failure sticks: what follows does nothing and
 * returns NULL, and end returns NULL with the exception set, so that a function reads from top to bottom.
 *
 * Shapes are written as dimension letters: "N C", "B T 3C", "..." for any leading dimensions. The first use of a letter
 * gives it its size, later uses must agree; so do later uses of "...". Messages show known sizes as numbers.
 */
#ifndef MOM_BINDINGS_CALL_H
#define MOM_BINDINGS_CALL_H

#include "bindings/convert.h"
#include "bindings/state.h"
#include "ops/routing_plan.h"

typedef struct {
    PyObject *module; /* borrowed */
    mom_exec exec;
    mom_status status; /* of the operator */
    mom_error error;
    int failed; /* an exception is set */

    mom_arena workspace;
    PyObject *held;    /* list of converted arguments, or NULL */
    PyObject *results; /* list, or NULL */
    npy_intp sizes[26]; /* by letter; -1 when not yet known */
    npy_intp leading[8]; /* sizes of "..." */
    int leading_ndim;    /* -1 when not yet known */
} mom_call;

void mom_call_begin(mom_call *call, PyObject *module);
/* The only result, or the tuple of all; NULL with an exception set when anything failed. Releases everything. */
PyObject *mom_call_end(mom_call *call);

/* Sets an exception, unless one is set already. */
void mom_call_fail(mom_call *call, PyObject *exception, const char *format, ...);

/* Sizes of letters ('C'), and of "..." as a product; 0 while unknown. */
size_t mom_size(const mom_call *call, char letter);
size_t mom_leading(const mom_call *call);
void mom_set_size(mom_call *call, char letter, size_t size);

/* ---- arguments */
const float *mom_arg_f32(mom_call *call, const char *name, PyObject *value, const char *shape);
const double *mom_arg_f64(mom_call *call, const char *name, PyObject *value, const char *shape);
const int32_t *mom_arg_i32(mom_call *call, const char *name, PyObject *value, const char *shape, int64_t low,
                           int64_t high, int64_t also);
const int16_t *mom_arg_i16(mom_call *call, const char *name, PyObject *value, const char *shape);
const uint8_t *mom_arg_mask(mom_call *call, const char *name, PyObject *value, const char *shape);
const mom_routing_plan *mom_arg_plan(mom_call *call, PyObject *value); /* sets N, K, M and P (slots) */
/* Pointers to the M equal parts of a (M, ...) array, from the workspace. */
float **mom_module_pointers(mom_call *call, const float *data, size_t stride);

/* ---- results, in the order in which end returns them */
float *mom_new_f32(mom_call *call, const char *shape);
int16_t *mom_new_i16(mom_call *call, const char *shape);
double *mom_new_f64(mom_call *call, const char *shape);
/* For operators that add: entry i of the tuple add_to (n entries, each an array or None), copied; zeros for None, and
 * when add_to itself is None. */
float *mom_new_sum(mom_call *call, const char *name, PyObject *add_to, int i, int n, const char *shape);
void mom_new_number(mom_call *call, double value);
void mom_new_none(mom_call *call);
void mom_new_object(mom_call *call, PyObject *object); /* steals; NULL: an exception is set */

/* Runs a statement without the GIL, unless an argument was wrong. */
#define MOM_RUN(call, ...)         \
    do {                           \
        if (!(call)->failed) {     \
            Py_BEGIN_ALLOW_THREADS \
            __VA_ARGS__;           \
            Py_END_ALLOW_THREADS   \
        }                          \
    } while (0)

#endif
