// The rings of a shared-memory region, without I/O: single producer, single consumer, one frame a slot.
//
// A count c lives in slot c mod ring_slots. The producer writes the slot and publishes its head with release order; the
// consumer reads the head with acquire order, copies the slot, and publishes its tail.
//
// A consumer that wants to sleep says so in its flag and then looks at the head once more; a producer publishes its
// head and then looks at the flag. These four accesses are sequentially consistent: in their one total order either
// the look at the head comes after the publication, and the consumer stays awake, or the look at the flag comes after
// the flag was set, and the producer rings. With less than that both stores may still be on their way to memory when
// both loads are done (x86-64 does this), and the consumer would sleep on a frame without a doorbell.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "result.hpp"
#include "sigd_wire.hpp"

namespace sigd::inline v0_1 {

// The words that both processes touch. The compilers' builtins, for libc++ has no std::atomic_ref before 19.
static_assert(__atomic_always_lock_free(sizeof(std::uint64_t), nullptr));
static_assert(__atomic_always_lock_free(sizeof(std::uint32_t), nullptr));
template <int order, class Word>
Word load_word(const Word& word) noexcept {
    return __atomic_load_n(&word, order);
}
template <int order, class Word>
void store_word(Word& word, Word value) noexcept {
    __atomic_store_n(&word, value, order);
}

class RingProducer {
public:
    RingProducer() noexcept = default;
    RingProducer(std::uint64_t* head, std::uint64_t* tail, std::uint32_t* consumer_sleeping, std::byte* slots,
                 std::uint32_t ring_slots, std::uint32_t stride) noexcept
        : head_(head), tail_(tail), consumer_sleeping_(consumer_sleeping), slots_(slots), mask_(ring_slots - 1),
          stride_(stride) {}

    // Free slots, those pushed counted as taken; protocol_broken where the consumer's counter is impossible.
    [[nodiscard]] Result<std::uint64_t> room() const noexcept {
        const std::uint64_t unread = next_ - load_word<__ATOMIC_ACQUIRE>(*tail_);
        if (unread > mask_ + 1) return Errc::protocol_broken;
        return mask_ + 1 - unread;
    }

    // Where the next frame is to be written. The caller knows that there is room.
    [[nodiscard]] std::byte* slot() const noexcept { return slots_ + (next_ & mask_) * stride_; }
    void push() noexcept { ++next_; }

    // Makes visible what was pushed. True where the consumer may be asleep: ring its doorbell.
    [[nodiscard]] bool publish() noexcept {
        if (!unpublished()) return false;
        published_ = next_;
        store_word<__ATOMIC_SEQ_CST>(*head_, next_);
        return load_word<__ATOMIC_SEQ_CST>(*consumer_sleeping_) != 0;
    }

    [[nodiscard]] std::uint64_t published() const noexcept { return published_; }
    [[nodiscard]] bool unpublished() const noexcept { return next_ != published_; }

private:
    std::uint64_t* head_ = nullptr;
    std::uint64_t* tail_ = nullptr;
    std::uint32_t* consumer_sleeping_ = nullptr;
    std::byte* slots_ = nullptr;
    std::uint64_t mask_ = 0;
    std::uint64_t stride_ = 0;
    std::uint64_t next_ = 0;
    std::uint64_t published_ = 0;
};

class RingConsumer {
public:
    RingConsumer() noexcept = default;
    RingConsumer(std::uint64_t* head, std::uint64_t* tail, std::uint32_t* sleeping, const std::byte* slots,
                 std::uint32_t ring_slots, std::uint32_t stride) noexcept
        : head_(head), tail_(tail), sleeping_(sleeping), slots_(slots), mask_(ring_slots - 1), stride_(stride) {}

    // Frames to take; protocol_broken where the producer's counter ran backwards or is too far ahead.
    [[nodiscard]] Result<std::uint64_t> waiting() const noexcept {
        const std::uint64_t waiting = load_word<__ATOMIC_ACQUIRE>(*head_) - taken_;
        if (waiting > mask_ + 1) [[unlikely]] return Errc::protocol_broken;
        return waiting;
    }

    // The oldest frame; copy it before it is looked at, the producer's memory is the producer's.
    [[nodiscard]] const std::byte* slot() const noexcept { return slots_ + (taken_ & mask_) * stride_; }
    void pop() noexcept {
        ++taken_;
        store_word<__ATOMIC_RELEASE>(*tail_, taken_);
    }

    // Says that the doorbell is needed. False where something came meanwhile: do not sleep. Either way awake() follows.
    [[nodiscard]] bool may_sleep() noexcept {
        store_word<__ATOMIC_SEQ_CST>(*sleeping_, 1U);
        return load_word<__ATOMIC_SEQ_CST>(*head_) == taken_;
    }
    void awake() noexcept { store_word<__ATOMIC_RELAXED>(*sleeping_, 0U); }

