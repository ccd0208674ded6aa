/* The feature stream: the twin of sigd.models.features.stream and formulas, which say what each feature is.
 */
#ifndef SIGD_FEATURES_STREAM_H
#define SIGD_FEATURES_STREAM_H

#include "book.h"
#include "windows.h"

#define FEATURES 64
#define BOOK_FEATURES 7
#define LEVELS 20
#define UNITS_MAX ((int64_t)1 << 61)
#define NEVER_NS INT64_MAX

enum { QUOTE = 1, TRADE = 2, DIFF = 3, SNAPSHOT = 4 };

/* Totals of the logs. Of mids `count` is twice the mid. */
enum { FLOW, GROSS, DIFFERENCE, SIZE };
enum { SIGNS, SIGNED, VOLUME, NOTIONAL };
enum { SQUARES, RISES };

typedef enum {
    TAKEN,     /* the event is in, and is no sample */
    SAMPLED,   /* and is one */
    TOO_LARGE, /* a price, a size or a sum of them is beyond what the kernel holds */
    NO_MEMORY,
    WIDE_BOOK /* the event is in but for the distance asymmetry of the book: set book_row[5], then go on */
} stream_result;

typedef struct {
    int64_t tick, warmup_ns;
    int64_t begun_ns, warm_at_ns, now_ns, depth_ns;
    int64_t samples, book_breaks, events_ignored;
    bool book_ready, quote_seen, trade_seen, trade_aged, book_known;
    int64_t quote_ns, bid, bid_size, ask, ask_size;
    int64_t trade_ns, trade_price, aggressor;
    int64_t since_quote_ns, since_trade_ns;
    int64_t mid_move_sign, mid_move_ns;
    window_log quotes, trades, mids;
    order_book book;
    double book_row[BOOK_FEATURES];
} feature_stream;

static bool stream_open(feature_stream *stream, int64_t tick, int64_t warmup_ns, int64_t snapshot_levels) {
    memset(stream, 0, sizeof *stream);
    stream->tick = tick;
    stream->warmup_ns = warmup_ns;
    stream->begun_ns = stream->warm_at_ns = NEVER_NS;
    stream->book.bids.direction = -1;
    stream->book.asks.direction = 1;
    stream->book.snapshot_levels = snapshot_levels;
    entry origin = {0};
    return log_begin(&stream->quotes, origin) && log_begin(&stream->trades, origin) &&
           log_begin(&stream->mids, origin);
}

static void stream_free(feature_stream *stream) {
    free(stream->quotes.entries);
    free(stream->trades.entries);
    free(stream->mids.entries);
    book_free(&stream->book);
}

static inline bool fits(int64_t value) { return -UNITS_MAX < value && value < UNITS_MAX; }

static inline bool stream_warm(const feature_stream *stream) {
    return stream->book_ready && stream->now_ns >= stream->warm_at_ns;
}

static inline bool stream_converged(const feature_stream *stream) {
    return stream->trade_aged && stream->mid_move_sign != 0 && stream->book_known &&
           stream->begun_ns != NEVER_NS && stream->now_ns >= stream->begun_ns + WINDOWS_NS[WINDOWS - 1];
}

static stream_result stream_on_quote(feature_stream *stream, int64_t now_ns, const int64_t values[4]) {
    int64_t bid = values[0], bid_size = values[1], ask = values[2], ask_size = values[3];
    if (!(fits(bid) && fits(bid_size) && fits(ask) && fits(ask_size))) return TOO_LARGE;
    stream->now_ns = now_ns;
    if (!(0 < bid && bid < ask && bid_size > 0 && ask_size > 0)) {
        stream->events_ignored++;
        return TAKEN;
    }
    int64_t twice_mid = bid + ask;
    if (!stream->quote_seen) {
        stream->begun_ns = now_ns;
        stream->warm_at_ns = now_ns + stream->warmup_ns;
        entry origin = {.time_ns = now_ns, .count = twice_mid};
        if (!log_begin(&stream->mids, origin)) return NO_MEMORY;
        stream->mid_move_ns = now_ns;
    } else {
        wide flow = 0;
        if (bid >= stream->bid) flow += bid_size;
        if (bid <= stream->bid) flow -= stream->bid_size;
        if (ask <= stream->ask) flow -= ask_size;
        if (ask >= stream->ask) flow += stream->ask_size;
        entry added = *log_newest(&stream->quotes);
        added.time_ns = now_ns;
        added.count++;
        added.totals[FLOW] += flow;
        added.totals[GROSS] += flow < 0 ? -flow : flow;
        added.totals[DIFFERENCE] += bid_size - ask_size;
        added.totals[SIZE] += bid_size + ask_size;
        if (!log_append(&stream->quotes, &added)) return NO_MEMORY;
        stream->since_quote_ns = now_ns - stream->quote_ns;
        if (stream->trade_seen) {
            stream->since_trade_ns = now_ns - stream->trade_ns;
            stream->trade_aged = true;
        }
        const entry *before = log_newest(&stream->mids);
        if (twice_mid != before->count) {
            wide move = (wide)twice_mid - before->count, square = move * move;
            entry moved = *before;
            moved.time_ns = now_ns;
            moved.count = twice_mid;
            if (__builtin_add_overflow(moved.totals[SQUARES], square, &moved.totals[SQUARES]))
                return TOO_LARGE;
            if (move > 0) moved.totals[RISES] += square;
            if (!log_append(&stream->mids, &moved)) return NO_MEMORY;
            stream->mid_move_sign = move > 0 ? 1 : -1;
            stream->mid_move_ns = now_ns;
        }
    }
    stream->quote_seen = true;
    stream->quote_ns = now_ns;
    stream->bid = bid;
    stream->bid_size = bid_size;
    stream->ask = ask;
    stream->ask_size = ask_size;
    return stream_warm(stream) ? SAMPLED : TAKEN;
}

