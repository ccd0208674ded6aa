/* Windows under way, as states: see sliding.h. */
#include "columns.h"

#include <stdlib.h>
#include <string.h>

int sliding_begin(struct sliding *s, struct step_view *view) {
    memset(s, 0, sizeof *s);
    s->view = view;
    s->steps = view->steps;
    s->features = view->engine.features;
    s->outputs = view->engine.outputs;
    s->place_floats = step_view_place_floats(view);
    s->runner = runner_new(&view->engine, STEP_ROWS);
    s->state = aligned_alloc(64, view->state_floats * sizeof *s->state);
    s->unread = malloc(view->engine.outputs * sizeof *s->unread);
    if (s->runner && s->state && s->unread) return 0;
    sliding_end(s);
    return -1;
}

void sliding_end(struct sliding *s) {
    runner_free(s->runner);
    runner_free(s->whole);
    free(s->state);
    free(s->unread);
    free(s->window);
    free(s->answered.row);
    step_view_free(s->view);
    column_view_free(s->columns);
    memset(s, 0, sizeof *s);
}

const float *windows_row(const struct windows *w, uint32_t place, uint64_t step) {
    const size_t steps = w->sliding->steps, features = w->sliding->features;
    return w->rows + ((size_t)place * 2 * steps + step % steps) * features;
}

static float *state_at(const struct windows *w, uint32_t place, uint64_t slot) {
    const struct step_view *v = w->sliding->view;
    return w->states + place * step_view_place_floats(v) + slot * v->state_floats;
}

/* What that state adds to the gates of the next answer's window, once it is prepared. */
static float *gates_at(const struct windows *w, uint32_t place) { return state_at(w, place, w->sliding->view->steps); }

/* The oldest and the newest step with which a window begins that has not had its last step: none where the first is above
 * the second. */
static uint64_t oldest_begin(const struct windows *w, uint32_t place) {
    const uint64_t stored = w->stored[place], steps = w->sliding->view->steps, begin = w->begin[place];
    return stored - begin >= steps ? stored - steps + 1 : begin;
}

/* The step that the window takes next which begins with step `begin`. What an earlier window left behind in its slot is
 * not its own. */
static uint64_t next_of(const struct windows *w, uint32_t place, uint64_t begin) {
    const uint32_t steps = w->sliding->view->steps;
    const uint64_t next = w->next[(size_t)place * steps + begin % steps];
    return next > begin ? next : begin;
}

/* -- the queue */

static void leave_queue(struct track *t) {
    struct sliding *s = t->windows->sliding;
    if (!t->queued) return;
    *(t->before ? &t->before->after : &s->first) = t->after;
    *(t->after ? &t->after->before : &s->last) = t->before;
    t->before = t->after = NULL;
    t->queued = 0;
}

void windows_behind(struct windows *w, uint32_t place) {
    struct track *t = &w->tracks[place];
    struct sliding *s = w->sliding;
    if (t->queued) return;
    t->before = s->last;
    *(s->last ? &s->last->after : &s->first) = t;
    s->last = t;
    t->queued = 1;
}

/* -- windows */

/* Where the windows are that are furthest behind: the step that they take next, or UINT64_MAX where none is behind. */
static uint64_t furthest_behind(const struct windows *w, uint32_t place, uint64_t *first) {
    const uint64_t stored = w->stored[place];
    uint64_t least = UINT64_MAX;
    for (uint64_t begin = oldest_begin(w, place); begin < stored; begin++) {
        const uint64_t next = next_of(w, place, begin);
        if (next >= stored || next >= least) continue;
        least = next;
        *first = begin;
    }
    return least;
}

/* Advance at most STEP_ROWS of those windows, one step; how many. */
static uint32_t advance_place(struct windows *w, uint32_t place) {
    const struct sliding *s = w->sliding;
    if (s->columns) return columns_advance(w, place);
    const uint32_t steps = s->view->steps;
    uint64_t first = 0;
    const uint64_t step = furthest_behind(w, place, &first);
    if (step == UINT64_MAX) return 0;
    const uint64_t slot = first % steps, stored = w->stored[place];
    uint64_t *next = w->next + (size_t)place * steps + slot;
    float *states = state_at(w, place, slot);
    uint32_t count = 0;
    while (count < STEP_ROWS && slot + count < steps && first + count < stored && next_of(w, place, first + count) == step) {
        if (step == first + count)
            memset(states + count * s->view->state_floats, 0, s->view->state_floats * sizeof *states);
        next[count++] = step + 1;
    }
    runner_step(s->runner, s->view, windows_row(w, place, step), states, NULL, count, NULL);
    return count;
}

