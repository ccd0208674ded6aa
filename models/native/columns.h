/* Columns: the answer to each step of a model that looks at the last T of them, from what earlier steps left behind.
 *
 * A value inside a model is known by what computes it and from which values of which steps, counted back from the newest
 * step that it looks at. Two values of one operation that agree in that are one value, seen from two windows: it is
 * computed once, when its newest step comes, and kept in a ring for as many steps as later values look back. So a
 * convolution computes its newest column, whatever its kernel, dilation and stride are. A value that looks at what is
 * padded differs from one that does not, and is computed beside it: an answer never takes the edge of a window for its
 * inside.
 *
 * The bits are those of the whole window, for every operation reads the same values in the same order. */
#pragma once
#include "sliding.h"

/* What the engine does anew for the newest of `steps` steps; NULL with the reason in `error` where that is more than half
 * of the whole window. `time_axis`: 1 where a row of the engine holds step after step, 2 where it holds feature after
 * feature. The engine outlives it. */
struct column_view *column_view_new(const struct engine *, uint32_t steps, uint32_t time_axis, char *error, size_t error_size);
void column_view_free(struct column_view *);

/* Takes the view. 0, or -1 without memory; then as after `sliding_end`. */
int columns_begin(struct sliding *, struct column_view *, const struct engine *whole);
/* As sliding_advance does for the windows of one instrument: compute the oldest column that is missing. */
uint32_t columns_advance(struct windows *, uint32_t place);
/* The functions of the windows' `facts`. */
int columns_answer(void *windows, uint32_t place, const float *row, float *out);
void columns_store(void *windows, uint32_t place, const float *row);
void columns_catch_up(void *windows, uint32_t place);
