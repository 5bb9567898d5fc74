#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>

mom_status mom_error_set(mom_error *err, mom_status code, const char *format, ...) {
    if (err) {
        va_list args;
        va_start(args, format);
        vsnprintf(err->text, sizeof err->text, format, args);
        va_end(args);
        err->code = code;
    }
    return code;
}
