// Libraries inside the caller's own process, through their C interfaces: no daemon, no transport. What is used of an
// interface is declared here, so that a package of the library is enough and its headers are not needed.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include <dlfcn.h>

#include "peer_link.hpp"

namespace sigd::bench {

// A library that is loaded, and what it exports.
class Library {
public:
    explicit Library(const char* path) : handle_(dlopen(path, RTLD_NOW | RTLD_LOCAL)) {
        if (handle_ == nullptr) stop(dlerror());
    }

    template <class Function>
    Function function(const char* name) const {
        void* found = dlsym(handle_, name);
        if (found == nullptr) stop(dlerror());
        return reinterpret_cast<Function>(found);
    }

    [[noreturn]] static void stop(const char* words) {
        std::fprintf(stderr, "%s\n", words);
        std::exit(3);
    }

private:
    void* handle_;
};

// A model that a library runs: features() are where the next run() reads them.
class Engine {
public:
    virtual ~Engine() = default;
    virtual void open(std::size_t features, std::size_t outputs) = 0;
    virtual float* features() = 0;
    virtual const float* run() = 0;
};

// ONNX Runtime, as a caller that wants latency uses it: one thread, buffers bound once.
class OnnxRuntime final : public Engine {
public:
    // The model's single input and output, and the input's axes with a batch of one row.
    static inline std::string library, model, input, output;
    static inline std::vector<std::int64_t> dims;

    void open(std::size_t features, std::size_t outputs) override {
        const auto base = Library(library.c_str()).function<const ApiBase* (*)()>("OrtGetApiBase")();
        api_ = base->get_api(api_version);
        if (api_ == nullptr) Library::stop("this ONNX Runtime is older than 1.16: its C interface has no version 16");
        features_.resize(features);
        outputs_.resize(outputs);
        Handle environment = nullptr, options = nullptr, memory = nullptr;
        check(call<Handle(int, const char*, Handle*)>(create_env)(log_error, "bench", &environment));
        check(call<Handle(Handle*)>(create_session_options)(&options));
        check(call<Handle(Handle, int)>(set_graph_optimization_level)(options, optimize_all));
        check(call<Handle(Handle, int)>(set_intra_op_threads)(options, 1));
        check(call<Handle(Handle, int)>(set_inter_op_threads)(options, 1));
        check(call<Handle(Handle, const char*, const char*)>(add_session_config_entry)(
            options, "session.set_denormal_as_zero", "1"));
        check(call<Handle(Handle, const char*, Handle, Handle*)>(create_session)(environment, model.c_str(), options,
                                                                               &session_));
        check(call<Handle(int, int, Handle*)>(create_cpu_memory_info)(arena_allocator, default_memory, &memory));
        check(call<Handle(Handle*)>(create_run_options)(&run_options_));
        check(call<Handle(Handle, Handle*)>(create_io_binding)(session_, &binding_));
        const std::array<std::int64_t, 2> output_dims{1, static_cast<std::int64_t>(outputs)};
        bind(bind_input, input, tensor(memory, features_, dims.data(), dims.size()));
        bind(bind_output, output, tensor(memory, outputs_, output_dims.data(), output_dims.size()));
        run_ = call<Handle(Handle, Handle, Handle)>(run_with_binding);
    }

    float* features() override { return features_.data(); }
    const float* run() override {
        if (const Handle status = run_(session_, run_options_, binding_)) check(status);
        return outputs_.data();
    }

private:
    using Handle = void*;
    using Function = void (*)();
    // OrtApiBase and OrtApi: a table of functions whose places never change, only its end does.
    struct ApiBase {
        const Function* (*get_api)(std::uint32_t version);
        const char* (*get_version)();
    };
    static constexpr std::uint32_t api_version = 16;
    enum Place : std::size_t {
        get_error_message = 2, create_env = 3, create_session = 7, create_session_options = 10,
        set_graph_optimization_level = 23, set_intra_op_threads = 24, set_inter_op_threads = 25,
        create_run_options = 39, create_tensor_with_data = 49, create_cpu_memory_info = 69,
        add_session_config_entry = 130, run_with_binding = 133, create_io_binding = 134, bind_input = 136,
        bind_output = 137,
    };
    static constexpr int log_error = 3, optimize_all = 99, arena_allocator = 1, default_memory = 0, float_elements = 1;

