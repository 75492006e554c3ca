// Maps, links and ring buffers.
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <ctime>
#include <memory>
#include <vector>

#include "object.h"

namespace underpass {
namespace {

// bpf(BPF_MAP_*_BATCH) came in 5.6 for hashes; other types and older kernels go entry by entry.
constexpr uint32_t kBatch = 256, kLeastBatch = 16;
constexpr size_t kBatchBytes = 65536;
constexpr size_t kUpdateBatch = 16384;
// So much of this thread's CPU time records of a ring buffer take before others have their turn: what passes while others have the
// CPU would end it with little read, and the kernel with no room.
constexpr uint64_t kTurnNs = 5000000;

uint64_t cpu_ns() {
  timespec now = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000 + static_cast<uint64_t>(now.tv_nsec);
}

size_t padded(size_t size) { return (size + 7) / 8 * 8; }

}  // namespace

BpfMapHandle::BpfMapHandle(const Napi::CallbackInfo &info) : Napi::ObjectWrap<BpfMapHandle>(info) {}

Napi::Function BpfMapHandle::define(Napi::Env env) {
  auto property = [](const char *name) {
    return InstanceAccessor(name, &BpfMapHandle::get_property, nullptr, napi_enumerable, const_cast<char *>(name));
  };
  return DefineClass(env, "RawMap",
                     {property("name"), property("type"), property("keySize"), property("valueSize"), property("maxEntries"),
                      property("cpus"), InstanceMethod("get", &BpfMapHandle::get), InstanceMethod("set", &BpfMapHandle::set), InstanceMethod("setMany", &BpfMapHandle::set_many),
                      InstanceMethod("delete", &BpfMapHandle::remove), InstanceMethod("entries", &BpfMapHandle::entries), InstanceMethod("keys", &BpfMapHandle::keys), InstanceMethod("readBatch", &BpfMapHandle::read_batch),
                      InstanceMethod("close", &BpfMapHandle::close)});
}

void BpfMapHandle::open(std::shared_ptr<Loaded> loaded, bpf_map *map) {
  loaded_ = std::move(loaded);
  name_ = bpf_map__name(map);
  fd_ = bpf_map__fd(map);
  type_ = bpf_map__type(map);
  key_size_ = bpf_map__key_size(map);
  value_size_ = bpf_map__value_size(map);
  max_entries_ = bpf_map__max_entries(map);
}

void BpfMapHandle::own(Napi::Env env, const std::string &path, int fd, bpf_map_info *info) {
  fd_ = fd;
  owns_ = true;
  uint32_t length = sizeof(*info);
  if (bpf_obj_get_info_by_fd(fd, info, &length)) throw syscall_error(env, "reading pinned map " + path, "bpf", errno);
  name_ = info->name;
  type_ = static_cast<bpf_map_type>(info->type);
  key_size_ = info->key_size;
  value_size_ = info->value_size;
  max_entries_ = info->max_entries;
}

BpfMapHandle::~BpfMapHandle() {
  if (owns_) ::close(fd_);
}

bool BpfMapHandle::per_cpu() const {
  return type_ == BPF_MAP_TYPE_PERCPU_ARRAY || type_ == BPF_MAP_TYPE_PERCPU_HASH || type_ == BPF_MAP_TYPE_LRU_PERCPU_HASH;
}

size_t BpfMapHandle::stored_size() const {
  return per_cpu() ? padded(value_size_) * libbpf_num_possible_cpus() : value_size_;
}

int BpfMapHandle::fd(Napi::Env env) const {
  if (owns_) return fd_;
  if (!loaded_ || !loaded_->object) throw Napi::Error::New(env, "using map " + (name_.empty() ? std::string("?") : name_) + ": it is closed");
  return fd_;
}

const uint8_t *BpfMapHandle::bytes(Napi::Env env, const Napi::Value &value, const char *name, size_t size) const {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array) {
    throw Napi::TypeError::New(env, "map " + name_ + ": " + name + ": expected a Buffer");
  }
  auto array = value.As<Napi::Uint8Array>();
  if (array.ByteLength() != size) {
    throw Napi::TypeError::New(env, "map " + name_ + ": " + name + ": expected " + std::to_string(size) + " bytes, got " +
                                        std::to_string(array.ByteLength()));
  }
  return array.Data();
}

