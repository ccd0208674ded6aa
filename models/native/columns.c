/* Columns of the windows of one client's instruments: see columns.h. */
#include "columns.h"

#include <stdlib.h>
#include <string.h>

int columns_begin(struct sliding *s, struct column_view *view, const struct engine *whole) {
    const struct engine *e = &view->engine;
    memset(s, 0, sizeof *s);
    s->columns = view;
    s->steps = view->steps;
    s->features = e->features;
    s->outputs = e->outputs;
    s->place_floats = view->kept_floats;
    s->runner = runner_new(e, 1);
    s->whole = runner_new(whole, 1);
    s->window = malloc(whole->features * sizeof *s->window);
    s->answered.row = malloc(e->features * sizeof *s->answered.row);
    if (s->runner && s->whole && s->window && s->answered.row) return 0;
    sliding_end(s);
    return -1;
}

/* The step whose column is computed next, where `known` steps are there: of those before the window none is read. */
static uint64_t next_column(const struct windows *w, uint32_t place, uint64_t known) {
    const uint64_t steps = w->sliding->steps, oldest = known > steps ? known - steps : 0;
    uint64_t next = w->next[place];
    next = next > w->begin[place] ? next : w->begin[place];
    return next > oldest ? next : oldest;
}

static void run_column(const struct windows *w, uint32_t place, uint64_t step, const float *row, float *out) {
    const struct sliding *s = w->sliding;
    const struct kept_columns kept = {
        .rows = windows_row(w, place, 0), .rings = w->states + place * s->place_floats, .step = step};
    runner_column(s->runner, s->columns, row, kept, out);
}

/* The answer to the window that ends with `row`, the newest step, without its columns. */
static void run_window(const struct windows *w, uint32_t place, uint64_t newest, const float *row, float *out) {
    const struct sliding *s = w->sliding;
    const size_t steps = s->steps, features = s->features;
    for (size_t i = 0; i < steps; i++) {
        const float *from = i == steps - 1 ? row : windows_row(w, place, newest + 1 - steps + i);
        if (s->columns->time_axis == 1) memcpy(s->window + i * features, from, features * sizeof *from);
        else for (size_t f = 0; f < features; f++) s->window[f * steps + i] = from[f];
    }
    s->whole->facts.run(s->whole, s->window, out, 1);
}

int columns_answer(void *windows, uint32_t place, const float *row, float *out) {
    struct windows *w = windows;
    struct sliding *s = w->sliding;
    if (place >= w->places) return -1;
    const uint64_t known = w->stored[place] + (row ? 1 : 0);
    if (known - w->begin[place] < s->steps) return -1;
    const uint64_t newest = known - 1;
    const float *now = row ? row : windows_row(w, place, newest);
    uint64_t next = next_column(w, place, known);
    if (next > newest) next = newest;
    if ((newest - next) * s->columns->work > s->columns->whole_work) {
        run_window(w, place, newest, now, out);
        /* More than the one that comes with each step, so that it ends where nothing is ever idle. */
        for (int i = 0; i < 2; i++) columns_advance(w, place);
        return 0;
    }
    for (; next < newest; next++) run_column(w, place, next, windows_row(w, place, next), NULL);
    run_column(w, place, newest, now, out);
    w->next[place] = row ? newest : known;
    s->answered.windows = row ? w : NULL;
    s->answered.place = place;
    s->answered.step = newest;
    if (row) memcpy(s->answered.row, row, s->features * sizeof *row);
    return 0;
}

void columns_store(void *windows, uint32_t place, const float *row) {
    struct windows *w = windows;
    const struct sliding *s = w->sliding;
    if (place >= w->places) return;
    const uint64_t step = w->stored[place];
    windows_store(w, place, row);
    /* Its column is there where it was answered: nothing is left for later. */
    if (s->answered.windows == w && s->answered.place == place && s->answered.step == step && w->next[place] == step &&
        !memcmp(s->answered.row, row, s->features * sizeof *row))
        w->next[place] = step + 1;
    else windows_behind(w, place);
}

uint32_t columns_advance(struct windows *w, uint32_t place) {
    const uint64_t stored = w->stored[place], next = next_column(w, place, stored);
    if (next >= stored) return 0;
    run_column(w, place, next, windows_row(w, place, next), NULL);
    w->next[place] = next + 1;
    return 1;
}

void columns_catch_up(void *windows, uint32_t place) {
    struct windows *w = windows;
    if (place >= w->places) return;
    while (w->stored[place] - next_column(w, place, w->stored[place]) > BEHIND_MAX) columns_advance(w, place);
}
