// A native engine run inside of your own process: the file that `sigd build-engine --runtime native` wrote, by the
// kernels that the daemon has, with the same bits. Not part of sigd.hpp, for it needs a library: link libsigd_engine.so.
//
//     sigd::Engine engine;
//     if (engine.open({.path = "m.engine"}) != sigd::Errc::none) return fail(engine.error().text);
//     engine.run(features, outputs);
//
// docs/cpp.md has the rest.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "result.hpp"

extern "C" {
struct sigd_engine_file;
// As models/native/engine.h has it.
struct sigd_runner {
    std::uint32_t version, features, outputs, rows_max;
    void* engine;
    int (*run)(void* engine, const float* rows, float* outputs, int count);
};
int sigd_engine_open(const char* path, const std::uint8_t* sha256, const char* instruction_set,
                     sigd_engine_file** made, char* error, std::size_t error_size);
void sigd_engine_close(sigd_engine_file* file);
const std::uint8_t* sigd_engine_sha256(const sigd_engine_file* file);
const char* sigd_engine_instruction_set(const sigd_engine_file* file);
const sigd_runner* sigd_engine_runner(const sigd_engine_file* file, std::uint32_t rows_max);
void sigd_engine_runner_free(const sigd_runner* runner);
}

namespace sigd::inline v0_1 {

// Which engine, and how it is run.
struct EngineSpec {
    const char* path = nullptr;
    std::uint32_t rows_max = 1;              // the most rows of one run()
    const std::uint8_t* sha256 = nullptr;    // 32 bytes: the file must have this digest; none takes any file
    const char* instruction_set = nullptr;   // "avx512", "avx2" or "plain"; none takes the best that is here
};

// One thread at a time may call run(): each thread has an Engine of its own. run() neither allocates nor asks the kernel
// for anything.
class Engine {
public:
    Engine() = default;
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;
    ~Engine() { close(); }

    // Reads and checks the file, and packs its weights for this processor.
    Errc open(const EngineSpec& spec) noexcept {
        close();
        if (spec.path == nullptr || spec.rows_max == 0)
            return error_.set(Errc::invalid_argument, "a path and at least one row are needed");
        char why[sizeof error_.text] = "";
        const int found = sigd_engine_open(spec.path, spec.sha256, spec.instruction_set, &file_, why, sizeof why);
        if (found != 0) return error_.set(codes[found], "%s", why);
        runner_ = sigd_engine_runner(file_, spec.rows_max);
        if (runner_ != nullptr && runner_->version == 1) return error_.set(Errc::none, "%s", "");
        const bool old = runner_ != nullptr;
        close();
        return old ? error_.set(Errc::protocol_broken, "libsigd_engine.so is of another version than this header")
                   : error_.set(Errc::out_of_memory, "no memory for %u rows", static_cast<unsigned>(spec.rows_max));
    }

    // Gives everything back.
    void close() noexcept {
        sigd_engine_runner_free(runner_);
        sigd_engine_close(file_);
        runner_ = nullptr;
        file_ = nullptr;
    }

    // Answers each row: `rows` holds n * features() floats, `outputs` has room for n * outputs(), 1 <= n <= rows_max().
    // A row has the same bits alone and in any batch. Whether features are finite is not looked at.
    Errc run(std::span<const float> rows, std::span<float> outputs) noexcept {
        if (runner_ == nullptr) return Errc::not_connected;
        const std::size_t count = rows.size() / runner_->features;
        if (count == 0 || count > runner_->rows_max || rows.size() != count * runner_->features ||
            outputs.size() != count * runner_->outputs)
            return Errc::invalid_argument;
        return runner_->run(runner_->engine, rows.data(), outputs.data(), static_cast<int>(count)) == 0
                   ? Errc::none
                   : Errc::invalid_argument;
    }

    // All of them 0 or empty before open().
    [[nodiscard]] std::uint32_t features() const noexcept { return runner_ ? runner_->features : 0; }
    [[nodiscard]] std::uint32_t outputs() const noexcept { return runner_ ? runner_->outputs : 0; }
    [[nodiscard]] std::uint32_t rows_max() const noexcept { return runner_ ? runner_->rows_max : 0; }
    [[nodiscard]] const char* instruction_set() const noexcept { return file_ ? sigd_engine_instruction_set(file_) : ""; }

    // The file's digest, as the daemon's Welcome names it for the same file.
    [[nodiscard]] std::array<std::uint8_t, 32> sha256() const noexcept {
        std::array<std::uint8_t, 32> digest{};
        if (file_ != nullptr) std::memcpy(digest.data(), sigd_engine_sha256(file_), digest.size());
        return digest;
    }

    // Why open() failed.
    [[nodiscard]] const Error& error() const noexcept { return error_; }

private:
    static constexpr Errc codes[] = {Errc::none, Errc::rejected, Errc::system, Errc::wrong_model, Errc::out_of_memory};

    sigd_engine_file* file_ = nullptr;
    const sigd_runner* runner_ = nullptr;
    Error error_{};
};

}  // namespace sigd::inline v0_1
