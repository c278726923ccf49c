// umd_edge.hpp: umd_edge.h with objects that free themselves and errors that are thrown. C++17,
// header only; the library stays C, so no C++ runtime of another compiler is involved.
//
//     umd_edge::Predictor predictor("model.umd");
//     umd_edge::Pixels pixels(frame, 640 * 480, 640, 480);
//     umd_edge::Image image = predictor.encode(pixels);
//     for (const umd_edge::Item &item : image.ask("which organ is shown?").items)
//         std::cout << item.name << " " << item.probability << "\n";
//
// A Predictor and an Image may be used from many threads at once. They can be moved, not copied.
#ifndef UMD_EDGE_HPP
#define UMD_EDGE_HPP

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "umd_edge.h"

namespace umd_edge {

// What a call failed with: `status` is a umd_status, what() says what to do.
class Error : public std::runtime_error {
public:
    explicit Error(umd_status status) : std::runtime_error(umd_last_error()), status_(status) {}
    umd_status status() const noexcept { return status_; }
    const char *name() const noexcept { return umd_status_name(status_); }

private:
    umd_status status_;
};

inline void check(umd_status status)
{
    if (status != UMD_OK)
        throw Error(status);
}

namespace detail {

template <typename T, void (*Free)(T *)> struct Deleter {
    void operator()(T *object) const noexcept { Free(object); }
};
template <typename T, void (*Free)(T *)> using Handle = std::unique_ptr<T, Deleter<T, Free>>;

template <typename T, typename Init> T make(Init init)
{
    T value;
    init(&value, sizeof value);
    return value;
}

} // namespace detail

// Ends calls from another thread.
class Cancel {
public:
    Cancel()
    {
        umd_cancel *made = nullptr;
        check(umd_cancel_create(nullptr, &made));
        handle_.reset(made);
    }
    void request() noexcept { umd_cancel_request(handle_.get()); }
    void reset() noexcept { umd_cancel_reset(handle_.get()); }
    umd_cancel *get() const noexcept { return handle_.get(); }

private:
    detail::Handle<umd_cancel, umd_cancel_free> handle_;
};

// Deadline and cancel token of one call.
struct Call : umd_call {
    explicit Call(double deadline = 0, const Cancel *token = nullptr)
        : umd_call(detail::make<umd_call>(umd_call_init))
    {
        deadline_ms = deadline;
        cancel = token != nullptr ? token->get() : nullptr;
    }
};

// Pixels in the caller's memory; every other member of umd_pixels may be set as well.
struct Pixels : umd_pixels {
    Pixels(const void *bytes, std::size_t byte_count, std::uint32_t columns, std::uint32_t rows,
           std::int32_t interpretation = UMD_MONOCHROME2)
        : umd_pixels(detail::make<umd_pixels>(umd_pixels_init))
    {
        data = bytes;
        size = byte_count;
        width = columns;
        height = rows;
        photometric = interpretation;
    }
};

// A label or answer.
struct Item {
    std::string name;
    double probability;
    float logit;
    std::uint32_t output;
    bool positive;
    // Where a sensitivity or specificity was asked for and `point` is not UMD_POINT_NONE: from
    // which probability on the label is positive, and what is expected of new patients there.
    std::int32_t point;
    double threshold;
    double sensitivity;
    double specificity;
};

// What cannot be excluded at a coverage: see umd_get_set.
struct PredictionSet {
    std::vector<umd_member> members;
    std::uint32_t n = 0;
    bool complete = false;
    std::int32_t other = -1;
};

// What came out. `status` is one of UMD_RESULT_; `reason` says why it is not UMD_RESULT_OK.
struct Result {
    std::int32_t status = UMD_RESULT_OK;
    std::string reason;
    std::string task;
    double total_ms = 0;
    double ood_score = 0; // above 1 the image is out of distribution; NaN: not known
    std::vector<Item> items;

    explicit Result(umd_result *made) : handle_(made, umd_result_free)
    {
        auto info = detail::make<umd_result_info>(umd_result_info_init);
        check(umd_get_result(made, &info));
        status = info.status;
        reason = info.reason;
        task = info.task;
        total_ms = info.total_ms;
        ood_score = info.ood_score;
        for (std::uint32_t i = 0; i < info.count; i++) {
            auto item = detail::make<umd_item>(umd_item_init);
            check(umd_get_item(made, i, &item));
            items.push_back({item.name, item.probability, item.logit, item.output,
                             item.positive != 0, item.point, item.threshold, item.sensitivity,
                             item.specificity});
        }
    }

