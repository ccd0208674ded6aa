/* Checking a plan and making an engine of it. Nothing in the plan is believed: every number is compared with what it is
 * to fit before it is used, in 64 bits, where none of these products overflows. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pack.h"

struct block {
    struct block *next;
};

void *engine_allocate(struct engine *e, size_t bytes) {
    const size_t size = ROUND_UP(bytes, 64) + 64;
    struct block *block = aligned_alloc(64, size);
    if (!block) return NULL;
    memset(block, 0, size);
    block->next = e->blocks;
    e->blocks = block;
    return (char *)block + 64;
}

void engine_release(struct engine *e) {
    for (struct block *block = e->blocks, *next; block; block = next) {
        next = block->next;
        free(block);
    }
    e->blocks = NULL;
}

void engine_free(struct engine *e) {
    if (!e) return;
    engine_release(e);
    free(e);
}

/* What is known while a plan is read. */
struct reader {
    const uint8_t *plan;
    struct plan_header header;
    const uint32_t *widths;
    const struct plan_tensor *tensors;
    const struct plan_op *ops;
    struct engine *engine;
    uint32_t *written; /* floats of each buffer, from its start */
    uint32_t current;  /* the operation being read */
    char *error;
    size_t error_size;
};

static int refused(struct reader *r, const char *format, ...) __attribute__((format(printf, 2, 3)));

static int refused(struct reader *r, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(r->error, r->error_size, format, arguments);
    va_end(arguments);
    return -1;
}

#define REFUSE_IF(condition, ...) \
    do { if (condition) return refused(r, __VA_ARGS__); } while (0)

static int read_header(struct reader *r, size_t size) {
    struct plan_header *h = &r->header;
    REFUSE_IF(size < sizeof *h, "%zu bytes, expected at least the %zu of a header", size, sizeof *h);
    memcpy(h, r->plan, sizeof *h);
    REFUSE_IF(memcmp(h->magic, PLAN_MAGIC, sizeof h->magic), "does not begin with " PLAN_MAGIC);
    REFUSE_IF(h->version != PLAN_VERSION, "version %u, expected %d", h->version, PLAN_VERSION);
    REFUSE_IF(h->size != size, "says that it has %llu bytes, and has %zu", (unsigned long long)h->size, size);
    REFUSE_IF(h->buffers < 2 || h->buffers > PLAN_BUFFERS_MAX, "%u buffers, expected 2 to %u", h->buffers, PLAN_BUFFERS_MAX);
    REFUSE_IF(h->ops < 1 || h->ops > PLAN_OPS_MAX, "%u operations, expected 1 to %u", h->ops, PLAN_OPS_MAX);
    REFUSE_IF(h->tensors > PLAN_TENSORS_MAX, "%u tensors, expected at most %u", h->tensors, PLAN_TENSORS_MAX);
    const size_t widths = ROUND_UP(h->buffers * sizeof(uint32_t), 8), tensors = h->tensors * sizeof *r->tensors;
    const size_t end = sizeof *h + widths + tensors + h->ops * sizeof *r->ops;
    REFUSE_IF(end > size, "its tables take %zu bytes, and it has %zu", end, size);
    r->widths = (const uint32_t *)(r->plan + sizeof *h);
    r->tensors = (const struct plan_tensor *)(r->plan + sizeof *h + widths);
    r->ops = (const struct plan_op *)(r->plan + sizeof *h + widths + tensors);
    REFUSE_IF(r->widths[0] != h->features || r->widths[1] != h->outputs, "its first buffers are not its rows and answers");
    return 0;
}

static size_t element_size(uint32_t dtype) {
    switch (dtype) {
    case PLAN_F32: case PLAN_U32: return 4;
    case PLAN_F16: case PLAN_BF16: return 2;
    case PLAN_I8: return 1;
    default: return 0;
    }
}

