/* bfloat16: the upper half of a float32. Storage and products only; every sum is float32.
 *
 * Rounding is to nearest, ties to even; NaN stays NaN. Denormals count as zero while tasks run
 * (base/parallel.h), as they do in the processors' own bfloat16 instructions.
 */
#ifndef MOM_BASE_BF16_H
#define MOM_BASE_BF16_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t mom_bf16;

/* Number formats of stored activations and of the factors of products. */
typedef enum { MOM_F32, MOM_BF16 } mom_dtype;

static inline size_t mom_dtype_size(mom_dtype dtype) { return dtype == MOM_BF16 ? sizeof(mom_bf16) : sizeof(float); }

static inline float mom_bf16_to_f32(mom_bf16 v) {
    const uint32_t bits = (uint32_t)v << 16;
    float out;
    memcpy(&out, &bits, sizeof out);
    return out;
}

static inline mom_bf16 mom_bf16_from_f32(float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    return (mom_bf16)((v != v ? bits | 0x00400000u : rounded) >> 16);
}

#endif
