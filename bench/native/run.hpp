// One run of a load generator, whatever the link to the peer is: the plan, the schedule, the result file.
//
// Open loop: request i goes to connection i mod N when its intended time has come and that connection has fewer than
// in_flight unanswered; what is late stays in the schedule, so waiting counts. Closed loop: every connection keeps
// in_flight requests unanswered. Either way what may go goes at once, and what has come is taken at once: in one write
// and one read, or with one publication and one look at a ring.
#pragma once

#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>

#include "exchange.hpp"
#include "platform.hpp"
#include "recorder.hpp"
#include "session.hpp"
#include "violation.hpp"

namespace sigd::bench {

// The plan as it lies in the mapped file.
struct Plan {
    const PlanHeader* header;
    const std::byte* frames;
    const std::int64_t* intended;
    const float* expected;  // nullptr where answers are compared with nothing
};

inline Plan map_plan(const char* path) {
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) die(path);
    const off_t size = lseek(fd, 0, SEEK_END);
    if (size < static_cast<off_t>(sizeof(PlanHeader))) {
        errno = EINVAL;
        die("the plan is shorter than its header");
    }
    void* base = mmap(nullptr, static_cast<std::size_t>(size), PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (base == MAP_FAILED) die(path);
    close(fd);
    const auto* bytes = static_cast<const std::byte*>(base);
    Plan plan{reinterpret_cast<const PlanHeader*>(bytes), bytes + sizeof(PlanHeader), nullptr, nullptr};
    const PlanHeader& h = *plan.header;
    plan.intended = reinterpret_cast<const std::int64_t*>(plan.frames + h.rows * h.request_length);
    if (h.expected) plan.expected = reinterpret_cast<const float*>(plan.intended + h.intended);
    const std::size_t expected =
        sizeof h + h.rows * h.request_length + 8 * h.intended + sizeof(float) * h.expected * h.hello.outputs;
    if (std::memcmp(h.magic, plan_magic, 8) != 0 || static_cast<std::size_t>(size) != expected || h.rows == 0 ||
        (h.expected != 0 && h.expected != h.rows) || h.connections == 0 || h.in_flight == 0 ||
        (wire::has(h.hello.flags, wire::HelloFlag::history) && h.rows % h.connections != 0)) {
        errno = EINVAL;
        die("not a plan of this load generator");
    }
    return plan;
}

// What the plan's Hello asks for.
inline Spec spec_of(const PlanHeader& header) {
    const wire::Hello& hello = header.hello;
    const auto text = [](const char* field, std::size_t size) { return std::string(field, strnlen(field, size)); };
    Spec spec;
    spec.path = text(header.socket_path, sizeof header.socket_path);
    spec.features = hello.features;
    spec.outputs = hello.outputs;
    spec.model_name = text(hello.model_name, sizeof hello.model_name);
    spec.client_name = text(hello.client_name, sizeof hello.client_name);
    spec.transport = hello.transport;
    spec.ring_slots = hello.ring_slots;
    spec.history = wire::has(hello.flags, wire::HelloFlag::history);
    return spec;
}

template <class Link>
class Run {
public:
    explicit Run(const Plan& plan)
        : plan_(plan), header_(*plan.header), recorder_(header_.samples_max, header_.seed),
          steps_(wire::has(header_.hello.flags, wire::HelloFlag::history)), cursors_(header_.connections),
          turns_(header_.connections) {
        sessions_.reserve(header_.connections);
        for (std::uint64_t c = 0; c < header_.connections; ++c) {
            sessions_.push_back(
                std::make_unique<Session<Link>>(c, header_, violation_));
            cursors_[c] = turns_[c] = c;
        }
        while (warmups_ < header_.intended && plan_.intended[warmups_] < 0) ++warmups_;
    }

    Recorder& recorder() { return recorder_; }
    const Violation& violation() const { return violation_; }

    bool connect() {
        const Spec spec = spec_of(header_);
        for (std::uint64_t c = 0; c < sessions_.size(); ++c)
            if (!sessions_[c]->open(spec, recorder_.result.welcome)) return ended_by(c);
        return true;
    }

