/* How a network and a decoder return the route of a half-round. */
#ifndef MOM_BINDINGS_ROUTES_H
#define MOM_BINDINGS_ROUTES_H

#include "bindings/numpy_api.h"
#include "model/params.h"
#include "ops/scores.h"

/* The pool of a half-round. NULL with IndexError set if there is no such place, round or half. */
const mom_pool *mom_find_pool(const mom_params *params, Py_ssize_t place, Py_ssize_t round, int half);

/* Copies of rows of {"scores": (rows, S), "index": (rows, K), "weight": (rows, K)}. */
PyObject *mom_copy_route(const mom_pool *pool, size_t rows, size_t K, const float *scores, const int16_t *index,
                         const float *weight);

/* Whether forced choices (N, K) of a router with S outputs for M modules are valid: see ops/forced_choices.h. If not, sets
 * ValueError and returns 0. `name` is that of the argument. */
int mom_check_forced(const char *name, const int16_t *forced, const mom_topk_spec *spec, size_t M);

#endif
