/* What a checked plan becomes at load, and what the three builds of the kernels have in common. */
#pragma once
#include "engine.h"
#include "plan.h"

/* A number of chains: sums run in parallel chains whose number and order belong to the format, not to a register, so
 * that each instruction set gives the same bits. */
#define LANES 16u     /* chains of a sum over a group, and of a sum over trees */
#define DOT_LANES 32u /* chains of an output of a layer with few outputs */
#define DOT_OUTPUTS_MAX 8u
#define WIDE_OUTPUTS_MIN 64u /* from here on one chain for each output is enough to fill the processor */
#define SPLIT_CHAINS 4u

#define ROUND_UP(n, to) (((n) + (to)-1) / (to) * (to))
#define STRIDE(width) ROUND_UP((size_t)(width), 16) /* floats from one row of a buffer to the next */

enum weights { WEIGHTS_F32, WEIGHTS_F16, WEIGHTS_BF16, WEIGHTS_I8 };
enum layout {
    LAYOUT_DOT,   /* few outputs: [N][K padded to DOT_LANES] */
    LAYOUT_SPLIT, /* panels, SPLIT_CHAINS chains an output */
    LAYOUT_WIDE,  /* panels, one chain an output */
};

struct dense {
    uint32_t k, n, n_padded;
    enum layout layout;
    enum weights type;
    uint32_t function;
    float alpha, beta;
    int skip;
    const void *weights; /* packed for the instruction set */
    const float *bias;   /* n_padded */
    const float *scale;  /* n_padded: of 8-bit weights; of others it is not read */
};

struct tree_node {
    float threshold;
    uint32_t feature; /* PLAN_LEAF: a leaf */
    uint32_t right;   /* for a leaf: the place of its weights */
};

/* LANES trees side by side. For every inner node: which byte of the ranks it looks at, the rank of its threshold, and
 * the leaves that are out of the question where the row's rank is above it. */
struct tree_group {
    uint32_t nodes;  /* of the largest tree, rounded up to 2 */
    uint32_t target;
    uint8_t *which, *rank; /* [nodes][LANES] */
    uint32_t *low, *high;  /* [nodes][LANES]: leaves 0-31 and 32-63; `high` is NULL where no tree has so many */
    float *leaves;         /* [LANES][32 or 64] */
};

struct trees {
    uint32_t count, targets, leaf_width, average;
    uint32_t *first; /* the first node of each tree */
    uint32_t *target;
    uint32_t *lane; /* which chain of its target each tree adds to, in the order of `order` */
    uint32_t *order;
    struct tree_node *nodes;
    const float *weights, *base;
    /* Empty where a tree has more than 64 leaves or the trees look at too much. */
    struct tree_group *groups;
    uint32_t group_count;
    uint32_t ranked;    /* bytes of ranks */
    uint32_t *ranked_feature;
    float *ladder, *pivots; /* [ranked][256], [ranked][16]: thresholds in order, and every 16th of them */
    uint32_t *missing_true_node; /* [nodes]: 1 where a NaN takes the true branch */
};

struct op {
    struct plan_op plan;
    uint32_t in_width, out_width;
    const float *tensor[PLAN_OP_TENSORS];
    struct dense dense, recurrent;
    struct dense fresh; /* of a GRU that resets first: its gate h of the state; `recurrent` has the other two */
    struct trees trees;
};

struct block; /* memory that the engine owns */

struct engine {
    const struct isa *isa;
    uint32_t features, outputs, buffers, ops;
    uint32_t *widths;
    size_t *places; /* floats of all buffers before this one, for one row */
    struct op *op;
    struct block *blocks;
    size_t row_floats;                 /* of all buffers */
    size_t temporary_row_floats;       /* of the largest operation, for one row */
    size_t temporary_floats;           /* of the largest operation, whatever the rows */
    size_t k_max;                      /* longest input of a layer */
    uint64_t macs;                     /* multiplications for one row, roughly */
    const uint8_t *shared;             /* [buffers]: 1 where all rows have one value; NULL: none has */
};

#define STATELESS SIZE_MAX