static int all_finite(const void *data, uint64_t count, uint32_t dtype) {
    uint32_t bad = 0;
    if (dtype == PLAN_F32) {
        const uint32_t *bits = data;
        for (uint64_t i = 0; i < count; i++) bad |= (bits[i] & 0x7f800000u) == 0x7f800000u;
    } else if (dtype == PLAN_F16 || dtype == PLAN_BF16) {
        const uint16_t *bits = data, exponent = dtype == PLAN_F16 ? 0x7c00u : 0x7f80u;
        for (uint64_t i = 0; i < count; i++) bad |= (bits[i] & exponent) == exponent;
    }
    return !bad;
}

static int read_tensors(struct reader *r) {
    for (uint32_t i = 0; i < r->header.tensors; i++) {
        const struct plan_tensor *t = &r->tensors[i];
        const size_t size = element_size(t->dtype);
        REFUSE_IF(!size, "tensor %u is of an unknown type (%u)", i, t->dtype);
        REFUSE_IF(t->offset % 64 || t->offset > r->header.size, "tensor %u begins at a wrong place", i);
        REFUSE_IF(t->count > (r->header.size - t->offset) / size, "tensor %u ends behind the end of the plan", i);
        REFUSE_IF(!all_finite(r->plan + t->offset, t->count, t->dtype), "tensor %u holds a NaN or an infinity", i);
    }
    return 0;
}

static int read_buffers(struct reader *r) {
    struct engine *e = r->engine;
    e->features = r->header.features;
    e->outputs = r->header.outputs;
    e->buffers = r->header.buffers;
    e->widths = engine_allocate(e, e->buffers * sizeof *e->widths);
    e->places = engine_allocate(e, e->buffers * sizeof *e->places);
    r->written = engine_allocate(e, e->buffers * sizeof *r->written);
    REFUSE_IF(!e->widths || !e->places || !r->written, "out of memory");
    memcpy(e->widths, r->widths, e->buffers * sizeof *e->widths);
    for (uint32_t i = 0; i < e->buffers; i++) {
        REFUSE_IF(!e->widths[i] || e->widths[i] > PLAN_WIDTH_MAX, "buffer %u has %u floats, expected 1 to %u", i,
                  e->widths[i], PLAN_WIDTH_MAX);
        e->places[i] = e->row_floats;
        e->row_floats += STRIDE(e->widths[i]);
        REFUSE_IF(e->row_floats > PLAN_ROW_FLOATS_MAX, "its buffers take more than %u floats a row", PLAN_ROW_FLOATS_MAX);
    }
    r->written[0] = e->features;
    return 0;
}

static const struct plan_tensor *tensor_of(struct reader *r, const struct plan_op *p, int slot) {
    return p->tensor[slot] < r->header.tensors ? &r->tensors[p->tensor[slot]] : NULL;
}

static const void *data_of(struct reader *r, const struct plan_op *p, int slot) {
    return r->plan + tensor_of(r, p, slot)->offset;
}

static int check_tensor(struct reader *r, const struct plan_op *p, int slot, uint32_t dtype, uint64_t count) {
    const struct plan_tensor *t = tensor_of(r, p, slot);
    REFUSE_IF(!t, "operation %u: has no tensor %d", r->current, slot);
    REFUSE_IF(t->dtype != dtype || t->count != count, "operation %u: tensor %d has %llu elements of type %u, expected %llu of %u",
              r->current, slot, (unsigned long long)t->count, t->dtype, (unsigned long long)count, dtype);
    return 0;
}

/* Check a tensor, and keep a copy of it with the operation. */
static int keep_tensor(struct reader *r, struct op *o, int slot, uint32_t dtype, uint64_t count) {
    if (check_tensor(r, &o->plan, slot, dtype, count)) return -1;
    void *copy = engine_allocate(r->engine, ROUND_UP(count, 16) * 4);
    REFUSE_IF(!copy, "out of memory");
    memcpy(copy, data_of(r, &o->plan, slot), count * 4);
    o->tensor[slot] = copy;
    return 0;
}