/* Prepare the window that the next step completes, where it has taken all others. 1, or 0 where that is done, or too
 * early. */
static int prepare_place(struct windows *w, uint32_t place) {
    const struct sliding *s = w->sliding;
    const uint64_t steps = s->view->steps, newest = w->stored[place], begin = newest + 1 - steps;
    struct track *t = &w->tracks[place];
    if (t->prepared == newest || newest + 1 - w->begin[place] < steps || next_of(w, place, begin) != newest) return 0;
    runner_prepare(s->runner, s->view, state_at(w, place, begin % steps), gates_at(w, place));
    t->prepared = newest;
    return 1;
}

/* Answer a step that was answered, for what that leaves in the caches. 1, or 0 where the next one is not prepared. */
static int rehearse(const struct windows *w, uint32_t place) {
    const struct sliding *s = w->sliding;
    const uint64_t newest = w->stored[place];
    if (w->tracks[place].prepared != newest) return 0;
    memset(s->state, 0, s->view->state_floats * sizeof *s->state);
    runner_step(s->runner, s->view, windows_row(w, place, newest - 1), s->state, gates_at(w, place), 1, s->unread);
    return 1;
}

int sliding_advance(struct sliding *s) {
    while (s->first) {
        struct track *t = s->first;
        struct windows *w = t->windows;
        const uint32_t place = (uint32_t)(t - w->tracks);
        if ((!s->columns && prepare_place(w, place)) || advance_place(w, place)) return 1;
        leave_queue(t);
        if (!s->columns && !s->first && rehearse(w, place)) return 1;
    }
    return 0;
}

static int answer(void *steps, uint32_t place, const float *row, float *out) {
    struct windows *w = steps;
    const struct sliding *s = w->sliding;
    const struct step_view *v = s->view;
    if (place >= w->places) return -1;
    const uint64_t known = w->stored[place] + (row ? 1 : 0);
    if (known - w->begin[place] < v->steps) return -1;
    const uint64_t begin = known - v->steps, newest = known - 1;
    uint64_t step = next_of(w, place, begin);
    if (step == begin) memset(s->state, 0, v->state_floats * sizeof *s->state);
    else memcpy(s->state, state_at(w, place, begin % v->steps), v->state_floats * sizeof *s->state);
    for (; step < newest; step++) runner_step(s->runner, v, windows_row(w, place, step), s->state, NULL, 1, NULL);
    const float *gates = w->tracks[place].prepared == newest ? gates_at(w, place) : NULL;
    runner_step(s->runner, v, row ? row : windows_row(w, place, newest), s->state, gates, 1, out);
    return 0;
}

void windows_store(struct windows *w, uint32_t place, const float *row) {
    const size_t floats = w->sliding->features;
    float *at = (float *)windows_row(w, place, w->stored[place]);
    memcpy(at, row, floats * sizeof *row);
    memcpy(at + floats * w->sliding->steps, row, floats * sizeof *row);
    w->stored[place]++;
}

static void store(void *steps, uint32_t place, const float *row) {
    struct windows *w = steps;
    if (place >= w->places) return;
    windows_store(w, place, row);
    windows_behind(w, place);
}

static void catch_up(void *steps, uint32_t place) {
    struct windows *w = steps;
    uint64_t first = 0;
    if (place >= w->places) return;
    for (uint32_t done = 0, now; done < w->sliding->view->steps; done += now) {
        const uint64_t step = furthest_behind(w, place, &first);
        if (step == UINT64_MAX || w->stored[place] - step <= BEHIND_MAX) return;
        now = advance_place(w, place);
    }
}

int windows_begin(struct windows *w) {
    const struct sliding *s = w->sliding;
    w->facts = (struct sigd_steps){
        .version = SIGD_STEPS_VERSION, .features = s->features, .outputs = s->outputs, .places = w->places, .steps = w,
        .answer = s->columns ? columns_answer : answer, .store = s->columns ? columns_store : store,
        .catch_up = s->columns ? columns_catch_up : catch_up,
    };
    w->next = calloc((size_t)w->places * (s->columns ? 1 : s->steps), sizeof *w->next);
    w->tracks = calloc(w->places, sizeof *w->tracks);
    if (!w->next || !w->tracks) {
        windows_end(w);
        return -1;
    }
    for (uint32_t i = 0; i < w->places; i++) w->tracks[i].windows = w;
    return 0;
}

void windows_end(struct windows *w) {
    for (uint32_t i = 0; w->tracks && i < w->places; i++) leave_queue(&w->tracks[i]);
    if (w->sliding && w->sliding->answered.windows == w) w->sliding->answered.windows = NULL;
    free(w->next);
    free(w->tracks);
    w->next = NULL;
    w->tracks = NULL;
}
