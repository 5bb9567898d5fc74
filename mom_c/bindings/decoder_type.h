/* The Python type of a decoder, and products of a few rows for their tests. */
#ifndef MOM_BINDINGS_DECODER_TYPE_H
#define MOM_BINDINGS_DECODER_TYPE_H

#include "bindings/numpy_api.h"

int mom_add_decoder(PyObject *module);

#endif