static stream_result stream_on_trade(feature_stream *stream, int64_t now_ns, const int64_t values[3]) {
    int64_t price = values[0], size = values[1], aggressor = values[2];
    if (!(fits(price) && fits(size) && -2 < aggressor && aggressor < 2)) return TOO_LARGE;
    stream->now_ns = now_ns;
    if (price <= 0 || size <= 0) {
        stream->events_ignored++;
        return TAKEN;
    }
    if (stream->quote_seen) stream->since_quote_ns = now_ns - stream->quote_ns;
    if (stream->trade_seen) {
        stream->since_trade_ns = now_ns - stream->trade_ns;
        stream->trade_aged = true;
    }
    stream->trade_seen = true;
    stream->trade_ns = now_ns;
    stream->trade_price = price;
    stream->aggressor = aggressor;
    entry added = *log_newest(&stream->trades);
    added.time_ns = now_ns;
    added.count++;
    added.totals[SIGNS] += aggressor;
    added.totals[SIGNED] += (wide)aggressor * size;
    added.totals[VOLUME] += size;
    if (__builtin_add_overflow(added.totals[NOTIONAL], (wide)price * size, &added.totals[NOTIONAL]))
        return TOO_LARGE;
    if (!log_append(&stream->trades, &added)) return NO_MEMORY;
    return stream_warm(stream) ? SAMPLED : TAKEN;
}

/* ---- the book's features ---- */

