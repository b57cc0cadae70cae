// The argument types of the exported functions, as text that Python compares with its own before it calls any.
#pragma once
#include <cstdint>

namespace {

template <class T> struct Argument;
template <class T> struct Argument<T *> {
    static constexpr char code = 'p';
};
template <> struct Argument<float> {
    static constexpr char code = 'f';
};
template <> struct Argument<int32_t> {
    static constexpr char code = 'i';
};
template <> struct Argument<uint32_t> {
    static constexpr char code = 'u';
};
template <> struct Argument<int64_t> {
    static constexpr char code = 'q';
};

template <class Result, class... Arguments> const char *signature(Result (*)(Arguments...)) {
    static constexpr char codes[] = {Argument<Arguments>::code..., 0};
    return codes;
}

} // namespace

#define SIGNATURE_OF(function)                                                                                         \
    extern "C" const char *function##_signature() { return signature(function); }

#define NAME_OF(name, ...) #name " "
