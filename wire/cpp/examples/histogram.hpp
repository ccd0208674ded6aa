// Latencies by powers of two, each in 32 steps: good to 3 %, no allocation, any number of them.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cinttypes>
#include <cstdint>
#include <cstdio>

class Histogram {
public:
    void record(std::uint64_t value_ns) {
        ++counts_[index_of(value_ns)];
        ++total_;
        worst_ns_ = std::max(worst_ns_, value_ns);
    }

    // The smallest recorded step that this share of all values does not exceed.
    [[nodiscard]] std::uint64_t percentile_ns(double percent) const {
        const double wanted = static_cast<double>(total_) * percent / 100.0;
        std::uint64_t seen = 0;
        for (std::size_t i = 0; i < counts_.size(); ++i) {
            seen += counts_[i];
            if (seen > 0 && static_cast<double>(seen) >= wanted) return std::min(upper_ns(i), worst_ns_);
        }
        return worst_ns_;
    }

    void print() const {
        for (const double percent : {50.0, 90.0, 99.0, 99.9, 100.0})
            std::printf("  p%-5g %10.1f us\n", percent, static_cast<double>(percentile_ns(percent)) / 1e3);
        for (std::size_t power = 0; power * steps < counts_.size(); ++power) {
            std::uint64_t count = 0;
            for (std::size_t step = 0; step < steps; ++step) count += counts_[power * steps + step];
            if (count == 0) continue;
            const int width = static_cast<int>(50.0 * static_cast<double>(count) / static_cast<double>(total_) + 0.99);
            std::printf("  up to %10.1f us %10" PRIu64 " %.*s\n",
                        static_cast<double>(upper_ns((power + 1) * steps - 1)) / 1e3, count, width,
                        "##################################################");
        }
    }

private:
    static constexpr std::size_t steps = 32;
    static constexpr int step_bits = 5;

    // Below 32 a value is its own index; from there on the five bits below its highest one choose the step.
    static std::size_t index_of(std::uint64_t value) {
        if (value < steps) return value;
        const int power = static_cast<int>(std::bit_width(value)) - 1 - step_bits;
        return (static_cast<std::size_t>(power) << step_bits) + static_cast<std::size_t>(value >> power);
    }
    static std::uint64_t upper_ns(std::size_t index) {
        if (index < 2 * steps) return index;
        const std::size_t power = (index >> step_bits) - 1;
        return ((steps + index % steps + 1) << power) - 1;
    }

    std::array<std::uint64_t, 60 * steps> counts_{};
    std::uint64_t total_ = 0;
    std::uint64_t worst_ns_ = 0;
};
