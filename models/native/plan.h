/* A plan: a model as data. `models/native/plan.py` writes it, `plan.c` checks it, `run.h` runs it.
 *
 * Little-endian, every part aligned to 8 bytes, tensors to 64:
 *
 *     struct plan_header
 *     uint32_t widths[buffers]        floats of each buffer, for one row; buffer 0 holds the features, 1 the answer
 *     struct plan_tensor[tensors]
 *     struct plan_op[ops]             in the order in which they run
 *     the tensors' elements
 *
 * Every buffer is written in full, once, before it is read (PLAN_COPY and PLAN_INDEX may write one in parts, from its
 * start to its end), so no row sees what another left behind. A plan comes from a file, so nothing in it is believed:
 * `plan_load` checks every offset, shape and count, and that every weight is finite.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>

#define PLAN_MAGIC "sigdplan"
#define PLAN_VERSION 2 /* another one where the bits of an answer change, too */
#define PLAN_NONE UINT32_MAX

#define PLAN_BUFFERS_MAX 4096u
#define PLAN_OPS_MAX 4096u
#define PLAN_TENSORS_MAX 16384u
#define PLAN_WIDTH_MAX (1u << 22)     /* floats of one buffer */
#define PLAN_ROW_FLOATS_MAX (1u << 24) /* floats of all buffers of one row */
#define PLAN_STEPS_MAX (1u << 16)

struct plan_header {
    char magic[8];
    uint32_t version, features, outputs, buffers, ops, tensors;
    uint64_t size; /* bytes of the whole plan */
    uint64_t reserved[3];
};

enum plan_dtype { PLAN_F32 = 1, PLAN_U32 = 2, PLAN_F16 = 3, PLAN_BF16 = 4, PLAN_I8 = 5 };

struct plan_tensor {
    uint32_t dtype, reserved;
    uint64_t count, offset; /* elements; bytes from the start of the plan */
};

#define PLAN_INPUTS 3
#define PLAN_OP_TENSORS 8
#define PLAN_PARAMS 8
#define PLAN_SCALARS 3

/* What is not used is PLAN_NONE (inputs, tensors) or 0 (params, scalars). */
struct plan_op {
    uint32_t kind, out;
    uint32_t in[PLAN_INPUTS];
    uint32_t tensor[PLAN_OP_TENSORS];
    uint32_t param[PLAN_PARAMS];
    float scalar[PLAN_SCALARS];
};

/* width(b) is a buffer's floats. Tensors are float32 unless noted; weights may also be float16, bfloat16, or 8-bit where a
 * layer has more than 8 outputs or is recurrent. */
enum plan_kind {
    /* out[r, n] = f(bias[n] + sum over k of in[r, k] * weight[k, n]); params: K, N, f, SKIP: leave out k where in is 0;
     * tensors: weight [K, N], bias [N], of 8-bit weights scale [N]: what they are multiplied by; scalars: of f. r runs over
     * width(in) / K. */
    PLAN_DENSE = 1,
    /* out = f(in); params: f; scalars: of f */
    PLAN_MAP = 2,
    /* out = in * scale + shift in one rounding; tensors: scale, shift [width] */
    PLAN_AFFINE = 3,
    /* out = in0 OP in1; params: enum plan_binary */
    PLAN_BINARY = 4,
    /* out = in OP constant; tensors: constant [width]; params: enum plan_binary, REVERSED: constant OP in */
    PLAN_CONSTANT = 5,
    /* out[at : at + count] = in[start : start + count]; params: start, count, at */
    PLAN_COPY = 6,
    /* out[at + i] = in[index[i]], 0 where index is PLAN_NONE; tensors: index (uint32); params: 0, count, at */
    PLAN_INDEX = 7,
    /* over each group of W floats: softmax, or its logarithm; params: W, LOG */
    PLAN_SOFTMAX = 8,
    /* over each group of W: (in - mean) / sqrt(variance + eps) * scale + bias; params: W, RMS: no mean is taken off;
     * tensors: scale, bias [W]; scalars: eps */
    PLAN_LAYERNORM = 9,
    /* over each group of W: divided by its largest value, its L1 or its L2 norm; params: W, enum plan_norm */
    PLAN_NORMALIZE = 10,
    /* each group of W becomes one float; params: W, enum plan_reduce */
    PLAN_REDUCE = 11,
    /* a sum over trees; params: TARGETS, LEAF_WIDTH (1: a tree adds to one target; TARGETS: to all); AVERAGE; tensors:
     * nodes of each tree, features of nodes (uint32; PLAN_LEAF for a leaf, PLAN_MISSING_TRUE set where a NaN takes the
     * true branch), thresholds of nodes, target of each tree (uint32), weights [leaves, LEAF_WIDTH], base [TARGETS].
     * Nodes stand in preorder, the true branch (in <= threshold) first; leaves take their weights in that order. */
    PLAN_TREES = 12,
    /* NaN, or a value equal to scalar 0, becomes fill; params: NAN: only NaN; tensors: fill [width] */
    PLAN_IMPUTE = 13,
    /* in: [STEPS, K], out: [STEPS, H] (EACH) or [H], from a state of zeros; params: STEPS, K, H, EACH, REVERSE,
     * RESET_FIRST; tensors:
     * W [K, gates * H], R [H, gates * H], bias of W, bias of R [gates * H], of 8-bit weights the scales of W and R; gates
     * in ONNX's order: i o f c, and z r h. What W and R add are two sums, each from its bias, which are added once.
     * A GRU applies its reset behind R (linear_before_reset), or with RESET_FIRST to the state that R's gate h is given. */
    PLAN_LSTM = 14,
    PLAN_GRU = 15,
};

#define PLAN_LEAF 0x7fffffffu
#define PLAN_MISSING_TRUE 0x80000000u

enum plan_function {
    F_IDENTITY, F_RELU, F_LEAKY, F_ELU, F_SELU, F_SIGMOID, F_TANH, F_HARD_SIGMOID, F_CLIP, F_GELU, F_GELU_TANH,
    F_SOFTPLUS, F_SOFTSIGN, F_EXP, F_LOG, F_SQRT, F_ABS, F_NEG, F_ERF, F_RECIPROCAL, F_HARD_SWISH, F_SWISH, F_MISH,
    F_CELU, F_THRESHOLDED_RELU, F_SIGN, F_FLOOR, F_CEIL, F_ROUND, F_PROBIT, F_COUNT
};
enum plan_binary { B_ADD, B_SUB, B_MUL, B_DIV, B_MIN, B_MAX, B_COUNT };
enum plan_norm { N_MAX, N_L1, N_L2, N_COUNT };
enum plan_reduce { R_SUM, R_MEAN, R_MAX, R_MIN, R_L1, R_L2, R_COUNT };
