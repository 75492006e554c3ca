// The TCP sockets of a network namespace by sock_diag(7), and their end by SOCK_DESTROY.
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <dirent.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <cstdlib>
#include <cstring>
#include <unordered_map>
#include <vector>

#include "worker.h"

#ifndef SOCK_DESTROY
#define SOCK_DESTROY 21
#endif

namespace underpass {
namespace {

constexpr uint32_t kAllStates = 0xfff;

struct TcpSocket {
  uint8_t family = 0, state = 0;
  inet_diag_sockid id = {};
  uint64_t cgroup = 0;
};

class Netlink {
 public:
  bool open(const std::string &action, Failure *failure) {
    fd_.reset(new Fd(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG)));
    return fd_->get() >= 0 || failure->set(action, "socket");
  }

  int send_request(uint16_t type, uint16_t flags, const inet_diag_req_v2 &request) {
    struct {
      nlmsghdr header;
      inet_diag_req_v2 request;
    } message = {};
    message.header.nlmsg_len = sizeof(message);
    message.header.nlmsg_type = type;
    message.header.nlmsg_flags = NLM_F_REQUEST | flags;
    message.request = request;
    sockaddr_nl kernel = {};
    kernel.nl_family = AF_NETLINK;
    return sendto(fd_->get(), &message, sizeof(message), 0, reinterpret_cast<sockaddr *>(&kernel), sizeof(kernel)) < 0 ? errno : 0;
  }

  // Calls back with each message until the answer is complete, or has so many; the errno it ended with. What is asked for one
  // socket alone is answered by one message, with nothing after it.
  int receive(const std::function<void(const nlmsghdr *)> &visit, size_t most = SIZE_MAX) {
    std::vector<char> buffer(1 << 16);
    for (;;) {
      ssize_t length = recv(fd_->get(), buffer.data(), buffer.size(), 0);
      if (length < 0) {
        if (errno == EINTR) continue;
        return errno;
      }
      for (auto *message = reinterpret_cast<nlmsghdr *>(buffer.data()); NLMSG_OK(message, static_cast<size_t>(length)); message = NLMSG_NEXT(message, length)) {
        if (message->nlmsg_type == NLMSG_DONE) {
          // A dump that fails, as where tcp_diag is not loaded, says so in its end.
          int error = 0;
          if (message->nlmsg_len >= NLMSG_LENGTH(sizeof(error))) memcpy(&error, NLMSG_DATA(message), sizeof(error));
          return -error;
        }
        if (message->nlmsg_type == NLMSG_ERROR) return -static_cast<nlmsgerr *>(NLMSG_DATA(message))->error;
        visit(message);
        if (--most == 0) return 0;
      }
    }
  }

 private:
  std::unique_ptr<Fd> fd_;
};

TcpSocket socket_of(const nlmsghdr *header) {
  auto *message = static_cast<const inet_diag_msg *>(NLMSG_DATA(header));
  TcpSocket found;
  found.family = message->idiag_family;
  found.state = message->idiag_state;
  found.id = message->id;
  int length = header->nlmsg_len - NLMSG_LENGTH(sizeof(*message));
  for (auto *item = reinterpret_cast<const nlattr *>(message + 1); length >= static_cast<int>(sizeof(*item)) && item->nla_len >= sizeof(*item) && item->nla_len <= length;) {
    if (item->nla_type == INET_DIAG_CGROUP_ID && item->nla_len >= sizeof(*item) + 8) memcpy(&found.cgroup, item + 1, 8);
    int step = NLMSG_ALIGN(item->nla_len);
    length -= step;
    item = reinterpret_cast<const nlattr *>(reinterpret_cast<const char *>(item) + step);
  }
  return found;
}

// 16 bytes, IPv4 in mapped form.
Napi::Value address_of(Napi::Env env, uint8_t family, const __be32 *words) {
  uint8_t bytes[16] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  if (family == AF_INET6) {
    memcpy(bytes, words, 16);
  } else {
    memcpy(bytes + 12, words, 4);
  }
  return Napi::Buffer<uint8_t>::Copy(env, bytes, sizeof(bytes));
}

Napi::Value row_of(Napi::Env env, const TcpSocket &each) {
  Napi::Object row = Napi::Object::New(env);
  row.Set("listening", Napi::Boolean::New(env, each.state == TCP_LISTEN));
  row.Set("local", address_of(env, each.family, each.id.idiag_src));
  row.Set("remote", address_of(env, each.family, each.id.idiag_dst));
  row.Set("localPort", ntohs(each.id.idiag_sport));
  row.Set("remotePort", ntohs(each.id.idiag_dport));
  row.Set("cookie", Napi::BigInt::New(env, each.id.idiag_cookie[0] | static_cast<uint64_t>(each.id.idiag_cookie[1]) << 32));
  row.Set("cgroupId", Napi::BigInt::New(env, each.cgroup));
  uint8_t id[1 + sizeof(each.id)];
  id[0] = each.family;
  memcpy(id + 1, &each.id, sizeof(each.id));
  row.Set("id", Napi::Buffer<uint8_t>::Copy(env, id, sizeof(id)));
  return row;
}

class ListWorker : public PromiseWorker {
 public:
  ListWorker(Napi::Env env, std::string path, uint32_t states) : PromiseWorker(env), path_(std::move(path)), states_(states) {}

