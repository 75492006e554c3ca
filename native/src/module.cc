#include <cstring>

#include "errors.h"

namespace underpass {

std::string errno_name(int error) {
  const char *name = strerrorname_np(error);
  return name ? name : "errno " + std::to_string(error);
}

Napi::Error syscall_error(Napi::Env env, const std::string &action, const char *syscall, int error, const std::string &detail) {
  std::string message = action + ": " + syscall + ": " + strerror(error) + " (" + errno_name(error) + ")";
  if (!detail.empty()) message += "\n" + detail;
  Napi::Error result = Napi::Error::New(env, message);
  result.Set("syscall", Napi::String::New(env, syscall));
  result.Set("errnoName", Napi::String::New(env, errno_name(error)));
  return result;
}

}  // namespace underpass

static Napi::Object init(Napi::Env env, Napi::Object exports) {
  underpass::init_system(env, exports);
  underpass::init_socket_diag(env, exports);
  underpass::init_netfilter(env, exports);
  underpass::init_object(env, exports);
  return exports;
}

NODE_API_MODULE(underpass, init)