    [[nodiscard]] std::uint64_t taken() const noexcept { return taken_; }

private:
    std::uint64_t* head_ = nullptr;
    std::uint64_t* tail_ = nullptr;
    std::uint32_t* sleeping_ = nullptr;
    const std::byte* slots_ = nullptr;
    std::uint64_t mask_ = 0;
    std::uint64_t stride_ = 0;
    std::uint64_t taken_ = 0;
};

// A region in memory, its header checked. The four ends of its two rings; each side uses two of them.
class Region {
public:
    Region() noexcept = default;

    // Writes the header of a new, zeroed region: what a daemon does. Bytes needed: wire::region_bytes().
    static Region create(std::byte* base, std::uint32_t ring_slots, std::uint32_t features,
                         std::uint32_t outputs) noexcept {
        auto* header = reinterpret_cast<wire::RegionHeader*>(base);
        header->magic = wire::region_magic;
        header->layout_version = wire::region_layout_version;
        header->ring_slots = ring_slots;
        header->request_stride =
            static_cast<std::uint32_t>(wire::slot_stride(wire::request_frame_bytes(features)));
        header->response_stride =
            static_cast<std::uint32_t>(wire::slot_stride(wire::response_frame_bytes(outputs)));
        header->features = features;
        header->outputs = outputs;
        return Region(base);
    }

    // Looks at what a daemon wrote; says what is wrong with it, nullptr where nothing is.
    [[nodiscard]] const char* attach(std::byte* base, std::size_t bytes) noexcept {
        if (bytes < sizeof(wire::RegionHeader)) return "the region is shorter than its header";
        const auto& header = *reinterpret_cast<const wire::RegionHeader*>(base);
        if (header.magic != wire::region_magic) return "the region does not begin with SGD1";
        if (header.layout_version != wire::region_layout_version) return "the region has another layout version";
        if (!std::has_single_bit(header.ring_slots)) return "the region's ring_slots is no power of two";
        if (header.features < 1 || header.features > wire::features_max || header.outputs < 1 ||
            header.outputs > wire::outputs_max)
            return "the region is for a shape that no frame carries";
        if (!good_stride(header.request_stride, wire::request_frame_bytes(header.features)) ||
            !good_stride(header.response_stride, wire::response_frame_bytes(header.outputs)))
            return "the region's strides do not hold its frames";
        if (wire::region_bytes(header.ring_slots, header.request_stride, header.response_stride) > bytes)
            return "the region is shorter than its slots";
        *this = Region(base);
        return nullptr;
    }

    [[nodiscard]] const wire::RegionHeader& header() const noexcept { return *header_; }

    [[nodiscard]] RingProducer requests_out() const noexcept {
        return {&header_->request_head, &header_->request_tail, &header_->daemon_sleeping, requests_, slots_,
                request_stride_};
    }
    [[nodiscard]] RingConsumer requests_in() const noexcept {
        return {&header_->request_head, &header_->request_tail, &header_->daemon_sleeping, requests_, slots_,
                request_stride_};
    }
    [[nodiscard]] RingProducer responses_out() const noexcept {
        return {&header_->response_head, &header_->response_tail, &header_->client_sleeping, responses_, slots_,
                response_stride_};
    }
    [[nodiscard]] RingConsumer responses_in() const noexcept {
        return {&header_->response_head, &header_->response_tail, &header_->client_sleeping, responses_, slots_,
                response_stride_};
    }

    [[nodiscard]] std::uint64_t daemon_heartbeat_ns() const noexcept {
        return load_word<__ATOMIC_RELAXED>(header_->daemon_heartbeat_ns);
    }

private:
    explicit Region(std::byte* base) noexcept
        : header_(reinterpret_cast<wire::RegionHeader*>(base)), slots_(header_->ring_slots),
          request_stride_(header_->request_stride), response_stride_(header_->response_stride),
          requests_(base + wire::request_slots_offset),
          responses_(base + wire::response_slots_offset(slots_, request_stride_)) {}

    static bool good_stride(std::uint32_t stride, std::size_t frame_bytes) noexcept {
        return stride >= frame_bytes && stride % wire::slot_alignment_bytes == 0 &&
               stride <= wire::frame_bytes_max;
    }

    wire::RegionHeader* header_ = nullptr;
    std::uint32_t slots_ = 0;
    std::uint32_t request_stride_ = 0;
    std::uint32_t response_stride_ = 0;
    std::byte* requests_ = nullptr;
    std::byte* responses_ = nullptr;
};

}  // namespace sigd::inline v0_1
