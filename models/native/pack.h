/* From the canonical layout of a plan to the layout that one instruction set reads. */
#pragma once
#include "internal.h"

/* Fill in the rest of a layer whose k and n are known: weights [k, n] of that type, bias [n], and the scale [n] of 8-bit
 * weights, packed. `recurrent`: its rows are many even for one row of the model. Returns -1 without memory. */
int pack_layer(struct engine *, struct dense *, const void *weights, uint32_t dtype, const float *bias, const float *scale,
               int recurrent);

/* Fill in trees whose counts, weights and base are known. Returns what is wrong with them, or NULL. */
const char *trees_load(struct engine *, struct op *, const uint32_t *sizes, const uint32_t *features, uint64_t nodes,
                       const float *thresholds, const uint32_t *targets, uint64_t weights);