    PredictionSet prediction_set(double coverage) const
    {
        PredictionSet found;
        auto set = detail::make<umd_set>(umd_set_init);
        std::size_t count = 0;
        check(umd_get_set(handle_.get(), coverage, &set, nullptr, &count));
        found.members.resize(count);
        check(umd_get_set(handle_.get(), coverage, &set, found.members.data(), &count));
        found.n = set.n;
        found.complete = set.complete != 0;
        found.other = set.other;
        return found;
    }

private:
    std::shared_ptr<umd_result> handle_;
};

// A structured value: a number (0 or 1 for yes or no) or, of a categorical field, a text.
struct Value {
    Value(std::string field, double value) : name(std::move(field)), number(value) {}
    Value(std::string field, std::string value)
        : name(std::move(field)), text(std::move(value)), is_text(true)
    {
    }
    std::string name;
    std::string text;
    double number = 0;
    bool is_text = false;
};

// An image that has been encoded once.
class Image {
public:
    explicit Image(umd_image *made) : handle_(made) {}

    Result ask(const std::string &question, const char *task = nullptr,
               const Call &call = Call()) const
    {
        umd_result *result = nullptr;
        check(umd_ask(handle_.get(), question.c_str(), task, &call, &result));
        return Result(result);
    }

    Result classify(const std::string &task, const std::vector<Value> &values = {},
                    const char *text = nullptr, const Call &call = Call(),
                    double sensitivity = 0, double specificity = 0) const
    {
        std::vector<umd_value> given;
        for (const Value &value : values)
            given.push_back({value.name.c_str(), value.is_text ? value.text.c_str() : nullptr,
                             value.number});
        auto options = detail::make<umd_classify_options>(umd_classify_options_init);
        options.values = given.data();
        options.value_count = static_cast<std::uint32_t>(given.size());
        options.text = text;
        options.sensitivity = sensitivity;
        options.specificity = specificity;
        umd_result *result = nullptr;
        check(umd_classify(handle_.get(), task.c_str(), &options, &call, &result));
        return Result(result);
    }

    // All texts, the best first; see umd_rank_texts.
    std::vector<umd_match> rank(const std::vector<std::string> &texts,
                                std::int32_t method = UMD_RANK_TWO_STAGE,
                                std::uint32_t candidates = 0, const Call &call = Call()) const
    {
        std::vector<const char *> given;
        for (const std::string &text : texts)
            given.push_back(text.c_str());
        std::vector<umd_match> matches(texts.size());
        check(umd_rank_texts(handle_.get(), given.data(), static_cast<std::uint32_t>(given.size()),
                             nullptr, method, candidates, &call, matches.data()));
        return matches;
    }

    std::vector<float> embedding() const
    {
        std::size_t count = 0;
        check(umd_embed_image(handle_.get(), nullptr, &count));
        std::vector<float> values(count);
        check(umd_embed_image(handle_.get(), values.data(), &count));
        return values;
    }

    umd_image *get() const noexcept { return handle_.get(); }

private:
    detail::Handle<umd_image, umd_image_free> handle_;
};

// How to open a bundle; every member of umd_open_options may be set.
struct Options : umd_open_options {
    Options() : umd_open_options(detail::make<umd_open_options>(umd_open_options_init)) {}
};

// An opened bundle.
class Predictor {
public:
    explicit Predictor(const std::string &path, const Options &options = Options())
    {
        umd_predictor *made = nullptr;
        check(umd_open(path.c_str(), &options, &made));
        handle_.reset(made);
    }

    Image encode(const Pixels &pixels, const Call &call = Call()) const
    {
        umd_image *image = nullptr;
        check(umd_encode(handle_.get(), &pixels, &call, &image));
        return Image(image);
    }

    std::vector<float> embed(const std::string &text, const Call &call = Call()) const
    {
        std::size_t count = 0;
        check(umd_embed_text(handle_.get(), text.c_str(), &call, nullptr, &count));
        std::vector<float> values(count);
        check(umd_embed_text(handle_.get(), text.c_str(), &call, values.data(), &count));
        return values;
    }

    // All images of this predictor, the best first; see umd_rank_images.
    std::vector<umd_match> rank(const std::string &text, const std::vector<Image> &images,
                                std::int32_t method = UMD_RANK_TWO_STAGE,
                                std::uint32_t candidates = 0, const Call &call = Call()) const
    {
        std::vector<umd_image *> given;
        for (const Image &image : images)
            given.push_back(image.get());
        std::vector<umd_match> matches(images.size());
        check(umd_rank_images(text.c_str(), given.data(), static_cast<std::uint32_t>(given.size()),
                              nullptr, method, candidates, &call, matches.data()));
        return matches;
    }

    umd_description describe() const
    {
        auto description = detail::make<umd_description>(umd_description_init);
        check(umd_describe(handle_.get(), &description));
        return description;
    }

    umd_selftest_report selftest(const Call &call = Call()) const
    {
        auto report = detail::make<umd_selftest_report>(umd_selftest_report_init);
        check(umd_selftest(handle_.get(), &call, &report));
        return report;
    }

    umd_predictor *get() const noexcept { return handle_.get(); }

private:
    detail::Handle<umd_predictor, umd_close> handle_;
};

} // namespace umd_edge

#endif
