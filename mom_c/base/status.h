/* Error codes of the core.
 *
 * A function that can fail returns a mom_status. When it fails, it fills a mom_error. The message names the argument,
 * what was passed and what was expected. Nothing in the core prints or exits; bindings/errors.c turns a mom_error into
 * a Python exception.
 */
#ifndef MOM_BASE_STATUS_H
#define MOM_BASE_STATUS_H

typedef enum {
    MOM_OK = 0,
    MOM_ERR_VALUE,  /* shape, range or content of an argument */
    MOM_ERR_TYPE,   /* dtype or kind of an argument */
    MOM_ERR_MEMORY, /* allocation refused */
    MOM_ERR_STATE,  /* calls in the wrong order */
    MOM_ERR_STOPPED /* mom_exec.stop ended the call; it knows the reason */
} mom_status;

typedef struct {
    mom_status code;
    char text[480];
} mom_error;

#if defined(__GNUC__)
#define MOM_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define MOM_PRINTF(fmt, args)
#endif

/* Fills *err (which may be NULL) and returns code, so that `return mom_error_set(...)` reads well. */
mom_status mom_error_set(mom_error *err, mom_status code, const char *format, ...) MOM_PRINTF(3, 4);

#define MOM_TRY(call)                            \
    do {                                         \
        mom_status mom_try_status_ = (call);     \
        if (mom_try_status_ != MOM_OK)           \
            return mom_try_status_;              \
    } while (0)

/* Preconditions of kernels: checked in debug and sanitizer builds only. */
#ifdef MOM_DEBUG
#include <assert.h>
#define MOM_ASSERT(condition) assert(condition)
#else
#define MOM_ASSERT(condition) ((void)0)
#endif

#endif
