/* Trees: checked, ordered, and where they are small enough laid side by side in groups of LANES. */
#include <stdlib.h>
#include <string.h>

#include "pack.h"

#define GROUP_LEAVES_MAX 64
#define RUNG_MAX 255 /* thresholds that one byte of ranks tells apart */
#define RANKED_MAX 256

/* Where the false branch of each node begins, found by reading the preorder once. `stack` has room for a tree's nodes. */
static const char *read_tree(struct trees *t, uint32_t first, uint32_t end, uint32_t width, uint32_t *stack, uint32_t *leaf) {
    uint32_t depth = 0, i = first;
    for (;; i++) {
        if (i == end) return "a tree ends in the middle of a branch";
        struct tree_node *node = &t->nodes[i];
        if (node->feature != PLAN_LEAF) {
            if (node->feature >= width) return "a node looks at a feature that is not there";
            stack[depth++] = i;
            continue;
        }
        node->right = (*leaf)++;
        /* The branch that ends here is the false one of all nodes on the stack whose true one has ended before. */
        while (depth && t->nodes[stack[depth - 1]].right) depth--;
        if (!depth) return i + 1 == end ? NULL : "nodes lie behind the end of their tree";
        t->nodes[stack[depth - 1]].right = i + 1;
    }
}

struct sorted_tree {
    uint32_t tree, target, nodes;
};

static int by_target_and_size(const void *a, const void *b) {
    const struct sorted_tree *x = a, *y = b;
    if (x->target != y->target) return x->target < y->target ? -1 : 1;
    if (x->nodes != y->nodes) return x->nodes > y->nodes ? -1 : 1;
    return x->tree < y->tree ? -1 : 1;
}

/* The order in which trees add up, and the chain of each: by target, then by size, so that groups are evenly filled. */
static int order_trees(struct trees *t, const uint32_t *sizes) {
    struct sorted_tree *sorted = malloc(t->count * sizeof *sorted);
    if (!sorted) return -1;
    for (uint32_t i = 0; i < t->count; i++)
        sorted[i] = (struct sorted_tree){.tree = i, .target = t->leaf_width == 1 ? t->target[i] : 0, .nodes = sizes[i]};
    if (t->leaf_width == 1) qsort(sorted, t->count, sizeof *sorted, by_target_and_size);
    uint32_t place = 0;
    for (uint32_t i = 0; i < t->count; i++, place++) {
        if (i && sorted[i].target != sorted[i - 1].target) place = 0;
        t->order[i] = sorted[i].tree;
        t->lane[i] = place % LANES;
    }
    free(sorted);
    return 0;
}

