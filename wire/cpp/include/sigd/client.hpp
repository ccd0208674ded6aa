// The client: one session with a daemon, over a stream or shared memory. One client, one thread.
#pragma once

#include <algorithm>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <utility>

#include "connect.hpp"
#include "conversation.hpp"
#include "platform.hpp"
#include "result.hpp"
#include "shared_memory.hpp"
#include "stream.hpp"

namespace sigd::inline v0_1 {

// What a transport does for the client: requests are written where room() says, push()ed, and go out with flush();
// next() gives the frames that come, and sleep() waits for some; may_sleep() and awake() are for who sleeps elsewhere.
template <class T>
concept TransportLike = requires(T& transport, const void* frame, std::size_t bytes, std::uint64_t timeout_ns) {
    { transport.room() } -> std::same_as<std::byte*>;
    transport.push();
    { transport.push_control(frame, bytes) } -> std::same_as<bool>;
    { transport.unsent() } -> std::same_as<bool>;
    { transport.flush() } -> std::same_as<Errc>;
    { transport.next() } -> std::same_as<Result<const std::byte*>>;
    transport.sleep(timeout_ns);
    { transport.may_sleep() } -> std::same_as<bool>;
    transport.awake();
};
static_assert(TransportLike<StreamTransport> && TransportLike<SharedMemoryTransport>);

class Client {
public:
    Client() noexcept = default;
    Client(const Client&) = delete;
    Client& operator=(const Client&) = delete;
    ~Client() { close(); }

    // Opens a session; an open one is closed first. This allocates and waits, and nothing else does: allocations are
    // kept from one session to the next. The numbering of requests goes on; the ledger of what is unanswered begins
    // anew, whatever comes of this.
    Errc connect(const Spec& spec) noexcept {
        close();
        talk_.forget();
        Session session;
        if (Errc code = open_session(spec, stream_.buffers(), session, talk_.error()); code != Errc::none) return code;
        return opened(spec, session);
    }

    // As connect(), but never waits: poll_connect() goes on with it. Until then there is no session.
    Errc begin_connect(const Spec& spec) noexcept {
        close();
        talk_.forget();
        (void)talk_.error().set(Errc::not_connected, "%s", "connecting");
        spec_ = spec;
        handshake_.emplace(spec_, stream_.buffers(), session_, talk_.error());
        const Errc code = handshake_->begin(false);
        if (code != Errc::none) stop_connecting();
        return code;
    }

    // True once the session is open, false while it is on its way: then ask again when descriptor() is readable, or
    // after a millisecond. A code where it failed, as connect() has them.
    Result<bool> poll_connect() noexcept {
        if (connected()) return true;
        if (!handshake_) return talk_.state();
        const auto done = handshake_->step();
        if (done && !*done) return false;
        Session session = std::move(session_);
        stop_connecting();
        if (!done) return done.code();
        if (Errc code = opened(spec_, session); code != Errc::none) return code;
        return true;
    }
    // Between begin_connect() and the end of that.
    [[nodiscard]] bool connecting() const noexcept { return handshake_.has_value(); }

    [[nodiscard]] bool connected() const noexcept { return talk_.state() == Errc::none; }
    [[nodiscard]] const wire::Welcome& welcome() const noexcept { return talk_.welcome(); }
    // Why there is no session, or no longer one.
    [[nodiscard]] const Error& error() const noexcept { return talk_.error(); }

    // Sends one row of features; its sequence. Never blocks: what the socket does not take at once follows with the
    // next flush(), poll() or wait(). A sequence means that the request counts as unanswered until its answer comes or
    // the session ends; a code, that nothing was sent and no sequence was used.
    Result<std::uint64_t> send(std::span<const float> features, const Tags& tags = {}) noexcept {
        const auto sequence = queue(features, tags);
        if (sequence) (void)flush();  // what it could not do, poll() finds out
        return sequence;
    }

