/* The Python type of a decoder. */
#ifndef MOM_BINDINGS_DECODER_TYPE_H
#define MOM_BINDINGS_DECODER_TYPE_H

#include "bindings/numpy_api.h"
#include "ops/gemv.h"

/* "float32", "bfloat16" or "int8"; -1 and an exception for another name. */
int mom_read_weight_format(const char *name, mom_gemv_format *format);
extern PyType_Spec mom_decoder_spec;

#endif
