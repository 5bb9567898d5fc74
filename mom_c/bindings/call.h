/* Operators on plain arrays as functions of Python: a call reads arguments, makes results, and cleans up in one place.
 *
 * An operator is a function of a mom_call. It asks for its arguments by name, asks for its results in the order in which
 * Python gets them, and computes in MOM_RUN. After the first failure all these calls do nothing and return NULL or 0, and
 * Python gets the exception. So an operator needs no error paths of its own.
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

/* Names separated by ", ", and a tuple (borrowed) with a value for each. */
typedef struct {
    const char *names;
    PyObject *values;
} mom_arguments;

typedef struct {
    PyObject *module; /* borrowed */
    mom_arguments arguments;
    mom_exec exec;
    mom_status status; /* of the operator */
    mom_error error;
    int failed; /* an exception is set */

    mom_arena workspace;
    PyObject *held;    /* list of objects that the call keeps alive until it ends, or NULL */
    PyObject *results; /* list, or NULL */
    int results_as_list; /* Python gets the list itself, also if it has one entry or none */
    npy_intp sizes[26]; /* by letter; -1 when not yet known */
    npy_intp leading[8]; /* sizes of "..." */
    int leading_ndim;    /* -1 while unknown */
} mom_call;

/* A function of the module: its entry in a table, the names of its arguments, and what it does. */
typedef struct {
    PyMethodDef method;
    const char *parameters;
    void (*run)(mom_call *call);
} mom_operator;

/* Python gets the result, or a tuple if there are several. `results` describes them in the function's documentation. */
#define MOM_OPERATOR(name, parameters, results)                                                                        \
    {{#name, mom_run_operator, METH_VARARGS, #name "($module, " parameters ", /)\n--\n\n" results}, parameters, name}

/* What Python calls. `self` is the pair of the module and the operator. */
PyObject *mom_run_operator(PyObject *self, PyObject *args);
/* Adds operators to the module, which points to them from then on. Returns -1 with an exception set on failure. */
int mom_add_operators(PyObject *module, mom_operator *operators, size_t count);

/* Makes the call fail. Sets the exception, unless one is set already. */
void mom_call_fail(mom_call *call, PyObject *exception, const char *format, ...);

/* Size of a letter such as 'C', or the product of the sizes of "..."; 0 while unknown. */
size_t mom_size(const mom_call *call, char letter);
size_t mom_leading(const mom_call *call);
void mom_set_size(mom_call *call, char letter, size_t size);

/* ---- arguments, by name */
PyObject *mom_arg(mom_call *call, const char *name); /* borrowed; None if the call has failed */
int mom_arg_given(mom_call *call, const char *name); /* is not None */
float mom_arg_float(mom_call *call, const char *name);
double mom_arg_double(mom_call *call, const char *name);
int mom_arg_flag(mom_call *call, const char *name);
size_t mom_arg_size(mom_call *call, const char *name); /* a whole number, not negative */
const char *mom_arg_text(mom_call *call, const char *name);
uint64_t mom_arg_bits(mom_call *call, const char *name); /* an integer of any sign, its lowest 64 bits */
uint64_t mom_arg_key(mom_call *call);        /* of random numbers: the arguments seed, counter and site */
mom_dropout mom_arg_dropout(mom_call *call); /* the arguments p, seed, counter and site */
const float *mom_arg_f32(mom_call *call, const char *name, const char *shape);
const float *mom_arg_optional_f32(mom_call *call, const char *name, const char *shape); /* NULL for None */
const double *mom_arg_f64(mom_call *call, const char *name, const char *shape);
const int32_t *mom_arg_i32(mom_call *call, const char *name, const char *shape, size_t below); /* values in [0, below) */
/* The same, or MOM_IGNORED_LABEL. */
const int32_t *mom_arg_labels(mom_call *call, const char *name, const char *shape, size_t below);
const int16_t *mom_arg_i16(mom_call *call, const char *name, const char *shape);
const int16_t *mom_arg_choices(mom_call *call, const char *name, const char *shape); /* may be free, none or SKIP, too */
const uint8_t *mom_arg_mask(mom_call *call, const char *name, const char *shape); /* NULL for None */
const mom_routing_plan *mom_arg_plan(mom_call *call); /* the argument plan; sets N, K, M and P (slots) */
/* The items of a list as a tuple (borrowed). The caller can change the list while an item is converted or while the
 * operator runs without the GIL, so no operator reads the list itself. */
PyObject *mom_arg_list(mom_call *call, const char *name);
/* Makes the items of a tuple the call's arguments. Returns the arguments before, which the caller puts back. `what` is
 * the tuple's own name in messages. */
mom_arguments mom_enter_tuple(mom_call *call, const char *what, PyObject *tuple, const char *names);

/* Keeps the results so far until the call ends, but does not return them. */
void mom_call_hide_results(mom_call *call);
/* Allocates n items of the given size in the workspace. They last until the call ends. */
void *mom_call_alloc(mom_call *call, size_t n, size_t size);
/* Pointers to the M parts of an (M, ...) array. Each part has `stride` floats. The pointers are in the workspace. */
float **mom_module_pointers(mom_call *call, const float *data, size_t stride);

/* ---- results, in the order in which end returns them */
float *mom_new_f32(mom_call *call, const char *shape);
int32_t *mom_new_i32(mom_call *call, const char *shape);
int16_t *mom_new_i16(mom_call *call, const char *shape);
double *mom_new_f64(mom_call *call, const char *shape);
/* A result that the operator adds to. Initially it is a copy of `value`, or zeros if that is None. */
float *mom_new_copy(mom_call *call, const char *name, PyObject *value, const char *shape);
/* The same with entry i of the argument add_to: None, or a tuple of n entries. */
float *mom_new_sum(mom_call *call, const char *name, int i, int n, const char *shape);
void mom_new_number(mom_call *call, double value);
void mom_new_none(mom_call *call);
void mom_new_object(mom_call *call, PyObject *object); /* steals `object`; NULL means that an exception is set */

/* Runs a statement without the GIL, unless an argument was wrong. */
#define MOM_RUN(call, ...)                \
    do {                                  \
        if (!(call)->failed)              \
            MOM_WITHOUT_GIL(__VA_ARGS__); \
    } while (0)

#endif