Napi::Value BpfMapHandle::get_property(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  const std::string name = static_cast<const char *>(info.Data());
  if (name == "name") return Napi::String::New(env, name_);
  if (name == "type") return Napi::Number::New(env, type_);
  if (name == "keySize") return Napi::Number::New(env, key_size_);
  if (name == "valueSize") return Napi::Number::New(env, value_size_);
  if (name == "maxEntries") return Napi::Number::New(env, max_entries_);
  return Napi::Number::New(env, libbpf_num_possible_cpus());
}

Napi::Value BpfMapHandle::get(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  int map = fd(env);
  const uint8_t *key = bytes(env, info[0], "key", key_size_);
  std::vector<uint8_t> value(stored_size());
  if (bpf_map_lookup_elem(map, key, value.data())) {
    if (errno == ENOENT) return env.Undefined();
    throw syscall_error(env, "reading an entry of map " + name_, "bpf", errno);
  }
  return Napi::Buffer<uint8_t>::Copy(env, value.data(), value.size());
}

void BpfMapHandle::set(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  int map = fd(env);
  const uint8_t *key = bytes(env, info[0], "key", key_size_);
  const uint8_t *value = bytes(env, info[1], "value", stored_size());
  uint64_t flags = absent(info[2]) ? 0 : integer_of(env, info[2], "set: flags", 0, 7);
  if (bpf_map_update_elem(map, key, value, flags)) throw syscall_error(env, "writing an entry of map " + name_, "bpf", errno);
}

// Keys and values one after the other. Where the kernel has no batches for this type of map, entry by entry.
void BpfMapHandle::set_many(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  int map = fd(env);
  const size_t length = info[0].IsTypedArray() ? info[0].As<Napi::TypedArray>().ByteLength() / key_size_ : 0;
  const uint8_t *keys = bytes(env, info[0], "keys", length * key_size_);
  const uint8_t *values = bytes(env, info[1], "values", length * stored_size());
  bool batches = !per_cpu();
  for (size_t done = 0; done < length;) {
    uint32_t count = static_cast<uint32_t>(std::min<size_t>(length - done, kUpdateBatch));
    if (!batches) count = 1;
    const uint8_t *key = keys + done * key_size_, *value = values + done * stored_size();
    int failed = batches ? bpf_map_update_batch(map, key, value, &count, nullptr) : bpf_map_update_elem(map, key, value, BPF_ANY);
    if (failed && batches && (errno == EINVAL || errno == ENOTSUP || errno == 524 /* ENOTSUPP */)) {
      batches = false;
      continue;
    }
    if (failed) throw syscall_error(env, "writing entries of map " + name_, "bpf", errno);
    done += count;
  }
}

Napi::Value BpfMapHandle::remove(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  int map = fd(env);
  const uint8_t *key = bytes(env, info[0], "key", key_size_);
  if (bpf_map_delete_elem(map, key)) {
    if (errno == ENOENT) return Napi::Boolean::New(env, false);
    throw syscall_error(env, "deleting an entry of map " + name_, "bpf", errno);
  }
  return Napi::Boolean::New(env, true);
}

static void push(Napi::Env env, Napi::Array out, const uint8_t *key, size_t key_size, const uint8_t *value, size_t value_size) {
  Napi::Array pair = Napi::Array::New(env, 2);
  pair.Set(0u, Napi::Buffer<uint8_t>::Copy(env, key, key_size));
  pair.Set(1u, Napi::Buffer<uint8_t>::Copy(env, value, value_size));
  out.Set(out.Length(), pair);
}

// In parts of some kilobytes: memory for all that a map may hold would be made, and given back, for the few that it does hold.
bool BpfMapHandle::batch(Napi::Env env, Napi::Array out) {
  if (per_cpu() || type_ == BPF_MAP_TYPE_SOCKHASH) return false;
  uint32_t room = static_cast<uint32_t>(std::clamp<size_t>(kBatchBytes / (key_size_ + value_size_), kLeastBatch, kBatch));
  std::unique_ptr<uint8_t[]> keys, values;
  std::vector<uint8_t> position(key_size_ < 8 ? 8 : key_size_);
  for (bool first = true;;) {
    if (!keys) {
      keys.reset(new uint8_t[room * key_size_]);
      values.reset(new uint8_t[room * value_size_]);
    }
    uint32_t count = room;
    int failed = bpf_map_lookup_batch(fd_, first ? nullptr : position.data(), position.data(), keys.get(), values.get(), &count, nullptr);
    int error = failed ? errno : 0;
    // One bucket of the kernel's holds more than there is room for: the position is as it was.
    if (error == ENOSPC && room < max_entries_) {
      room *= 2;
      keys.reset();
      continue;
    }
    if (error && error != ENOENT) {
      if (first) return false;
      throw syscall_error(env, "reading map " + name_, "bpf", error);
    }
    for (uint32_t i = 0; i < count; i++) push(env, out, &keys[i * key_size_], key_size_, &values[i * value_size_], value_size_);
    if (error) return true;
    first = false;
  }
}

