/* From an engine that takes windows to what it does anew for the newest step of them: see columns.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "columns.h"

#define NO_TIME UINT32_MAX /* a value that looks at no step */
#define WORK_PERCENT_MAX 50u

/* A value of the window: that place of a buffer of the view, at the step to which it belongs. Of a zero the buffer is
 * PLAN_NONE. */
struct label {
    uint32_t buffer, offset, time;
};

/* A value that an operation of the view reads. */
struct element {
    uint32_t source, back, from, to;
};

/* What an operation reads and writes at a time. */
struct unit {
    uint32_t in, out;
};

struct reading {
    const struct engine *whole;
    struct column_view *view;
    uint8_t *needed;      /* [row_floats]: whether the answer depends on it */
    struct label *labels; /* [row_floats] */
    /* Of the operation that is read: its units that differ. */
    uint32_t kinds;
    uint32_t *first, *time; /* [kinds]: the unit that was met first, and the newest step that it looks at */
    uint32_t *table;        /* hashed to kind + 1 */
    struct element *elements;
    uint32_t pieces_room;
    int padded; /* whether a layer of which the answer depends reads a zero */
    uint64_t heaviest;
    const struct op *heaviest_op; /* of the view */
};

static struct unit unit_of(const struct op *o) {
    const uint32_t *param = o->plan.param;
    switch (o->plan.kind) {
    case PLAN_DENSE: return (struct unit){param[0], param[1]};
    case PLAN_MAP: case PLAN_AFFINE: case PLAN_BINARY: case PLAN_CONSTANT: case PLAN_IMPUTE: return (struct unit){1, 1};
    case PLAN_SOFTMAX: case PLAN_LAYERNORM: case PLAN_NORMALIZE: return (struct unit){param[0], param[0]};
    case PLAN_REDUCE: return (struct unit){param[0], 1};
    default: return (struct unit){o->in_width, o->out_width};
    }
}

/* How many tensors of it have an element for each value. */
static int constants_of(const struct op *o) {
    switch (o->plan.kind) {
    case PLAN_AFFINE: return 2;
    case PLAN_CONSTANT: case PLAN_IMPUTE: return 1;
    default: return 0;
    }
}

static int inputs_of(const struct op *o) {
    int count = 0;
    while (count < PLAN_INPUTS && o->plan.in[count] != PLAN_NONE) count++;
    return count;
}

static uint64_t work_of(const struct op *o) {
    const uint32_t *param = o->plan.param;
    switch (o->plan.kind) {
    case PLAN_DENSE: return (uint64_t)o->in_width * param[1];
    case PLAN_LSTM: case PLAN_GRU: return (uint64_t)param[0] * (param[1] + param[2]) * o->dense.n;
    case PLAN_COPY: case PLAN_INDEX: return param[1];
    case PLAN_TREES: return o->in_width + 8 * (uint64_t)o->trees.count;
    default: return o->in_width;
    }
}

/* -- what the answer depends on */

static void need_inputs(struct reading *r, const struct op *o) {
    const struct engine *e = r->whole;
    const uint8_t *out = r->needed + e->places[o->plan.out];
    const uint32_t *param = o->plan.param, *index = (const uint32_t *)o->tensor[0];
    if (o->plan.kind == PLAN_COPY || o->plan.kind == PLAN_INDEX) {
        for (uint32_t i = 0; i < param[1]; i++) {
            const uint32_t from = o->plan.kind == PLAN_COPY ? param[0] + i : index[i];
            if (from != PLAN_NONE && out[param[2] + i]) r->needed[e->places[o->plan.in[0]] + from] = 1;
        }
        return;
    }
    const struct unit u = unit_of(o);
    for (uint32_t i = 0; i < o->in_width / u.in; i++) {
        if (!memchr(out + (size_t)i * u.out, 1, u.out)) continue;
        for (int input = 0; input < inputs_of(o); input++)
            memset(r->needed + e->places[o->plan.in[input]] + (size_t)i * u.in, 1, u.in);
    }
}

