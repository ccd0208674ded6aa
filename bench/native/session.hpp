// One connection of the load generator: what is unanswered, what is half sent, and the check of every answer.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "exchange.hpp"
#include "platform.hpp"
#include "recorder.hpp"

namespace sigd {

// Why the run ended; kind none means that it has not.
struct Violation {
    ViolationKind kind = ViolationKind::none;
    std::uint64_t connection = 0;
    std::uint64_t expected = 0;
    std::uint64_t found = 0;
    char text[72] = {};
};

struct Outstanding {
    std::int64_t intended_ns;
    std::int64_t sent_ns;
    std::uint32_t instrument_id;
    bool measured;
};

class Session {
public:
    Session(std::uint64_t number, std::uint64_t in_flight, std::size_t request_length)
        : number_(number), in_flight_(in_flight), request_length_(request_length),
          // Numbers of one connection can never be taken for those of another.
          first_sequence_((number + 1) << 40) {
        std::size_t slots = 1;
        while (slots < in_flight) slots *= 2;
        ring_.resize(slots);
        in_.resize(std::size_t{1} << 18);
        out_.resize(in_flight * request_length);
    }

    // Connects, says Hello and waits for the Welcome, which the caller gets.
    Violation open(const char* path, const std::uint8_t* hello, std::size_t hello_length, Welcome& welcome) {
        fd_ = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd_ < 0) die("socket");
        const sockaddr_un address = unix_address(path);
        if (connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) die(path);
        const timeval patience{5, 0};
        if (setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) != 0) die("SO_RCVTIMEO");
        if (write(fd_, hello, hello_length) != static_cast<ssize_t>(hello_length)) die("cannot send Hello");
        while (filled_ < header_bytes || filled_ < header_bytes + read_as<Header>(in_.data()).block_length) {
            const ssize_t got = read(fd_, in_.data() + filled_, in_.size() - filled_);
            if (got == 0) return violation(ViolationKind::closed_early, sizeof(Welcome), filled_, "before Welcome");
            if (got < 0) return violation(ViolationKind::no_welcome, sizeof(Welcome), filled_, "none within 5 s");
            filled_ += static_cast<std::size_t>(got);
        }
        const auto header = read_as<Header>(in_.data());
        if (template_of(header) == Template::reject) return rejected(in_.data());
        if (template_of(header) != Template::welcome || header.schema_id != schema_id ||
            header.block_length < sizeof(Welcome) - header_bytes)
            return violation(ViolationKind::no_welcome, static_cast<std::uint64_t>(Template::welcome),
                             header.template_id, "the first frame is no Welcome");
        welcome = read_as<Welcome>(in_.data());
        response_length_ = response_bytes(welcome.outputs);
        outputs_ = welcome.outputs;
        consume(header_bytes + header.block_length);
        set_nonblocking(fd_);
        return {};
    }

    std::uint64_t unanswered() const { return sent_ - answered_; }
    std::uint64_t room() const { return out_begin_ < out_end_ ? 0 : in_flight_ - unanswered(); }
    std::int64_t oldest_sent_ns() const { return ring_[answered_ & (ring_.size() - 1)].sent_ns; }

    // Appends one request to the write that flush() will make. Needs room() > 0 before the first of them.
    void add(const std::uint8_t* frame, std::int64_t intended_ns, std::int64_t now_ns, bool measured) {
        std::uint8_t* to = out_.data() + out_end_;
        out_end_ += request_length_;
        std::memcpy(to, frame, request_length_);
        const std::uint64_t sequence = first_sequence_ + sent_;
        const auto client_time_ns = static_cast<std::uint64_t>(now_ns);
        std::memcpy(to + offsetof(RequestHead, sequence), &sequence, sizeof sequence);
        std::memcpy(to + offsetof(RequestHead, client_time_ns), &client_time_ns, sizeof client_time_ns);
        const auto instrument_id = read_as<RequestHead>(frame).instrument_id;
        ring_[sent_ & (ring_.size() - 1)] = {intended_ns, now_ns, instrument_id, measured};
        ++sent_;
    }

    bool pending() const { return out_begin_ < out_end_; }

    // Hands over what the socket takes now; the rest waits. Never blocks.
    Violation flush() {
        while (out_begin_ < out_end_) {
            const ssize_t put = send(fd_, out_.data() + out_begin_, out_end_ - out_begin_, MSG_NOSIGNAL);
            if (put < 0 && would_block()) return {};
            if (put < 0) return violation(ViolationKind::closed_early, 0, unanswered(), std::strerror(errno));
            out_begin_ += static_cast<std::size_t>(put);
        }
        out_begin_ = out_end_ = 0;
        return {};
    }

    // Takes what has arrived, if anything, and records every whole answer of it. Returns bytes read through `got`.
    Violation receive(Recorder& recorder, std::size_t& got_bytes) {
        got_bytes = 0;
        const ssize_t got = read(fd_, in_.data() + filled_, in_.size() - filled_);
        if (got < 0 && would_block()) return {};
        if (got <= 0)
            return violation(ViolationKind::closed_early, 0, unanswered(), got ? std::strerror(errno) : "end of stream");
        const std::int64_t now_ns = clock_ns();
        got_bytes = static_cast<std::size_t>(got);
        filled_ += got_bytes;
        std::size_t at = 0;
        while (filled_ - at >= header_bytes) {
            const auto header = read_as<Header>(in_.data() + at);
            const std::size_t length = header_bytes + header.block_length;
            if (filled_ - at < length) break;
            const Violation found = take(in_.data() + at, header, length, now_ns, recorder);
            if (found.kind != ViolationKind::none) return found;
            at += length;
        }
        consume(at);
        return {};
    }

