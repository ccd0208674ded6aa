// What is kept of each answer: counts for every percentile, a bounded set of whole samples, the slowest few.
// All memory is there before the first request; nothing here allocates.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <vector>

#include "exchange.hpp"

namespace sigd::bench {

// The index arithmetic of HdrHistogram (hdrhistogram.org) for 2048 sub-buckets and unit 1.
class Histogram {
public:
    void record(std::int64_t value_ns) { ++counts_[index_of(value_ns)]; }
    const std::vector<std::uint64_t>& counts() const { return counts_; }

private:
    static std::size_t index_of(std::int64_t value_ns) {
        constexpr std::uint64_t mask = (1u << sub_bucket_bits) - 1;
        constexpr std::uint64_t largest = (std::uint64_t{1} << 50) - 1;
        const std::uint64_t value = std::min(static_cast<std::uint64_t>(std::max<std::int64_t>(value_ns, 0)), largest);
        const int bucket = std::bit_width(value | mask) - sub_bucket_bits;
        return (static_cast<std::size_t>(bucket) << (sub_bucket_bits - 1)) + static_cast<std::size_t>(value >> bucket);
    }

    std::vector<std::uint64_t> counts_ = std::vector<std::uint64_t>(histogram_bins);
};

class Recorder {
public:
    Recorder(std::size_t samples_max, std::uint64_t seed) : samples_max_(samples_max), random_(seed | 1) {
        samples_.reserve(samples_max);
        // Written once now, so that no page is touched for the first time while the run is measured.
        samples_.resize(samples_max);
        samples_.clear();
    }

    void record(const Sample& sample) {
        ++result.statuses[sample.status & 15];
        ++result.received;
        result.last_received_ns = sample.received_ns;
        if (result.received == 1) result.generation_first = sample.model_generation;
        result.generation_last = sample.model_generation;
        if (sample.status == static_cast<std::uint16_t>(wire::Status::ok)) record_ok(sample);
        keep(sample);
    }

    void note_gap(std::int64_t ended_ns, std::int64_t length_ns) {
        if (result.gaps < gaps_max) gaps_[result.gaps++] = {ended_ns, length_ns};
    }

    ResultHeader result{};

    const std::array<Histogram, histogram_count>& histograms() const { return histograms_; }
    const std::vector<Sample>& samples() const { return samples_; }
    const std::array<Sample, slowest_max>& slowest() const { return slowest_; }
    const std::array<Gap, gaps_max>& gaps() const { return gaps_; }

private:
    void record_ok(const Sample& sample) {
        const std::int64_t latency = latency_of(sample);
        const std::int64_t from_send = sample.received_ns - sample.sent_ns;
        const auto inside = static_cast<std::int64_t>(sample.send_time_ns - sample.receive_time_ns);
        histograms_[corrected].record(latency);
        histograms_[uncorrected].record(from_send);
        histograms_[queue].record(inside - sample.infer_ns);
        histograms_[model].record(sample.infer_ns);
        histograms_[rest].record(from_send - inside);
        result.batch_rows_sum += sample.batch_rows;
        note_slow(sample, latency);
    }

    // The slowest, but only one of each read: what one stall held up would fill the table alone.
    void note_slow(const Sample& sample, std::int64_t latency_ns) {
        if (result.slowest > 0 && slowest_[newest_slow_].received_ns == sample.received_ns) {
            if (latency_ns <= latency_of(slowest_[newest_slow_])) return;
        } else if (result.slowest < slowest_max) {
            newest_slow_ = result.slowest++;
        } else if (latency_ns > least_slow_ns_) {
            newest_slow_ = least_slow_;
        } else {
            return;
        }
        slowest_[newest_slow_] = sample;
        if (result.slowest == slowest_max) find_least_slow();
    }

    static std::int64_t latency_of(const Sample& sample) { return sample.received_ns - sample.intended_ns; }

    void find_least_slow() {
        const auto least = std::min_element(slowest_.begin(), slowest_.end(), [](const Sample& a, const Sample& b) {
            return latency_of(a) < latency_of(b);
        });
        least_slow_ = static_cast<std::size_t>(least - slowest_.begin());
        least_slow_ns_ = latency_of(*least);
    }

    // Algorithm R: once full, sample n replaces a kept one with probability samples_max / n.
    void keep(const Sample& sample) {
        if (samples_.size() < samples_max_) {
            samples_.push_back(sample);
            return;
        }
        if (samples_max_ == 0) return;
        random_ ^= random_ << 13;
        random_ ^= random_ >> 7;
        random_ ^= random_ << 17;
        const std::uint64_t place = random_ % result.received;
        if (place < samples_max_) samples_[place] = sample;
    }

    std::array<Histogram, histogram_count> histograms_;
    std::array<Sample, slowest_max> slowest_{};
    std::array<Gap, gaps_max> gaps_{};
    std::size_t newest_slow_ = 0;
    std::size_t least_slow_ = 0;
    std::int64_t least_slow_ns_ = 0;
    std::vector<Sample> samples_;
    std::size_t samples_max_;
    std::uint64_t random_;
};

}  // namespace sigd::bench