/* -- which units of an operation are one */

static const struct label *labels_of(const struct reading *r, const struct op *o, int input, uint32_t unit, uint32_t size) {
    return r->labels + r->whole->places[o->plan.in[input]] + (size_t)unit * size;
}

static uint32_t newest_of(const struct reading *r, const struct op *o, uint32_t unit, uint32_t size) {
    uint32_t newest = NO_TIME;
    for (int input = 0; input < inputs_of(o); input++) {
        const struct label *l = labels_of(r, o, input, unit, size);
        for (uint32_t i = 0; i < size; i++)
            if (l[i].time != NO_TIME && (newest == NO_TIME || l[i].time > newest)) newest = l[i].time;
    }
    return newest;
}

static uint32_t back_of(struct label l, uint32_t newest) { return l.time == NO_TIME ? 0 : newest - l.time; }

static uint32_t bits_of(const float *value) {
    uint32_t bits;
    memcpy(&bits, value, sizeof bits);
    return bits;
}

static uint32_t hash_of(const struct reading *r, const struct op *o, uint32_t unit, uint32_t size, uint32_t newest) {
    uint64_t hash = newest == NO_TIME;
    for (int input = 0; input < inputs_of(o); input++) {
        const struct label *l = labels_of(r, o, input, unit, size);
        for (uint32_t i = 0; i < size; i++) {
            const uint64_t word = ((uint64_t)l[i].buffer << 32 | l[i].offset) + (uint64_t)back_of(l[i], newest) * 0x9e3779b9u;
            hash = (hash ^ word) * 0xff51afd7ed558ccdu;
            hash ^= hash >> 29;
        }
    }
    for (int i = 0; i < constants_of(o); i++) hash = (hash ^ bits_of(&o->tensor[i][unit])) * 0xff51afd7ed558ccdu;
    return (uint32_t)(hash >> 32);
}

static int are_one(const struct reading *r, const struct op *o, uint32_t size, uint32_t a, uint32_t newest_a, uint32_t b,
                   uint32_t newest_b) {
    if ((newest_a == NO_TIME) != (newest_b == NO_TIME)) return 0;
    for (int input = 0; input < inputs_of(o); input++) {
        const struct label *x = labels_of(r, o, input, a, size), *y = labels_of(r, o, input, b, size);
        for (uint32_t i = 0; i < size; i++) {
            if (x[i].buffer != y[i].buffer || x[i].offset != y[i].offset ||
                (x[i].time == NO_TIME) != (y[i].time == NO_TIME) || back_of(x[i], newest_a) != back_of(y[i], newest_b))
                return 0;
        }
    }
    for (int i = 0; i < constants_of(o); i++)
        if (bits_of(&o->tensor[i][a]) != bits_of(&o->tensor[i][b])) return 0;
    return 1;
}

/* Which of the units that differ this one is: maybe a new one. */
static uint32_t kind_of(struct reading *r, const struct op *o, uint32_t unit, uint32_t size, uint32_t mask) {
    const uint32_t newest = newest_of(r, o, unit, size);
    uint32_t at = hash_of(r, o, unit, size, newest) & mask;
    for (; r->table[at]; at = (at + 1) & mask) {
        const uint32_t kind = r->table[at] - 1;
        if (are_one(r, o, size, unit, newest, r->first[kind], r->time[kind])) return kind;
    }
    r->first[r->kinds] = unit;
    r->time[r->kinds] = newest;
    r->table[at] = ++r->kinds;
    return r->kinds - 1;
}

/* -- the operations of the view */

static uint32_t new_buffer(struct column_view *v, uint32_t width) {
    v->engine.widths[v->engine.buffers] = width;
    return v->engine.buffers++;
}

static int by_source(const void *one, const void *other) {
    const struct element *a = one, *b = other;
    if (a->source != b->source) return a->source < b->source ? -1 : 1;
    if (a->back != b->back) return a->back < b->back ? -1 : 1;
    return a->to < b->to ? -1 : a->to > b->to;
}

