// Sockets and cookies of other network namespaces, mounts, and this process's own memory.
#include <arpa/inet.h>
#include <fcntl.h>
#include <malloc.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>

#include "worker.h"

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

namespace underpass {
namespace {

class CookieWorker : public PromiseWorker {
 public:
  CookieWorker(Napi::Env env, std::string path) : PromiseWorker(env), path_(std::move(path)) {}

 protected:
  bool work(Failure *failure) override {
    return in_netns(path_, failure, [&] {
      Fd fd(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
      if (fd.get() < 0) return failure->set("reading the cookie of " + path_, "socket");
      socklen_t length = sizeof(cookie_);
      if (getsockopt(fd.get(), SOL_SOCKET, SO_NETNS_COOKIE, &cookie_, &length)) {
        return failure->set("reading the cookie of " + path_ + " (needs Linux 5.14)", "getsockopt");
      }
      return true;
    });
  }
  Napi::Value result(Napi::Env env) override { return Napi::BigInt::New(env, cookie_); }

 private:
  std::string path_;
  uint64_t cookie_ = 0;
};

struct Endpoint {
  bool given = false;
  std::string address;
  uint16_t port = 0;
};

struct SocketRequest {
  std::string netns;
  int family = AF_INET;
  int type = SOCK_STREAM;
  Endpoint bind, connect;
  int backlog = -1;
  int timeout_ms = 5000;
  int v6only = 0;
};

class SocketWorker : public PromiseWorker {
 public:
  SocketWorker(Napi::Env env, SocketRequest request) : PromiseWorker(env), request_(std::move(request)) {}
  ~SocketWorker() override {
    if (fd_ >= 0) close(fd_);
  }

 protected:
  bool work(Failure *failure) override {
    return in_netns(request_.netns, failure, [&] { return open_socket(failure); });
  }
  Napi::Value result(Napi::Env env) override {
    int fd = fd_;
    fd_ = -1;
    return Napi::Number::New(env, fd);
  }

 private:
  bool resolve(const Endpoint &endpoint, sockaddr_storage *out, socklen_t *length, Failure *failure) {
    memset(out, 0, sizeof(*out));
    int ok;
    if (request_.family == AF_INET) {
      auto *in = reinterpret_cast<sockaddr_in *>(out);
      in->sin_family = AF_INET;
      in->sin_port = htons(endpoint.port);
      ok = inet_pton(AF_INET, endpoint.address.c_str(), &in->sin_addr);
      *length = sizeof(*in);
    } else {
      auto *in = reinterpret_cast<sockaddr_in6 *>(out);
      in->sin6_family = AF_INET6;
      in->sin6_port = htons(endpoint.port);
      ok = inet_pton(AF_INET6, endpoint.address.c_str(), &in->sin6_addr);
      *length = sizeof(*in);
    }
    return ok == 1 || failure->set("reading " + endpoint.address + " as an address", "inet_pton", EINVAL);
  }

  bool open_socket(Failure *failure) {
    const std::string place = " in " + request_.netns;
    Fd fd(socket(request_.family, request_.type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (fd.get() < 0) return failure->set("opening a socket" + place, "socket");
    int one = 1;
    sockaddr_storage address;
    socklen_t length;
    if (request_.backlog >= 0) setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (request_.family == AF_INET6) {
      setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &request_.v6only, sizeof(request_.v6only));
    }
    if (request_.bind.given) {
      if (!resolve(request_.bind, &address, &length, failure)) return false;
      if (bind(fd.get(), reinterpret_cast<sockaddr *>(&address), length)) {
        return failure->set("binding to " + request_.bind.address + " port " + std::to_string(request_.bind.port) + place, "bind");
      }
    }
    if (request_.backlog >= 0 && listen(fd.get(), request_.backlog)) return failure->set("listening" + place, "listen");
    if (request_.connect.given) {
      const std::string action =
          "connecting to " + request_.connect.address + " port " + std::to_string(request_.connect.port) + place;
      if (!resolve(request_.connect, &address, &length, failure)) return false;
      if (connect(fd.get(), reinterpret_cast<sockaddr *>(&address), length)) {
        if (errno != EINPROGRESS) return failure->set(action, "connect");
        pollfd poller{fd.get(), POLLOUT, 0};
        int ready = poll(&poller, 1, request_.timeout_ms);
        if (ready < 0) return failure->set(action, "poll");
        if (ready == 0) return failure->set(action, "connect", ETIMEDOUT);
        int error = 0;
        socklen_t size = sizeof(error);
        getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) return failure->set(action, "connect", error);
      }
    }
    fd_ = fd.release();
    return true;
  }

