// Whether the packet filter of a network namespace may have changed: a number that nf_tables counts up with each change, and a
// sum over the legacy nat tables. Nothing of a table is made by looking.
#include <arpa/inet.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter_ipv4/ip_tables.h>
#include <linux/netfilter_ipv6/ip6_tables.h>
#include <linux/netlink.h>
#include <sys/socket.h>

#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "worker.h"

namespace underpass {
namespace {

constexpr size_t kMostLegacyBytes = 64 << 20;

uint64_t hashed(uint64_t hash, const void *bytes, size_t length) {
  for (auto *byte = static_cast<const uint8_t *>(bytes); length > 0; byte++, length--) hash = (hash ^ *byte) * 0x100000001b3ULL;
  return hash;
}

class NetfilterWorker : public PromiseWorker {
 public:
  NetfilterWorker(Napi::Env env, std::string path) : PromiseWorker(env), path_(std::move(path)) {}

 protected:
  bool work(Failure *failure) override {
    return in_netns(path_, failure, [&] {
      return generation(failure) && legacy<ipt_getinfo, ipt_get_entries, ipt_entry>(AF_INET, IPPROTO_IP, IPT_SO_GET_INFO, IPT_SO_GET_ENTRIES, "ip", failure) &&
             legacy<ipt_getinfo, ipt_get_entries, ip6t_entry>(AF_INET6, IPPROTO_IPV6, IP6T_SO_GET_INFO, IP6T_SO_GET_ENTRIES, "ip6", failure);
    });
  }
  Napi::Value result(Napi::Env env) override { return Napi::String::New(env, std::to_string(generation_) + "-" + std::to_string(sum_)); }

 private:
  // 0 where the kernel has no nf_tables.
  bool generation(Failure *failure) {
    const std::string action = "asking for the generation of nf_tables in " + path_;
    Fd fd(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER));
    if (fd.get() < 0) return errno == EPROTONOSUPPORT || failure->set(action, "socket");
    struct {
      nlmsghdr header;
      nfgenmsg message;
    } request = {};
    request.header.nlmsg_len = sizeof(request);
    request.header.nlmsg_type = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN;
    request.header.nlmsg_flags = NLM_F_REQUEST;
    request.message.version = NFNETLINK_V0;
    if (send(fd.get(), &request, sizeof(request), 0) < 0) return failure->set(action, "send");
    alignas(nlmsghdr) char answer[4096];
    ssize_t length = recv(fd.get(), answer, sizeof(answer), 0);
    if (length < 0) return failure->set(action, "recv");
    auto *header = reinterpret_cast<nlmsghdr *>(answer);
    if (!NLMSG_OK(header, static_cast<size_t>(length))) return failure->set(action, "recv", EBADMSG);
    if (header->nlmsg_type == NLMSG_ERROR) {
      int error = -static_cast<nlmsgerr *>(NLMSG_DATA(header))->error;
      return error == EINVAL || error == EOPNOTSUPP || error == ENOENT || failure->set(action, "recv", error);
    }
    int left = header->nlmsg_len - NLMSG_SPACE(sizeof(nfgenmsg));
    for (auto *item = reinterpret_cast<const nlattr *>(static_cast<char *>(NLMSG_DATA(header)) + NLMSG_ALIGN(sizeof(nfgenmsg)));
         left >= static_cast<int>(sizeof(*item)) && item->nla_len >= sizeof(*item) && item->nla_len <= left;) {
      if ((item->nla_type & NLA_TYPE_MASK) == NFTA_GEN_ID && item->nla_len >= sizeof(*item) + 4) {
        uint32_t number;
        memcpy(&number, item + 1, sizeof(number));
        generation_ = ntohl(number);
      }
      int step = NLMSG_ALIGN(item->nla_len);
      left -= step;
      item = reinterpret_cast<const nlattr *>(reinterpret_cast<const char *>(item) + step);
    }
    return true;
  }

  // To ask for a table makes it, so the kernel's list is looked at first. Counters of packets are left out of the sum.
  template <typename Info, typename Entries, typename Entry>
  bool legacy(int family, int level, int get_info, int get_entries, const char *name, Failure *failure) {
    std::ifstream names(std::string("/proc/thread-self/net/") + name + "_tables_names");
    bool is_there = false;
    for (std::string line; std::getline(names, line);) is_there = is_there || line == "nat";
    if (!is_there) return true;
    const std::string action = std::string("reading the ") + name + " nat table of " + path_;
    Fd fd(socket(family, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW));
    if (fd.get() < 0) return failure->set(action, "socket");
    Info info = {};
    strcpy(info.name, "nat");
    socklen_t length = sizeof(info);
    if (getsockopt(fd.get(), level, get_info, &info, &length)) return failure->set(action, "getsockopt");
    if (info.size > kMostLegacyBytes) return failure->set(action, "getsockopt", E2BIG);
    std::vector<char> bytes(sizeof(Entries) + info.size);
    auto *entries = reinterpret_cast<Entries *>(bytes.data());
    strcpy(entries->name, "nat");
    entries->size = info.size;
    length = bytes.size();
    if (getsockopt(fd.get(), level, get_entries, bytes.data(), &length)) {
      // It was changed between the two: another sum than before, whichever.
      if (errno != EAGAIN) return failure->set(action, "getsockopt");
      sum_ = hashed(sum_, &length, sizeof(length));
      return true;
    }
    char *first = bytes.data() + sizeof(Entries);
    for (size_t at = 0; at + sizeof(Entry) <= info.size;) {
      auto *entry = reinterpret_cast<Entry *>(first + at);
      if (entry->next_offset < sizeof(Entry) || at + entry->next_offset > info.size) break;
      memset(&entry->counters, 0, sizeof(entry->counters));
      at += entry->next_offset;
    }
    sum_ = hashed(sum_, first, info.size);
    return true;
  }

  std::string path_;
  uint32_t generation_ = 0;
  uint64_t sum_ = 0xcbf29ce484222325ULL;
};

Napi::Value netfilter_mark(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  return start(new NetfilterWorker(env, string_of(env, info[0], "netfilterMark: netnsPath")));
}

}  // namespace

void init_netfilter(Napi::Env env, Napi::Object exports) {
  exports.Set("netfilterMark", Napi::Function::New(env, netfilter_mark, "netfilterMark"));
}

}  // namespace underpass