private:
    static Template template_of(const Header& header) { return static_cast<Template>(header.template_id); }

    Violation violation(ViolationKind kind, std::uint64_t expected, std::uint64_t found, const char* text) const {
        Violation v{kind, number_, expected, found, {}};
        std::snprintf(v.text, sizeof v.text, "%s", text);
        return v;
    }

    Violation rejected(const std::uint8_t* frame) const {
        const auto reject = read_as<Reject>(frame);
        char reason[sizeof reject.reason + 1] = {};
        std::memcpy(reason, reject.reason, sizeof reject.reason);
        return violation(ViolationKind::rejected, 0, reject.code, reason);
    }

    void consume(std::size_t bytes) {
        filled_ -= bytes;
        if (filled_ > 0 && bytes > 0) std::memmove(in_.data(), in_.data() + bytes, filled_);
    }

    Violation take(const std::uint8_t* frame, const Header& header, std::size_t length, std::int64_t now_ns,
                   Recorder& recorder) {
        if (header.schema_id != schema_id || header.version < 1)
            return violation(ViolationKind::header, schema_id, header.schema_id, "schema or version");
        switch (template_of(header)) {
            case Template::signal_response: break;
            case Template::heartbeat: case Template::goodbye: return {};
            case Template::reject: return rejected(frame);
            default: return violation(ViolationKind::header, 11, header.template_id, "template");
        }
        // A later version may append to the block; version 1 has exactly this length.
        if (header.version == 1 ? length != response_length_ : length < response_length_)
            return violation(ViolationKind::header, response_length_, length, "response length");
        if (unanswered() == 0) return violation(ViolationKind::unsolicited, 0, 0, "nothing was asked");
        const auto head = read_as<ResponseHead>(frame);
        const Outstanding& asked = ring_[answered_ & (ring_.size() - 1)];
        const Violation found = check(head, asked, frame + sizeof head, now_ns);
        if (found.kind != ViolationKind::none) return found;
        ++answered_;
        if (asked.measured)
            recorder.record({asked.intended_ns, asked.sent_ns, now_ns, head.receive_time_ns, head.send_time_ns,
                             head.infer_ns, head.model_generation, head.status, head.batch_rows,
                             static_cast<std::uint16_t>(number_), 0});
        return {};
    }

    Violation check(const ResponseHead& head, const Outstanding& asked, const std::uint8_t* outputs,
                    std::int64_t now_ns) const {
        const std::uint64_t sequence = first_sequence_ + answered_;
        if (head.sequence != sequence)
            return violation(ViolationKind::sequence, sequence, head.sequence, "answers keep the requests' order");
        const auto client_time_ns = static_cast<std::uint64_t>(asked.sent_ns);
        if (head.client_time_ns != client_time_ns)
            return violation(ViolationKind::client_time, client_time_ns, head.client_time_ns, "is echoed");
        if (head.instrument_id != asked.instrument_id)
            return violation(ViolationKind::instrument, asked.instrument_id, head.instrument_id, "is echoed");
        if (head.status >= status_count)
            return violation(ViolationKind::status, status_count - 1, head.status, "unknown status");
        for (std::uint32_t i = 0; i < outputs_; ++i) {
            const auto output = read_as<float>(outputs + 4 * std::size_t{i});
            if (head.status == status_ok ? !std::isfinite(output) : !std::isnan(output))
                return violation(ViolationKind::outputs, head.status, i, "finite if and only if the status is OK");
        }
        // Durations, not instants, so that a daemon with another clock is held to the same.
        const std::uint64_t inside = head.send_time_ns - head.receive_time_ns;
        const auto round_trip = static_cast<std::uint64_t>(now_ns - asked.sent_ns);
        if (head.status == status_ok && (head.send_time_ns < head.receive_time_ns || inside > round_trip))
            return violation(ViolationKind::stamps, round_trip, inside, "ns in the daemon, of the whole round trip");
        if (head.status == status_ok && head.infer_ns > inside)
            return violation(ViolationKind::stamps, inside, head.infer_ns, "ns in the model, of those in the daemon");
        return {};
    }

    std::uint64_t number_;
    std::uint64_t in_flight_;
    std::size_t request_length_;
    std::size_t response_length_ = 0;
    std::uint32_t outputs_ = 0;
    std::uint64_t first_sequence_;
    int fd_ = -1;
    std::uint64_t sent_ = 0;
    std::uint64_t answered_ = 0;
    std::vector<Outstanding> ring_;
    std::vector<std::uint8_t> in_;
    std::size_t filled_ = 0;
    std::vector<std::uint8_t> out_;
    std::size_t out_begin_ = 0;
    std::size_t out_end_ = 0;
};

}  // namespace sigd