Napi::Value BpfMapHandle::keys(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  int map = fd(env);
  Napi::Array out = Napi::Array::New(env);
  std::vector<uint8_t> key(key_size_), next(key_size_);
  // As in entries.
  for (uint64_t steps = 0; steps < 2ull * max_entries_ + 16; steps++) {
    if (bpf_map_get_next_key(map, steps == 0 ? nullptr : key.data(), next.data())) {
      if (errno == ENOENT) break;
      throw syscall_error(env, "reading the keys of map " + name_, "bpf", errno);
    }
    out.Set(out.Length(), Napi::Buffer<uint8_t>::Copy(env, next.data(), key_size_));
    key = next;
  }
  return out;
}

Napi::Value BpfMapHandle::entries(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  int map = fd(env);
  Napi::Array out = Napi::Array::New(env);
  if (batch(env, out)) return out;
  std::vector<uint8_t> key(key_size_), next(key_size_), value(stored_size());
  bool first = true;
  // An entry that goes away under us restarts the walk; the bound keeps that finite.
  for (uint64_t steps = 0; steps < 2ull * max_entries_ + 16; steps++) {
    if (bpf_map_get_next_key(map, first ? nullptr : key.data(), next.data())) {
      if (errno == ENOENT) break;
      throw syscall_error(env, "reading map " + name_, "bpf", errno);
    }
    if (!bpf_map_lookup_elem(map, next.data(), value.data())) push(env, out, next.data(), key_size_, value.data(), value.size());
    key = next;
    first = false;
  }
  return out;
}

// Up to so many entries behind a position, which of an array is an index: the one before the first.
Napi::Value BpfMapHandle::read_batch(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  int map = fd(env);
  const size_t position_size = std::max<size_t>(key_size_, 8);
  std::vector<uint8_t> position(position_size);
  const bool first = absent(info[0]);
  if (!first) {
    const size_t given = info[0].IsTypedArray() ? info[0].As<Napi::TypedArray>().ByteLength() : 0;
    if (given > position_size) throw Napi::TypeError::New(env, "map " + name_ + ": position: expected at most " + std::to_string(position_size) + " bytes");
    memcpy(position.data(), bytes(env, info[0], "position", given), given);
  }
  uint32_t count = static_cast<uint32_t>(integer_of(env, info[1], "readBatch: count", 1, 1 << 20));
  if (per_cpu() || type_ == BPF_MAP_TYPE_SOCKHASH) return env.Undefined();
  auto keys = Napi::Buffer<uint8_t>::New(env, count * key_size_), values = Napi::Buffer<uint8_t>::New(env, count * value_size_);
  int failed = bpf_map_lookup_batch(map, first ? nullptr : position.data(), position.data(), keys.Data(), values.Data(), &count, nullptr);
  int error = failed ? errno : 0;
  if (error == EINVAL || error == ENOTSUP || error == 524 /* ENOTSUPP */) return env.Undefined();
  if (error && error != ENOENT) throw syscall_error(env, "reading map " + name_, "bpf", error);
  Napi::Object out = Napi::Object::New(env);
  out.Set("keys", keys);
  out.Set("values", values);
  out.Set("count", count);
  if (!error) out.Set("position", Napi::Buffer<uint8_t>::Copy(env, position.data(), position.size()));
  return out;
}

void BpfMapHandle::close(const Napi::CallbackInfo &) {
  loaded_.reset();
  if (owns_) ::close(fd_);
  owns_ = false;
}

BpfLinkHandle::BpfLinkHandle(const Napi::CallbackInfo &info) : Napi::ObjectWrap<BpfLinkHandle>(info) {}

BpfLinkHandle::~BpfLinkHandle() {
  if (link_) bpf_link__destroy(link_);
}

Napi::Function BpfLinkHandle::define(Napi::Env env) {
  return DefineClass(env, "RawLink", {InstanceMethod("close", &BpfLinkHandle::close)});
}

