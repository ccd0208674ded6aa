/* The newest column of a window: see columns.h. Included by run.h. */

static const float *column_of(const struct column_view *v, const struct scratch *s, const struct kept_columns *kept,
                              uint32_t source, uint32_t back) {
    const struct engine *e = &v->engine;
    if (!back) return s->arena + e->places[source] * s->block_rows;
    const float *ring = source ? kept->rings + v->ring_at[source] : kept->rows;
    return ring + (kept->step - back) % v->slots[source] * e->widths[source];
}

static void gather(const struct column_view *v, const struct scratch *s, const struct kept_columns *kept, uint32_t piece,
                   uint32_t end) {
    for (; piece < end; piece++) {
        const struct piece_of_column *p = &v->pieces[piece];
        const float *from = column_of(v, s, kept, p->source, p->back) + p->from;
        float *to = s->arena + v->engine.places[p->into] * s->block_rows + p->to;
        const size_t count = p->count, from_stride = p->from_stride, to_stride = p->to_stride;
        if (from_stride != 1) for (size_t i = 0; i < count; i++) to[i * to_stride] = from[i * from_stride];
        else if (to_stride != 1) for (size_t i = 0; i < count; i++) to[i * to_stride] = from[i];
        else memcpy(to, from, count * sizeof *to);
    }
}

static void column(const struct column_view *v, const struct scratch *s, const float *row, struct kept_columns kept, float *out) {
    const struct engine *e = &v->engine;
    memcpy(s->arena + e->places[0] * s->block_rows, row, e->features * sizeof *row);
    for (uint32_t i = 0; i < e->ops; i++) {
        if (v->answer_only[i] && !out) continue;
        gather(v, s, &kept, i ? v->pieces_end[i - 1] : 0, v->pieces_end[i]);
        run_op(e, &e->op[i], s, 1);
    }
    if (out) {
        gather(v, s, &kept, e->ops ? v->pieces_end[e->ops - 1] : 0, v->pieces_end[e->ops]);
        memcpy(out, s->arena + e->places[1] * s->block_rows, e->outputs * sizeof *out);
    }
    for (uint32_t b = 2; b < e->buffers; b++) {
        if (!v->slots[b]) continue;
        memcpy(kept.rings + v->ring_at[b] + kept.step % v->slots[b] * e->widths[b], s->arena + e->places[b] * s->block_rows,
               e->widths[b] * sizeof *out);
    }
}