    // As send(), but the request goes out with the next flush(), poll() or wait(): several share one system call.
    Result<std::uint64_t> queue(std::span<const float> features, const Tags& tags = {}) noexcept {
        if (features.size() != talk_.welcome().features) [[unlikely]]
            return connected() ? Errc::invalid_argument : talk_.state();
        if (const Errc code = can_send(); code != Errc::none) [[unlikely]] return code;
        // The row may be the one that was prepared.
        const std::span<float> room = talk_.features_of(place());
        std::memmove(room.data(), features.data(), features.size_bytes());
        return commit(tags);
    }

    // Errc::none where a request can be sent now; else why not: in_flight_full, closing, or how the session ended.
    [[nodiscard]] Errc can_send() const noexcept {
        if (!connected()) [[unlikely]] return talk_.state();
        if (talk_.goodbye_said() || stream_.refused()) [[unlikely]] return Errc::closing;
        return talk_.full() ? Errc::in_flight_full : Errc::none;
    }

    // Where the features of the next request belong, all 0, for those who write them in place; commit() queues it. Empty
    // where no request can be sent now: can_send() says why. The place stays through flush(), poll() and wait();
    // heartbeat(), ask_model() and whatever sends give it up, and the next prepare() gives another.
    [[nodiscard]] std::span<float> prepare() noexcept {
        if (can_send() != Errc::none) [[unlikely]] return {};
        const std::span<float> room = talk_.features_of(place());
        std::fill(room.begin(), room.end(), 0.0F);
        return room;
    }
    // The sequence of the request that was prepared; invalid_argument where none is.
    Result<std::uint64_t> commit(const Tags& tags = {}) noexcept {
        if (prepared_ == nullptr || !connected()) [[unlikely]]
            return connected() ? Errc::invalid_argument : talk_.state();
        const std::uint64_t sequence = talk_.finish_request(std::exchange(prepared_, nullptr), tags);
        if (shared_)
            ring_.push();
        else
            stream_.push();
        return sequence;
    }

    Errc flush() noexcept {
        if (!connected()) [[unlikely]] return talk_.state();
        return shared_ ? ring_.flush() : stream_.flush();
    }

    // The next answer if it is there, valid until the next poll(), wait() or request(). Without one, code() is
    // Errc::none while the session lives, then the reason why it has ended. Never blocks.
    Result<const Response*> poll() noexcept {
        if (!connected()) [[unlikely]] return talk_.state();
        return shared_ ? poll_on(ring_) : poll_on(stream_);
    }

    // As poll(), but waits for it as Spec::idle says. What did not come in time may still come.
    Result<const Response*> wait(std::chrono::nanoseconds timeout = std::chrono::seconds(5)) noexcept {
        if (!connected()) [[unlikely]] return talk_.state();
        (void)flush();  // what it could not do, poll() finds out
        return shared_ ? wait_on(ring_, timeout) : wait_on(stream_, timeout);
    }

    // Sends one row and waits for its answer; nothing else may be unanswered. Without one, code() is Errc::none where it
    // did not come in time; a later request() passes over it when it comes, and poll() or wait() give it.
    Result<const Response*> request(std::span<const float> features, const Tags& tags = {},
                                    std::chrono::nanoseconds timeout = std::chrono::seconds(5)) noexcept {
        if (connected() && talk_.unanswered() > given_up_) return Errc::invalid_argument;
        if (const auto sequence = queue(features, tags); !sequence) return sequence.code();
        const std::uint64_t begin_ns = clock_ns();
        for (;;) {
            const bool late = given_up_ != 0;
            const std::uint64_t waited_ns = clock_ns() - begin_ns;
            const std::uint64_t timeout_ns = to_ns(timeout);
            const auto left = std::chrono::nanoseconds(timeout_ns > waited_ns ? timeout_ns - waited_ns : 0);
            const auto answer = wait(left);
            if (!answer && answer.code() == Errc::none) given_up_ = talk_.unanswered();
            if (!answer || !late) return answer;
        }
    }

    // For who sleeps in an event loop of its own, over descriptor() and doorbell(): sends what was queued; true where
    // it may sleep until one of them is readable, false where poll() has something. Either way awake() comes next, then
    // poll().
    [[nodiscard]] bool may_sleep() noexcept {
        if (flush() != Errc::none) return false;
        return shared_ ? ring_.may_sleep() : stream_.may_sleep();
    }
    void awake() noexcept {
        if (connected() && shared_) ring_.awake();
    }

