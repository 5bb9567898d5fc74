/* One call of an operator on plain arrays: reads arguments, makes results, and cleans up in one place.
 *
 * The order of calls is: begin; arguments; results; MOM_RUN; end. After the first failure all later functions do nothing
 * and return NULL, and end returns NULL with the exception set. So a binding needs no error paths of its own.
 *
 * A shape is written with a letter per dimension: "N C", "B T 3C". "..." stands for any number of leading dimensions.
 * The first use of a letter gives the letter its size, and later uses must agree. The same holds for "...". Messages
 * show known sizes as numbers. Any size may be 0, except where a '+' follows the letter, as in "N V+": an operator
 * that takes a mean, a maximum or a softmax over V has no result for V = 0.
 */
#ifndef MOM_BINDINGS_CALL_H
#define MOM_BINDINGS_CALL_H

#include "bindings/convert.h"

#include "base/dropout.h"
#include "bindings/runtime.h"
#include "bindings/state.h"
#include "ops/routing_plan.h"

typedef struct {
    PyObject *module; /* borrowed */
    mom_exec exec;
    mom_status status; /* of the operator */
    mom_error error;
    int failed; /* an exception is set */

    mom_arena workspace;
    PyObject *held;    /* list of objects that the call keeps alive until it ends, or NULL */
    PyObject *results; /* list, or NULL */
    npy_intp sizes[26]; /* by letter; -1 when not yet known */
    npy_intp leading[8]; /* sizes of "..." */
    int leading_ndim;    /* -1 while unknown */
} mom_call;

void mom_call_begin(mom_call *call, PyObject *module);
/* Releases everything the call holds. Returns the result, or a tuple if there are several; NULL with an exception set
 * if anything failed. */
PyObject *mom_call_end(mom_call *call);

/* Makes the call fail. Sets the exception, unless one is set already. */
void mom_call_fail(mom_call *call, PyObject *exception, const char *format, ...);

/* Size of a letter such as 'C', or the product of the sizes of "..."; 0 while unknown. */
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
/* NULL for None. */
const float *mom_arg_optional_f32(mom_call *call, const char *name, PyObject *value, const char *shape);
/* The items of a list as a tuple that the call keeps alive (borrowed). The caller can change the list while an item is
 * converted or while the operator runs without the GIL, so no operator reads the list itself. */
PyObject *mom_arg_list(mom_call *call, PyObject *list);

/* The four arguments of dropout, in the order in which PyArg_ParseTuple reads them with "fKKK". */
typedef struct {
    float p;
    unsigned long long seed, counter, site;
} mom_dropout_args;
mom_dropout mom_arg_dropout(mom_call *call, mom_dropout_args args);

/* Allocates n items of the given size in the workspace. They last until the call ends. */
void *mom_call_alloc(mom_call *call, size_t n, size_t size);
/* Pointers to the M parts of an (M, ...) array. Each part has `stride` floats. The pointers are in the workspace. */
float **mom_module_pointers(mom_call *call, const float *data, size_t stride);

/* ---- results, in the order in which end returns them */
float *mom_new_f32(mom_call *call, const char *shape);
int16_t *mom_new_i16(mom_call *call, const char *shape);
double *mom_new_f64(mom_call *call, const char *shape);
/* A result that the operator adds to. Initially it is a copy of entry i of the tuple add_to, which has n entries, or
 * zeros if the entry or add_to itself is None. */
float *mom_new_sum(mom_call *call, const char *name, PyObject *add_to, int i, int n, const char *shape);
void mom_new_number(mom_call *call, double value);
void mom_new_none(mom_call *call);
void mom_new_object(mom_call *call, PyObject *object); /* steals `object`; NULL means that an exception is set */

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