/* A model of a window of steps, as what it does for one step of it: the operations of the engine, narrowed to one step,
 * with the engine's weights. */
struct step_view {
    struct engine engine;
    uint32_t steps;
    size_t state_floats; /* of one window */
    size_t *state_at;    /* [ops]: where in a window's state the operation's lies; STATELESS: it has none */
    size_t gate_floats;  /* of one window's states: what they add to the gates of its next step */
    size_t *gates_at;    /* [ops]: where of them the operation's lie, where it has a state */
    uint8_t *last;       /* [ops]: 1 where it belongs to the last step alone */
};

/* Floats of one step that are copied to where an operation reads them, at a distance of their own on both sides. */
struct piece_of_column {
    uint32_t source; /* the buffer in which the step's values were written */
    uint32_t back;   /* how many steps ago: of another step than the newest they stand in a ring */
    uint32_t from, from_stride, into, to, to_stride, count;
};

/* A model of a window of steps, as what it does anew for the newest one: see columns.h. */
struct column_view {
    struct engine engine; /* operations on the values of the newest step alone, with the engine's weights */
    uint32_t steps, time_axis;
    struct piece_of_column *pieces;
    uint32_t *pieces_end; /* [ops + 1]: of the input of each operation, and of the answer */
    uint8_t *answer_only; /* [ops]: 1 where no later step reads of it */
    uint32_t *slots;      /* [buffers]: steps in its ring; 0: it has none */
    size_t *ring_at;      /* [buffers]: where it begins */
    size_t kept_floats;   /* of the rings of one instrument */
    uint64_t work, whole_work; /* operations of one step and of a whole window, roughly */
};

/* Where the steps of one instrument are kept. */
struct kept_columns {
    const float *rows; /* of the window: [steps] of them */
    float *rings;
    uint64_t step; /* the newest */
};

/* The scratch memory of one runner. */
struct scratch {
    uint32_t block_rows;
    float *arena, *temporary, *packed;
    int32_t *packed_ids;
};

/* One build of the kernels. */
struct isa {
    const char *name;
    uint32_t lanes;       /* floats of a vector */
    uint32_t panel_max;   /* vectors of a panel, one chain an output */
    uint32_t split_max;   /* vectors of a panel, SPLIT_CHAINS chains an output */
    void (*run)(const struct engine *, const struct scratch *, const float *rows, float *out, uint32_t n);
    /* One step, `row`, of `n` windows, whose states lie one behind the other. With `out` it is the last step of the only
     * one, and `out` takes the answer. `gates` is what `prepare` made of the state of the only one, or NULL. */
    void (*step)(const struct step_view *, const struct scratch *, const float *row, float *states, const float *gates,
                 uint32_t n, float *out);
    /* What a window's state adds to the gates of its next step, whatever that is: half of what the step costs. */
    void (*prepare)(const struct step_view *, const struct scratch *, const float *state, float *gates);
    /* The newest step, `row`; what later ones read of it is kept. With `out`, which takes the answer. */
    void (*column)(const struct column_view *, const struct scratch *, const float *row, struct kept_columns, float *out);
};

/* For each mask of 8 lanes the lanes that it holds, lowest first, a byte each. */
extern uint64_t compress_order[256];

extern const struct isa isa_plain;
#if defined(__x86_64__)
extern const struct isa isa_avx2, isa_avx512;
#endif

/* The best that this processor has, or the one of that name; NULL where there is none. */
const struct isa *isa_find(const char *name);

/* An engine out of a plan, or NULL with the reason in `error`. Neither `plan` nor `error` is kept. */
struct engine *engine_load(const uint8_t *plan, size_t size, const struct isa *, char *error, size_t error_size);
void engine_free(struct engine *);
void engine_release(struct engine *); /* what it allocated, but not itself */
const char *engine_op_name(const struct op *); /* for messages: "an LSTM" */
/* The scratch memory that an operation of one row needs. */
void engine_keep_scratch(struct engine *, const struct op *);
void *engine_allocate(struct engine *, size_t bytes); /* zeros, aligned to 64; NULL without memory */
