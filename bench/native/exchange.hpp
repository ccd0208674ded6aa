// The two files that the load generator exchanges with bench/load/native.py: the plan it reads, the result it writes.
// Both sides write these structs down; sizes and magics must agree, and a mismatch is refused at start.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include <sigd/sigd_wire.hpp>

namespace sigd::bench {

constexpr char plan_magic[9] = "SGDPLAN1";
constexpr char result_magic[9] = "SGDRSLT1";

// Followed by: `rows` request frames of `request_length` bytes, `intended` int64 offsets in ns, `expected` rows of
// `hello.outputs` floats.
struct PlanHeader {
    char magic[8];
    char socket_path[112];
    wire::Hello hello;           // what every connection asks for
    std::uint64_t rows;
    std::uint64_t request_length;
    std::uint64_t intended;      // open loop: how many send times follow, below 0 is warm-up; 0 = closed loop
    std::uint64_t requests;      // closed loop: how many to measure; 0 = as many as duration_ns allows
    std::int64_t duration_ns;    // closed loop
    std::int64_t warmup_ns;      // from the first request to the first that is measured
    std::int64_t stall_ns;       // a request unanswered for so long is lost, and the run ends
    std::int64_t behind_ns;      // open loop: due for so long, a request and all after it are not sent; 0 = all are
    std::uint64_t connections;
    std::uint64_t in_flight;     // most requests unanswered on one connection
    std::int64_t cpu;            // core of this thread; -1 = any
    std::uint64_t samples_max;   // requests kept one by one; beyond, a uniform reservoir of them
    std::int64_t late_ns;        // a send this long after its intended time is late
    std::int64_t gap_ns;         // a gap this long between two looks at the clock while nothing moved is a hiccup
    std::int64_t busy_gap_ns;    // the same while something was sent or received, which takes time of its own
    std::uint64_t seed;
    std::uint64_t expected;      // `rows`, or 0: answers are compared with nothing
    double tolerance;            // of an answer, for the larger of 1 and what was expected
    std::uint64_t stored;        // with history: steps that every connection stores before the run
};
static_assert(sizeof(PlanHeader) == 352);

// Latencies are counted as HdrHistogram counts them: 1 ns to 2^50 ns at three significant digits.
constexpr int sub_bucket_bits = 11;
constexpr std::size_t histogram_bins = 41 * 1024;
enum HistogramOf : std::size_t { corrected, uncorrected, queue, model, rest, histogram_count };

constexpr std::size_t slowest_max = 16;

struct Sample {
    std::int64_t intended_ns;
    std::int64_t sent_ns;
    std::int64_t received_ns;
    std::uint64_t receive_time_ns;
    std::uint64_t send_time_ns;
    std::uint32_t infer_ns;
    std::uint32_t model_generation;
    std::uint16_t status;
    std::uint16_t batch_rows;
    std::uint16_t connection;
    std::uint16_t reserved;
};
static_assert(sizeof(Sample) == 56);

// When the client was stopped, and for how long: what ResultHeader::hiccups counts, the first gaps_max of them.
struct Gap {
    std::int64_t ended_ns;  // CLOCK_MONOTONIC
    std::int64_t length_ns;
};
constexpr std::size_t gaps_max = 4096;

// The kinds a run can end with; the numbers are those of sigd.bench.load.contract.ViolationKind.
enum class ViolationKind : std::uint64_t {
    none, closed_early, rejected, header, unsolicited, sequence, client_time, instrument, status, outputs, stamps,
    no_welcome, counter, wrong,
};

constexpr std::size_t violation_text_bytes = 192;
constexpr wire::Status status_last = wire::Status::stored;

// Followed by: histogram_count * histogram_bins u64 counts, `slowest` Samples, `samples` Samples, `gaps` Gaps.
struct ResultHeader {
    char magic[8];
    wire::Welcome welcome;
    std::int64_t begin_ns;           // CLOCK_MONOTONIC of the first measured send time
    std::int64_t last_sent_ns;
    std::int64_t last_received_ns;
    std::uint64_t requests;          // measured ones that were due: sent or not
    std::uint64_t sent;
    std::uint64_t received;
    std::uint64_t statuses[16];
    std::uint64_t late_sends;
    std::int64_t late_worst_ns;
    std::uint64_t hiccups;
    std::int64_t hiccup_worst_ns;
    std::int64_t hiccup_sum_ns;
    std::uint64_t batch_rows_sum;    // over OK answers
    std::uint64_t generation_first;
    std::uint64_t generation_last;
    std::uint64_t slowest;
    std::uint64_t samples;
    std::uint64_t gaps;
    ViolationKind violation;
    std::uint64_t violation_connection;
    std::uint64_t violation_expected;
    std::uint64_t violation_found;
    char violation_text[violation_text_bytes];
};
static_assert(sizeof(ResultHeader) == 8 + 128 + 3 * 8 + 3 * 8 + 128 + 11 * 8 + 4 * 8 + violation_text_bytes);

}  // namespace sigd::bench
