/* Interventions as Python passes them to a network or a decoder. */
#ifndef MOM_BINDINGS_NETWORK_INTERVENTIONS_H
#define MOM_BINDINGS_NETWORK_INTERVENTIONS_H

#include "bindings/numpy_api.h"
#include "model/gpt.h"

/* Keeps the arrays of its interventions alive. */
typedef struct mom_held_interventions mom_held_interventions;

/* Reads None, or a tuple (choices, routes, patches, captures, touched, attention, token_losses) for a call with N rows:
 *   choices   (attn, ffn): kept choices per token, 0 for the configuration's
 *   routes    list of (place, round, half, forced, bias): int16 (N, K) or None, float32 (N, S) or (1, S) or None
 *   patches   list of (kind, place, round, half, module, value_row, values, factor): int32 (N), float32 (any, width) or None
 *   captures  list of (kind, place, round, half, module, values, gradients): float32 (N, width), the second may be None
 *   touched   int64 (patches): rows that a patch of a module's output has changed are added to its entry
 *   attention None, or (place, round, rows, out): int32 (count), float32 (count, H, T, T); only with a batch
 *   token_losses  None, or float32 (N)
 * Checks every number. *held becomes NULL for None. Returns -1 with an exception set if something is wrong. */
int mom_hold_interventions(PyObject *object, const mom_gpt *gpt, const mom_batch *batch, size_t N,
                           mom_held_interventions **held);
void mom_release_interventions(mom_held_interventions *held); /* NULL allowed */
const mom_interventions *mom_interventions_of(const mom_held_interventions *held); /* NULL for NULL */

#endif