  SocketRequest request_;
  int fd_ = -1;
};

Endpoint endpoint_of(Napi::Env env, const Napi::Value &value, const char *name) {
  Endpoint endpoint;
  if (absent(value)) return endpoint;
  Napi::Object object = object_of(env, value, name);
  endpoint.given = true;
  endpoint.address = string_of(env, object.Get("address"), (std::string(name) + ".address").c_str());
  endpoint.port = integer_of(env, object.Get("port"), (std::string(name) + ".port").c_str(), 0, 65535);
  return endpoint;
}

Napi::Value netns_cookie(const Napi::CallbackInfo &info) {
  return start(new CookieWorker(info.Env(), string_of(info.Env(), info[0], "netnsCookie: path")));
}

Napi::Value open_socket(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  Napi::Object options = object_of(env, info[0], "openSocket: options");
  SocketRequest request;
  request.netns = string_of(env, options.Get("netns"), "openSocket: netns");
  const std::string family = string_of(env, options.Get("family"), "openSocket: family");
  if (family != "ipv4" && family != "ipv6") throw Napi::TypeError::New(env, "openSocket: family: expected ipv4 or ipv6");
  request.family = family == "ipv6" ? AF_INET6 : AF_INET;
  const std::string type = string_of(env, options.Get("type"), "openSocket: type");
  if (type != "stream" && type != "dgram") throw Napi::TypeError::New(env, "openSocket: type: expected stream or dgram");
  request.type = type == "dgram" ? SOCK_DGRAM : SOCK_STREAM;
  request.bind = endpoint_of(env, options.Get("bind"), "openSocket: bind");
  request.connect = endpoint_of(env, options.Get("connect"), "openSocket: connect");
  if (!absent(options.Get("listen"))) request.backlog = integer_of(env, options.Get("listen"), "openSocket: listen", 0, INT32_MAX);
  if (!absent(options.Get("timeoutMs"))) {
    request.timeout_ms = integer_of(env, options.Get("timeoutMs"), "openSocket: timeoutMs", 0, 600000);
  }
  request.v6only = options.Get("ipv6Only").ToBoolean() ? 1 : 0;
  return start(new SocketWorker(env, std::move(request)));
}

// A namespace whose loopback is up, kept by a bind mount on `path`.
class NetnsWorker : public PromiseWorker {
 public:
  NetnsWorker(Napi::Env env, std::string path) : PromiseWorker(env), path_(std::move(path)) {}

 protected:
  bool work(Failure *failure) override {
    bool ok = false;
    std::thread thread([&] { ok = create(failure); });
    thread.join();
    return ok;
  }
  Napi::Value result(Napi::Env env) override { return env.Undefined(); }