static int by_value(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* The thresholds of each feature in order, in pieces of RUNG_MAX, each of which has a byte of ranks. */
struct ladders {
    uint32_t *first; /* [features + 1]: where the thresholds of each begin */
    uint32_t *count; /* [features]: how many differ */
    uint32_t *piece; /* [features]: its first byte of ranks */
    float *values;
    uint32_t ranked;
};

static void ladders_free(struct ladders *l) {
    free(l->first);
    free(l->count);
    free(l->piece);
    free(l->values);
}

static int ladders_make(struct ladders *l, const struct trees *t, uint32_t nodes, uint32_t width) {
    l->first = calloc((size_t)width + 2, sizeof *l->first);
    l->count = calloc(width, sizeof *l->count);
    l->piece = calloc(width, sizeof *l->piece);
    l->values = malloc(((size_t)nodes + 1) * sizeof *l->values);
    if (!l->first || !l->count || !l->piece || !l->values) return -1;
    for (uint32_t i = 0; i < nodes; i++) {
        if (t->nodes[i].feature != PLAN_LEAF) l->first[t->nodes[i].feature + 2]++;
    }
    for (uint32_t f = 0; f < width; f++) l->first[f + 2] += l->first[f + 1];
    for (uint32_t i = 0; i < nodes; i++) {
        if (t->nodes[i].feature != PLAN_LEAF) l->values[l->first[t->nodes[i].feature + 1]++] = t->nodes[i].threshold;
    }
    for (uint32_t f = 0; f < width; f++) {
        float *values = l->values + l->first[f];
        const uint32_t all = l->first[f + 1] - l->first[f];
        if (!all) continue;
        qsort(values, all, sizeof *values, by_value);
        uint32_t different = 1;
        for (uint32_t i = 1; i < all; i++) {
            if (values[i] != values[different - 1]) values[different++] = values[i];
        }
        l->count[f] = different;
        l->piece[f] = l->ranked;
        l->ranked += (different + RUNG_MAX - 1) / RUNG_MAX;
        if (l->ranked > RANKED_MAX) break;
    }
    return 0;
}

static int ladders_pack(struct engine *e, struct trees *t, const struct ladders *l, uint32_t width) {
    t->ranked = l->ranked;
    t->ranked_feature = engine_allocate(e, t->ranked * sizeof *t->ranked_feature);
    t->ladder = engine_allocate(e, (size_t)t->ranked * 256 * sizeof *t->ladder);
    t->pivots = engine_allocate(e, (size_t)t->ranked * 16 * sizeof *t->pivots);
    if (!t->ranked_feature || !t->ladder || !t->pivots) return -1;
    for (size_t i = 0; i < (size_t)t->ranked * 256; i++) t->ladder[i] = __builtin_inff();
    for (uint32_t f = 0; f < width; f++) {
        for (uint32_t i = 0; i < l->count[f]; i++) {
            const uint32_t piece = l->piece[f] + i / RUNG_MAX;
            t->ranked_feature[piece] = f;
            t->ladder[(size_t)piece * 256 + i % RUNG_MAX] = l->values[l->first[f] + i];
        }
    }
    for (uint32_t piece = 0; piece < t->ranked; piece++) {
        for (uint32_t i = 0; i < 16; i++) t->pivots[piece * 16 + i] = t->ladder[(size_t)piece * 256 + 16 * i + 15];
    }
    return 0;
}

static uint32_t rung_of(const struct ladders *l, const struct tree_node *node) {
    const float *values = l->values + l->first[node->feature];
    uint32_t low = 0, high = l->count[node->feature];
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (values[middle] < node->threshold) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* One tree into one lane of a group. */
static void lay_tree(struct tree_group *g, const struct trees *t, const struct ladders *l, uint32_t lane, uint32_t first,
                     uint32_t end) {
    const uint32_t size = g->high ? 64 : 32;
    uint32_t place = 0, leaves = 0;
    for (uint32_t i = first; i < end; i++) {
        const struct tree_node *node = &t->nodes[i];
        if (node->feature == PLAN_LEAF) {
            g->leaves[lane * size + leaves++] = t->weights[node->right];
            continue;
        }
        /* A subtree of n leaves has 2 n - 1 nodes; the true branch is what lies before the false one. */
        const uint32_t count = (node->right - i) / 2, rung = rung_of(l, node);
        const uint64_t below = count == 64 ? ~0ull : ((1ull << count) - 1) << leaves;
        const size_t at = (size_t)place++ * LANES + lane;
        g->which[at] = (uint8_t)(l->piece[node->feature] + rung / RUNG_MAX);
        g->rank[at] = (uint8_t)(rung % RUNG_MAX);
        g->low[at] = (uint32_t)below;
        if (g->high) g->high[at] = (uint32_t)(below >> 32);
    }
}

static int group_make(struct engine *e, struct tree_group *g, uint32_t inner_max, uint32_t target) {
    const int wide = inner_max >= 32;
    g->nodes = ROUND_UP(inner_max ? inner_max : 1, 2);
    g->target = target;
    const size_t cells = (size_t)g->nodes * LANES;
    g->which = engine_allocate(e, cells);
    g->rank = engine_allocate(e, cells);
    g->low = engine_allocate(e, cells * sizeof *g->low);
    g->high = wide ? engine_allocate(e, cells * sizeof *g->high) : NULL;
    g->leaves = engine_allocate(e, LANES * (wide ? 64 : 32) * sizeof *g->leaves);
    if (!g->which || !g->rank || !g->low || (wide && !g->high) || !g->leaves) return -1;
    memset(g->rank, 255, cells); /* what no tree fills excludes nothing */
    return 0;
}

static int groups_make(struct engine *e, struct trees *t, const struct ladders *l, const uint32_t *sizes) {
    t->groups = engine_allocate(e, ((size_t)t->count / LANES + t->targets + 1) * sizeof *t->groups);
    if (!t->groups) return -1;
    struct tree_group *g = NULL;
    for (uint32_t i = 0; i < t->count; i++) {
        const uint32_t tree = t->order[i];
        if (!t->lane[i]) {
            /* The first tree of a group is its largest. */
            g = &t->groups[t->group_count++];
            if (group_make(e, g, sizes[tree] / 2, t->target[tree])) return -1;
        }
        lay_tree(g, t, l, t->lane[i], t->first[tree], t->first[tree] + sizes[tree]);
    }
    return 0;
}

static const char *read_nodes(struct op *o, const uint32_t *sizes, const uint32_t *features, uint64_t nodes,
                              const float *thresholds, const uint32_t *targets, uint32_t *leaves) {
    struct trees *t = &o->trees;
    uint32_t *stack = malloc((nodes + 1) * sizeof *stack);
    const char *problem = stack ? NULL : "out of memory";
    uint64_t first = 0;
    for (uint64_t i = 0; i < nodes && !problem; i++) {
        t->nodes[i].threshold = thresholds[i];
        t->nodes[i].feature = features[i] & ~PLAN_MISSING_TRUE;
        t->missing_true_node[i] = features[i] >> 31;
    }
    for (uint32_t i = 0; i < t->count && !problem; i++) {
        t->first[i] = (uint32_t)first;
        t->target[i] = t->leaf_width == 1 ? targets[i] : 0;
        if (t->target[i] >= t->targets) problem = "a tree adds to a target that is not there";
        else if (sizes[i] > nodes - first) problem = "its trees have more nodes than there are";
        else problem = read_tree(t, (uint32_t)first, (uint32_t)first + sizes[i], o->in_width, stack, leaves);
        first += sizes[i];
    }
    if (!problem && first != nodes) problem = "nodes that belong to no tree";
    free(stack);
    return problem;
}

const char *trees_load(struct engine *e, struct op *o, const uint32_t *sizes, const uint32_t *features, uint64_t nodes,
                       const float *thresholds, const uint32_t *targets, uint64_t weights) {
    struct trees *t = &o->trees;
    t->first = engine_allocate(e, t->count * sizeof *t->first);
    t->target = engine_allocate(e, t->count * sizeof *t->target);
    t->lane = engine_allocate(e, t->count * sizeof *t->lane);
    t->order = engine_allocate(e, t->count * sizeof *t->order);
    t->nodes = engine_allocate(e, nodes * sizeof *t->nodes);
    t->missing_true_node = engine_allocate(e, nodes * sizeof *t->missing_true_node);
    if (!t->first || !t->target || !t->lane || !t->order || !t->nodes || !t->missing_true_node) return "out of memory";
    uint32_t leaves = 0;
    const char *problem = read_nodes(o, sizes, features, nodes, thresholds, targets, &leaves);
    if (problem) return problem;
    if ((uint64_t)leaves * t->leaf_width != weights) return "not as many weights as leaves";
    if (order_trees(t, sizes)) return "out of memory";
    uint32_t most = 0;
    for (uint32_t i = 0; i < t->count; i++) most = sizes[i] > most ? sizes[i] : most;
    if (t->leaf_width != 1 || e->isa->lanes == 1 || (most + 1) / 2 > GROUP_LEAVES_MAX) return NULL;
    struct ladders l = {0};
    int failed = ladders_make(&l, t, (uint32_t)nodes, o->in_width);
    if (!failed && l.ranked && l.ranked <= RANKED_MAX)
        failed = ladders_pack(e, t, &l, o->in_width) || groups_make(e, t, &l, sizes);
    ladders_free(&l);
    return failed ? "out of memory" : NULL;
}