static int check_group(struct reader *r, const struct op *o, uint32_t group) {
    REFUSE_IF(!group || o->in_width % group, "operation %u: %u floats are no whole number of groups of %u", r->current,
              o->in_width, group);
    return 0;
}

static int check_out(struct reader *r, const struct op *o, uint64_t width) {
    REFUSE_IF(o->out_width != width, "operation %u: writes %llu floats into a buffer of %u", r->current,
              (unsigned long long)width, o->out_width);
    return 0;
}

/* That those tensors are the weights, the bias and the scale of a layer of k by n; the type of its weights. */
static int check_layer(struct reader *r, struct op *o, uint32_t k, uint32_t n, int weights, int bias, int scale, int recurrent,
                       uint32_t *type) {
    REFUSE_IF(!k || !n || k > PLAN_WIDTH_MAX || n > PLAN_WIDTH_MAX, "operation %u: a layer of %u by %u", r->current, k, n);
    const struct plan_tensor *t = tensor_of(r, &o->plan, weights);
    const uint32_t dtype = t && t->dtype != PLAN_U32 ? t->dtype : PLAN_F32;
    if (check_tensor(r, &o->plan, weights, dtype, (uint64_t)k * n)) return -1;
    if (check_tensor(r, &o->plan, bias, PLAN_F32, n)) return -1;
    REFUSE_IF(dtype == PLAN_I8 && !recurrent && n <= DOT_OUTPUTS_MAX, "operation %u: 8-bit weights for %u outputs", r->current, n);
    if (dtype == PLAN_I8 && check_tensor(r, &o->plan, scale, PLAN_F32, n)) return -1;
    if (k > r->engine->k_max) r->engine->k_max = k;
    *type = dtype;
    return 0;
}

/* A layer whose weights, bias and scale are those tensors. */
static int read_layer(struct reader *r, struct op *o, struct dense *d, int weights, int bias, int scale, int recurrent) {
    uint32_t dtype;
    if (check_layer(r, o, d->k, d->n, weights, bias, scale, recurrent, &dtype)) return -1;
    REFUSE_IF(pack_layer(r->engine, d, data_of(r, &o->plan, weights), dtype, data_of(r, &o->plan, bias),
                         dtype == PLAN_I8 ? data_of(r, &o->plan, scale) : NULL, recurrent),
              "out of memory");
    return 0;
}

/* A layer that is the outputs of another one, `all` wide, from `first` on. */
static int read_outputs(struct reader *r, struct op *o, struct dense *d, uint32_t all, uint32_t first, int weights, int bias,
                        int scale) {
    uint32_t dtype;
    if (check_layer(r, o, d->k, all, weights, bias, scale, 1, &dtype)) return -1;
    const size_t size = element_size(dtype), row = d->n * size;
    char *copy = malloc(d->k * row);
    for (size_t k = 0; copy && k < d->k; k++)
        memcpy(copy + k * row, (const char *)data_of(r, &o->plan, weights) + (k * all + first) * size, row);
    const float *scales = dtype == PLAN_I8 ? (const float *)data_of(r, &o->plan, scale) + first : NULL;
    const int failed = !copy || pack_layer(r->engine, d, copy, dtype, (const float *)data_of(r, &o->plan, bias) + first,
                                           scales, 1);
    free(copy);
    REFUSE_IF(failed, "out of memory");
    return 0;
}

static int read_dense(struct reader *r, struct op *o) {
    const uint32_t *param = o->plan.param;
    struct engine *e = r->engine;
    if (check_group(r, o, param[0])) return -1;
    const uint64_t steps = o->in_width / param[0];
    if (check_out(r, o, steps * param[1])) return -1;
    REFUSE_IF(param[2] >= F_COUNT || param[3] > 1, "operation %u: an unknown function or flag", r->current);
    o->dense.function = param[2];
    o->dense.skip = (int)param[3];
    o->dense.alpha = o->plan.scalar[0];
    o->dense.beta = o->plan.scalar[1];
    o->dense.k = param[0];
    o->dense.n = param[1];
    if (read_layer(r, o, &o->dense, 0, 1, 2, 0)) return -1;
    if (steps > 1 && steps * o->dense.n_padded > e->temporary_floats) e->temporary_floats = steps * o->dense.n_padded;
    e->macs += steps * param[0] * param[1];
    return 0;
}

