/* An engine with the scratch memory that one thread needs to run it. */
#pragma once
#include "internal.h"

struct runner {
    struct sigd_runner facts; /* what C callers see */
    const struct engine *engine;
    struct scratch scratch;
};

/* For batches of at most that many rows; NULL without memory. The engine outlives it. */
struct runner *runner_new(const struct engine *, uint32_t rows_max);
void runner_free(struct runner *);
/* As `step` and `prepare` of struct isa, of a runner of the view's engine. */
void runner_step(const struct runner *, const struct step_view *, const float *row, float *states, const float *gates,
                 uint32_t n, float *out);
void runner_prepare(const struct runner *, const struct step_view *, const float *state, float *gates);
/* As `column` of struct isa, of a runner of the view's engine for one row. */
void runner_column(const struct runner *, const struct column_view *, const float *row, struct kept_columns, float *out);