static int64_t gcd_of(int64_t a, int64_t b) {
    if (a < 0) a = -a;
    if (b < 0) b = -b;
    while (b) {
        int64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* Mean distance times size of a side, cross-multiplied by the other side's size. False: it does not fit. */
static bool far_of(const int64_t *distances, const int64_t *sizes, size_t count, wide others, wide *far) {
    wide sum = 0;
    for (size_t number = 0; number < count; number++)
        if (__builtin_add_overflow(sum, (wide)distances[number] * sizes[number], &sum)) return false;
    return !__builtin_mul_overflow(sum, others, far);
}

static bool distance_asymmetry(const book_side *sides[2], int64_t twice_mid, double *asymmetry) {
    int64_t distances[2][LEVELS], sizes[2][LEVELS];
    size_t counts[2];
    int64_t distance_unit = 0, size_unit = 0;
    for (int side = 0; side < 2; side++) {
        counts[side] = sides[side]->used < LEVELS ? sides[side]->used : LEVELS;
        for (size_t number = 0; number < counts[side]; number++) {
            const level *best = side_best(sides[side], number);
            distances[side][number] = (2 * best->price - twice_mid) * sides[side]->direction;
            sizes[side][number] = best->size;
        }
    }
    /* The ratio stays the same where all distances or all sizes are divided by the same number. */
    for (int divided = 0; divided < 2; divided++) {
        wide totals[2] = {0, 0}, far[2], difference, sum;
        for (int side = 0; side < 2; side++)
            for (size_t number = 0; number < counts[side]; number++) totals[side] += sizes[side][number];
        if (far_of(distances[0], sizes[0], counts[0], totals[1], &far[0]) &&
            far_of(distances[1], sizes[1], counts[1], totals[0], &far[1]) &&
            !__builtin_sub_overflow(far[1], far[0], &difference) &&
            !__builtin_add_overflow(far[1], far[0], &sum)) {
            *asymmetry = quotient_of(difference, sum);
            return true;
        }
        for (int side = 0; side < 2; side++)
            for (size_t number = 0; number < counts[side]; number++) {
                distance_unit = gcd_of(distance_unit, distances[side][number]);
                size_unit = gcd_of(size_unit, sizes[side][number]);
            }
        if (distance_unit == 0 || size_unit == 0) return false;
        for (int side = 0; side < 2; side++)
            for (size_t number = 0; number < counts[side]; number++) {
                distances[side][number] /= distance_unit;
                sizes[side][number] /= size_unit;
            }
    }
    return false;
}

/* False: the distance asymmetry has to be worked out by the caller. */
static bool stream_book_row(feature_stream *stream) {
    const book_side *sides[2] = {&stream->book.bids, &stream->book.asks};
    const book_side *bids = sides[0], *asks = sides[1];
    double *row = stream->book_row;
    memset(row, 0, sizeof stream->book_row);
    stream->book_known = false;
    if (bids->used && asks->used && stream->book.synchronised) {
        int64_t twice_mid = side_best(bids, 0)->price + side_best(asks, 0)->price;
        int64_t distance = (int64_t)((wide)twice_mid * 5 / 20000);
        stream->book_known = side_knows(bids, LEVELS, distance, twice_mid / 2) &&
                             side_knows(asks, LEVELS, distance, twice_mid / 2);
    }
    if (bids->used < 2 || asks->used < 2) return true;
    int64_t bid = side_best(bids, 0)->price, ask = side_best(asks, 0)->price;
    int64_t twice_mid = bid + ask;
    static const size_t DEPTHS[3] = {5, 10, LEVELS};
    for (int index = 0; index < 3; index++) {
        wide sums[2] = {0, 0};
        for (int side = 0; side < 2; side++)
            for (size_t number = 0; number < DEPTHS[index] && number < sides[side]->used; number++)
                sums[side] += side_best(sides[side], number)->size;
        row[index] = quotient_of(sums[0] - sums[1], sums[0] + sums[1]);
    }
    static const int64_t WITHIN_BPS[2] = {1, 5};
    for (int index = 0; index < 2; index++) {
        int64_t distance = (int64_t)((wide)twice_mid * WITHIN_BPS[index] / 20000);
        wide bid_size = side_size_within(bids, distance, twice_mid / 2);
        wide ask_size = side_size_within(asks, distance, twice_mid / 2);
        row[3 + index] = quotient_of(bid_size - ask_size, bid_size + ask_size);
    }
    row[6] = log(quotient_of(side_best(asks, 1)->price - ask, bid - side_best(bids, 1)->price));
    return distance_asymmetry(sides, twice_mid, &row[5]);
}

static stream_result stream_on_depth(feature_stream *stream, int kind, int64_t now_ns,
                                     const kept_diff *depth) {
    for (size_t number = 0; number < depth->bids + depth->asks; number++) {
        /* Levels of no price would make twice the mid negative, where C and Python divide differently. */
        if (!fits(depth->levels[number].price) || !fits(depth->levels[number].size) ||
            depth->levels[number].price < 0 || depth->levels[number].size < 0)
            return TOO_LARGE;
    }
    stream->now_ns = now_ns;
    book_result result;
    if (kind == SNAPSHOT) {
        result = book_on_snapshot(&stream->book, depth);
        if (result == BOOK_FINE && stream->tick == 0)
            for (size_t number = 0; number < depth->bids + depth->asks; number++)
                stream->tick = gcd_of(stream->tick, depth->levels[number].price);
    } else {
        result = book_on_diff(&stream->book, depth);
    }
    if (result == BOOK_NO_MEMORY) return NO_MEMORY;
    if (result == BOOK_BROKEN) stream->book_breaks++;
    stream->depth_ns = now_ns;
    stream->book_ready = stream->book.synchronised && stream->tick > 0;
    return stream_book_row(stream) ? TAKEN : WIDE_BOOK;
}

/* ---- a sample ---- */

static inline float clipped(double value, float lower, float upper) {
    float single = (float)value;
    if (single < lower) return lower;
    return single > upper ? upper : single;
}

/* Write the sample that the last event is. False: a sum does not fit. */
static bool stream_write(feature_stream *stream, float *features, const float *lower, const float *upper) {
    log_move_edges(&stream->quotes, stream->now_ns);
    log_move_edges(&stream->trades, stream->now_ns);
    log_move_edges(&stream->mids, stream->now_ns);
    const entry *quote = log_newest(&stream->quotes), *trade = log_newest(&stream->trades);
    const entry *mid = log_newest(&stream->mids);
    const entry *quoted[WINDOWS], *traded[WINDOWS], *moved[WINDOWS];
    for (int index = 0; index < WINDOWS; index++) {
        quoted[index] = &stream->quotes.entries[stream->quotes.edges[index]];
        traded[index] = &stream->trades.entries[stream->trades.edges[index]];
        moved[index] = &stream->mids.entries[stream->mids.edges[index]];
    }
    int64_t twice_mid = mid->count, bid_size = stream->bid_size, ask_size = stream->ask_size;
    int64_t size = bid_size + ask_size, spread = stream->ask - stream->bid;
    int64_t in_longest = quote->count - quoted[5]->count;
    double mean_size =
        in_longest ? quotient_of(quote->totals[SIZE] - quoted[5]->totals[SIZE], in_longest) : (double)size;
    double half_size = mean_size / 2, twice_mid_double = (double)twice_mid;
    double row[FEATURES], *at = row;
    static const int THREE[3] = {2, 3, 5};

    double imbalance = quotient_of(bid_size - ask_size, size);
    *at++ = imbalance;
    *at++ = log(quotient_of((wide)bid_size + 1, (wide)ask_size + 1));
    *at++ = asinh(quotient_of((wide)(bid_size - ask_size) * spread, (wide)2 * size * stream->tick));
    *at++ = log(quotient_of(spread, stream->tick));
    for (int index = 2; index < 5; index++) {
        wide sizes = quote->totals[SIZE] - quoted[index]->totals[SIZE];
        *at++ = sizes ? quotient_of(quote->totals[DIFFERENCE] - quoted[index]->totals[DIFFERENCE], sizes)
                      : imbalance;
    }
    *at++ = log((double)size / mean_size);

    for (int index = 0; index < WINDOWS; index++)
        *at++ = quotient_of(quote->totals[FLOW] - quoted[index]->totals[FLOW],
                            quote->totals[GROSS] - quoted[index]->totals[GROSS]);
    for (int index = 0; index < 3; index++)
        *at++ = asinh((double)(quote->totals[FLOW] - quoted[THREE[index]]->totals[FLOW]) / half_size);

    for (int index = 0; index < WINDOWS; index++)
        *at++ = quotient_of(trade->totals[SIGNED] - traded[index]->totals[SIGNED],
                            trade->totals[VOLUME] - traded[index]->totals[VOLUME]);
    for (int index = 0; index < 3; index++)
        *at++ = quotient_of(trade->totals[SIGNS] - traded[THREE[index]]->totals[SIGNS],
                            trade->count - traded[THREE[index]]->count);
    for (int index = 0; index < 3; index++) {
        wide volume = trade->totals[VOLUME] - traded[THREE[index]]->totals[VOLUME];
        wide notional = trade->totals[NOTIONAL] - traded[THREE[index]]->totals[NOTIONAL], at_mid, above;
        if (__builtin_mul_overflow((wide)twice_mid, volume, &at_mid) ||
            __builtin_mul_overflow(notional, (wide)2, &above) ||
            __builtin_sub_overflow(above, at_mid, &above))
            return false;
        *at++ = at_mid ? 1e4 * (double)above / (double)at_mid : 0.0;
    }
    *at++ = stream->trade_seen ? (double)stream->aggressor : 0.0;
    *at++ = stream->trade_seen
                ? asinh(quotient_of((wide)2 * stream->trade_price - twice_mid, (wide)2 * stream->tick))
                : 0.0;
    *at++ = log1p((double)(trade->totals[VOLUME] - traded[3]->totals[VOLUME]) / half_size);

    for (int index = 0; index < WINDOWS; index++)
        *at++ = 1e4 * (double)(twice_mid - moved[index]->count) / (double)moved[index]->count;
    *at++ = (double)stream->mid_move_sign;

    for (int index = 2; index < WINDOWS; index++)
        *at++ =
            1e4 * sqrt((double)(mid->totals[SQUARES] - moved[index]->totals[SQUARES])) / twice_mid_double;
    for (int index = 3; index < WINDOWS; index += 2) {
        wide total = mid->totals[SQUARES] - moved[index]->totals[SQUARES];
        *at++ = quotient_of(2 * (mid->totals[RISES] - moved[index]->totals[RISES]) - total, total);
    }

    for (int index = 0; index < WINDOWS; index++)
        if (index != 4) *at++ = log1p((double)(quote->count - quoted[index]->count));
    for (int index = 1; index < WINDOWS; index += 2)
        *at++ = log1p((double)(trade->count - traded[index]->count));
    *at++ = age_of(stream->since_quote_ns);
    *at++ = age_of(stream->since_trade_ns);
    *at++ = age_of(stream->now_ns - stream->mid_move_ns);

    memcpy(at, stream->book_row, sizeof stream->book_row);
    at += BOOK_FEATURES;
    *at++ = age_of(stream->now_ns - stream->depth_ns);
    for (int index = 0; index < FEATURES; index++)
        features[index] = clipped(row[index], lower[index], upper[index]);
    stream->samples++;
    return true;
}

#endif
