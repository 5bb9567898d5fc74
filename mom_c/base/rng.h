/* Counter-based random numbers: the same draw for any number of threads and any order of calls.
 *
 * A draw is a pure function of (key, index): the finaliser of SplitMix64 (Steele, Lea and Flood 2014)
 * applied to key + index * golden ratio, twice with the key in between. A key is derived from a seed,
 * a step counter and a site (which dropout, which round), see mom_rng_key. model/pass.h lists the sites, the streams.
 */
#ifndef MOM_BASE_RNG_H
#define MOM_BASE_RNG_H

#include <stdint.h>

#define MOM_RNG_GOLDEN UINT64_C(0x9e3779b97f4a7c15) /* 2^64 divided by the golden ratio */

/* The finaliser without its last step, which does not change the upper 31 bits. */
static inline uint64_t mom_rng_mix_upper(uint64_t z) {
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    return (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
}

static inline uint64_t mom_rng_mix(uint64_t z) {
    z = mom_rng_mix_upper(z);
    return z ^ (z >> 31);
}

static inline uint64_t mom_rng_key(uint64_t seed, uint64_t counter, uint64_t site) {
    uint64_t key = mom_rng_mix(seed + MOM_RNG_GOLDEN);
    key = mom_rng_mix(key + counter * MOM_RNG_GOLDEN + 1);
    return mom_rng_mix(key + site * MOM_RNG_GOLDEN + 2);
}

static inline uint64_t mom_rng_u64(uint64_t key, uint64_t index) {
    return mom_rng_mix(mom_rng_mix(key + index * MOM_RNG_GOLDEN) ^ key);
}

/* Uniform in [0, 1), a multiple of 2^-24. */
static inline float mom_rng_uniform(uint64_t key, uint64_t index) {
    return (float)(int32_t)(mom_rng_u64(key, index) >> 40) * 0x1p-24f; /* int32 vectorises at every level */
}

#endif
