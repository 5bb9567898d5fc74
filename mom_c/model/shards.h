/* Which part of the parameters each rank of a data-parallel run updates: a range of the block, about as large as that of
 * every other rank. Chunks of AdamW (mom_adamw_chunk) lie in one range each. So the sums of squares of all ranks, in their
 * order, are those of a single process. */
#ifndef MOM_MODEL_SHARDS_H
#define MOM_MODEL_SHARDS_H

#include "model/gradients.h"

/* Where the shard of a rank begins in the block, in floats; it ends where that of the next rank begins. rank <= ranks. */
size_t mom_shard_begin(const mom_params *params, size_t rank, size_t ranks);

#endif
