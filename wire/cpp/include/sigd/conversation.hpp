// One session as the client sees it, without I/O: requests are written down, frames come in, each answer is held
// against the request that it must answer. The transports carry the frames; an event loop of your own may as well.
#pragma once

#include <cinttypes>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>

#include "platform.hpp"
#include "result.hpp"
#include "sigd_wire.hpp"

namespace sigd::inline v0_1 {

// What goes with a row of features.
struct Tags {
    std::uint32_t instrument_id = 0;   // echoed; the key of conflation and of history
    std::uint64_t deadline_ns = 0;     // clock_ns() after which the answer is worthless; 0 is none
    std::uint64_t client_time_ns = 0;  // opaque; echoed
    bool reset = false;                // with history: forget the instrument's steps before this one is stored
    bool store_only = false;           // with history: store the step, and do not run the model
};

// One answer, as it came: see wire::SignalResponseHead for the other fields.
struct Response : wire::SignalResponseHead {
    std::span<const float> outputs;  // NaN unless ok()

    [[nodiscard]] bool ok() const noexcept { return status == wire::Status::ok; }
};

class Conversation {
public:
    // Begins a session. The numbering of requests goes on from the last one.
    Errc open(const wire::Welcome& welcome, std::uint32_t unanswered_max) noexcept {
        std::size_t places = 1;
        while (places < unanswered_max) places *= 2;
        if (!book_.reserve(places * sizeof(std::uint64_t)))
            return error_.set(Errc::out_of_memory, "no memory for %u unanswered requests", unanswered_max);
        welcome_ = welcome;
        unanswered_max_ = unanswered_max;
        mask_ = places - 1;
        request_bytes_ = wire::request_frame_bytes(welcome.features);
        response_bytes_ = wire::response_frame_bytes(welcome.outputs);
        response_word_ = wire::header_word(wire::TemplateId::signal_response, response_bytes_);
        sent_ = answered_ = heartbeats_ = model_infos_ = 0;
        model_info_ = {};
        daemon_clock_ns_ = welcome.clock_ns;
        goodbye_said_ = false;
        goodbye_.reset();
        return error_.set(Errc::none, "%s", "");
    }

    // Begins a new ledger: what was unanswered is no longer known.
    void forget() noexcept { sent_ = answered_ = 0; }

    [[nodiscard]] const wire::Welcome& welcome() const noexcept { return welcome_; }
    [[nodiscard]] const Error& error() const noexcept { return error_; }
    [[nodiscard]] Error& error() noexcept { return error_; }
    [[nodiscard]] Errc state() const noexcept { return error_.code; }

    [[nodiscard]] std::size_t request_bytes() const noexcept { return request_bytes_; }
    [[nodiscard]] std::uint32_t unanswered_max() const noexcept { return unanswered_max_; }
    [[nodiscard]] std::uint64_t unanswered() const noexcept { return sent_ - answered_; }
    [[nodiscard]] bool full() const noexcept { return unanswered() >= unanswered_max_; }

    // The sequence of the n-th oldest unanswered request, n within 0..unanswered() - 1.
    [[nodiscard]] std::uint64_t unanswered_sequence(std::uint64_t n) const noexcept {
        return load<std::uint64_t>(place(answered_ + n));
    }

    [[nodiscard]] std::uint64_t next_sequence() const noexcept { return next_sequence_; }
    void set_next_sequence(std::uint64_t sequence) noexcept { next_sequence_ = sequence; }

    // Where the features of a request frame belong.
    [[nodiscard]] std::span<float> features_of(std::byte* frame) const noexcept {
        return {reinterpret_cast<float*>(frame + sizeof(wire::SignalRequestHead)), welcome_.features};
    }

    // Completes a request frame whose features are written, and notes that it is sent; its sequence. Not while full().
    std::uint64_t finish_request(std::byte* frame, const Tags& tags) noexcept {
        const std::uint64_t sequence = next_sequence_++;
        const wire::SignalRequestHead head{wire::make_header(wire::TemplateId::signal_request, request_bytes_),
                                           sequence,
                                           tags.client_time_ns,
                                           tags.deadline_ns,
                                           tags.instrument_id,
                                           flags_of(tags),
                                           0};
        std::memcpy(frame, &head, sizeof head);
        if (welcome_.features % 2 != 0) std::memset(frame + request_bytes_ - sizeof(float), 0, sizeof(float));
        std::memcpy(place(sent_), &sequence, sizeof sequence);
        ++sent_;
        return sequence;
    }

    static std::uint16_t flags_of(const Tags& tags) noexcept {
        const auto reset = static_cast<unsigned>(wire::RequestFlag::reset) * tags.reset;
        const auto store_only = static_cast<unsigned>(wire::RequestFlag::store_only) * tags.store_only;
        return static_cast<std::uint16_t>(reset | store_only);
    }

    // Takes a whole frame in. The answer that it is, valid until the next one is taken and for as long as the frame
    // lies there; none, without a code, where it was a control message.
    Result<const Response*> take(const std::byte* frame) noexcept {
        if (load<std::uint64_t>(frame) != response_word_) [[unlikely]] {
            const Errc other = take_other(frame);
            if (other != Errc::none) return other;
            if (load<wire::Header>(frame).template_id != wire::TemplateId::signal_response) return nullptr;
        }
        if (sent_ == answered_) [[unlikely]]
            return fail(Errc::protocol_broken, "the daemon answered, and nothing was asked");
        static_cast<wire::SignalResponseHead&>(response_) = load<wire::SignalResponseHead>(frame);
        const auto expected = load<std::uint64_t>(place(answered_));
        if (response_.sequence != expected) [[unlikely]]
            return fail(Errc::protocol_broken, "the daemon answered sequence %" PRIu64 ", expected %" PRIu64,
                        response_.sequence, expected);
        ++answered_;
        response_.outputs = {reinterpret_cast<const float*>(frame + sizeof(wire::SignalResponseHead)),
                             welcome_.outputs};
        return &response_;
    }

