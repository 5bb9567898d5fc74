/* The one place where the fields of a configuration cross from Python to C. */
#ifndef MOM_BINDINGS_NETWORK_CONFIG_H
#define MOM_BINDINGS_NETWORK_CONFIG_H

#include "bindings/numpy_api.h"
#include "model/config.h"

/* Fills *config from a dict with exactly the keys of mom_config_fields. Returns -1 with an exception set for a missing
 * or unknown key and for a value that does not fit its field. mom_config_check then checks that the values make sense
 * together. */
int mom_read_config(PyObject *dict, mom_config *config);

/* The keys as a list (new reference). */
PyObject *mom_config_fields(void);

#endif