 private:
  bool create(Failure *failure) {
    const std::string action = "making network namespace " + path_;
    if (unshare(CLONE_NEWNET)) return failure->set(action, "unshare");
    Fd fd(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    ifreq request = {};
    strcpy(request.ifr_name, "lo");
    request.ifr_flags = IFF_UP;
    if (fd.get() < 0 || ioctl(fd.get(), SIOCSIFFLAGS, &request)) return failure->set(action, "ioctl");
    Fd file(open(path_.c_str(), O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0444));
    if (file.get() < 0) return failure->set(action, "open");
    const std::string self = "/proc/self/task/" + std::to_string(gettid()) + "/ns/net";
    if (mount(self.c_str(), path_.c_str(), nullptr, MS_BIND, nullptr)) {
      int error = errno;
      unlink(path_.c_str());
      return failure->set(action, "mount", error);
    }
    return true;
  }

  std::string path_;
};

Napi::Value create_netns(const Napi::CallbackInfo &info) {
  return start(new NetnsWorker(info.Env(), string_of(info.Env(), info[0], "createNetns: path")));
}

void bind_mount(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  const std::string source = string_of(env, info[0], "bindMount: source");
  const std::string target = string_of(env, info[1], "bindMount: target");
  const std::string action = "binding " + source + " over " + target;
  Fd fd(open(target.c_str(), O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0444));
  const bool made = fd.get() >= 0;
  if (!made && errno != EEXIST) throw syscall_error(env, action, "open", errno);
  if (mount(source.c_str(), target.c_str(), nullptr, MS_BIND, nullptr)) {
    int error = errno;
    if (made) unlink(target.c_str());
    throw syscall_error(env, action, "mount", error);
  }
}

void unmount(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  const std::string path = string_of(env, info[0], "unmount: path");
  if (umount2(path.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) && errno != EINVAL && errno != ENOENT) {
    throw syscall_error(env, "unmounting " + path, "umount2", errno);
  }
}

void mount_bpffs(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  const std::string path = string_of(env, info[0], "mountBpffs: path");
  if (mkdir(path.c_str(), 0700) && errno != EEXIST) throw syscall_error(env, "mounting a bpffs on " + path, "mkdir", errno);
  if (mount("bpf", path.c_str(), "bpf", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0700")) {
    throw syscall_error(env, "mounting a bpffs on " + path, "mount", errno);
  }
}

Napi::Value try_lock_file(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  const int fd = static_cast<int>(integer_of(env, info[0], "tryLockFile: fd", 0, INT32_MAX));
  if (!flock(fd, LOCK_EX | LOCK_NB)) return Napi::Boolean::New(env, true);
  if (errno != EWOULDBLOCK) throw syscall_error(env, "locking file descriptor " + std::to_string(fd), "flock", errno);
  return Napi::Boolean::New(env, false);
}

// Lets go of pages of programs and libraries, most of which only a start needs: whoever runs into one has it from the
// page cache again. Only of mappings of files that nobody can write to and no page of which was changed: what the loader
// has relocated would be lost.
void drop_clean_pages() {
  std::ifstream smaps("/proc/self/smaps");
  std::string line;
  uintptr_t first = 0;
  size_t length = 0;
  while (std::getline(smaps, line)) {
    unsigned long long start = 0, end = 0, offset = 0, inode = 0, kib = 0;
    unsigned int major_number = 0, minor_number = 0;
    char mode[5] = "";
    if (sscanf(line.c_str(), "%llx-%llx %4s %llx %x:%x %llu", &start, &end, mode, &offset, &major_number, &minor_number, &inode) == 7) {
      bool is_unwritable_file = inode != 0 && mode[0] == 'r' && mode[1] == '-' && mode[3] == 'p';
      first = start;
      length = is_unwritable_file ? end - start : 0;
    } else if (sscanf(line.c_str(), "Anonymous: %llu kB", &kib) == 1) {
      if (length != 0 && kib == 0) madvise(reinterpret_cast<void *>(first), length, MADV_DONTNEED);
      length = 0;
    }
  }
}

// Of its arenas malloc gives back only what lies at their ends by itself. Other C libraries have no such call.
void trim_memory(const Napi::CallbackInfo &) {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
  drop_clean_pages();
}

}  // namespace

void init_system(Napi::Env env, Napi::Object exports) {
  exports.Set("netnsCookie", Napi::Function::New(env, netns_cookie, "netnsCookie"));
  exports.Set("openSocket", Napi::Function::New(env, open_socket, "openSocket"));
  exports.Set("createNetns", Napi::Function::New(env, create_netns, "createNetns"));
  exports.Set("bindMount", Napi::Function::New(env, bind_mount, "bindMount"));
  exports.Set("unmount", Napi::Function::New(env, unmount, "unmount"));
  exports.Set("tryLockFile", Napi::Function::New(env, try_lock_file, "tryLockFile"));
  exports.Set("trimMemory", Napi::Function::New(env, trim_memory, "trimMemory"));
  exports.Set("mountBpffs", Napi::Function::New(env, mount_bpffs, "mountBpffs"));
}

}  // namespace underpass
