/* The operations of a plan, run over blocks of rows. Included once for each instruction set. */
#pragma once
#include "dense.h"
#include "tree_kernels.h"

#define CAT_(a, b) a##b
#define CAT(a, b) CAT_(a, b)

INLINE float combine(const uint32_t how, float a, float b) {
    switch (how) {
    case B_ADD: return a + b;
    case B_SUB: return a - b;
    case B_MUL: return a * b;
    case B_DIV: return a / b;
    case B_MIN: return a != a ? a : smaller(a, b);
    default: return a != a ? a : larger(a, b);
    }
}

static void binary(const uint32_t how, const float *a, const float *b, float *y, size_t n) {
#define LOOP(h) case h: for (size_t i = 0; i < n; i++) y[i] = combine(h, a[i], b[i]); break;
    switch (how) { LOOP(B_ADD) LOOP(B_SUB) LOOP(B_MUL) LOOP(B_DIV) LOOP(B_MIN) LOOP(B_MAX) }
#undef LOOP
}

/* Over n floats in LANES chains: float i goes to chain i % LANES. */
#define REDUCE(name, start, expression, join) \
    static float name(const float *x, size_t n, float shift) { \
        float lane[LANES]; \
        for (size_t i = 0; i < LANES; i++) lane[i] = start; \
        size_t at = 0; \
        for (; at + LANES <= n; at += LANES) { \
            for (size_t i = 0; i < LANES; i++) { const float v = x[at + i] - shift, sum = lane[i]; lane[i] = expression; } \
        } \
        for (size_t i = 0; at + i < n; i++) { const float v = x[at + i] - shift, sum = lane[i]; lane[i] = expression; } \
        for (size_t half = LANES / 2; half; half /= 2) { \
            for (size_t i = 0; i < half; i++) { const float sum = lane[i], v = lane[i + half]; lane[i] = join; } \
        } \
        return lane[0]; \
    }
REDUCE(sum_of, 0.0f, sum + v, sum + v)
REDUCE(sum_of_squares, 0.0f, fmaf(v, v, sum), sum + v)
REDUCE(sum_of_sizes, 0.0f, sum + absolute(v), sum + v)
REDUCE(largest, -INFINITY, (sum != sum ? sum : larger(sum, v)), (sum != sum ? sum : larger(sum, v)))
REDUCE(smallest, INFINITY, (sum != sum ? sum : smaller(sum, v)), (sum != sum ? sum : smaller(sum, v)))
REDUCE(largest_size, 0.0f, (sum != sum ? sum : larger(sum, absolute(v))), (sum != sum ? sum : larger(sum, v)))
#undef REDUCE

static void softmax(const float *x, float *y, size_t n, int logarithm) {
    const float top = largest(x, n, 0.0f);
    for (size_t i = 0; i < n; i++) y[i] = f_exp(x[i] - top);
    const float sum = sum_of(y, n, 0.0f);
    if (logarithm) {
        const float log_sum = f_log(sum);
        for (size_t i = 0; i < n; i++) y[i] = (x[i] - top) - log_sum;
    } else {
        for (size_t i = 0; i < n; i++) y[i] = y[i] / sum;
    }
}

static void layernorm(const float *x, float *y, size_t n, int rms, const float *scale, const float *bias, float eps) {
    const float mean = rms ? 0.0f : sum_of(x, n, 0.0f) / (float)n;
    const float deviation = sqrtf(sum_of_squares(x, n, mean) / (float)n + eps);
    for (size_t i = 0; i < n; i++) y[i] = fmaf((x[i] - mean) / deviation, scale[i], bias[i]);
}

static void normalize(const float *x, float *y, size_t n, uint32_t how) {
    const float by = how == N_MAX ? largest_size(x, n, 0.0f)
                     : how == N_L1 ? sum_of_sizes(x, n, 0.0f)
                                   : sqrtf(sum_of_squares(x, n, 0.0f));
    for (size_t i = 0; i < n; i++) y[i] = by == 0.0f ? x[i] : x[i] / by;
}

static float reduce(const float *x, size_t n, uint32_t how) {
    switch (how) {
    case R_SUM: return sum_of(x, n, 0.0f);
    case R_MEAN: return sum_of(x, n, 0.0f) / (float)n;
    case R_MAX: return largest(x, n, 0.0f);
    case R_MIN: return smallest(x, n, 0.0f);
    case R_L1: return sum_of_sizes(x, n, 0.0f);
    default: return sqrtf(sum_of_squares(x, n, 0.0f));
    }
}

