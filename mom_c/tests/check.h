/* A harness for the operators of the core.
 *
 * An operator is tested on a table of cases. For each case the harness fills arrays with random numbers. It computes
 * the expected results in double precision, by the operator's plain definition. At every level of this machine it
 * checks:
 *
 *   results   of 1, 2 and 3 threads have the same bits and agree with the definition and the first level
 *   inputs    are unchanged
 *   dry run   writes nothing and allocates what the real run allocates
 *   failures  of each allocation end in MOM_ERR_MEMORY and leave no memory behind
 *   workspace is empty after every call that succeeded
 */
#ifndef MOM_TESTS_CHECK_H
#define MOM_TESTS_CHECK_H

#include "kernels/kernels.h"

typedef enum { CHECK_F32, CHECK_BF16, CHECK_F64, CHECK_I32, CHECK_I16, CHECK_U8 } check_type;

/* INPUT: not written. RESULT: compared. SCRATCH: may be written, not compared. */
typedef enum { CHECK_INPUT, CHECK_RESULT, CHECK_SCRATCH } check_role;

typedef struct {
    const char *name;
    check_type type;
    check_role role;
    size_t count;
    void *data;       /* what the operator works on; has exactly its size, so that sanitizers see the ends */
    void *start;      /* the contents before every run */
    void *one_thread; /* the result of one thread at the present level */
    void *first_level;
    double *expected; /* of a result; holds the starting contents until the definition has run */
} check_array;

#define CHECK_ARRAYS 24
#define CHECK_SIZES 6

typedef struct check_operator check_operator;

typedef struct {
    const check_operator *op;
    size_t size[CHECK_SIZES]; /* what they are is up to the operator */
    unsigned options;         /* CHECK_BFLOAT16, and others of the operator */
    check_array array[CHECK_ARRAYS];
    uint64_t key; /* of the case's random numbers */
    mom_arena scratch; /* for what `run` itself needs: the workspace is the operators', and must be empty afterwards */
} check_case;

#define CHECK_BFLOAT16 1u       /* products in bfloat16; all float32 inputs are exact in bfloat16 */
#define CHECK_ROUTED 0x8000u    /* a dry run may allocate more than the real one, since it knows no routes */

typedef struct {
    size_t size[CHECK_SIZES];
    unsigned options;
} check_sizes;

struct check_operator {
    const char *name;
    void (*setup)(check_case *c);
    void (*define)(check_case *c);
    mom_status (*run)(check_case *c, const mom_exec *x, mom_error *err);
    double tolerance; /* largest difference as a part of the largest expected number of an array in float32 */
    const check_sizes *cases;
    size_t count;
};

/* ---- for setup: each call makes one array. `slot` is the operator's own number for it. */
/* Inputs in [-scale, scale), float32 or bfloat16. */
void check_floats(check_case *c, size_t slot, const char *name, size_t count, double scale);
void check_bfloats(check_case *c, size_t slot, const char *name, size_t count, double scale);
/* A result starts with random numbers, as a definition that adds to it finds them in `expected`, integers with zeros. A
 * definition writes NAN where a number is undefined. */
void check_result(check_case *c, size_t slot, const char *name, check_type type, size_t count);
void check_integers(check_case *c, size_t slot, const char *name, check_type type, size_t count, size_t below);
/* A random whole number below n; the i-th of the case. */
size_t check_random(const check_case *c, size_t i, size_t n);

static inline float *check_f32(const check_case *c, size_t slot) { return c->array[slot].data; }
static inline int32_t *check_i32(const check_case *c, size_t slot) { return c->array[slot].data; }
static inline int16_t *check_i16(const check_case *c, size_t slot) { return c->array[slot].data; }
static inline uint8_t *check_u8(const check_case *c, size_t slot) { return c->array[slot].data; }
static inline double *check_f64(const check_case *c, size_t slot) { return c->array[slot].data; }
/* An input's number, of any type, before the operator runs. */
double check_input(const check_case *c, size_t slot, size_t i);
/* Changes one. */
void check_set(check_case *c, size_t slot, size_t i, double value);
static inline double *check_expected(const check_case *c, size_t slot) { return c->array[slot].expected; }

/* ---- for everybody */

/* Counts a check, prints what went wrong. */
void check_that(int condition, const char *format, ...) MOM_PRINTF(2, 3);
void check_ok(mom_status status, const mom_error *err, const char *what);
void check_operators(const check_operator *operators, size_t count);
/* Calls attempt(context) with its first, second, ... allocation refused until it succeeds. `fail_at` is
 * mom_memory_fail_at or mom_arena_fail_at. Every failure must be MOM_ERR_MEMORY and give back what it took. */
void check_failing_memory(const char *what, void (*fail_at)(long n),
                          mom_status (*attempt)(void *context, mom_error *err), void *context);
/* Set by --quick, for ThreadSanitizer, which takes long: networks run on the best level only, and just what differs with
 * threads. */
extern int check_quick;
int check_failures(void);
size_t check_count(void);

#define CHECK_LENGTH(array) (sizeof(array) / sizeof *(array))

/* The suites. */
void check_layers(void);
void check_products(void);
void check_attention(void);
void check_routers(void);
void check_modules(void);
void check_losses(void);
void check_training(void);
void check_parallel(void);
void check_network(void);
void check_decoder(void);

#endif