    // Every connection stores its first steps, so that the windows are full when the run begins. False ends the run.
    bool store() {
        bool done = header_.stored == 0;
        while (!done) {
            done = true;
            for (std::uint64_t c = 0; c < sessions_.size(); ++c) {
                Session<Link>& session = *sessions_[c];
                bool moved = false;
                if (!session.receive(recorder_, moved)) return ended_by(c);
                const std::int64_t now_ns = clock_ns();
                if (session.unanswered() > 0 && now_ns - session.oldest_sent_ns() > header_.stall_ns) {
                    violation_.note(ViolationKind::closed_early, header_.stored, session.answered(),
                                    "a step that was to be stored got no answer");
                    return ended_by(c);
                }
                for (std::uint64_t room = session.room(); room > 0 && session.sent() < header_.stored; --room)
                    session.add(frame(next_row(c, 0)), nullptr, now_ns, now_ns, false, true);
                if (!session.flush()) return ended_by(c);
                done &= session.answered() == header_.stored;
            }
        }
        return true;
    }

    void go() {
        // An open loop starts a little later, so that its first request is not late.
        const std::int64_t lead_ns = header_.intended ? 1'000'000 : 0;
        begin_ns_ = clock_ns() + lead_ns + header_.warmup_ns;
        recorder_.result.begin_ns = begin_ns_;
        const std::int64_t announce_ns = begin_ns_ - std::min<std::int64_t>(header_.warmup_ns / 2, 50'000'000);
        bool announced = false;
        std::int64_t before_ns = clock_ns();
        bool idle = true;
        for (std::uint64_t turn = 0;; ++turn) {
            const std::int64_t now_ns = clock_ns();
            if (now_ns >= begin_ns_) note_gap(now_ns, now_ns - before_ns, idle ? header_.gap_ns : header_.busy_gap_ns);
            before_ns = now_ns;
            if (!announced && now_ns >= announce_ns) {
                announced = true;
                std::puts("measuring");
                std::fflush(stdout);
            }
            idle = true;
            for (std::uint64_t c = 0; c < sessions_.size(); ++c) {
                bool moved = false;
                if (!serve(c, moved)) return;
                idle &= !moved;
            }
            if ((turn & 0xFF) == 0 && over(now_ns)) return;
        }
    }

private:
    bool ended_by(std::uint64_t c) {
        violation_.connection = c;
        return false;
    }

    // One turn of one connection; false ends the run.
    bool serve(std::uint64_t c, bool& moved) {
        Session<Link>& session = *sessions_[c];
        if (!session.receive(recorder_, moved)) return ended_by(c);
        const bool pending = session.pending();
        const bool added = pending ? false : (header_.intended ? add_due(c) : add_to_fill(c));
        moved |= added;
        if ((pending || added) && !session.flush()) return ended_by(c);
        return true;
    }

    bool add_due(std::uint64_t c) {
        Session<Link>& session = *sessions_[c];
        std::uint64_t room = session.room();
        if (room == 0 || cursors_[c] >= header_.intended) return false;
        const std::int64_t now_ns = clock_ns();
        bool added = false;
        for (; room > 0 && cursors_[c] < header_.intended; --room, cursors_[c] += header_.connections) {
            const std::uint64_t i = cursors_[c];
            const std::int64_t due_ns = begin_ns_ + plan_.intended[i];
            if (due_ns > now_ns) break;
            if (header_.behind_ns && now_ns - due_ns > header_.behind_ns) {
                cursors_.assign(cursors_.size(), header_.intended);
                break;
            }
            const bool measured = i >= warmups_;
            const std::uint64_t row = next_row(c, measured ? i - warmups_ : i);
            session.add(frame(row), expected(row), due_ns, now_ns, measured);
            if (measured) note_sent(due_ns, now_ns);
            added = true;
        }
        return added;
    }

    bool add_to_fill(std::uint64_t c) {
        Session<Link>& session = *sessions_[c];
        std::uint64_t room = session.room();
        if (room == 0) return false;
        const std::int64_t now_ns = clock_ns();
        const bool measured = now_ns >= begin_ns_;
        bool added = false;
        for (; room > 0 && !closed_loop_ends(now_ns); --room) {
            const std::uint64_t row = next_row(c, issued_);
            session.add(frame(row), expected(row), now_ns, now_ns, measured);
            ++issued_;
            if (measured) note_sent(now_ns, now_ns);
            added = true;
        }
        return added;
    }