static int read_recurrent(struct reader *r, struct op *o) {
    const uint32_t *param = o->plan.param, gates = o->plan.kind == PLAN_LSTM ? 4 : 3;
    const uint64_t steps = param[0], k = param[1], h = param[2];
    struct engine *e = r->engine;
    REFUSE_IF(!steps || steps > PLAN_STEPS_MAX || !h || h > PLAN_WIDTH_MAX / gates || steps * k != o->in_width,
              "operation %u: %u steps of %u floats, of an input of %u", r->current, param[0], param[1], o->in_width);
    REFUSE_IF(param[3] > 1 || param[4] > 1 || param[5] > 1 || (param[5] && o->plan.kind != PLAN_GRU),
              "operation %u: an unknown flag", r->current);
    if (check_out(r, o, (param[3] ? steps : 1) * h)) return -1;
    o->dense.k = (uint32_t)k;
    o->recurrent.k = (uint32_t)h;
    o->dense.n = o->recurrent.n = (uint32_t)(gates * h);
    if (read_layer(r, o, &o->dense, 0, 2, 4, 1)) return -1;
    if (param[5]) {
        o->recurrent.n = (uint32_t)(2 * h);
        o->fresh.k = o->fresh.n = (uint32_t)h;
        if (read_outputs(r, o, &o->recurrent, o->dense.n, 0, 1, 3, 5) ||
            read_outputs(r, o, &o->fresh, o->dense.n, o->recurrent.n, 1, 3, 5))
            return -1;
    } else if (read_layer(r, o, &o->recurrent, 1, 3, 5, 1)) {
        return -1;
    }
    const uint64_t floats = (steps + 1) * o->dense.n_padded + 4 * STRIDE(h);
    REFUSE_IF(floats > PLAN_ROW_FLOATS_MAX, "operation %u: needs more than %u floats a row", r->current, PLAN_ROW_FLOATS_MAX);
    if (floats > e->temporary_row_floats) e->temporary_row_floats = floats;
    e->macs += steps * (k + h) * gates * h;
    return 0;
}

/* Writing a buffer from its start to its end: what an operation adds must begin where the last one stopped. */
static int check_part(struct reader *r, struct op *o) {
    const uint32_t count = o->plan.param[1], at = o->plan.param[2];
    REFUSE_IF(!count || at != r->written[o->plan.out] || count > o->out_width - at,
              "operation %u: writes %u floats at %u of a buffer of %u, in which %u are written", r->current, count, at,
              o->out_width, r->written[o->plan.out]);
    return 0;
}

static int read_part(struct reader *r, struct op *o) {
    const uint32_t *param = o->plan.param;
    if (check_part(r, o)) return -1;
    if (o->plan.kind == PLAN_COPY) {
        REFUSE_IF(param[0] > o->in_width || param[1] > o->in_width - param[0], "operation %u: reads behind the end of its input",
                  r->current);
        return 0;
    }
    if (keep_tensor(r, o, 0, PLAN_U32, param[1])) return -1;
    const uint32_t *index = (const uint32_t *)o->tensor[0];
    for (uint32_t i = 0; i < param[1]; i++)
        REFUSE_IF(index[i] != PLAN_NONE && index[i] >= o->in_width, "operation %u: index %u is %u, of an input of %u",
                  r->current, i, index[i], o->in_width);
    return 0;
}