void BpfLinkHandle::close(const Napi::CallbackInfo &) {
  if (link_) bpf_link__destroy(link_);
  link_ = nullptr;
}

// Owned by the loop once it is started: freed by libuv's close callback, after which the environment may go.
struct RingBufferHandle::Poll {
  uv_poll_t handle;
  ::ring_buffer *ring = nullptr;
  std::shared_ptr<Loaded> loaded;
  Napi::FunctionReference callback;
  napi_env env = nullptr;
  napi_async_cleanup_hook_handle hook = nullptr;
  RingBufferHandle *owner = nullptr;
  bool closing = false;
  uint64_t turn_ends = 0;

  // On the thread of the environment, which is still whole; its references must be gone before it is.
  void shut() {
    if (closing) return;
    closing = true;
    if (owner) owner->poll_ = nullptr;
    owner = nullptr;
    callback.Reset();
    uv_poll_stop(&handle);
    uv_close(reinterpret_cast<uv_handle_t *>(&handle), [](uv_handle_t *closed) {
      Poll *poll = static_cast<Poll *>(closed->data);
      ring_buffer__free(poll->ring);
      napi_remove_async_cleanup_hook(poll->hook);
      delete poll;
    });
  }
};

RingBufferHandle::RingBufferHandle(const Napi::CallbackInfo &info) : Napi::ObjectWrap<RingBufferHandle>(info) {}

RingBufferHandle::~RingBufferHandle() { stop(); }

Napi::Function RingBufferHandle::define(Napi::Env env) {
  return DefineClass(env, "RawRingBuffer", {InstanceMethod("close", &RingBufferHandle::close)});
}

void RingBufferHandle::open(Napi::Env env, std::shared_ptr<Loaded> loaded, int map_fd, Napi::Function callback) {
  uv_loop_t *loop = nullptr;
  if (napi_get_uv_event_loop(env, &loop) != napi_ok) throw Napi::Error::New(env, "opening a ring buffer: no event loop");
  auto poll = std::make_unique<Poll>();
  poll->env = env;
  poll->loaded = std::move(loaded);
  poll->ring = ring_buffer__new(
      map_fd,
      [](void *context, void *data, size_t size) {
        Poll *self = static_cast<Poll *>(context);
        Napi::Env env(self->env);
        Napi::HandleScope scope(env);
        try {
          self->callback.MakeCallback(env.Global(), {Napi::Buffer<uint8_t>::Copy(env, static_cast<uint8_t *>(data), size)});
        } catch (const Napi::Error &error) {
          // As any other callback's: an uncaught exception.
          napi_fatal_exception(env, error.Value());
        }
        // What is left makes the descriptor readable as before: whoever writes faster than is read would keep all else from its turn.
        return self->closing || cpu_ns() >= self->turn_ends ? -1 : 0;
      },
      poll.get(), nullptr);
  if (!poll->ring) throw syscall_error(env, "opening a ring buffer", "ring_buffer__new", errno);
  int status = uv_poll_init(loop, &poll->handle, ring_buffer__epoll_fd(poll->ring));
  if (status) {
    ring_buffer__free(poll->ring);
    throw syscall_error(env, "opening a ring buffer", "uv_poll_init", -status);
  }
  poll_ = poll.release();
  poll_->handle.data = poll_;
  poll_->owner = this;
  poll_->callback = Napi::Persistent(callback);
  napi_add_async_cleanup_hook(
      env,
      [](napi_async_cleanup_hook_handle, void *data) {
        static_cast<Poll *>(data)->shut();
      },
      poll_, &poll_->hook);
  // The wrapper must not be collected, and its poll left behind, while records are wanted.
  Ref();
  uv_poll_start(&poll_->handle, UV_READABLE, [](uv_poll_t *handle, int status, int) {
    Poll *self = static_cast<Poll *>(handle->data);
    if (status != 0 || self->closing) return;
    self->turn_ends = cpu_ns() + kTurnNs;
    ring_buffer__consume(self->ring);
  });
  uv_unref(reinterpret_cast<uv_handle_t *>(&poll_->handle));
}

void RingBufferHandle::stop() {
  if (poll_) poll_->shut();
}

void RingBufferHandle::close(const Napi::CallbackInfo &) {
  if (!poll_) return;
  stop();
  Unref();
}

}  // namespace underpass
