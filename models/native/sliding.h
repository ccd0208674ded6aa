/* Sliding windows: the answer to each step of a model that looks at the last T of them, at the price of one step.
 *
 * The T windows in which the newest step lies have taken T, T - 1, ... 1 steps: each is a state. A new step is the last one
 * of one window, which is advanced alone, for the answer; the others are advanced later, `STEP_ROWS` of them together. A
 * window that is behind when its last step comes is advanced through all that it has not seen, so an answer never waits
 * for other windows, and never costs more than its whole window.
 *
 * What the state of the window that comes next adds to its gates is known before its last step is: it is prepared, so that
 * half of the weights are left for the answer. Where nothing is left to do, an answer is rehearsed: those weights lie in the
 * second-level cache then, which the other windows have filled with other ones.
 *
 * It holds for models whose operations before the last step look at one step and a state that runs forward, and for no
 * other. The bits are those of the whole window, for every sum is the same chain. */
#pragma once
#include "runner.h"

#define STEP_ROWS 6u   /* windows that are advanced together: while they are, no request is answered */
#define BEHIND_MAX 8u  /* steps; past it `catch_up` has something to do */

/* What the engine does for one step; NULL with the reason in `error` where it does not slide over windows of `steps`
 * steps. The engine outlives it. */
struct step_view *step_view_new(const struct engine *, uint32_t steps, char *error, size_t error_size);
void step_view_free(struct step_view *);
/* Floats that an instrument's windows under way take. */
size_t step_view_place_floats(const struct step_view *);

struct windows;

/* The places of one model whose windows are behind. It has a view of steps, or of columns (columns.h). */
struct sliding {
    uint32_t steps, features, outputs; /* of a window, a step and an answer */
    size_t place_floats;               /* that are kept of one instrument */
    struct step_view *view;
    struct column_view *columns;
    struct runner *runner;
    struct track *first, *last;
    float *state;         /* of the window that is answered */
    float *unread;        /* the answer to a rehearsal; of columns: */
    struct runner *whole; /* of the engine, for a window whose columns are far behind */
    float *window;
    struct answered { /* the newest answer to a step that was not stored */
        const struct windows *windows;
        uint32_t place;
        uint64_t step;
        float *row;
    } answered;
};

/* An instrument's part in the queue of those that are behind. */
struct track {
    struct windows *windows;
    struct track *before, *after;
    int queued;
    uint64_t prepared; /* the last step of the window whose gates are prepared: 0 for none */
};

/* The windows of one client's instruments. What it points to is the caller's, but `next` and `tracks`. */
struct windows {
    struct sigd_steps facts;
    struct sliding *sliding;
    uint32_t places;
    float *rows;            /* [places][2 * steps][features]: step i stands at i % steps, and `steps` further */
    uint64_t *stored;       /* [places]: how many steps were ever stored */
    const uint64_t *begin;  /* [places]: how many of them are forgotten */
    float *states;          /* [places][place_floats]: [steps][state_floats] and the gates of the window that comes next, or
                             * rings of columns */
    uint64_t *next;         /* [places][steps]: the step that the window there takes next; of columns [places] */
    struct track *tracks;
};

/* Takes the view. 0, or -1 without memory; then as after `sliding_end`. */
int sliding_begin(struct sliding *, struct step_view *);
void sliding_end(struct sliding *);
/* Advance some windows of the instrument that is behind for longest, or prepare its next answer. 1, or 0 where nothing is
 * left to do. */
int sliding_advance(struct sliding *);

/* Fill in the rest of windows whose `sliding`, `places`, `rows`, `stored`, `begin` and `states` are known. 0, or -1
 * without memory; then as after `windows_end`. */
int windows_begin(struct windows *);
void windows_end(struct windows *);
/* The newest step of that place was stored by the caller: its windows are behind. */
void windows_behind(struct windows *, uint32_t place);
/* Where that step of the place lies, whose steps of later windows may have taken its room. */
const float *windows_row(const struct windows *, uint32_t place, uint64_t step);
/* Store the newest step's row. */
void windows_store(struct windows *, uint32_t place, const float *row);