    // Asks for a sign of life; poll() and wait() notice it: heartbeats() rises and daemon_clock_ns() is new.
    Errc heartbeat() noexcept {
        wire::Heartbeat beat{wire::make_header(wire::TemplateId::heartbeat, sizeof(wire::Heartbeat)), clock_ns()};
        return send_control(&beat, sizeof beat);
    }
    [[nodiscard]] std::uint64_t heartbeats() const noexcept { return talk_.heartbeats(); }

    // Asks which model a generation is, 0 being the one that serves now; poll() and wait() notice the answer:
    // model_infos() rises and model_info() is new. Its digest is zeros where the daemon does not know the generation.
    Errc ask_model(std::uint32_t generation = 0) noexcept {
        wire::ModelInfo question{};
        question.header = wire::make_header(wire::TemplateId::model_info, sizeof question);
        question.model_generation = generation;
        return send_control(&question, sizeof question);
    }
    [[nodiscard]] std::uint64_t model_infos() const noexcept { return talk_.model_infos(); }
    [[nodiscard]] const wire::ModelInfo& model_info() const noexcept { return talk_.model_info(); }

    // The daemon's clock at its last sign of life. With shared memory it gives one every 100 ms by itself.
    [[nodiscard]] std::uint64_t daemon_clock_ns() const noexcept {
        const std::uint64_t heard = talk_.daemon_clock_ns();
        return shared_ && connected_ ? std::max(heard, ring_.daemon_heartbeat_ns()) : heard;
    }

    // Ends the session in order: send no more, poll() the answers that are left until Errc::finished.
    Errc goodbye() noexcept {
        wire::Goodbye bye{wire::make_header(wire::TemplateId::goodbye, sizeof(wire::Goodbye)),
                          wire::GoodbyeCode::done,
                          {}};
        const Errc code = send_control(&bye, sizeof bye);
        if (code == Errc::none) talk_.say_goodbye();
        return code;
    }
    // Whether this side said it.
    [[nodiscard]] bool goodbye_said() const noexcept { return talk_.goodbye_said(); }
    // The daemon's Goodbye, once it has come: it drains, or has withdrawn the model. Requests are still answered.
    [[nodiscard]] std::optional<wire::GoodbyeCode> daemon_goodbye() const noexcept { return talk_.goodbye(); }

    // Closes at once; unanswered requests are given up.
    void close() noexcept {
        stop_connecting();
        if (!connected_) return;
        connected_ = false;
        if (connected()) {
            (void)goodbye();
            (void)talk_.ended("this client was closed");
        }
        ring_.close();
        stream_.close();
    }

    [[nodiscard]] std::uint64_t unanswered() const noexcept { return talk_.unanswered(); }
    [[nodiscard]] std::uint32_t unanswered_max() const noexcept { return talk_.unanswered_max(); }
    // The sequence of the n-th oldest of them, also after the session has ended, until the next connect().
    [[nodiscard]] std::uint64_t unanswered_sequence(std::uint64_t n) const noexcept {
        return talk_.unanswered_sequence(n);
    }
    [[nodiscard]] std::uint64_t next_sequence() const noexcept { return talk_.next_sequence(); }
    void set_next_sequence(std::uint64_t sequence) noexcept { talk_.set_next_sequence(sequence); }

