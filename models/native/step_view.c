/* From an engine that takes windows to what it does for one step of them, where that gives the same bits: see sliding.h. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sliding.h"

/* What a buffer holds: a part for every step, or what only the last step decides. */
enum span { SERIES, NEWEST };

struct narrowing {
    const struct engine *whole;
    struct step_view *view;
    uint8_t *span;  /* [buffers] */
    uint8_t *shared; /* [buffers]: no state stands before it, so that every window has the same */
    uint32_t current;
    char *error;
    size_t error_size;
};

static int refused(struct narrowing *n, const char *format, ...) __attribute__((format(printf, 2, 3)));

static int refused(struct narrowing *n, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(n->error, n->error_size, format, arguments);
    va_end(arguments);
    return -1;
}

#define REFUSE_IF(condition, ...) \
    do { if (condition) return refused(n, __VA_ARGS__); } while (0)

const char *engine_op_name(const struct op *o) {
    static const char *const names[] = {
        "", "a layer", "a function", "a scaling", "an operation on two values", "an operation with a constant", "a copy",
        "a rearrangement", "a softmax", "a layer norm", "a normalization", "a reduction", "an ensemble of trees",
        "an imputation", "an LSTM", "a GRU",
    };
    return names[o->plan.kind];
}

static uint32_t narrow_width(const struct narrowing *n, uint32_t buffer) { return n->view->engine.widths[buffer]; }

/* Whether a tensor of a whole window says the same of every step. */
static int repeats(const struct narrowing *n, const float *tensor, uint32_t width) {
    for (uint32_t i = 1; i < n->view->steps; i++)
        if (memcmp(tensor, tensor + (size_t)i * width, width * sizeof *tensor)) return 0;
    return 1;
}

/* A rearrangement of the newest step, or the same one of every step. */
static int narrow_index(struct narrowing *n, struct op *o, uint32_t width) {
    const uint32_t *from = (const uint32_t *)o->tensor[0], count = o->plan.param[1], steps = n->view->steps;
    const uint32_t newest = (steps - 1) * width, each = count / steps;
    int is_newest = 1, is_each = !o->plan.param[2] && count == o->out_width && each * steps == count;
    for (uint32_t i = 0; i < count; i++) {
        is_newest &= from[i] == PLAN_NONE || from[i] >= newest;
        if (!is_each) continue;
        const uint32_t first = from[i % each], step = i / each;
        is_each = first == PLAN_NONE ? from[i] == PLAN_NONE : first < width && from[i] == first + step * width;
    }
    REFUSE_IF(!is_newest && !is_each, "%s mixes the steps", engine_op_name(o));
    uint32_t *to = engine_allocate(&n->view->engine, (size_t)count * sizeof *to);
    REFUSE_IF(!to, "out of memory");
    for (uint32_t i = 0; i < count; i++) to[i] = is_each || from[i] == PLAN_NONE ? from[i] : from[i] - newest;
    o->tensor[0] = (const float *)to;
    if (!is_each) return NEWEST;
    o->plan.param[1] = each;
    n->view->engine.widths[o->plan.out] = each;
    return SERIES;
}

static int narrow_recurrent(struct narrowing *n, struct op *o, uint32_t width) {
    const uint32_t *param = o->plan.param;
    struct step_view *v = n->view;
    REFUSE_IF(param[4], "%s runs backwards", engine_op_name(o));
    REFUSE_IF(param[0] != v->steps || param[1] != width, "%s takes %u steps of %u values, expected %u of %u", engine_op_name(o),
              param[0], param[1], v->steps, width);
    v->state_at[n->current] = v->state_floats;
    v->state_floats += STRIDE(param[2]) * (o->plan.kind == PLAN_LSTM ? 2 : 1);
    v->gates_at[n->current] = v->gate_floats;
    v->gate_floats += o->recurrent.n_padded;
    const size_t floats = 2 * (size_t)o->dense.n_padded + 2 * STRIDE(param[2]);
    if (floats > v->engine.temporary_row_floats) v->engine.temporary_row_floats = floats;
    v->engine.widths[o->plan.out] = param[2];
    return param[3] ? SERIES : NEWEST;
}

/* An operation that reads a part for every step; what it writes, or -1. */
static int narrow_series(struct narrowing *n, struct op *o, uint32_t width) {
    uint32_t *const param = o->plan.param, *to = &n->view->engine.widths[o->plan.out];
    switch (o->plan.kind) {
    case PLAN_LSTM: case PLAN_GRU: return narrow_recurrent(n, o, width);
    case PLAN_INDEX: return narrow_index(n, o, width);
    case PLAN_COPY:
        REFUSE_IF(param[0] < (n->view->steps - 1) * width, "%s takes more than the newest step", engine_op_name(o));
        param[0] -= (n->view->steps - 1) * width;
        return NEWEST;
    case PLAN_DENSE:
        REFUSE_IF(width % param[0], "%s takes %u values, and a step has %u", engine_op_name(o), param[0], width);
        *to = width / param[0] * param[1];
        return SERIES;
    case PLAN_MAP: case PLAN_BINARY: *to = width; return SERIES;
    case PLAN_AFFINE: case PLAN_CONSTANT: case PLAN_IMPUTE:
        REFUSE_IF(!repeats(n, o->tensor[0], width) || (o->plan.kind == PLAN_AFFINE && !repeats(n, o->tensor[1], width)),
                  "%s differs between the steps", engine_op_name(o));
        *to = width;
        return SERIES;
    case PLAN_SOFTMAX: case PLAN_LAYERNORM: case PLAN_NORMALIZE: case PLAN_REDUCE:
        REFUSE_IF(width % param[0], "%s goes over %u values, and a step has %u", engine_op_name(o), param[0], width);
        *to = o->plan.kind == PLAN_REDUCE ? width / param[0] : width;
        return SERIES;
    default: return refused(n, "%s looks at all steps together", engine_op_name(o));
    }
}

