// One connection of the load generator: what is unanswered, and the check of every answer.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "link.hpp"
#include "platform.hpp"
#include "recorder.hpp"
#include "violation.hpp"

namespace sigd::bench {

struct Outstanding {
    std::int64_t intended_ns;
    std::int64_t sent_ns;
    const float* expected;  // nullptr: not compared
    std::uint32_t instrument_id;
    bool measured;
    bool stored;  // to be stored, and the model not run
};

template <class Link>
class Session {
public:
    // What breaks the contract is noted in `violation`, and the call that met it returns false.
    Session(std::uint64_t number, const PlanHeader& plan, Violation& violation)
        : link_(violation), violation_(violation), number_(number), in_flight_(plan.in_flight),
          request_length_(plan.request_length), tolerance_(plan.tolerance),
          steps_(wire::has(plan.hello.flags, wire::HelloFlag::history)),
          // Numbers of one connection can never be taken for those of another.
          first_sequence_((number + 1) << 40) {
        std::size_t slots = 1;
        while (slots < in_flight_) slots *= 2;
        unanswered_.resize(slots);
    }

    // Connects; the caller gets the Welcome.
    bool open(const Spec& spec, wire::Welcome& welcome) {
        Error error;
        switch (link_.open(spec, in_flight_, welcome, error)) {
            case Errc::none: break;
            case Errc::rejected:
                return violation_.note(ViolationKind::rejected, 0, static_cast<std::uint64_t>(error.reject), error.text);
            case Errc::closed: return violation_.note(ViolationKind::closed_early, sizeof welcome, 0, error.text);
            case Errc::timed_out: case Errc::protocol_broken:
                return violation_.note(ViolationKind::no_welcome, sizeof welcome, 0, error.text);
            default: give_up(error.text);
        }
        outputs_ = welcome.outputs;
        response_length_ = wire::response_frame_bytes(outputs_);
        if (request_length_ != wire::request_frame_bytes(welcome.features)) give_up("the plan's frames are another model's");
        return true;
    }

    std::uint64_t sent() const { return sent_; }
    std::uint64_t answered() const { return answered_; }
    std::uint64_t unanswered() const { return sent_ - answered_; }
    std::uint64_t room() const { return link_.pending() ? 0 : in_flight_ - unanswered(); }
    std::int64_t oldest_sent_ns() const { return unanswered_[answered_ & (unanswered_.size() - 1)].sent_ns; }

    // Adds one request to those that flush() will let go. Needs room() > 0 before the first of them. A `stored` one is a
    // step that the daemon keeps without running the model.
    void add(const std::byte* frame, const float* expected, std::int64_t intended_ns, std::int64_t now_ns,
             bool measured, bool stored = false) {
        std::byte* to = link_.slot();
        std::memcpy(to, frame, request_length_);
        const std::uint64_t sequence = first_sequence_ + sent_;
        const auto client_time_ns = static_cast<std::uint64_t>(now_ns);
        using Head = wire::SignalRequestHead;
        std::memcpy(to + offsetof(Head, sequence), &sequence, sizeof sequence);
        std::memcpy(to + offsetof(Head, client_time_ns), &client_time_ns, sizeof client_time_ns);
        if (stored) {
            const auto flag = static_cast<std::uint16_t>(wire::RequestFlag::store_only);
            std::memcpy(to + offsetof(Head, flags), &flag, sizeof flag);
        }
        link_.push();
        unanswered_[sent_ & (unanswered_.size() - 1)] = {intended_ns, now_ns, expected, load<Head>(frame).instrument_id,
                                                         measured, stored};
        ++sent_;
    }

    bool pending() const { return link_.pending(); }

    // Hands over what the daemon takes now; the rest waits. Never blocks.
    bool flush() { return link_.flush() || closed(); }

    // Takes what has come and records every answer. Sets `moved` where something has.
    bool receive(Recorder& recorder, bool& moved) {
        const Met met = link_.receive([&](const std::byte* frame, Carries carries, std::int64_t now_ns) {
            return take(frame, carries, now_ns, recorder);
        });
        moved = met == Met::frames;
        return met == Met::closed ? closed() : met != Met::broken;
    }

private:
    [[noreturn]] static void give_up(const char* why) {
        std::fprintf(stderr, "%s\n", why);
        std::exit(3);
    }

    bool closed() {
        return violation_.note(ViolationKind::closed_early, 0, unanswered(),
                               errno != 0 ? std::strerror(errno) : "end of stream");
    }

    bool take(const std::byte* frame, Carries carries, std::int64_t now_ns, Recorder& recorder) {
        const auto header = load<wire::Header>(frame);
        if (header.schema_id != wire::schema_id || header.version < 1)
            return violation_.note(ViolationKind::header, wire::schema_id, header.schema_id, "schema or version");
        const bool is_answer = header.template_id == wire::TemplateId::signal_response;
        if (carries != Carries::everything && is_answer != (carries == Carries::answers))
            return violation_.note(ViolationKind::header, 0, static_cast<std::uint64_t>(header.template_id),
                                   is_answer ? "an answer beside the ring" : "another message than an answer in the ring");
        return is_answer ? take_answer(frame, header, now_ns, recorder) : take_control(frame, header);
    }

