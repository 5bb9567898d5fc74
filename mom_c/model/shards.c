#include "model/shards.h"

#include "ops/adamw.h"

size_t mom_shard_begin(const mom_params *p, size_t rank, size_t ranks) {
    const size_t target = p->total / ranks * rank + p->total % ranks * rank / ranks;
    for (size_t i = 0; i < p->count; i++) {
        const mom_param *param = &p->table[i];
        if (target >= param->offset + param->count)
            continue;
        const size_t chunk = mom_adamw_chunk(i == p->wte || i == p->wpe ? param->dims[1] : 0);
        return target < param->offset ? param->offset : param->offset + (target - param->offset) / chunk * chunk;
    }
    return p->total;
}