    // The socket, for a poll of your own; writable matters too while unsent(). With shared memory it carries only
    // control messages, and its end is the session's end.
    [[nodiscard]] int descriptor() const noexcept {
        return handshake_ ? session_.socket.get() : stream_.descriptor();
    }
    [[nodiscard]] bool unsent() const noexcept { return stream_.unsent(); }
    // With shared memory the eventfd that tells of answers, see may_sleep(); -1 with a stream.
    [[nodiscard]] int doorbell() const noexcept { return shared_ ? ring_.doorbell() : -1; }

private:
    // Begins to talk in a session whose handshake is done.
    Errc opened(const Spec& spec, Session& session) noexcept {
        const wire::Welcome& welcome = session.welcome;
        shared_ = welcome.transport == wire::Transport::shared_memory;
        // A ring has no room for more than its slots; on a stream the daemon would answer BUSY.
        const std::uint32_t most =
            shared_ ? std::min(welcome.in_flight_max, welcome.ring_slots) : welcome.in_flight_max;
        const std::uint32_t unanswered = spec.unanswered_max == 0 ? most : std::min(spec.unanswered_max, most);
        if (Errc code = talk_.open(welcome, unanswered); code != Errc::none) return code;
        idle_ = spec.idle;
        spin_for_ns_ = to_ns(spec.spin_for);
        prepared_ = nullptr;
        given_up_ = 0;
        connected_ = true;
        if (stream_.open(std::move(session.socket), shared_ ? 0 : talk_.request_bytes(), unanswered) != Errc::none)
            (void)talk_.error().set(Errc::out_of_memory, "no memory for %u requests", unanswered);
        else if (shared_)
            (void)ring_.open(stream_, welcome, session.region, std::move(session.request_bell),
                             std::move(session.response_bell), to_ns(spec.control_look_every), talk_.error());
        if (!connected()) close();
        return talk_.state();
    }

    void stop_connecting() noexcept {
        handshake_.reset();
        session_ = Session{};
    }

    // Where the next request frame is to be written; the caller has asked can_send().
    std::byte* place() noexcept { return prepared_ = shared_ ? ring_.room() : stream_.room(); }

    // An answer has been taken: the oldest is one that request() gave up, if there is any.
    void taken() noexcept {
        if (given_up_ != 0) [[unlikely]] --given_up_;
    }

    template <TransportLike T>
    Result<const Response*> poll_on(T& transport) noexcept {
        if (transport.unsent()) (void)transport.flush();
        for (;;) {
            const auto frame = transport.next();
            if (!frame) {
                if (frame.code() == Errc::none) [[likely]] return nullptr;
                return over(frame.code());
            }
            const auto answer = talk_.take(*frame);
            if (answer) taken();
            if (answer || answer.code() != Errc::none) return answer;
        }
    }

    template <TransportLike T>
    Result<const Response*> wait_on(T& transport, std::chrono::nanoseconds timeout) noexcept {
        constexpr int looks_per_clock_look = 32;
        if (const auto answer = poll_on(transport); answer || answer.code() != Errc::none) return answer;
        const std::uint64_t begin_ns = clock_ns();
        const std::uint64_t timeout_ns = to_ns(timeout);
        const std::uint64_t spin_ns = idle_ == Idle::spin ? timeout_ns : idle_ == Idle::block ? 0 : spin_for_ns_;
        for (std::uint64_t waited_ns = 0; waited_ns < timeout_ns; waited_ns = clock_ns() - begin_ns) {
            const bool sleeps = waited_ns >= spin_ns;
            if (sleeps) transport.sleep(timeout_ns - waited_ns);
            for (int look = sleeps ? 1 : looks_per_clock_look; look > 0; --look) {
                if (const auto answer = poll_on(transport); answer || answer.code() != Errc::none) return answer;
                if (!sleeps) relax();
            }
        }
        return nullptr;
    }

    Errc over(Errc code) noexcept {
        if (code == Errc::closed) return talk_.ended("the daemon closed the connection");
        return talk_.fail(code, "the daemon's ring counters or frames break the contract");
    }

    Errc send_control(const void* frame, std::size_t bytes) noexcept {
        if (!connected()) return talk_.state();
        prepared_ = nullptr;
        const bool pushed = shared_ ? ring_.push_control(frame, bytes) : stream_.push_control(frame, bytes);
        if (!pushed) return Errc::in_flight_full;
        return flush();
    }

    Conversation talk_;
    Spec spec_;
    Session session_;
    std::optional<detail::Handshake> handshake_;  // under way
    std::uint64_t given_up_ = 0;                   // the oldest unanswered requests, whose request() did not wait on
    StreamTransport stream_;
    SharedMemoryTransport ring_;
    std::byte* prepared_ = nullptr;  // the frame whose features are being written
    bool shared_ = false;
    bool connected_ = false;  // there is something to close
    Idle idle_ = Idle::spin;
    std::uint64_t spin_for_ns_ = 0;
};

}  // namespace sigd::inline v0_1