    // The connection is gone.
    Errc ended(const char* why) noexcept {
        const bool orderly = unanswered() == 0 && (goodbye_said_ || goodbye_.has_value());
        if (orderly) return fail(Errc::finished, "the session has ended, and every request was answered");
        return fail(Errc::closed, "%s; %" PRIu64 " requests are unanswered", why, unanswered());
    }

    template <class... Arguments>
    Errc fail(Errc code, const char* format, Arguments... arguments) noexcept {
        if constexpr (sizeof...(arguments) == 0)
            (void)error_.set(code, "%s", format);
        else
            (void)error_.set(code, format, arguments...);
        error_.unanswered = unanswered();
        return code;
    }

    // What control messages said.
    void say_goodbye() noexcept { goodbye_said_ = true; }
    [[nodiscard]] bool goodbye_said() const noexcept { return goodbye_said_; }
    [[nodiscard]] std::optional<wire::GoodbyeCode> goodbye() const noexcept { return goodbye_; }
    [[nodiscard]] std::uint64_t heartbeats() const noexcept { return heartbeats_; }
    [[nodiscard]] std::uint64_t daemon_clock_ns() const noexcept { return daemon_clock_ns_; }
    [[nodiscard]] std::uint64_t model_infos() const noexcept { return model_infos_; }
    [[nodiscard]] const wire::ModelInfo& model_info() const noexcept { return model_info_; }

    // Says what is wrong with a header, nullptr where nothing is. Lengths are another matter.
    static const char* wrong_header(const wire::Header& header) noexcept {
        if (header.schema_id != wire::schema_id) return "the daemon speaks another schema";
        if (header.version < wire::schema_version) return "the daemon speaks an older version";
        if ((wire::header_bytes + header.block_length) % wire::frame_alignment_bytes != 0)
            return "the daemon sent a frame whose length is no multiple of 8";
        return nullptr;
    }

    // Version 1 has exactly this length, a newer one at least that.
    static bool fits(const wire::Header& header, std::size_t frame_bytes) noexcept {
        const std::size_t found = wire::header_bytes + header.block_length;
        return header.version == wire::schema_version ? found == frame_bytes : found >= frame_bytes;
    }

private:
    std::byte* place(std::uint64_t count) const noexcept {
        return book_.data() + (count & mask_) * sizeof(std::uint64_t);
    }

    // Anything but a response of version 1.
    Errc take_other(const std::byte* frame) noexcept {
        const auto header = load<wire::Header>(frame);
        if (const char* wrong = wrong_header(header)) return fail(Errc::protocol_broken, wrong);
        switch (header.template_id) {
            case wire::TemplateId::signal_response:
                return fits(header, response_bytes_) ? Errc::none : wrong_length(header, response_bytes_);
            case wire::TemplateId::heartbeat:
                if (!fits(header, sizeof(wire::Heartbeat))) return wrong_length(header, sizeof(wire::Heartbeat));
                daemon_clock_ns_ = load<wire::Heartbeat>(frame).clock_ns;
                ++heartbeats_;
                return Errc::none;
            case wire::TemplateId::goodbye:
                if (!fits(header, sizeof(wire::Goodbye))) return wrong_length(header, sizeof(wire::Goodbye));
                goodbye_ = load<wire::Goodbye>(frame).code;
                return Errc::none;
            case wire::TemplateId::model_info:
                if (!fits(header, sizeof(wire::ModelInfo))) return wrong_length(header, sizeof(wire::ModelInfo));
                model_info_ = load<wire::ModelInfo>(frame);
                ++model_infos_;
                return Errc::none;
            case wire::TemplateId::reject:
                if (!fits(header, sizeof(wire::Reject))) return wrong_length(header, sizeof(wire::Reject));
                (void)error_.set(load<wire::Reject>(frame));
                error_.unanswered = unanswered();
                return Errc::rejected;
            default:
                return fail(Errc::protocol_broken,
                            "the daemon sent template %u, expected an answer or a control message",
                            static_cast<unsigned>(header.template_id));
        }
    }

    Errc wrong_length(const wire::Header& header, std::size_t expected) noexcept {
        return fail(Errc::protocol_broken, "the daemon sent a %s of %zu bytes, expected %zu",
                    wire::name(header.template_id), wire::header_bytes + header.block_length, expected);
    }

    wire::Welcome welcome_{};
    Memory book_;  // sequences of unanswered requests, oldest at answered_
    std::uint64_t mask_ = 0;
    std::uint64_t sent_ = 0;
    std::uint64_t answered_ = 0;
    std::uint64_t next_sequence_ = 0;
    std::size_t request_bytes_ = 0;
    std::size_t response_bytes_ = 0;
    std::uint64_t response_word_ = 0;
    std::uint32_t unanswered_max_ = 0;
    std::uint64_t heartbeats_ = 0;
    std::uint64_t daemon_clock_ns_ = 0;
    std::uint64_t model_infos_ = 0;
    wire::ModelInfo model_info_{};
    bool goodbye_said_ = false;
    std::optional<wire::GoodbyeCode> goodbye_;
    Response response_{};
    Error error_;
};

}  // namespace sigd::inline v0_1
