// The loaded BPF object and the handles that come from it.
#pragma once

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <uv.h>

#include <cerrno>
#include <memory>
#include <string>

#include "errors.h"

namespace underpass {

// What libbpf and the verifier print on this thread while it lives; `tail` gives the last lines, which say why.
class LogCapture {
 public:
  LogCapture();
  ~LogCapture();
  std::string tail(size_t lines) const;
};

// How many of them go into an error.
constexpr size_t kVerifierLines = 12;

// Makes all folders of a path that are missing, for root alone.
void make_folders(Napi::Env env, const std::string &path);

// Maps that libbpf makes for .rodata and .bss belong to one loading; the rest lives on in pins.
inline bool is_pinned_kind(const bpf_map *map) { return !bpf_map__is_internal(map); }

// Shared by the object's JavaScript face and by its maps, so that a map outlives neither its fd nor its name.
struct Loaded {
  bpf_object *object = nullptr;
  bool adopted = false;
  void close() {
    if (object) bpf_object__close(object);
    object = nullptr;
  }
  ~Loaded() { close(); }
};

// One attempt at loading the embedded object. `verify` may run on any thread, the rest where JavaScript is.
struct Loading {
  static Loading prepare(Napi::Env env, Napi::Object options);
  void verify();
  // Whether the verifier was interrupted, so that it may be asked once more, of an object that is opened anew.
  bool is_interrupted() const { return failed == -EAGAIN; }
  std::shared_ptr<Loaded> finish(Napi::Env env);

  std::shared_ptr<Loaded> loaded;
  std::string folder;
  int failed = 0;
  std::string said;
};

class BpfMapHandle : public Napi::ObjectWrap<BpfMapHandle> {
 public:
  static Napi::Function define(Napi::Env env);
  explicit BpfMapHandle(const Napi::CallbackInfo &info);
  ~BpfMapHandle() override;
  void open(std::shared_ptr<Loaded> loaded, bpf_map *map);
  // A map of no object that is loaded here: the handle closes its fd.
  void own(Napi::Env env, const std::string &path, int fd, bpf_map_info *info);

 private:
  Napi::Value get_property(const Napi::CallbackInfo &info);
  Napi::Value get(const Napi::CallbackInfo &info);
  void set(const Napi::CallbackInfo &info);
  void set_many(const Napi::CallbackInfo &info);
  Napi::Value remove(const Napi::CallbackInfo &info);
  Napi::Value entries(const Napi::CallbackInfo &info);
  Napi::Value keys(const Napi::CallbackInfo &info);
  Napi::Value read_batch(const Napi::CallbackInfo &info);
  void close(const Napi::CallbackInfo &info);

  int fd(Napi::Env env) const;
  bool per_cpu() const;
  size_t stored_size() const;
  const uint8_t *bytes(Napi::Env env, const Napi::Value &value, const char *name, size_t size) const;
  bool batch(Napi::Env env, Napi::Array out);

  std::shared_ptr<Loaded> loaded_;
  std::string name_;
  int fd_ = -1;
  bool owns_ = false;
  bpf_map_type type_ = BPF_MAP_TYPE_UNSPEC;
  uint32_t key_size_ = 0, value_size_ = 0, max_entries_ = 0;
};

class BpfLinkHandle : public Napi::ObjectWrap<BpfLinkHandle> {
 public:
  static Napi::Function define(Napi::Env env);
  explicit BpfLinkHandle(const Napi::CallbackInfo &info);
  ~BpfLinkHandle() override;
  void open(bpf_link *link) { link_ = link; }

 private:
  void close(const Napi::CallbackInfo &info);
  bpf_link *link_ = nullptr;
};

// Reads a ring buffer when its epoll fd becomes readable; closing goes through the loop, at exit of the thread too.
class RingBufferHandle : public Napi::ObjectWrap<RingBufferHandle> {
 public:
  static Napi::Function define(Napi::Env env);
  explicit RingBufferHandle(const Napi::CallbackInfo &info);
  ~RingBufferHandle() override;
  void open(Napi::Env env, std::shared_ptr<Loaded> loaded, int map_fd, Napi::Function callback);

 private:
  struct Poll;
  void close(const Napi::CallbackInfo &info);
  void stop();
  Poll *poll_ = nullptr;
};

class BpfObjectHandle : public Napi::ObjectWrap<BpfObjectHandle> {
 public:
  static Napi::Function define(Napi::Env env);
  explicit BpfObjectHandle(const Napi::CallbackInfo &info);
  void load(Napi::Env env, Napi::Object options);
  // The promise is of `handle`, an object of this class, once it is loaded.
  static Napi::Promise load_later(Napi::Env env, Napi::Object options, Napi::Object handle);
  void take(std::shared_ptr<Loaded> loaded) { loaded_ = std::move(loaded); }

 private:
  Napi::Value programs(const Napi::CallbackInfo &info);
  Napi::Value is_loaded(const Napi::CallbackInfo &info);
  Napi::Value program_id(const Napi::CallbackInfo &info);
  Napi::Value maps(const Napi::CallbackInfo &info);
  Napi::Value map(const Napi::CallbackInfo &info);
  Napi::Value adopted(const Napi::CallbackInfo &info);
  Napi::Value attach_cgroup(const Napi::CallbackInfo &info);
  Napi::Value attach_netns(const Napi::CallbackInfo &info);
  Napi::Value replace_link(const Napi::CallbackInfo &info);
  void attach_sockhash(const Napi::CallbackInfo &info);
  void pin_program(const Napi::CallbackInfo &info);
  void run_iterator(const Napi::CallbackInfo &info);
  Napi::Value ring_buffer(const Napi::CallbackInfo &info);
  Napi::Value layout(const Napi::CallbackInfo &info);
  Napi::Value map_layouts(const Napi::CallbackInfo &info);
  Napi::Value enum_values(const Napi::CallbackInfo &info);
  void close(const Napi::CallbackInfo &info);

  bpf_object *object(Napi::Env env) const;
  bpf_program *program(Napi::Env env, const std::string &name) const;
  bpf_map *find_map(Napi::Env env, const std::string &name) const;

  std::shared_ptr<Loaded> loaded_;
};

// Constructors belong to one environment: each worker thread has its own.
struct Classes {
  Napi::FunctionReference map, link, ring_buffer, object;
};

}  // namespace underpass