 protected:
  bool work(Failure *failure) override {
    const std::string action = "listing the TCP sockets of " + path_;
    return in_netns(path_, failure, [&] {
      Netlink netlink;
      if (!netlink.open(action, failure)) return false;
      for (uint8_t family : {AF_INET, AF_INET6}) {
        inet_diag_req_v2 request = {};
        request.sdiag_family = family;
        request.sdiag_protocol = IPPROTO_TCP;
        request.idiag_states = states_;
        int error = netlink.send_request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, request);
        if (!error) error = netlink.receive([&](const nlmsghdr *message) { found_.push_back(socket_of(message)); });
        if (error) return failure->set(action, "sock_diag", error);
      }
      return true;
    });
  }

  Napi::Value result(Napi::Env env) override {
    Napi::Array out = Napi::Array::New(env, found_.size());
    for (uint32_t i = 0; i < found_.size(); i++) {
      out.Set(i, row_of(env, found_[i]));
    }
    return out;
  }

 private:
  std::string path_;
  uint32_t states_;
  std::vector<TcpSocket> found_;
};

class FindWorker : public PromiseWorker {
 public:
  FindWorker(Napi::Env env, std::string path, inet_diag_req_v2 request) : PromiseWorker(env), path_(std::move(path)), request_(request) {}

 protected:
  bool work(Failure *failure) override {
    const std::string action = "looking for a TCP socket of " + path_;
    return in_netns(path_, failure, [&] {
      Netlink netlink;
      if (!netlink.open(action, failure)) return false;
      int error = netlink.send_request(SOCK_DIAG_BY_FAMILY, 0, request_);
      if (!error) {
        error = netlink.receive([&](const nlmsghdr *message) {
          // Where nothing has both addresses the kernel answers with what listens at the first of them.
          if (static_cast<const inet_diag_msg *>(NLMSG_DATA(message))->id.idiag_dport != request_.id.idiag_dport) return;
          socket_ = socket_of(message);
          found_ = true;
        }, 1);
      }
      return !error || error == ENOENT || error == ESTALE || failure->set(action, "sock_diag", error);
    });
  }
  Napi::Value result(Napi::Env env) override { return found_ ? row_of(env, socket_) : env.Undefined(); }

 private:
  std::string path_;
  inet_diag_req_v2 request_;
  TcpSocket socket_;
  bool found_ = false;
};

class DestroyWorker : public PromiseWorker {
 public:
  DestroyWorker(Napi::Env env, std::string path, std::vector<inet_diag_req_v2> requests)
      : PromiseWorker(env), path_(std::move(path)), requests_(std::move(requests)) {}

 protected:
  bool work(Failure *failure) override {
    const std::string action = "ending TCP connections of " + path_;
    return in_netns(path_, failure, [&] {
      Netlink netlink;
      if (!netlink.open(action, failure)) return false;
      for (const inet_diag_req_v2 &request : requests_) {
        int error = netlink.send_request(SOCK_DESTROY, NLM_F_ACK, request);
        if (!error) error = netlink.receive([](const nlmsghdr *) {});
        // The kernel compares the socket's cookie too: whoever has its addresses by now is another one.
        if (error && error != ENOENT && error != ESTALE) return failure->set(action, "sock_diag", error);
        if (!error) destroyed_++;
      }
      return true;
    });
  }
  Napi::Value result(Napi::Env env) override { return Napi::Number::New(env, destroyed_); }

 private:
  std::string path_;
  std::vector<inet_diag_req_v2> requests_;
  uint32_t destroyed_ = 0;
};