    template <class Signature>
    Signature* call(Place place) const {
        return reinterpret_cast<Signature*>(api_[place]);
    }
    void check(Handle status) const {
        if (status != nullptr) Library::stop(call<const char*(Handle)>(get_error_message)(status));
    }
    Handle tensor(Handle memory, std::vector<float>& values, const std::int64_t* shape, std::size_t rank) const {
        Handle made = nullptr;
        check(call<Handle(Handle, void*, std::size_t, const std::int64_t*, std::size_t, int, Handle*)>(
            create_tensor_with_data)(memory, values.data(), sizeof(float) * values.size(), shape, rank, float_elements,
                                     &made));
        return made;
    }
    void bind(Place place, const std::string& name, Handle value) const {
        check(call<Handle(Handle, const char*, Handle)>(place)(binding_, name.c_str(), value));
    }

    const Function* api_ = nullptr;
    Handle session_ = nullptr, run_options_ = nullptr, binding_ = nullptr;
    Handle (*run_)(Handle, Handle, Handle) = nullptr;
    std::vector<float> features_;
    std::vector<float> outputs_;
};

// LightGBM's predictor for one row, prepared once.
class LightGbm final : public Engine {
public:
    static inline std::string library, model;

    void open(std::size_t features, std::size_t outputs) override {
        const Library lightgbm(library.c_str());
        last_error_ = lightgbm.function<const char* (*)()>("LGBM_GetLastError");
        predict_ = lightgbm.function<Predict>("LGBM_BoosterPredictForMatSingleRowFast");
        features_.resize(features);
        outputs_.resize(outputs);
        found_.resize(outputs);
        int iterations = 0;
        void* booster = nullptr;
        check(lightgbm.function<int (*)(const char*, int*, void**)>("LGBM_BoosterCreateFromModelfile")(
            model.c_str(), &iterations, &booster));
        check(lightgbm.function<int (*)(void*, int, int, int, int, std::int32_t, const char*, void**)>(
            "LGBM_BoosterPredictForMatSingleRowFastInit")(booster, predict_normal, 0, all_iterations, float32,
                                                          static_cast<std::int32_t>(features), "num_threads=1",
                                                          &prepared_));
    }

    float* features() override { return features_.data(); }
    const float* run() override {
        std::int64_t count = 0;
        check(predict_(prepared_, features_.data(), &count, found_.data()));
        std::transform(found_.begin(), found_.end(), outputs_.begin(), [](double value) {
            return static_cast<float>(value);
        });
        return outputs_.data();
    }

private:
    using Predict = int (*)(void*, const void*, std::int64_t*, double*);
    static constexpr int predict_normal = 0, all_iterations = -1, float32 = 0;

    void check(int code) const {
        if (code != 0) Library::stop(last_error_());
    }

    const char* (*last_error_)() = nullptr;
    Predict predict_ = nullptr;
    void* prepared_ = nullptr;
    std::vector<float> features_;
    std::vector<float> outputs_;
    std::vector<double> found_;
};

// Trees that lleaves compiled to machine code, linked into a library of their own.
class Lleaves final : public Engine {
public:
    static inline std::string library;

    void open(std::size_t features, std::size_t outputs) override {
        if (outputs != 1) Library::stop("lleaves' compiled trees have one output");
        forest_ = Library(library.c_str()).function<Forest>("forest_root");
        features_.resize(features);
        row_.resize(features);
    }

    float* features() override { return features_.data(); }
    const float* run() override {
        std::copy(features_.begin(), features_.end(), row_.begin());
        double found = 0;
        forest_(row_.data(), &found, 0, 1);
        output_ = static_cast<float>(found);
        return &output_;
    }

private:
    using Forest = void (*)(const double*, double*, std::int32_t first, std::int32_t end);

    Forest forest_ = nullptr;
    std::vector<float> features_;
    std::vector<double> row_;
    float output_ = 0;
};

// A call of the library for each request, at once, in this thread.
class InProcessLink : public PeerLink {
public:
    static inline Engine* engine = nullptr;

    using PeerLink::PeerLink;

    Errc open(const Spec& spec, std::uint64_t in_flight, wire::Welcome& welcome, Error& error) {
        if (in_flight != 1) return error.set(Errc::invalid_argument, "a call returns before the next one begins");
        prepare(spec, in_flight, welcome);
        engine->open(spec.features, spec.outputs);
        return Errc::none;
    }

    bool pending() const { return false; }
    bool flush() { return true; }

    void push() {
        note_asked();
        const std::int64_t began_ns = clock_ns();
        std::memcpy(engine->features(), features(), feature_bytes());
        outputs_ = engine->run();
        ended_ns_ = clock_ns();
        infer_ns_ = static_cast<std::uint32_t>(ended_ns_ - began_ns);
    }

    template <class Take>
    Met receive(Take&& take) {
        return answered() == asked() ? Met::nothing : answer(outputs_, ended_ns_, infer_ns_, take);
    }

private:
    const float* outputs_ = nullptr;
    std::int64_t ended_ns_ = 0;
    std::uint32_t infer_ns_ = 0;
};

}  // namespace sigd::bench
