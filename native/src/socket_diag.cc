// The TCP sockets of a network namespace by sock_diag(7), and their end by SOCK_DESTROY.
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cstring>
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

  // Calls back with each message until the answer is complete; the errno it ended with.
  int receive(const std::function<void(const nlmsghdr *)> &visit) {
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

class ListWorker : public PromiseWorker {
 public:
  ListWorker(Napi::Env env, std::string path) : PromiseWorker(env), path_(std::move(path)) {}

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
        request.idiag_states = kAllStates & ~(1u << TCP_TIME_WAIT) & ~(1u << TCP_CLOSE);
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
      const TcpSocket &each = found_[i];
      Napi::Object row = Napi::Object::New(env);
      row.Set("listening", Napi::Boolean::New(env, each.state == TCP_LISTEN));
      row.Set("local", address_of(env, each.family, each.id.idiag_src));
      row.Set("remote", address_of(env, each.family, each.id.idiag_dst));
      row.Set("localPort", ntohs(each.id.idiag_sport));
      row.Set("remotePort", ntohs(each.id.idiag_dport));
      row.Set("cgroupId", Napi::BigInt::New(env, each.cgroup));
      uint8_t id[1 + sizeof(each.id)];
      id[0] = each.family;
      memcpy(id + 1, &each.id, sizeof(each.id));
      row.Set("id", Napi::Buffer<uint8_t>::Copy(env, id, sizeof(id)));
      out.Set(i, row);
    }
    return out;
  }

 private:
  std::string path_;
  std::vector<TcpSocket> found_;
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
  return start(new ListWorker(info.Env(), string_of(info.Env(), info[0], "tcpSockets: netns")));
}

Napi::Value destroy_tcp_sockets(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  const std::string path = string_of(env, info[0], "destroyTcpSockets: netns");
  if (!info[1].IsArray()) throw Napi::TypeError::New(env, "destroyTcpSockets: ids: expected an array");
  Napi::Array ids = info[1].As<Napi::Array>();
  std::vector<inet_diag_req_v2> requests;
  for (uint32_t i = 0; i < ids.Length(); i++) {
    inet_diag_req_v2 request = {};
    Napi::Value value = ids.Get(i);
    if (!value.IsBuffer() || value.As<Napi::Buffer<uint8_t>>().Length() != 1 + sizeof(request.id)) {
      throw Napi::TypeError::New(env, "destroyTcpSockets: ids: expected those that tcpSockets gave");
    }
    const uint8_t *bytes = value.As<Napi::Buffer<uint8_t>>().Data();
    request.sdiag_family = bytes[0];
    request.sdiag_protocol = IPPROTO_TCP;
    memcpy(&request.id, bytes + 1, sizeof(request.id));
    requests.push_back(request);
  }
  return start(new DestroyWorker(env, path, std::move(requests)));
}

}  // namespace

void init_socket_diag(Napi::Env env, Napi::Object exports) {
  exports.Set("tcpSockets", Napi::Function::New(env, tcp_sockets, "tcpSockets"));
  exports.Set("destroyTcpSockets", Napi::Function::New(env, destroy_tcp_sockets, "destroyTcpSockets"));
}

}  // namespace underpass