Napi::Value tcp_sockets(const Napi::CallbackInfo &info) {
  const bool listening = info[1].IsBoolean() && info[1].As<Napi::Boolean>().Value();
  const uint32_t states = listening ? 1u << TCP_LISTEN : kAllStates & ~(1u << TCP_TIME_WAIT) & ~(1u << TCP_CLOSE);
  return start(new ListWorker(info.Env(), string_of(info.Env(), info[0], "tcpSockets: netns"), states));
}

// Sockets that another process has, by descriptors of its own (pidfd_getfd, Linux 5.6).
class ShutdownWorker : public PromiseWorker {
 public:
  ShutdownWorker(Napi::Env env, std::string path, std::vector<inet_diag_req_v2> requests, pid_t pid)
      : PromiseWorker(env), path_(std::move(path)), requests_(std::move(requests)), pid_(pid) {}

 protected:
  bool work(Failure *failure) override {
    const std::string action = "ending what sockets of process " + std::to_string(pid_) + " send";
    std::unordered_map<std::string, const inet_diag_req_v2 *> wanted;
    const bool ok = in_netns(path_, failure, [&] {
      Netlink netlink;
      if (!netlink.open(action, failure)) return false;
      for (const inet_diag_req_v2 &request : requests_) {
        uint32_t inode = 0;
        int error = netlink.send_request(SOCK_DIAG_BY_FAMILY, 0, request);
        if (!error) error = netlink.receive([&](const nlmsghdr *message) { inode = static_cast<const inet_diag_msg *>(NLMSG_DATA(message))->idiag_inode; }, 1);
        if (error && error != ENOENT && error != ESTALE) return failure->set(action, "sock_diag", error);
        if (inode) wanted.emplace("socket:[" + std::to_string(inode) + "]", &request);
      }
      return true;
    });
    if (!ok || wanted.empty()) return ok;
    Fd process(static_cast<int>(syscall(SYS_pidfd_open, pid_, 0)));
    if (process.get() < 0) return errno == ESRCH || failure->set(action, "pidfd_open");
    const std::string folder = "/proc/" + std::to_string(pid_) + "/fd";
    std::unique_ptr<DIR, int (*)(DIR *)> entries(opendir(folder.c_str()), closedir);
    if (!entries) return errno == ENOENT || failure->set(action, "opendir");
    while (const dirent *entry = readdir(entries.get())) {
      char target[64];
      ssize_t length = readlinkat(dirfd(entries.get()), entry->d_name, target, sizeof(target));
      auto found = length < 0 ? wanted.end() : wanted.find(std::string(target, static_cast<size_t>(length)));
      if (found == wanted.end()) continue;
      Fd socket(static_cast<int>(syscall(SYS_pidfd_getfd, process.get(), atoi(entry->d_name), 0)));
      if (socket.get() < 0 && errno != EBADF) return failure->set(action, "pidfd_getfd");
      // The number may be another file's by now.
      if (socket.get() < 0 || !is_asked_for(socket.get(), found->first, *found->second)) continue;
      wanted.erase(found);
      if (!shutdown(socket.get(), SHUT_WR)) done_++;
      if (wanted.empty()) break;
    }
    return true;
  }
  Napi::Value result(Napi::Env env) override { return Napi::Number::New(env, done_); }

 private:
  static bool is_asked_for(int fd, const std::string &name, const inet_diag_req_v2 &request) {
    uint64_t cookie = 0, asked = request.id.idiag_cookie[0] | static_cast<uint64_t>(request.id.idiag_cookie[1]) << 32;
    socklen_t size = sizeof(cookie);
    struct stat status = {};
    if (fstat(fd, &status) || "socket:[" + std::to_string(status.st_ino) + "]" != name) return false;
    return !getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &size) && (asked == ~0ull || asked == cookie);
  }

  std::string path_;
  std::vector<inet_diag_req_v2> requests_;
  pid_t pid_;
  uint32_t done_ = 0;
};

inet_diag_req_v2 request_of(Napi::Env env, const Napi::Value &value, const char *name) {
  inet_diag_req_v2 request = {};
  if (!value.IsBuffer() || value.As<Napi::Buffer<uint8_t>>().Length() != 1 + sizeof(request.id)) {
    throw Napi::TypeError::New(env, std::string(name) + ": expected what tcpSockets or tcpSocketId gave");
  }
  const uint8_t *bytes = value.As<Napi::Buffer<uint8_t>>().Data();
  request.sdiag_family = bytes[0];
  request.sdiag_protocol = IPPROTO_TCP;
  request.idiag_states = kAllStates;
  memcpy(&request.id, bytes + 1, sizeof(request.id));
  return request;
}