static int add_piece(struct reading *r, struct piece_of_column piece) {
    struct column_view *v = r->view;
    uint32_t *count = &v->pieces_end[v->engine.ops];
    if (*count == r->pieces_room) {
        r->pieces_room = r->pieces_room ? 2 * r->pieces_room : 64;
        void *grown = realloc(v->pieces, r->pieces_room * sizeof *v->pieces);
        if (!grown) return -1;
        v->pieces = grown;
    }
    v->pieces[(*count)++] = piece;
    v->work += piece.count;
    return 0;
}

/* Copy those elements to a buffer, as few pieces. */
static int add_pieces(struct reading *r, uint32_t count, uint32_t into) {
    struct element *all = r->elements;
    qsort(all, count, sizeof *all, by_source);
    for (uint32_t at = 0, end; at < count; at = end) {
        struct piece_of_column p = {all[at].source, all[at].back, all[at].from, 1, into, all[at].to, 1, 1};
        for (end = at + 1; end < count; end++, p.count++) {
            const struct element *a = &all[end - 1], *b = &all[end];
            if (a->source != b->source || a->back != b->back || b->from < a->from) break;
            if (end == at + 1) {
                p.from_stride = b->from - a->from;
                p.to_stride = b->to - a->to;
            } else if (b->from - a->from != p.from_stride || b->to - a->to != p.to_stride) break;
        }
        if (add_piece(r, p)) return -1;
    }
    return 0;
}

/* Let the view read a value; the number of elements then. */
static uint32_t add_element(struct reading *r, uint32_t count, struct label l, uint32_t newest, uint32_t to) {
    const uint32_t back = back_of(l, newest);
    if (l.buffer == PLAN_NONE) return count;
    if (back && back >= r->view->slots[l.buffer]) r->view->slots[l.buffer] = back + 1;
    r->elements[count] = (struct element){l.buffer, back, l.offset, to};
    return count + 1;
}

/* Let an operation of the view read an input: in place where its values lie side by side. */
static int connect(struct reading *r, const struct op *o, int input, uint32_t size, struct op *made) {
    uint32_t count = 0;
    for (uint32_t k = 0; k < r->kinds; k++) {
        const struct label *l = labels_of(r, o, input, r->first[k], size);
        for (uint32_t i = 0; i < size; i++) count = add_element(r, count, l[i], r->time[k], k * size + i);
    }
    int in_place = count == made->in_width;
    for (uint32_t i = 0; in_place && i < count; i++) {
        const struct element *x = &r->elements[i];
        in_place = !x->back && x->source == r->elements[0].source && x->from == i;
    }
    if (count != made->in_width && o->plan.kind == PLAN_DENSE) r->padded = 1;
    made->plan.in[input] = in_place ? r->elements[0].source : new_buffer(r->view, made->in_width);
    return in_place ? 0 : add_pieces(r, count, made->plan.in[input]);
}

/* An operation on the units that differ, each at the newest step that it looks at. */
static int add_op(struct reading *r, const struct op *o, struct unit u, uint32_t out) {
    struct engine *e = &r->view->engine;
    struct op *made = &e->op[e->ops];
    *made = *o;
    made->plan.out = out;
    made->in_width = r->kinds * u.in;
    made->out_width = e->widths[out] = r->kinds * u.out;
    for (int input = 0; input < inputs_of(o); input++)
        if (connect(r, o, input, u.in, made)) return -1;
    for (int i = 0; i < constants_of(o); i++) {
        float *picked = engine_allocate(e, r->kinds * sizeof *picked);
        if (!picked) return -1;
        for (uint32_t k = 0; k < r->kinds; k++) picked[k] = o->tensor[i][r->first[k]];
        made->tensor[i] = picked;
    }
    const uint64_t work = work_of(made);
    r->view->work += work;
    if (work > r->heaviest) {
        r->heaviest = work;
        r->heaviest_op = made;
    }
    e->ops++;
    r->view->pieces_end[e->ops] = r->view->pieces_end[e->ops - 1];
    return 0;
}