static int narrow_op(struct narrowing *n) {
    struct step_view *v = n->view;
    struct op *o = &v->engine.op[n->current];
    const uint32_t *in = o->plan.in;
    uint32_t series = 0, others = 0;
    int shared = o->plan.kind != PLAN_LSTM && o->plan.kind != PLAN_GRU;
    for (int i = 0; i < PLAN_INPUTS && in[i] != PLAN_NONE; i++) {
        series += n->span[in[i]] == SERIES;
        others += n->span[in[i]] != SERIES;
        shared &= n->shared[in[i]];
    }
    REFUSE_IF(series && others, "%s mixes steps with what comes after the last one", engine_op_name(o));
    v->state_at[n->current] = STATELESS;
    int span = NEWEST;
    if (series) span = narrow_series(n, o, narrow_width(n, in[0]));
    if (span < 0) return -1;
    /* A state takes every step, whatever is read of it. */
    v->last[n->current] = span == NEWEST && v->state_at[n->current] == STATELESS;
    n->span[o->plan.out] = (uint8_t)span;
    n->shared[o->plan.out] = span == SERIES && shared;
    o->in_width = narrow_width(n, in[0]);
    o->out_width = narrow_width(n, o->plan.out);
    return 0;
}

/* Scratch memory for what runs as it did: the layers of several rows, and recurrent layers behind the last step. */
void engine_keep_scratch(struct engine *e, const struct op *o) {
    const uint32_t *param = o->plan.param;
    if (o->plan.kind == PLAN_DENSE) {
        const size_t floats = (size_t)(o->in_width / param[0]) * o->dense.n_padded;
        if (floats > e->temporary_floats) e->temporary_floats = floats;
    } else if (o->plan.kind == PLAN_LSTM || o->plan.kind == PLAN_GRU) {
        const size_t floats = ((size_t)param[0] + 1) * o->dense.n_padded + 4 * STRIDE(param[2]);
        if (floats > e->temporary_row_floats) e->temporary_row_floats = floats;
    }
}

static int narrow(struct narrowing *n) {
    struct step_view *v = n->view;
    struct engine *e = &v->engine;
    REFUSE_IF(v->steps < 2, "a window of %u steps has none to keep", v->steps);
    REFUSE_IF(n->whole->features % v->steps, "a row of %u values is no window of %u steps", n->whole->features,
              v->steps);
    e->widths[0] = e->features = n->whole->features / v->steps;
    n->span[0] = SERIES;
    n->shared[0] = 1;
    for (n->current = 0; n->current < e->ops; n->current++)
        if (narrow_op(n)) return -1;
    REFUSE_IF(n->span[1] != NEWEST, "it answers for every step");
    REFUSE_IF(!v->state_floats, "it has no recurrent layer");
    for (uint32_t i = 0; i < e->buffers; i++) {
        e->places[i] = e->row_floats;
        e->row_floats += STRIDE(e->widths[i]);
    }
    for (uint32_t i = 0; i < e->ops; i++)
        if (v->state_at[i] == STATELESS) engine_keep_scratch(e, &e->op[i]);
    return 0;
}

/* Copies of the tables that become other ones; -1 without memory. */
static int copy_tables(struct narrowing *n) {
    const struct engine *whole = n->whole;
    struct step_view *v = n->view;
    struct engine *e = &v->engine;
    *e = (struct engine){.isa = whole->isa, .features = whole->features, .outputs = whole->outputs, .buffers = whole->buffers,
                         .ops = whole->ops, .k_max = whole->k_max, .macs = whole->macs};
    e->widths = engine_allocate(e, e->buffers * sizeof *e->widths);
    e->places = engine_allocate(e, e->buffers * sizeof *e->places);
    e->op = engine_allocate(e, e->ops * sizeof *e->op);
    v->state_at = engine_allocate(e, e->ops * sizeof *v->state_at);
    v->gates_at = engine_allocate(e, e->ops * sizeof *v->gates_at);
    v->last = engine_allocate(e, e->ops);
    n->span = engine_allocate(e, e->buffers);
    n->shared = engine_allocate(e, e->buffers);
    if (!e->widths || !e->places || !e->op || !v->state_at || !v->gates_at || !v->last || !n->span ||
        !n->shared)
        return refused(n, "out of memory");
    memcpy(e->widths, whole->widths, e->buffers * sizeof *e->widths);
    memcpy(e->op, whole->op, e->ops * sizeof *e->op);
    e->shared = n->shared;
    return 0;
}

struct step_view *step_view_new(const struct engine *whole, uint32_t steps, char *error, size_t error_size) {
    struct narrowing n = {.whole = whole, .error = error, .error_size = error_size, .view = calloc(1, sizeof *n.view)};
    if (!n.view) {
        refused(&n, "out of memory");
        return NULL;
    }
    n.view->steps = steps;
    if (!copy_tables(&n) && !narrow(&n)) return n.view;
    step_view_free(n.view);
    return NULL;
}

size_t step_view_place_floats(const struct step_view *v) { return v->steps * v->state_floats + v->gate_floats; }

void step_view_free(struct step_view *v) {
    if (!v) return;
    engine_release(&v->engine);
    free(v);
}