/* Several rows of a layer within one row of the model: their answers lie one behind the other, so where they are no
 * whole number of vectors they are computed aside. */
static void dense_steps(const struct dense *d, const struct scratch *s, const float *x, uint32_t steps, float *y) {
    if (d->n_padded == d->n) {
        dense_rows(d, s, x, d->k, steps, y, d->n);
        return;
    }
    dense_rows(d, s, x, d->k, steps, s->temporary, d->n_padded);
    for (uint32_t i = 0; i < steps; i++)
        memcpy(y + (size_t)i * d->n, s->temporary + (size_t)i * d->n_padded, d->n * sizeof *y);
}

/* One step of a row, to its next state: `gates` holds what its input adds to each gate, `recurrent` what its state adds.
 * They are two sums, added once, so that the state's can be ready before the input comes. Not inlined, and no pointer
 * reads what another one writes: only so does the compiler make vectors of the loop wherever it is called. */
static __attribute__((noinline)) void lstm_cell(size_t h, const float *restrict gates, const float *restrict recurrent,
                                                float *restrict c, float *restrict state) {
    for (size_t u = 0; u < h; u++) {
        const float in = f_sigmoid(gates[u] + recurrent[u]), out = f_sigmoid(gates[h + u] + recurrent[h + u]);
        const float keep = f_sigmoid(gates[2 * h + u] + recurrent[2 * h + u]);
        c[u] = fmaf(keep, c[u], in * f_tanh(gates[3 * h + u] + recurrent[3 * h + u]));
        state[u] = out * f_tanh(c[u]);
    }
}

/* The same; the new gate's part of the state is inside the reset. */
static __attribute__((noinline)) void gru_cell(size_t h, const float *restrict gates, const float *restrict recurrent,
                                               float *restrict state) {
    for (size_t u = 0; u < h; u++) {
        const float update = f_sigmoid(gates[u] + recurrent[u]), reset = f_sigmoid(gates[h + u] + recurrent[h + u]);
        const float fresh = f_tanh(fmaf(reset, recurrent[2 * h + u], gates[2 * h + u]));
        state[u] = fmaf(update, state[u] - fresh, fresh);
    }
}

/* What remains of that where the reset comes first: which state the gate h is given, */
static __attribute__((noinline)) void gru_reset(size_t h, const float *restrict gates, const float *restrict recurrent,
                                                const float *restrict state, float *restrict kept) {
    for (size_t u = 0; u < h; u++) kept[u] = f_sigmoid(gates[h + u] + recurrent[h + u]) * state[u];
}

/* and the next state, from what it makes of that. */
static __attribute__((noinline)) void gru_fresh(size_t h, const float *restrict gates, const float *restrict recurrent,
                                                const float *restrict from_kept, float *restrict state) {
    for (size_t u = 0; u < h; u++) {
        const float update = f_sigmoid(gates[u] + recurrent[u]), fresh = f_tanh(gates[2 * h + u] + from_kept[u]);
        state[u] = fmaf(update, state[u] - fresh, fresh);
    }
}

/* The next states of `rows` rows, from what their inputs and their states add to the gates. `spare` has room for two
 * states a row. */
static void next_states(const struct op *o, const struct scratch *s, uint32_t rows, const float *now, size_t ldn,
                        const float *step, size_t ldg, float *state, size_t lds, float *cell, size_t ldc, float *spare) {
    const uint32_t h = o->plan.param[2];
    const size_t padded = STRIDE(h);
    float *kept = spare, *from_kept = spare + rows * padded;
    if (o->fresh.k) {
        for (uint32_t r = 0; r < rows; r++) gru_reset(h, now + r * ldn, step + r * ldg, state + r * lds, kept + r * padded);
        dense_rows(&o->fresh, s, kept, padded, rows, from_kept, padded);
        for (uint32_t r = 0; r < rows; r++)
            gru_fresh(h, now + r * ldn, step + r * ldg, from_kept + r * padded, state + r * lds);
        return;
    }
    const int lstm = o->plan.kind == PLAN_LSTM;
    for (uint32_t r = 0; r < rows; r++) {
        if (lstm) lstm_cell(h, now + r * ldn, step + r * ldg, cell + r * ldc, state + r * lds);
        else gru_cell(h, now + r * ldn, step + r * ldg, state + r * lds);
    }
}