    bool closed_loop_ends(std::int64_t now_ns) const {
        if (header_.requests) return recorder_.result.sent >= header_.requests;
        return now_ns >= begin_ns_ + header_.duration_ns;
    }

    // Which row a connection sends next: with history the next of its own, else the i-th of all.
    std::uint64_t next_row(std::uint64_t c, std::uint64_t i) {
        if (!steps_) return i;
        const std::uint64_t row = turns_[c];
        turns_[c] += header_.connections;
        return row;
    }

    const std::byte* frame(std::uint64_t i) const {
        return plan_.frames + (i % header_.rows) * header_.request_length;
    }

    const float* expected(std::uint64_t i) const {
        return plan_.expected ? plan_.expected + (i % header_.rows) * header_.hello.outputs : nullptr;
    }

    void note_sent(std::int64_t due_ns, std::int64_t now_ns) {
        ResultHeader& result = recorder_.result;
        ++result.sent;
        result.last_sent_ns = now_ns;
        const std::int64_t late_ns = now_ns - due_ns;
        if (late_ns > header_.late_ns) ++result.late_sends;
        result.late_worst_ns = std::max(result.late_worst_ns, late_ns);
    }

    void note_gap(std::int64_t now_ns, std::int64_t gap_ns, std::int64_t threshold_ns) {
        if (gap_ns < threshold_ns) return;
        ResultHeader& result = recorder_.result;
        result.hiccup_worst_ns = std::max(result.hiccup_worst_ns, gap_ns);
        ++result.hiccups;
        result.hiccup_sum_ns += gap_ns;
        recorder_.note_gap(now_ns, gap_ns);
    }

    bool over(std::int64_t now_ns) const {
        bool unanswered = false;
        bool unsent = false;
        for (std::uint64_t c = 0; c < sessions_.size(); ++c) {
            if (sessions_[c]->unanswered() > 0) {
                unanswered = true;
                if (now_ns - sessions_[c]->oldest_sent_ns() > header_.stall_ns) return true;
            }
            unsent |= cursors_[c] < header_.intended;
        }
        if (!header_.intended) unsent = !closed_loop_ends(now_ns);
        return !unanswered && !unsent;
    }

    const Plan& plan_;
    const PlanHeader& header_;
    Recorder recorder_;
    std::vector<std::unique_ptr<Session<Link>>> sessions_;
    bool steps_;                          // the daemon keeps the history
    std::vector<std::uint64_t> cursors_;  // open loop: the next request of each connection
    std::vector<std::uint64_t> turns_;    // with history: the next row of each connection
    std::uint64_t warmups_ = 0;
    std::uint64_t issued_ = 0;  // closed loop
    std::int64_t begin_ns_ = 0;
    Violation violation_;
};

inline void write_result(const char* path, const Plan& plan, Recorder& recorder, const Violation& violation) {
    ResultHeader& result = recorder.result;
    std::memcpy(result.magic, result_magic, 8);
    result.requests = result.sent;
    if (plan.header->intended) {
        result.requests = 0;
        for (std::uint64_t i = 0; i < plan.header->intended; ++i) result.requests += plan.intended[i] >= 0 ? 1 : 0;
    }
    result.samples = recorder.samples().size();
    result.violation = violation.kind;
    result.violation_connection = violation.connection;
    result.violation_expected = violation.expected;
    result.violation_found = violation.found;
    std::memcpy(result.violation_text, violation.text, sizeof result.violation_text);

    std::ofstream file(path, std::ios::binary);
    const auto put = [&](const void* bytes, std::size_t count) {
        file.write(static_cast<const char*>(bytes), static_cast<std::streamsize>(count));
    };
    put(&result, sizeof result);
    for (const auto& histogram : recorder.histograms())
        put(histogram.counts().data(), 8 * histogram.counts().size());
    put(recorder.slowest().data(), sizeof(Sample) * result.slowest);
    put(recorder.samples().data(), sizeof(Sample) * result.samples);
    put(recorder.gaps().data(), sizeof(Gap) * result.gaps);
    file.close();
    if (!file) die(path);
}

template <class Link>
void carry_out(const Plan& plan, const char* result_path) {
    Run<Link> run(plan);
    lock_memory();
    if (run.connect() && run.store()) run.go();
    write_result(result_path, plan, run.recorder(), run.violation());
}

}  // namespace sigd::bench
