// How a failed system call becomes a JavaScript error, and how arguments are checked.
#pragma once

#include <napi.h>

#include <cerrno>
#include <cmath>
#include <cstdint>
#include <string>

namespace underpass {

// EPERM, ENOENT, ...
std::string errno_name(int error);

// `action` says what was being done to what; `detail` (the verifier's last lines) comes on lines of its own.
Napi::Error syscall_error(Napi::Env env, const std::string &action, const char *syscall, int error,
                          const std::string &detail = "");

inline std::string string_of(Napi::Env env, const Napi::Value &value, const char *name) {
  if (!value.IsString()) throw Napi::TypeError::New(env, std::string(name) + ": expected a string");
  std::string text = value.As<Napi::String>().Utf8Value();
  if (text.empty()) throw Napi::TypeError::New(env, std::string(name) + ": expected a non-empty string");
  if (text.find('\0') != std::string::npos) throw Napi::TypeError::New(env, std::string(name) + ": holds a zero byte");
  return text;
}

inline int64_t integer_of(Napi::Env env, const Napi::Value &value, const char *name, int64_t min, int64_t max) {
  double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : NAN;
  if (!(number >= static_cast<double>(min) && number <= static_cast<double>(max)) || number != std::floor(number)) {
    throw Napi::TypeError::New(env, std::string(name) + ": expected a whole number from " + std::to_string(min) + " to " +
                                        std::to_string(max));
  }
  return static_cast<int64_t>(number);
}

inline Napi::Object object_of(Napi::Env env, const Napi::Value &value, const char *name) {
  if (!value.IsObject()) throw Napi::TypeError::New(env, std::string(name) + ": expected an object");
  return value.As<Napi::Object>();
}

inline bool absent(const Napi::Value &value) { return value.IsUndefined() || value.IsNull(); }

void init_system(Napi::Env env, Napi::Object exports);
void init_socket_diag(Napi::Env env, Napi::Object exports);
void init_netfilter(Napi::Env env, Napi::Object exports);
void init_object(Napi::Env env, Napi::Object exports);

}  // namespace underpass