/* All steps of each row's window. What the inputs add to the gates is computed for all steps at once. */
static void recurrent(const struct op *o, const struct scratch *s, const float *x, size_t ldx, uint32_t rows, float *y,
                      size_t ldy) {
    const uint32_t steps = o->plan.param[0], h = o->plan.param[2];
    const int each = (int)o->plan.param[3], reverse = (int)o->plan.param[4];
    const size_t gates = o->dense.n_padded, padded = STRIDE(h);
    float *all = s->temporary, *step = all + (size_t)s->block_rows * steps * gates;
    float *state = step + (size_t)s->block_rows * gates, *cell = state + (size_t)s->block_rows * padded;
    float *spare = cell + (size_t)s->block_rows * padded;
    for (uint32_t r = 0; r < rows; r++)
        dense_rows(&o->dense, s, x + r * ldx, o->dense.k, steps, all + (size_t)r * steps * gates, gates);
    memset(state, 0, sizeof *state * rows * padded);
    memset(cell, 0, sizeof *cell * rows * padded);
    for (uint32_t i = 0; i < steps; i++) {
        const uint32_t t = reverse ? steps - 1 - i : i;
        dense_rows(&o->recurrent, s, state, padded, rows, step, gates);
        next_states(o, s, rows, all + t * gates, steps * gates, step, gates, state, padded, cell, padded, spare);
        for (uint32_t r = 0; each && r < rows; r++)
            memcpy(y + r * ldy + (size_t)t * h, state + r * padded, h * sizeof *y);
    }
    for (uint32_t r = 0; !each && r < rows; r++) memcpy(y + r * ldy, state + r * padded, h * sizeof *y);
}

/* One step of `rows` windows, whose states stand `lds` floats apart. Without `ldx` they have one input. `prepared` is what
 * the state of the only one adds to its gates; NULL: that is computed. */
static void recurrent_step(const struct op *o, const struct scratch *s, const float *x, size_t ldx, uint32_t rows,
                           float *states, size_t lds, const float *prepared, float *y, size_t ldy) {
    const uint32_t h = o->plan.param[2];
    const size_t gates = o->dense.n_padded, block = s->block_rows;
    float *now = s->temporary, *computed = now + block * gates, *spare = computed + block * gates;
    dense_rows(&o->dense, s, x, ldx, ldx ? rows : 1, now, gates);
    if (!prepared) dense_rows(&o->recurrent, s, states, lds, rows, computed, gates);
    const float *step = prepared ? prepared : computed;
    next_states(o, s, rows, now, ldx ? gates : 0, step, gates, states, lds, states + STRIDE(h), lds, spare);
    for (uint32_t r = 0; r < rows; r++) memcpy(y + r * ldy, states + r * lds, h * sizeof *y);
}

static void run_row(const struct op *o, const float *const in[PLAN_INPUTS], float *y) {
    const float *x = in[0], *scalar = o->plan.scalar;
    const uint32_t *param = o->plan.param;
    const size_t width = o->in_width, group = param[0];
    switch (o->plan.kind) {
    case PLAN_MAP: map(param[0], x, y, width, scalar[0], scalar[1]); break;
    case PLAN_AFFINE:
        for (size_t i = 0; i < width; i++) y[i] = fmaf(x[i], o->tensor[0][i], o->tensor[1][i]);
        break;
    case PLAN_BINARY: binary(param[0], x, in[1], y, width); break;
    case PLAN_CONSTANT:
        if (param[1]) binary(param[0], o->tensor[0], x, y, width);
        else binary(param[0], x, o->tensor[0], y, width);
        break;
    case PLAN_COPY: memcpy(y + param[2], x + param[0], param[1] * sizeof *y); break;
    case PLAN_INDEX: {
        const uint32_t *index = (const uint32_t *)o->tensor[0];
        for (size_t i = 0; i < param[1]; i++) y[param[2] + i] = index[i] == PLAN_NONE ? 0.0f : x[index[i]];
        break;
    }
    case PLAN_SOFTMAX: for (size_t i = 0; i < width; i += group) softmax(x + i, y + i, group, (int)param[1]); break;
    case PLAN_LAYERNORM:
        for (size_t i = 0; i < width; i += group)
            layernorm(x + i, y + i, group, (int)param[1], o->tensor[0], o->tensor[1], scalar[0]);
        break;
    case PLAN_NORMALIZE: for (size_t i = 0; i < width; i += group) normalize(x + i, y + i, group, param[1]); break;
    case PLAN_REDUCE: for (size_t i = 0; i * group < width; i++) y[i] = reduce(x + i * group, group, param[1]); break;
    case PLAN_TREES: trees_row(&o->trees, x, y); break;
    case PLAN_IMPUTE:
        for (size_t i = 0; i < width; i++)
            y[i] = x[i] != x[i] || (!param[0] && x[i] == scalar[0]) ? o->tensor[0][i] : x[i];
        break;
    default: break;
    }
}