static int read_units(struct reading *r, const struct op *o) {
    const struct unit u = unit_of(o);
    const uint32_t units = o->in_width / u.in;
    const size_t place = r->whole->places[o->plan.out];
    uint32_t slots = 4;
    while (slots < 2 * units) slots *= 2;
    memset(r->table, 0, slots * sizeof *r->table);
    r->kinds = 0;
    const uint32_t out = new_buffer(r->view, 0);
    for (uint32_t i = 0; i < units; i++) {
        if (!memchr(r->needed + place + (size_t)i * u.out, 1, u.out)) continue;
        const uint32_t kind = kind_of(r, o, i, u.in, slots - 1), time = newest_of(r, o, i, u.in);
        struct label *to = r->labels + place + (size_t)i * u.out;
        for (uint32_t n = 0; n < u.out; n++) to[n] = (struct label){out, kind * u.out + n, time};
    }
    if (r->kinds) return add_op(r, o, u, out);
    r->view->engine.buffers--;
    return 0;
}

static int read_op(struct reading *r, const struct op *o) {
    r->view->whole_work += work_of(o);
    if (o->plan.kind != PLAN_COPY && o->plan.kind != PLAN_INDEX) return read_units(r, o);
    const struct label *in = labels_of(r, o, 0, 0, 0);
    const uint32_t *param = o->plan.param, *index = (const uint32_t *)o->tensor[0];
    struct label *out = r->labels + r->whole->places[o->plan.out] + param[2];
    for (uint32_t i = 0; i < param[1]; i++) {
        const uint32_t from = o->plan.kind == PLAN_COPY ? param[0] + i : index[i];
        out[i] = from == PLAN_NONE ? (struct label){PLAN_NONE, 0, NO_TIME} : in[from];
    }
    return 0;
}

/* -- the view */

/* Tables for the largest operation, and for all values of a window; -1 without memory. */
static int allocate(struct reading *r) {
    const struct engine *whole = r->whole;
    struct column_view *v = r->view;
    struct engine *e = &v->engine;
    const size_t buffers = 2 + (size_t)whole->ops * (1 + PLAN_INPUTS);
    size_t widest = 0, slots = 4;
    for (uint32_t i = 0; i < whole->buffers; i++) widest = whole->widths[i] > widest ? whole->widths[i] : widest;
    while (slots < 2 * widest) slots *= 2;
    e->widths = engine_allocate(e, buffers * sizeof *e->widths);
    e->places = engine_allocate(e, buffers * sizeof *e->places);
    e->op = engine_allocate(e, whole->ops * sizeof *e->op);
    v->pieces_end = engine_allocate(e, (whole->ops + 1) * sizeof *v->pieces_end);
    v->answer_only = engine_allocate(e, whole->ops);
    v->slots = engine_allocate(e, buffers * sizeof *v->slots);
    v->ring_at = engine_allocate(e, buffers * sizeof *v->ring_at);
    r->needed = calloc(whole->row_floats, 1);
    r->labels = calloc(whole->row_floats, sizeof *r->labels);
    r->first = malloc(widest * sizeof *r->first);
    r->time = malloc(widest * sizeof *r->time);
    r->table = malloc(slots * sizeof *r->table);
    r->elements = malloc(widest * sizeof *r->elements);
    return e->widths && e->places && e->op && v->pieces_end && v->answer_only && v->slots && v->ring_at && r->needed &&
                   r->labels && r->first && r->time && r->table && r->elements ? 0 : -1;
}

static void release(struct reading *r) {
    free(r->needed);
    free(r->labels);
    free(r->first);
    free(r->time);
    free(r->table);
    free(r->elements);
}

