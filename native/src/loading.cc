// Loading the embedded BPF object, with signals held back: its variables, sizes and choice of programs, and the maps it takes over.
#include "object.h"

#include <pthread.h>
#include <signal.h>
#include <linux/types.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <vector>

#include "../../bpf/structs.h"  // the skeleton names its types
#define class route_class  // a field's name there
#include "../../bpf/http-structs.h"
#undef class
#include "underpass.skel.h"

namespace underpass {
namespace {

// Each of them is five of libbpf's own.
constexpr int kLoadAttempts = 4;

// The verifier gives up (EAGAIN) when a signal waits for its thread; a profiler sends one each millisecond. They wait until the end.
class SignalsWait {
 public:
  SignalsWait() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsWait() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsWait(const SignalsWait &) = delete;
  SignalsWait &operator=(const SignalsWait &) = delete;

 private:
  sigset_t before_;
};

// Walks `const volatile` variables of .rodata; calls back with name, offset and size.
void each_rodata(const btf *types, const std::function<void(const char *, uint32_t, uint32_t)> &visit) {
  int section = btf__find_by_name_kind(types, ".rodata", BTF_KIND_DATASEC);
  if (section < 0) return;
  const btf_type *type = btf__type_by_id(types, section);
  const btf_var_secinfo *variables = btf_var_secinfos(type);
  for (int i = 0; i < btf_vlen(type); i++) {
    const btf_type *variable = btf__type_by_id(types, variables[i].type);
    visit(btf__name_by_offset(types, variable->name_off), variables[i].offset, variables[i].size);
  }
}

void set_rodata(Napi::Env env, bpf_object *object, Napi::Object values) {
  Napi::Array names = values.GetPropertyNames();
  if (names.Length() == 0) return;
  bpf_map *map = bpf_object__find_map_by_name(object, ".rodata");
  size_t size = 0;
  // The skeleton's object has one map named after it: <object>.rodata.
  if (!map) {
    bpf_object__for_each_map(map, object) {
      const char *name = bpf_map__name(map);
      const char *suffix = strstr(name, ".rodata");
      if (suffix && !strcmp(suffix, ".rodata")) break;
    }
  }
  const void *initial = map ? bpf_map__initial_value(map, &size) : nullptr;
  std::vector<uint8_t> data(size);
  if (initial) memcpy(data.data(), initial, size);
  for (uint32_t i = 0; i < names.Length(); i++) {
    const std::string wanted = names.Get(i).ToString().Utf8Value();
    Napi::Value value = values.Get(wanted);
    if (!value.IsBigInt()) throw Napi::TypeError::New(env, "rodata." + wanted + ": expected a bigint");
    bool lossless;
    int64_t number = value.As<Napi::BigInt>().Int64Value(&lossless);
    bool found = false;
    each_rodata(bpf_object__btf(object), [&](const char *name, uint32_t offset, uint32_t width) {
      if (wanted != name || width > 8 || offset + width > size) return;
      memcpy(&data[offset], &number, width);  // little-endian, as every platform this is built for
      found = true;
    });
    if (!found) throw Napi::TypeError::New(env, "rodata." + wanted + ": no such variable in the BPF object");
  }
  if (bpf_map__set_initial_value(map, data.data(), size)) throw syscall_error(env, "setting rodata", "bpf_map__set_initial_value", errno);
}

void set_max_entries(Napi::Env env, bpf_object *object, Napi::Object sizes) {
  Napi::Array names = sizes.GetPropertyNames();
  for (uint32_t i = 0; i < names.Length(); i++) {
    const std::string name = names.Get(i).ToString().Utf8Value();
    const std::string field = "maxEntries." + name;
    bpf_map *map = bpf_object__find_map_by_name(object, name.c_str());
    if (!map) throw Napi::TypeError::New(env, field + ": no such map in the BPF object");
    bpf_map__set_max_entries(map, integer_of(env, sizes.Get(name), field.c_str(), 1, UINT32_MAX));
  }
}

// Whether the named programs are loaded, if any are named.
void set_autoload(Napi::Env env, bpf_object *object, const Napi::Value &list, const std::string &field, bool load) {
  if (absent(list)) return;
  if (!list.IsArray()) throw Napi::TypeError::New(env, field + ": expected an array of names");
  Napi::Array names = list.As<Napi::Array>();
  for (uint32_t i = 0; i < names.Length(); i++) {
    const std::string name = string_of(env, names.Get(i), field.c_str());
    bpf_program *found = bpf_object__find_program_by_name(object, name.c_str());
    if (!found) throw Napi::TypeError::New(env, field + ": " + name + ": not in the BPF object");
    bpf_program__set_autoload(found, load);
  }
}

// Leaves out all programs but the named ones. The maps are made all the same.
void choose_programs(Napi::Env env, bpf_object *object, const Napi::Value &wanted) {
  if (absent(wanted)) return;
  bpf_program *each;
  bpf_object__for_each_program(each, object) bpf_program__set_autoload(each, false);
  set_autoload(env, object, wanted, "open: programs", true);
}

// libbpf's own way of it fails when one of them is not loaded. In the order of enum http_role.
void fill_http_programs(Napi::Env env, bpf_object *object) {
  static const char *const kPrograms[] = {"http_client", "http_downstream", "http_upstream", "http_server", "http_pipelined"};
  bpf_map *map = bpf_object__find_map_by_name(object, "http_programs");
  if (!map) throw Napi::TypeError::New(env, "http_programs: no such map in the BPF object");
  for (uint32_t role = 0; role < sizeof(kPrograms) / sizeof(*kPrograms); role++) {
    bpf_program *program = bpf_object__find_program_by_name(object, kPrograms[role]);
    if (!program) throw Napi::TypeError::New(env, std::string("program ") + kPrograms[role] + ": not in the BPF object");
    const int fd = bpf_program__fd(program);
    if (fd >= 0 && bpf_map_update_elem(bpf_map__fd(map), &role, &fd, BPF_ANY)) throw syscall_error(env, "setting http_programs", "bpf_map_update_elem", errno);
  }
}

// Some kernels refuse every tracing program (as a distribution's or a cloud's hardening may): the rest does without them.
void leave_out_tracing(bpf_object *object) {
  if (libbpf_probe_bpf_prog_type(BPF_PROG_TYPE_TRACING, nullptr) != 0) return;
  bpf_program *each;
  bpf_object__for_each_program(each, object) {
    if (bpf_program__type(each) == BPF_PROG_TYPE_TRACING) bpf_program__set_autoload(each, false);
  }
}

// Takes over pinned maps when all that are there fit; when one does not, none is, since they refer to each other: then all are
// set aside in a folder of their own, `folder` with a number behind it. Returns whether maps were taken over.
bool reuse_pins(Napi::Env env, bpf_object *object, const std::string &folder) {
  std::vector<std::pair<bpf_map *, int>> found;
  bool fit = true;
  bpf_map *map;
  size_t wanted = 0;
  bpf_object__for_each_map(map, object) {
    if (!is_pinned_kind(map)) continue;
    wanted++;
    int fd = bpf_obj_get((folder + "/" + bpf_map__name(map)).c_str());
    if (fd < 0) continue;
    found.emplace_back(map, fd);
    bpf_map_info info = {};
    uint32_t length = sizeof(info);
    if (bpf_obj_get_info_by_fd(fd, &info, &length) || info.type != bpf_map__type(map) || info.key_size != bpf_map__key_size(map) ||
        info.value_size != bpf_map__value_size(map) ||
        // A map of another size goes on as it is, but for the places of programs.
        (info.type == BPF_MAP_TYPE_PROG_ARRAY && info.max_entries != bpf_map__max_entries(map))) {
      fit = false;
    }
  }
  fit = fit && found.size() == wanted;
  int failure = 0;
  for (auto &[each, fd] : found) {
    if (fit && bpf_map__reuse_fd(each, fd)) failure = errno;
    ::close(fd);
  }
  if (failure) throw syscall_error(env, "taking over the maps in " + folder, "bpf", failure);
  if (!fit && !found.empty()) {
    const std::string aside = folder + "_" + std::to_string(uv_hrtime());
    if (rename(folder.c_str(), aside.c_str())) throw syscall_error(env, "setting aside the maps in " + folder, "rename", errno);
    make_folders(env, folder);
  }
  return fit && !found.empty();
}

void pin_maps(Napi::Env env, bpf_object *object, const std::string &folder) {
  bpf_map *map;
  bpf_object__for_each_map(map, object) {
    if (!is_pinned_kind(map)) continue;
    const std::string path = folder + "/" + bpf_map__name(map);
    if (bpf_obj_pin(bpf_map__fd(map), path.c_str())) throw syscall_error(env, "pinning map " + path, "bpf", errno);
  }
}

}  // namespace

void make_folders(Napi::Env env, const std::string &path) {
  for (size_t at = 1; at != std::string::npos;) {
    at = path.find('/', at + 1);
    const std::string part = path.substr(0, at);
    if (mkdir(part.c_str(), 0700) && errno != EEXIST) throw syscall_error(env, "making folder " + part, "mkdir", errno);
  }
}

// What a loading needs of JavaScript: the object with its variables, sizes and programs, and the maps that it takes over.
Loading Loading::prepare(Napi::Env env, Napi::Object options) {
  LogCapture log;
  Loading loading;
  loading.loaded = std::make_shared<Loaded>();
  size_t size = 0;
  const void *elf = underpass_bpf::elf_bytes(&size);
  LIBBPF_OPTS(bpf_object_open_opts, open_options, .object_name = "underpass_bpf");
  loading.loaded->object = bpf_object__open_mem(elf, size, &open_options);
  if (!loading.loaded->object) throw syscall_error(env, "opening the BPF object", "bpf_object__open_mem", errno, log.tail(kVerifierLines));
  bpf_object *object = loading.loaded->object;
  set_rodata(env, object, object_of(env, options.Get("rodata"), "open: rodata"));
  set_max_entries(env, object, object_of(env, options.Get("maxEntries"), "open: maxEntries"));
  choose_programs(env, object, options.Get("programs"));
  set_autoload(env, object, options.Get("without"), "open: without", false);
  leave_out_tracing(object);
  if (!absent(options.Get("pinDir"))) {
    loading.folder = string_of(env, options.Get("pinDir"), "open: pinDir") + "/maps";
    make_folders(env, loading.folder);
    loading.loaded->adopted = reuse_pins(env, object, loading.folder);
  }
  return loading;
}

void Loading::verify() {
  SignalsWait signals_wait;
  LogCapture log;
  failed = bpf_object__load(loaded->object);
  if (failed) said = log.tail(kVerifierLines);
}

std::shared_ptr<Loaded> Loading::finish(Napi::Env env) {
  if (failed) throw syscall_error(env, "loading the BPF object", "bpf_object__load", -failed, said);
  fill_http_programs(env, loaded->object);
  if (!folder.empty() && !loaded->adopted) pin_maps(env, loaded->object, folder);
  return loaded;
}

void BpfObjectHandle::load(Napi::Env env, Napi::Object options) {
  for (int attempt = 1;; attempt++) {
    Loading loading = Loading::prepare(env, options);
    loading.verify();
    if (loading.is_interrupted() && attempt < kLoadAttempts) continue;
    loaded_ = loading.finish(env);
    return;
  }
}

namespace {

// The verifier on the thread pool, all else where JavaScript is.
class LoadWorker : public Napi::AsyncWorker {
 public:
  LoadWorker(Napi::Env env, Napi::Object options, Napi::Object handle, Napi::Promise::Deferred deferred, int attempt)
      : Napi::AsyncWorker(env), options_(Napi::Persistent(options)), handle_(Napi::Persistent(handle)), deferred_(deferred), attempt_(attempt), loading_(Loading::prepare(env, options)) {}

 protected:
  void Execute() override { loading_.verify(); }

  void OnOK() override {
    Napi::Env env = Env();
    try {
      if (loading_.is_interrupted() && attempt_ < kLoadAttempts) {
        (new LoadWorker(env, options_.Value(), handle_.Value(), deferred_, attempt_ + 1))->Queue();
        return;
      }
      BpfObjectHandle::Unwrap(handle_.Value())->take(loading_.finish(env));
      deferred_.Resolve(handle_.Value());
    } catch (const Napi::Error &error) {
      deferred_.Reject(error.Value());
    }
  }

 private:
  Napi::ObjectReference options_;
  Napi::ObjectReference handle_;
  Napi::Promise::Deferred deferred_;
  int attempt_;
  Loading loading_;
};

}  // namespace

Napi::Promise BpfObjectHandle::load_later(Napi::Env env, Napi::Object options, Napi::Object handle) {
  Napi::Promise::Deferred deferred = Napi::Promise::Deferred::New(env);
  (new LoadWorker(env, options, handle, deferred, 1))->Queue();
  return deferred.Promise();
}

}  // namespace underpass
