// Work on the thread pool and in other network namespaces. A namespace is entered by a thread that is made for it and ends
// with the work, so that no thread of Node's is ever in the wrong one.
#pragma once

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "errors.h"

namespace underpass {

struct Failure {
  std::string action;
  const char *syscall = nullptr;
  int error = 0;

  bool set(std::string what, const char *call, int number = errno) {
    action = std::move(what);
    syscall = call;
    error = number;
    return false;
  }
};

class Fd {
 public:
  explicit Fd(int fd = -1) : fd_(fd) {}
  ~Fd() {
    if (fd_ >= 0) close(fd_);
  }
  Fd(const Fd &) = delete;
  Fd &operator=(const Fd &) = delete;
  int get() const { return fd_; }
  int release() {
    int fd = fd_;
    fd_ = -1;
    return fd;
  }

 private:
  int fd_;
};

inline bool in_netns(const std::string &path, Failure *failure, const std::function<bool()> &work) {
  bool ok = false;
  std::thread thread([&] {
    Fd netns(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (netns.get() < 0) {
      failure->set("opening network namespace " + path, "open");
    } else if (setns(netns.get(), CLONE_NEWNET)) {
      failure->set("entering network namespace " + path, "setns");
    } else {
      ok = work();
    }
  });
  thread.join();
  return ok;
}

// A promise that is settled by work on the thread pool.
class PromiseWorker : public Napi::AsyncWorker {
 public:
  explicit PromiseWorker(Napi::Env env) : Napi::AsyncWorker(env), deferred_(Napi::Promise::Deferred::New(env)) {}
  Napi::Promise promise() const { return deferred_.Promise(); }

 protected:
  virtual bool work(Failure *failure) = 0;
  virtual Napi::Value result(Napi::Env env) = 0;

  void Execute() override { ok_ = work(&failure_); }
  void OnOK() override {
    Napi::Env env = Env();
    if (ok_) {
      deferred_.Resolve(result(env));
    } else {
      deferred_.Reject(syscall_error(env, failure_.action, failure_.syscall, failure_.error).Value());
    }
  }
  void OnError(const Napi::Error &error) override { deferred_.Reject(error.Value()); }

 private:
  Napi::Promise::Deferred deferred_;
  Failure failure_;
  bool ok_ = false;
};

inline Napi::Value start(PromiseWorker *worker) {
  Napi::Promise promise = worker->promise();
  worker->Queue();
  return promise;
}

}  // namespace underpass