static int read_ops(struct reading *r) {
    const struct engine *whole = r->whole;
    struct column_view *v = r->view;
    const uint32_t steps = v->steps, features = v->engine.features;
    memset(r->needed + whole->places[1], 1, whole->outputs);
    for (uint32_t i = whole->ops; i--;) need_inputs(r, &whole->op[i]);
    for (uint32_t i = 0; i < whole->features; i++)
        r->labels[i] = v->time_axis == 1 ? (struct label){0, i % features, i / features} : (struct label){0, i / steps, i % steps};
    for (uint32_t i = 0; i < whole->ops; i++)
        if (read_op(r, &whole->op[i])) return -1;
    uint32_t count = 0;
    for (uint32_t i = 0; i < whole->outputs; i++)
        count = add_element(r, count, r->labels[whole->places[1] + i], steps - 1, i);
    return add_pieces(r, count, 1);
}

/* Which operations leave nothing behind for later steps. */
static void find_answer_only(struct column_view *v, uint8_t *later) {
    struct engine *e = &v->engine;
    for (uint32_t b = 0; b < e->buffers; b++) later[b] = v->slots[b] > 0;
    for (uint32_t i = e->ops; i--;) {
        v->answer_only[i] = !later[e->op[i].plan.out];
        if (v->answer_only[i]) continue;
        for (int input = 0; input < inputs_of(&e->op[i]); input++) later[e->op[i].plan.in[input]] = 1;
        for (uint32_t p = i ? v->pieces_end[i - 1] : 0; p < v->pieces_end[i]; p++) later[v->pieces[p].source] = 1;
    }
}

static void lay_out(struct column_view *v) {
    struct engine *e = &v->engine;
    v->slots[0] = v->steps;
    for (uint32_t b = 0; b < e->buffers; b++) {
        e->places[b] = e->row_floats;
        e->row_floats += STRIDE(e->widths[b]);
        v->ring_at[b] = v->kept_floats;
        if (b) v->kept_floats += STRIDE((size_t)v->slots[b] * e->widths[b]);
    }
    for (uint32_t i = 0; i < e->ops; i++) engine_keep_scratch(e, &e->op[i]);
}

/* 0, or -1 with the reason. */
static int view_columns(struct reading *r, char *error, size_t size) {
    const struct engine *whole = r->whole;
    struct column_view *v = r->view;
    if (v->steps < 2) return snprintf(error, size, "a window of %u steps has none to keep", v->steps), -1;
    if (whole->features % v->steps)
        return snprintf(error, size, "a row of %u values is no window of %u steps", whole->features, v->steps), -1;
    v->engine = (struct engine){.isa = whole->isa, .features = whole->features / v->steps, .outputs = whole->outputs,
                                .buffers = 2, .k_max = whole->k_max, .macs = whole->macs};
    if (allocate(r)) return snprintf(error, size, "out of memory"), -1;
    v->engine.widths[0] = v->engine.features;
    v->engine.widths[1] = v->engine.outputs;
    if (read_ops(r)) return snprintf(error, size, "out of memory"), -1;
    const uint64_t percent = 100 * v->work / v->whole_work;
    if (percent > WORK_PERCENT_MAX) {
        const struct op *o = r->heaviest_op;
        snprintf(error, size, "a step would repeat %llu%% of its window, expected at most %u%%: most of it is %s of %u values%s",
                 (unsigned long long)percent, WORK_PERCENT_MAX, o ? engine_op_name(o) : "a copy",
                 o ? o->in_width : v->engine.outputs, r->padded ? ", some of which are padding" : "");
        return -1;
    }
    find_answer_only(v, r->needed);
    lay_out(v);
    return 0;
}

struct column_view *column_view_new(const struct engine *whole, uint32_t steps, uint32_t time_axis, char *error, size_t size) {
    struct reading r = {.whole = whole, .view = calloc(1, sizeof *r.view)};
    if (!r.view) {
        snprintf(error, size, "out of memory");
        return NULL;
    }
    r.view->steps = steps;
    r.view->time_axis = time_axis;
    const int failed = view_columns(&r, error, size);
    release(&r);
    if (!failed) return r.view;
    column_view_free(r.view);
    return NULL;
}

void column_view_free(struct column_view *v) {
    if (!v) return;
    engine_release(&v->engine);
    free(v->pieces);
    free(v);
}