static int read_trees(struct reader *r, struct op *o) {
    struct trees *t = &o->trees;
    const struct plan_tensor *sizes = tensor_of(r, &o->plan, 0), *nodes = tensor_of(r, &o->plan, 1),
                             *weights = tensor_of(r, &o->plan, 4);
    REFUSE_IF(!sizes || !nodes || !weights, "operation %u: trees without nodes", r->current);
    t->targets = o->plan.param[0];
    t->leaf_width = o->plan.param[1];
    t->average = o->plan.param[2];
    REFUSE_IF(!t->targets || (t->leaf_width != 1 && t->leaf_width != t->targets) || t->average > 1 || !sizes->count ||
                  sizes->count > UINT32_MAX / 4 || nodes->count > UINT32_MAX / 4,
              "operation %u: %u targets, %u weights a leaf", r->current, t->targets, t->leaf_width);
    t->count = (uint32_t)sizes->count;
    if (check_out(r, o, t->targets) || check_tensor(r, &o->plan, 0, PLAN_U32, sizes->count) ||
        check_tensor(r, &o->plan, 1, PLAN_U32, nodes->count) || check_tensor(r, &o->plan, 2, PLAN_F32, nodes->count) ||
        check_tensor(r, &o->plan, 3, PLAN_U32, sizes->count) || keep_tensor(r, o, 4, PLAN_F32, weights->count) ||
        keep_tensor(r, o, 5, PLAN_F32, t->targets))
        return -1;
    t->weights = o->tensor[4];
    t->base = o->tensor[5];
    const char *problem = trees_load(r->engine, o, data_of(r, &o->plan, 0), data_of(r, &o->plan, 1), nodes->count,
                                     data_of(r, &o->plan, 2), data_of(r, &o->plan, 3), weights->count);
    REFUSE_IF(problem, "operation %u: %s", r->current, problem);
    r->engine->macs += nodes->count;
    return 0;
}

static int read_elementwise(struct reader *r, struct op *o) {
    const uint32_t *param = o->plan.param;
    switch (o->plan.kind) {
    case PLAN_MAP:
        REFUSE_IF(param[0] >= F_COUNT, "operation %u: an unknown function (%u)", r->current, param[0]);
        return check_out(r, o, o->in_width);
    case PLAN_AFFINE:
        if (keep_tensor(r, o, 0, PLAN_F32, o->in_width) || keep_tensor(r, o, 1, PLAN_F32, o->in_width)) return -1;
        return check_out(r, o, o->in_width);
    case PLAN_BINARY:
        REFUSE_IF(param[0] >= B_COUNT || o->plan.in[1] == PLAN_NONE ||
                      r->engine->widths[o->plan.in[1]] != o->in_width,
                  "operation %u: two inputs that do not fit, or an unknown function (%u)", r->current, param[0]);
        return check_out(r, o, o->in_width);
    case PLAN_CONSTANT:
        REFUSE_IF(param[0] >= B_COUNT || param[1] > 1, "operation %u: an unknown function (%u)", r->current, param[0]);
        if (keep_tensor(r, o, 0, PLAN_F32, o->in_width)) return -1;
        return check_out(r, o, o->in_width);
    default:
        REFUSE_IF(param[0] > 1, "operation %u: an unknown flag", r->current);
        if (keep_tensor(r, o, 0, PLAN_F32, o->in_width)) return -1;
        return check_out(r, o, o->in_width);
    }
}

static int read_grouped(struct reader *r, struct op *o) {
    const uint32_t *param = o->plan.param, kind = o->plan.kind;
    const uint32_t flags = kind == PLAN_NORMALIZE ? N_COUNT : kind == PLAN_REDUCE ? R_COUNT : 2;
    if (check_group(r, o, param[0])) return -1;
    REFUSE_IF(param[1] >= flags, "operation %u: an unknown flag (%u)", r->current, param[1]);
    if (kind == PLAN_LAYERNORM && (keep_tensor(r, o, 0, PLAN_F32, param[0]) || keep_tensor(r, o, 1, PLAN_F32, param[0])))
        return -1;
    return check_out(r, o, kind == PLAN_REDUCE ? o->in_width / param[0] : o->in_width);
}

