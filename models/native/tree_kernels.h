/* Sums over trees. Each tree adds to one of LANES chains of its target, and the chains are joined in pairs, so the order
 * of the sum is the same whether trees are walked one by one or LANES of them are decided side by side. */
#pragma once
#include "internal.h"
#include "vector.h"

static uint32_t walk(const struct trees *t, uint32_t tree, const float *x) {
    const struct tree_node *nodes = t->nodes;
    uint32_t i = t->first[tree];
    while (nodes[i].feature != PLAN_LEAF) {
        const float value = x[nodes[i].feature];
        const int yes = value <= nodes[i].threshold || (value != value && t->missing_true_node[i]);
        i = yes ? i + 1 : nodes[i].right;
    }
    return nodes[i].right;
}

INLINE float joined(float *lane) {
    for (int half = LANES / 2; half; half /= 2) {
        for (int i = 0; i < half; i++) lane[i] += lane[i + half];
    }
    return lane[0];
}

static void trees_by_walking(const struct trees *t, const float *x, float *y) {
    if (t->leaf_width > 1) {
        for (uint32_t k = 0; k < t->targets; k++) y[k] = 0.0f;
        for (uint32_t i = 0; i < t->count; i++) {
            const float *w = t->weights + (size_t)walk(t, i, x) * t->leaf_width;
            for (uint32_t k = 0; k < t->leaf_width; k++) y[k] += w[k];
        }
        return;
    }
    float lane[LANES] = {0};
    uint32_t target = 0;
    for (uint32_t i = 0; i < t->count; i++) {
        const uint32_t tree = t->order[i];
        for (; target != t->target[tree]; target++) {
            y[target] = joined(lane);
            memset(lane, 0, sizeof lane);
        }
        lane[t->lane[i]] += t->weights[walk(t, tree, x)];
    }
    for (; target < t->targets; target++) {
        y[target] = joined(lane);
        memset(lane, 0, sizeof lane);
    }
}

#if VL > 1
/* Below how many thresholds a feature lies: 255 at most, of which every 16th is looked at first. */
INLINE uint8_t rank_of(const float *pivots, const float *ladder, __m256 x) {
#define BELOW(p) \
    (unsigned)__builtin_popcount((unsigned)_mm256_movemask_ps(_mm256_cmp_ps(_mm256_load_ps(p), x, _CMP_LT_OQ)) | \
                                 (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(_mm256_load_ps((p) + 8), x, _CMP_LT_OQ)) << 8)
    const unsigned block = BELOW(pivots);
    const float *steps = ladder + 16 * block;
    return (uint8_t)(16 * block + BELOW(steps));
#undef BELOW
}

/* Which leaf of each of 8 trees is left: the lowest bit of its mask. The exponent of a power of two is its place. */
INLINE __m256i lowest_bit(__m256i mask) {
    const __m256i bit = _mm256_and_si256(mask, _mm256_sub_epi32(_mm256_setzero_si256(), mask));
    const __m256i bits = _mm256_castps_si256(_mm256_cvtepi32_ps(bit));
    return _mm256_sub_epi32(_mm256_srli_epi32(_mm256_slli_epi32(bits, 1), 24), _mm256_set1_epi32(127));
}

INLINE void exclude(__m256i *left, __m256i passed, const uint32_t *mask) {
    /* left &= mask, where the row did not pass */
    *left = _mm256_andnot_si256(_mm256_andnot_si256(passed, _mm256_loadu_si256((const __m256i *)mask)), *left);
}