    bool take_control(const std::byte* frame, const wire::Header& header) {
        switch (header.template_id) {
            case wire::TemplateId::heartbeat: case wire::TemplateId::goodbye: return true;
            case wire::TemplateId::reject: {
                Error error;
                (void)error.set(load<wire::Reject>(frame));
                return violation_.note(ViolationKind::rejected, 0, static_cast<std::uint64_t>(error.reject), error.text);
            }
            default:
                return violation_.note(ViolationKind::header, 11, static_cast<std::uint64_t>(header.template_id),
                                       "template");
        }
    }

    bool take_answer(const std::byte* frame, const wire::Header& header, std::int64_t now_ns, Recorder& recorder) {
        // A later version may append to the block; version 1 has exactly this length.
        const std::size_t length = wire::header_bytes + header.block_length;
        if (header.version == 1 ? length != response_length_ : length < response_length_)
            return violation_.note(ViolationKind::header, response_length_, length, "response length");
        if (unanswered() == 0) return violation_.note(ViolationKind::unsolicited, 0, 0, "nothing was asked");
        const auto head = load<wire::SignalResponseHead>(frame);
        const Outstanding& asked = unanswered_[answered_ & (unanswered_.size() - 1)];
        if (!check_echo(head, asked) || !check_outputs(head, asked, frame + sizeof head) ||
            !check_values(head, asked, frame + sizeof head) || !check_stamps(head, asked, now_ns))
            return false;
        ++answered_;
        if (asked.measured)
            recorder.record({asked.intended_ns, asked.sent_ns, now_ns, head.receive_time_ns, head.send_time_ns,
                             head.infer_ns, head.model_generation, static_cast<std::uint16_t>(head.status),
                             head.batch_rows, static_cast<std::uint16_t>(number_), 0});
        return true;
    }

    bool check_echo(const wire::SignalResponseHead& head, const Outstanding& asked) {
        const std::uint64_t sequence = first_sequence_ + answered_;
        if (head.sequence != sequence)
            return violation_.note(ViolationKind::sequence, sequence, head.sequence, "answers keep the requests' order");
        const auto client_time_ns = static_cast<std::uint64_t>(asked.sent_ns);
        if (head.client_time_ns != client_time_ns)
            return violation_.note(ViolationKind::client_time, client_time_ns, head.client_time_ns, "is echoed");
        if (head.instrument_id != asked.instrument_id)
            return violation_.note(ViolationKind::instrument, asked.instrument_id, head.instrument_id, "is echoed");
        return true;
    }

    bool check_outputs(const wire::SignalResponseHead& head, const Outstanding& asked, const std::byte* outputs) {
        if (head.status > status_last)
            return violation_.note(ViolationKind::status, static_cast<std::uint64_t>(status_last),
                                   static_cast<std::uint64_t>(head.status), "unknown status");
        if (asked.stored != (head.status == wire::Status::stored))
            return violation_.note(ViolationKind::status, static_cast<std::uint64_t>(wire::Status::stored),
                                   static_cast<std::uint64_t>(head.status), "STORED if and only if a step was to be");
        for (std::uint32_t i = 0; i < outputs_; ++i) {
            const auto output = load<float>(outputs + sizeof(float) * i);
            if (head.status == wire::Status::ok ? !std::isfinite(output) : !std::isnan(output))
                return violation_.note(ViolationKind::outputs, static_cast<std::uint64_t>(head.status), i,
                                       "finite if and only if the status is OK");
        }
        return true;
    }

    bool check_values(const wire::SignalResponseHead& head, const Outstanding& asked, const std::byte* outputs) {
        // A step that was not stored is missing in the windows after it.
        if (head.status == wire::Status::busy || head.status == wire::Status::bad_input ||
            head.status == wire::Status::draining)
            steps_missing_ |= steps_;
        if (asked.expected == nullptr || head.status != wire::Status::ok || steps_missing_) return true;
        for (std::uint32_t i = 0; i < outputs_; ++i) {
            const double found = load<float>(outputs + sizeof(float) * i), expected = asked.expected[i];
            if (std::abs(found - expected) <= tolerance_ * std::max(1.0, std::abs(expected))) continue;
            char words[violation_text_bytes];
            std::snprintf(words, sizeof words, "output %u is %.9g, and the oracle says %.9g", i, found, expected);
            return violation_.note(ViolationKind::wrong, 0, i, words);
        }
        return true;
    }

    // Durations, not instants, so that a daemon with another clock is held to the same.
    bool check_stamps(const wire::SignalResponseHead& head, const Outstanding& asked, std::int64_t now_ns) {
        if (head.status != wire::Status::ok) return true;
        const std::uint64_t inside = head.send_time_ns - head.receive_time_ns;
        const auto round_trip = static_cast<std::uint64_t>(now_ns - asked.sent_ns);
        if (head.send_time_ns < head.receive_time_ns || inside > round_trip)
            return violation_.note(ViolationKind::stamps, round_trip, inside, "ns in the daemon, of the whole round trip");
        if (head.infer_ns > inside)
            return violation_.note(ViolationKind::stamps, inside, head.infer_ns, "ns in the model, of those in the daemon");
        return true;
    }

    Link link_;
    Violation& violation_;
    std::uint64_t number_;
    std::uint64_t in_flight_;
    std::size_t request_length_;
    double tolerance_;
    bool steps_;                  // the daemon keeps the history
    bool steps_missing_ = false;
    std::size_t response_length_ = 0;
    std::uint32_t outputs_ = 0;
    std::uint64_t first_sequence_;
    std::uint64_t sent_ = 0;
    std::uint64_t answered_ = 0;
    std::vector<Outstanding> unanswered_;
};

}  // namespace sigd::bench