/* What it reads has been written in full, what it writes has not. */
static int check_buffers(struct reader *r, struct op *o) {
    const struct plan_op *p = &o->plan;
    const struct engine *e = r->engine;
    REFUSE_IF(p->in[0] == PLAN_NONE || !p->out || p->out >= e->buffers, "operation %u: no input, or no output", r->current);
    for (int i = 0; i < PLAN_INPUTS; i++) {
        if (p->in[i] == PLAN_NONE) continue;
        REFUSE_IF(p->in[i] >= e->buffers || (i && p->in[i - 1] == PLAN_NONE), "operation %u: input %d is no buffer", r->current, i);
        REFUSE_IF(r->written[p->in[i]] != e->widths[p->in[i]], "operation %u: reads buffer %u before it is written", r->current,
                  p->in[i]);
    }
    for (int i = 0; i < PLAN_SCALARS; i++)
        REFUSE_IF(!all_finite(&p->scalar[i], 1, PLAN_F32), "operation %u: scalar %d is not finite", r->current, i);
    o->in_width = e->widths[p->in[0]];
    o->out_width = e->widths[p->out];
    if (p->kind != PLAN_COPY && p->kind != PLAN_INDEX)
        REFUSE_IF(r->written[p->out], "operation %u: buffer %u is written already", r->current, p->out);
    return 0;
}

static int read_op(struct reader *r, struct op *o) {
    if (check_buffers(r, o)) return -1;
    int failed;
    uint32_t written = o->out_width;
    switch (o->plan.kind) {
    case PLAN_DENSE: failed = read_dense(r, o); break;
    case PLAN_MAP: case PLAN_AFFINE: case PLAN_BINARY: case PLAN_CONSTANT: case PLAN_IMPUTE:
        failed = read_elementwise(r, o); break;
    case PLAN_COPY: case PLAN_INDEX:
        failed = read_part(r, o);
        written = o->plan.param[2] + o->plan.param[1];
        break;
    case PLAN_SOFTMAX: case PLAN_LAYERNORM: case PLAN_NORMALIZE: case PLAN_REDUCE: failed = read_grouped(r, o); break;
    case PLAN_TREES: failed = read_trees(r, o); break;
    case PLAN_LSTM: case PLAN_GRU: failed = read_recurrent(r, o); break;
    default: return refused(r, "operation %u: of an unknown kind (%u)", r->current, o->plan.kind);
    }
    r->written[o->plan.out] = written;
    return failed;
}

static int read_ops(struct reader *r) {
    struct engine *e = r->engine;
    e->ops = r->header.ops;
    e->op = engine_allocate(e, e->ops * sizeof *e->op);
    REFUSE_IF(!e->op, "out of memory");
    for (r->current = 0; r->current < e->ops; r->current++) {
        e->op[r->current].plan = r->ops[r->current];
        if (read_op(r, &e->op[r->current])) return -1;
    }
    REFUSE_IF(r->written[1] != e->outputs, "its answer is not written in full");
    return 0;
}

struct engine *engine_load(const uint8_t *plan, size_t size, const struct isa *isa, char *error, size_t error_size) {
    struct reader r = {.plan = plan, .error = error, .error_size = error_size, .engine = calloc(1, sizeof *r.engine)};
    uint8_t *copy = NULL;
    if (!r.engine) {
        refused(&r, "out of memory");
        return NULL;
    }
    r.engine->isa = isa;
    if ((uintptr_t)plan % 8 && size) {
        copy = aligned_alloc(64, ROUND_UP(size, 64));
        if (copy) r.plan = memcpy(copy, plan, size);
    }
    int failed = (uintptr_t)r.plan % 8 && size ? refused(&r, "out of memory") : 0;
    failed = failed || read_header(&r, size) || read_tensors(&r) || read_buffers(&r) || read_ops(&r);
    free(copy);
    if (!failed) return r.engine;
    engine_free(r.engine);
    return NULL;
}