/* The masks stand inverted: a bit for each leaf that is out where the row did not pass. */
INLINE void group_leaves(const struct tree_group *g, const uint8_t *ranks, const int blocks, const int wide,
                         __m256i leaf[2]) {
    __m256i table[16], low[2], high[2];
    UNROLL for (int b = 0; b < blocks; b++)
        table[b] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(ranks + 16 * b)));
    low[0] = low[1] = high[0] = high[1] = _mm256_set1_epi32(-1);
    const __m256i outside = _mm256_set1_epi8(0x70), next = _mm256_set1_epi8(16);
    for (uint32_t node = 0; node < g->nodes; node += 2) {
        const size_t at = (size_t)node * LANES;
        __m256i which = _mm256_loadu_si256((const __m256i *)(g->which + at));
        /* A shuffle gives 0 where the index, raised by 0x70 with saturation, has its highest bit: not in this block. */
        __m256i rank = _mm256_shuffle_epi8(table[0], _mm256_adds_epu8(which, outside));
        UNROLL for (int b = 1; b < blocks; b++) {
            which = _mm256_sub_epi8(which, next);
            rank = _mm256_or_si256(rank, _mm256_shuffle_epi8(table[b], _mm256_adds_epu8(which, outside)));
        }
        const __m256i bound = _mm256_loadu_si256((const __m256i *)(g->rank + at));
        const __m256i passed = _mm256_cmpeq_epi8(_mm256_max_epu8(rank, bound), bound);
        const __m128i first = _mm256_castsi256_si128(passed), second = _mm256_extracti128_si256(passed, 1);
        const __m256i yes[4] = {_mm256_cvtepi8_epi32(first), _mm256_cvtepi8_epi32(_mm_srli_si128(first, 8)),
                                _mm256_cvtepi8_epi32(second), _mm256_cvtepi8_epi32(_mm_srli_si128(second, 8))};
        UNROLL for (int i = 0; i < 4; i++) {
            exclude(&low[i & 1], yes[i], g->low + at + 8 * i);
            if (wide) exclude(&high[i & 1], yes[i], g->high + at + 8 * i);
        }
    }
    UNROLL for (int h = 0; h < 2; h++) {
        leaf[h] = lowest_bit(low[h]);
        if (wide) {
            const __m256i none = _mm256_cmpeq_epi32(low[h], _mm256_setzero_si256());
            const __m256i above = _mm256_add_epi32(lowest_bit(high[h]), _mm256_set1_epi32(32));
            leaf[h] = _mm256_blendv_epi8(leaf[h], above, none);
        }
    }
}

INLINE void add_group(const struct tree_group *g, const uint8_t *ranks, const int blocks, const int wide, __m256 sum[2]) {
    __m256i leaf[2];
    group_leaves(g, ranks, blocks, wide, leaf);
    const int size = wide ? 64 : 32;
    const __m256i lane = _mm256_mullo_epi32(_mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0), _mm256_set1_epi32(size));
    UNROLL for (int h = 0; h < 2; h++)
        sum[h] = _mm256_add_ps(
            sum[h], _mm256_i32gather_ps(g->leaves + 8 * h * size, _mm256_add_epi32(lane, leaf[h]), 4));
}

INLINE void add_any_group(const struct tree_group *g, const uint8_t *ranks, const uint32_t blocks, __m256 sum[2]) {
#define BLOCKS(b) case b: if (g->high) add_group(g, ranks, b, 1, sum); else add_group(g, ranks, b, 0, sum); break;
    switch (blocks) {
        BLOCKS(1) BLOCKS(2) BLOCKS(4) BLOCKS(8) BLOCKS(16)
    }
#undef BLOCKS
}

/* 0 where a feature is NaN: then the trees are walked. */
static int trees_by_groups(const struct trees *t, const float *x, float *y) {
    uint8_t ranks[256];
    int missing = 0;
    for (uint32_t i = 0; i < t->ranked; i++) {
        const float value = x[t->ranked_feature[i]];
        missing |= value != value;
        ranks[i] = rank_of(t->pivots + 16 * (size_t)i, t->ladder + 256 * (size_t)i, _mm256_set1_ps(value));
    }
    if (missing) return 0;
    uint32_t blocks = 1; /* a power of two: fewer builds of the same loop */
    while (16 * blocks < t->ranked) blocks *= 2;
    memset(ranks + t->ranked, 0, 16 * blocks - t->ranked);
    float lane[LANES];
    uint32_t target = 0;
    __m256 sum[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (uint32_t i = 0; i <= t->group_count; i++) {
        const uint32_t next = i < t->group_count ? t->groups[i].target : t->targets;
        for (; target != next; target++) {
            _mm256_storeu_ps(lane, sum[0]);
            _mm256_storeu_ps(lane + 8, sum[1]);
            y[target] = joined(lane);
            sum[0] = sum[1] = _mm256_setzero_ps();
        }
        if (i < t->group_count) add_any_group(&t->groups[i], ranks, blocks, sum);
    }
    return 1;
}
#endif

static void trees_row(const struct trees *t, const float *x, float *y) {
#if VL > 1
    if (!t->group_count || !trees_by_groups(t, x, y)) trees_by_walking(t, x, y);
#else
    trees_by_walking(t, x, y);
#endif
    for (uint32_t k = 0; k < t->targets; k++) {
        if (t->average) y[k] = y[k] / (float)t->count;
        /* The last 0 takes the sign off a zero: lanes without a tree add zeros in one way and nothing in the other. */
        y[k] = (y[k] + t->base[k]) + 0.0f;
    }
}