Napi::Value tcp_socket_id(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  Napi::Object tuple = object_of(env, info[0], "tcpSocketId: socket");
  inet_diag_sockid id = {};
  uint8_t family = AF_INET;
  auto address = [&](const char *name, __be32 *words) {
    Napi::Value value = tuple.Get(name);
    if (!value.IsBuffer() || value.As<Napi::Buffer<uint8_t>>().Length() != 16) {
      throw Napi::TypeError::New(env, std::string("tcpSocketId: ") + name + ": expected 16 bytes");
    }
    memcpy(words, value.As<Napi::Buffer<uint8_t>>().Data(), 16);
    static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    if (memcmp(words, mapped, sizeof(mapped))) family = AF_INET6;
  };
  address("local", id.idiag_src);
  address("remote", id.idiag_dst);
  if (family == AF_INET) {
    for (auto *words : {id.idiag_src, id.idiag_dst}) words[0] = words[3], words[1] = words[2] = words[3] = 0;
  }
  id.idiag_sport = htons(integer_of(env, tuple.Get("localPort"), "tcpSocketId: localPort", 0, 65535));
  id.idiag_dport = htons(integer_of(env, tuple.Get("remotePort"), "tcpSocketId: remotePort", 0, 65535));
  uint64_t cookie = ~0ull;
  if (!absent(tuple.Get("cookie"))) {
    bool lossless = false;
    if (tuple.Get("cookie").IsBigInt()) cookie = tuple.Get("cookie").As<Napi::BigInt>().Uint64Value(&lossless);
    if (!lossless) throw Napi::TypeError::New(env, "tcpSocketId: cookie: expected a bigint of 64 bits");
  }
  id.idiag_cookie[0] = static_cast<uint32_t>(cookie);
  id.idiag_cookie[1] = static_cast<uint32_t>(cookie >> 32);
  uint8_t bytes[1 + sizeof(id)];
  bytes[0] = family;
  memcpy(bytes + 1, &id, sizeof(id));
  return Napi::Buffer<uint8_t>::Copy(env, bytes, sizeof(bytes));
}

Napi::Value find_tcp_socket(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  const std::string path = string_of(env, info[0], "findTcpSocket: netns");
  return start(new FindWorker(env, path, request_of(env, info[1], "findTcpSocket: id")));
}

std::vector<inet_diag_req_v2> requests_of(Napi::Env env, const Napi::Value &value, const char *name) {
  if (!value.IsArray()) throw Napi::TypeError::New(env, std::string(name) + ": expected an array");
  Napi::Array ids = value.As<Napi::Array>();
  std::vector<inet_diag_req_v2> requests;
  for (uint32_t i = 0; i < ids.Length(); i++) requests.push_back(request_of(env, ids.Get(i), name));
  return requests;
}

Napi::Value shutdown_tcp_sockets(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  const std::string path = string_of(env, info[0], "shutdownTcpSockets: netns");
  std::vector<inet_diag_req_v2> requests = requests_of(env, info[1], "shutdownTcpSockets: ids");
  return start(new ShutdownWorker(env, path, std::move(requests), integer_of(env, info[2], "shutdownTcpSockets: pid", 1, INT32_MAX)));
}

Napi::Value destroy_tcp_sockets(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  const std::string path = string_of(env, info[0], "destroyTcpSockets: netns");
  std::vector<inet_diag_req_v2> requests = requests_of(env, info[1], "destroyTcpSockets: ids");
  return start(new DestroyWorker(env, path, std::move(requests)));
}

}  // namespace

void init_socket_diag(Napi::Env env, Napi::Object exports) {
  exports.Set("tcpSockets", Napi::Function::New(env, tcp_sockets, "tcpSockets"));
  exports.Set("findTcpSocket", Napi::Function::New(env, find_tcp_socket, "findTcpSocket"));
  exports.Set("tcpSocketId", Napi::Function::New(env, tcp_socket_id, "tcpSocketId"));
  exports.Set("shutdownTcpSockets", Napi::Function::New(env, shutdown_tcp_sockets, "shutdownTcpSockets"));
  exports.Set("destroyTcpSockets", Napi::Function::New(env, destroy_tcp_sockets, "destroyTcpSockets"));
}

}  // namespace underpass