static void run_op(const struct engine *e, const struct op *o, const struct scratch *s, uint32_t rows) {
    const float *in[PLAN_INPUTS] = {NULL, NULL, NULL};
    size_t ldx[PLAN_INPUTS] = {0, 0, 0};
    for (int i = 0; i < PLAN_INPUTS; i++) {
        if (o->plan.in[i] == PLAN_NONE) break;
        in[i] = s->arena + e->places[o->plan.in[i]] * s->block_rows;
        ldx[i] = e->shared && e->shared[o->plan.in[i]] ? 0 : STRIDE(e->widths[o->plan.in[i]]);
    }
    float *y = s->arena + e->places[o->plan.out] * s->block_rows;
    const size_t ldy = STRIDE(e->widths[o->plan.out]);
    if (o->plan.kind == PLAN_DENSE && o->in_width == o->dense.k) {
        dense_rows(&o->dense, s, in[0], ldx[0], rows, y, ldy);
        return;
    }
    if (o->plan.kind == PLAN_LSTM || o->plan.kind == PLAN_GRU) {
        recurrent(o, s, in[0], ldx[0], rows, y, ldy);
        return;
    }
    for (uint32_t r = 0; r < rows; r++) {
        if (o->plan.kind == PLAN_DENSE) dense_steps(&o->dense, s, in[0], o->in_width / o->dense.k, y);
        else run_row(o, in, y);
        for (int i = 0; i < PLAN_INPUTS && in[i]; i++) in[i] += ldx[i];
        y += ldy;
    }
}

static void run(const struct engine *e, const struct scratch *s, const float *rows, float *out, uint32_t n) {
    const size_t ldx = STRIDE(e->features), ldy = STRIDE(e->outputs);
    float *inputs = s->arena + e->places[0] * s->block_rows, *answers = s->arena + e->places[1] * s->block_rows;
    for (uint32_t first = 0; first < n; first += s->block_rows) {
        const uint32_t count = n - first < s->block_rows ? n - first : s->block_rows;
        for (uint32_t r = 0; r < count; r++)
            memcpy(inputs + r * ldx, rows + (size_t)(first + r) * e->features, e->features * sizeof *rows);
        for (uint32_t i = 0; i < e->ops; i++) run_op(e, &e->op[i], s, count);
        for (uint32_t r = 0; r < count; r++)
            memcpy(out + (size_t)(first + r) * e->outputs, answers + r * ldy, e->outputs * sizeof *out);
    }
}

static void step(const struct step_view *v, const struct scratch *s, const float *row, float *states, const float *gates,
                 uint32_t n, float *out) {
    const struct engine *e = &v->engine;
    memcpy(s->arena + e->places[0] * s->block_rows, row, e->features * sizeof *row);
    for (uint32_t i = 0; i < e->ops; i++) {
        const struct op *o = &e->op[i];
        const uint32_t in = o->plan.in[0], to = o->plan.out;
        if (v->last[i] && !out) continue;
        if (v->state_at[i] == STATELESS) {
            run_op(e, o, s, e->shared[to] ? 1 : n);
            continue;
        }
        recurrent_step(o, s, s->arena + e->places[in] * s->block_rows, e->shared[in] ? 0 : STRIDE(e->widths[in]), n,
                       states + v->state_at[i], v->state_floats, gates ? gates + v->gates_at[i] : NULL,
                       s->arena + e->places[to] * s->block_rows, STRIDE(e->widths[to]));
    }
    if (out) memcpy(out, s->arena + e->places[1] * s->block_rows, e->outputs * sizeof *out);
}

static void prepare(const struct step_view *v, const struct scratch *s, const float *state, float *gates) {
    for (uint32_t i = 0; i < v->engine.ops; i++)
        if (v->state_at[i] != STATELESS)
            dense_rows(&v->engine.op[i].recurrent, s, state + v->state_at[i], 0, 1, gates + v->gates_at[i], 0);
}

#include "column_kernels.h"

const struct isa CAT(isa_, ISA) = {ISA_NAME, VL, PANEL_MAX, SPLIT_MAX, run, step, prepare, column};
