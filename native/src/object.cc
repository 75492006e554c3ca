// Loading the embedded BPF object and attaching its programs.
#include "object.h"

#include <fcntl.h>
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
#include "worker.h"

namespace underpass {
namespace {

constexpr size_t kVerifierLines = 12;
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

thread_local std::string *captured_log = nullptr;

int capture(enum libbpf_print_level level, const char *format, va_list arguments) {
  if (level == LIBBPF_DEBUG || !captured_log) return 0;
  va_list copy;
  va_copy(copy, arguments);
  int length = vsnprintf(nullptr, 0, format, copy);
  va_end(copy);
  if (length <= 0) return 0;
  std::string text(length + 1, '\0');
  vsnprintf(text.data(), text.size(), format, arguments);
  text.resize(length);
  captured_log->append(text);
  return 0;
}

void make_folders(Napi::Env env, const std::string &path) {
  for (size_t at = 1; at != std::string::npos;) {
    at = path.find('/', at + 1);
    const std::string part = path.substr(0, at);
    if (mkdir(part.c_str(), 0700) && errno != EEXIST) throw syscall_error(env, "making folder " + part, "mkdir", errno);
  }
}

std::string folder_of(const std::string &path) { return path.substr(0, path.rfind('/')); }

// Maps that libbpf makes for .rodata and .bss belong to one loading; the rest lives on in pins.
bool is_pinned_kind(const bpf_map *map) { return !bpf_map__is_internal(map); }

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

void flatten(Napi::Env env, const btf *types, const btf_type *type, const std::string &prefix, uint32_t base, Napi::Object out) {
  const btf_member *members = btf_members(type);
  for (int i = 0; i < btf_vlen(type); i++) {
    int id = btf__resolve_type(types, members[i].type);
    if (id < 0) continue;
    const btf_type *member = btf__type_by_id(types, id);
    const std::string name = prefix + btf__name_by_offset(types, members[i].name_off);
    const uint32_t offset = base + btf_member_bit_offset(type, i) / 8;
    Napi::Object field = Napi::Object::New(env);
    field.Set("offset", offset);
    field.Set("sizeBytes", static_cast<double>(btf__resolve_size(types, id)));
    out.Set(name, field);
    if (btf_is_struct(member)) flatten(env, types, member, name + ".", offset, out);
    // Of an array's elements the first stands for all.
    int element = btf_is_array(member) ? btf__resolve_type(types, btf_array(member)->type) : -1;
    if (element >= 0 && btf_is_struct(btf__type_by_id(types, element))) flatten(env, types, btf__type_by_id(types, element), name + "[].", offset, out);
  }
}

Classes *classes(Napi::Env env) { return env.GetInstanceData<Classes>(); }

}  // namespace

LogCapture::LogCapture() { captured_log = new std::string; }

LogCapture::~LogCapture() {
  delete captured_log;
  captured_log = nullptr;
}

std::string LogCapture::tail(size_t lines) const {
  std::string text = *captured_log;
  while (!text.empty() && text.back() == '\n') text.pop_back();
  size_t at = text.size();
  for (size_t i = 0; i < lines && at != std::string::npos && at > 0; i++) at = text.rfind('\n', at - 1);
  return at == std::string::npos || at == 0 ? text : text.substr(at + 1);
}

BpfObjectHandle::BpfObjectHandle(const Napi::CallbackInfo &info) : Napi::ObjectWrap<BpfObjectHandle>(info) {}

Napi::Function BpfObjectHandle::define(Napi::Env env) {
  return DefineClass(
      env, "RawObject",
      {InstanceMethod("programs", &BpfObjectHandle::programs), InstanceMethod("isLoaded", &BpfObjectHandle::is_loaded), InstanceMethod("programId", &BpfObjectHandle::program_id), InstanceMethod("maps", &BpfObjectHandle::maps),
       InstanceMethod("map", &BpfObjectHandle::map), InstanceAccessor("adopted", &BpfObjectHandle::adopted, nullptr),
       InstanceMethod("attachCgroup", &BpfObjectHandle::attach_cgroup), InstanceMethod("attachNetns", &BpfObjectHandle::attach_netns), InstanceMethod("replaceLink", &BpfObjectHandle::replace_link), InstanceMethod("attachSockhash", &BpfObjectHandle::attach_sockhash), InstanceMethod("pinProgram", &BpfObjectHandle::pin_program),
       InstanceMethod("runIterator", &BpfObjectHandle::run_iterator),
       InstanceMethod("ringBuffer", &BpfObjectHandle::ring_buffer), InstanceMethod("layout", &BpfObjectHandle::layout), InstanceMethod("mapLayouts", &BpfObjectHandle::map_layouts),
       InstanceMethod("enumValues", &BpfObjectHandle::enum_values), InstanceMethod("close", &BpfObjectHandle::close)});
}

// False: the verifier was interrupted, so that it may be asked once more.
bool BpfObjectHandle::load_once(Napi::Env env, Napi::Object options, bool is_last) {
  LogCapture log;
  auto loaded = std::make_shared<Loaded>();
  size_t size = 0;
  const void *elf = underpass_bpf::elf_bytes(&size);
  LIBBPF_OPTS(bpf_object_open_opts, open_options, .object_name = "underpass_bpf");
  loaded->object = bpf_object__open_mem(elf, size, &open_options);
  if (!loaded->object) throw syscall_error(env, "opening the BPF object", "bpf_object__open_mem", errno, log.tail(kVerifierLines));
  bpf_object *object = loaded->object;
  set_rodata(env, object, object_of(env, options.Get("rodata"), "open: rodata"));
  set_max_entries(env, object, object_of(env, options.Get("maxEntries"), "open: maxEntries"));
  choose_programs(env, object, options.Get("programs"));
  set_autoload(env, object, options.Get("without"), "open: without", false);
  leave_out_tracing(object);
  std::string folder;
  if (!absent(options.Get("pinDir"))) {
    folder = string_of(env, options.Get("pinDir"), "open: pinDir") + "/maps";
    make_folders(env, folder);
    loaded->adopted = reuse_pins(env, object, folder);
  }
  if (int failed = bpf_object__load(object)) {
    if (failed == -EAGAIN && !is_last) return false;
    throw syscall_error(env, "loading the BPF object", "bpf_object__load", -failed, log.tail(kVerifierLines));
  }
  fill_http_programs(env, object);
  if (!folder.empty() && !loaded->adopted) pin_maps(env, object, folder);
  loaded_ = std::move(loaded);
  return true;
}

void BpfObjectHandle::load(Napi::Env env, Napi::Object options) {
  SignalsWait signals_wait;
  for (int attempt = 1; !load_once(env, options, attempt == kLoadAttempts); attempt++) {
  }
}

bpf_object *BpfObjectHandle::object(Napi::Env env) const {
  if (!loaded_ || !loaded_->object) throw Napi::Error::New(env, "using the BPF object: it is closed");
  return loaded_->object;
}

bpf_program *BpfObjectHandle::program(Napi::Env env, const std::string &name) const {
  bpf_program *found = bpf_object__find_program_by_name(object(env), name.c_str());
  if (!found) throw Napi::TypeError::New(env, "program " + name + ": not in the BPF object");
  return found;
}

bpf_map *BpfObjectHandle::find_map(Napi::Env env, const std::string &name) const {
  bpf_map *found = bpf_object__find_map_by_name(object(env), name.c_str());
  if (!found) throw Napi::TypeError::New(env, "map " + name + ": not in the BPF object");
  return found;
}

Napi::Value BpfObjectHandle::programs(const Napi::CallbackInfo &info) {
  Napi::Array names = Napi::Array::New(info.Env());
  bpf_program *each;
  bpf_object__for_each_program(each, object(info.Env())) names.Set(names.Length(), bpf_program__name(each));
  return names;
}

Napi::Value BpfObjectHandle::program_id(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  const std::string name = string_of(env, info[0], "programId: program");
  bpf_prog_info found = {};
  uint32_t length = sizeof(found);
  if (bpf_obj_get_info_by_fd(bpf_program__fd(program(env, name)), &found, &length)) throw syscall_error(env, "reading program " + name, "bpf", errno);
  return Napi::Number::New(env, found.id);
}

Napi::Value BpfObjectHandle::is_loaded(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  return Napi::Boolean::New(env, bpf_program__fd(program(env, string_of(env, info[0], "isLoaded: program"))) >= 0);
}

Napi::Value BpfObjectHandle::maps(const Napi::CallbackInfo &info) {
  Napi::Array names = Napi::Array::New(info.Env());
  bpf_map *each;
  bpf_object__for_each_map(each, object(info.Env())) {
    if (is_pinned_kind(each)) names.Set(names.Length(), bpf_map__name(each));
  }
  return names;
}

Napi::Value BpfObjectHandle::map(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  bpf_map *found = find_map(env, string_of(env, info[0], "map: name"));
  Napi::Object handle = classes(env)->map.New({});
  BpfMapHandle::Unwrap(handle)->open(loaded_, found);
  return handle;
}

Napi::Value BpfObjectHandle::adopted(const Napi::CallbackInfo &info) {
  object(info.Env());
  return Napi::Boolean::New(info.Env(), loaded_->adopted);
}

// A link that is pinned at `pin` already, and is `same`, gets the program in place of its old one; another is replaced.
static bpf_link *attach_pinned(Napi::Env env, const std::string &action, const bpf_program *wanted, const std::string &pin,
                               const std::function<bool(const bpf_link_info &)> &same, const std::function<bpf_link *()> &attach) {
  LogCapture log;
  bpf_link *link = pin.empty() ? nullptr : bpf_link__open(pin.c_str());
  if (link) {
    bpf_link_info link_info = {};
    uint32_t length = sizeof(link_info);
    bool fits = !bpf_obj_get_info_by_fd(bpf_link__fd(link), &link_info, &length) && same(link_info);
    if (fits && !bpf_link__update_program(link, const_cast<bpf_program *>(wanted))) return link;
    bpf_link__destroy(link);
    unlink(pin.c_str());
  }
  link = attach();
  if (!link) throw syscall_error(env, action, "bpf", errno, log.tail(kVerifierLines));
  if (pin.empty()) return link;
  try {
    make_folders(env, folder_of(pin));
  } catch (...) {
    bpf_link__destroy(link);
    throw;
  }
  if (int failed = bpf_link__pin(link, pin.c_str())) {
    bpf_link__destroy(link);
    throw syscall_error(env, "pinning link " + pin, "bpf", -failed);
  }
  return link;
}

Napi::Value BpfObjectHandle::attach_cgroup(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  const std::string name = string_of(env, info[0], "attachCgroup: program");
  const std::string cgroup = string_of(env, info[1], "attachCgroup: cgroupPath");
  const std::string pin = absent(info[2]) ? "" : string_of(env, info[2], "attachCgroup: pinPath");
  const std::string action = "attaching " + name + " to cgroup " + cgroup;
  bpf_program *wanted = program(env, name);
  Fd fd(::open(cgroup.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.get() < 0) throw syscall_error(env, action, "open", errno);
  struct stat identity = {};
  fstat(fd.get(), &identity);
  // A cgroup's id is its inode number; a link whose cgroup is gone has id 0.
  auto same = [&](const bpf_link_info &link) {
    return link.type == BPF_LINK_TYPE_CGROUP && link.cgroup.cgroup_id == identity.st_ino &&
           link.cgroup.attach_type == static_cast<uint32_t>(bpf_program__expected_attach_type(wanted));
  };
  bpf_link *link = attach_pinned(env, action, wanted, pin, same, [&] { return bpf_program__attach_cgroup(wanted, fd.get()); });
  Napi::Object handle = classes(env)->link.New({});
  BpfLinkHandle::Unwrap(handle)->open(link);
  return handle;
}

Napi::Value BpfObjectHandle::attach_netns(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  const std::string name = string_of(env, info[0], "attachNetns: program");
  const std::string netns = string_of(env, info[1], "attachNetns: netnsPath");
  const std::string pin = absent(info[2]) ? "" : string_of(env, info[2], "attachNetns: pinPath");
  const std::string action = "attaching " + name + " to network namespace " + netns;
  bpf_program *wanted = program(env, name);
  Fd fd(::open(netns.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) throw syscall_error(env, action, "open", errno);
  struct stat identity = {};
  fstat(fd.get(), &identity);
  // Of a link whose namespace is gone it is 0.
  auto same = [&](const bpf_link_info &link) { return link.type == BPF_LINK_TYPE_NETNS && link.netns.netns_ino == identity.st_ino; };
  bpf_link *link = attach_pinned(env, action, wanted, pin, same, [&] { return bpf_program__attach_netns(wanted, fd.get()); });
  Napi::Object handle = classes(env)->link.New({});
  BpfLinkHandle::Unwrap(handle)->open(link);
  return handle;
}

// For a link of a former process whose cgroup's path nobody knows yet. undefined: it is gone, and so is its cgroup.
Napi::Value BpfObjectHandle::replace_link(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  bpf_program *wanted = program(env, string_of(env, info[0], "replaceLink: program"));
  const std::string pin = string_of(env, info[1], "replaceLink: pinPath");
  bpf_link *link = bpf_link__open(pin.c_str());
  if (!link) {
    if (errno == ENOENT) return env.Undefined();
    throw syscall_error(env, "opening pinned link " + pin, "bpf", errno);
  }
  if (int failed = bpf_link__update_program(link, wanted)) {
    bpf_link__destroy(link);
    if (failed == -ENOLINK) return env.Undefined();
    throw syscall_error(env, "replacing the program of link " + pin, "bpf", -failed);
  }
  Napi::Object handle = classes(env)->link.New({});
  BpfLinkHandle::Unwrap(handle)->open(link);
  return handle;
}

// Whoever opened what was pinned there before keeps that.
void BpfObjectHandle::pin_program(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  const std::string name = string_of(env, info[0], "pinProgram: program");
  const std::string pin = string_of(env, info[1], "pinProgram: pinPath");
  bpf_program *wanted = program(env, name);
  make_folders(env, folder_of(pin));
  if (unlink(pin.c_str()) && errno != ENOENT) throw syscall_error(env, "pinning " + name + " at " + pin, "unlink", errno);
  if (bpf_obj_pin(bpf_program__fd(wanted), pin.c_str())) throw syscall_error(env, "pinning " + name + " at " + pin, "bpf", errno);
}

void BpfObjectHandle::attach_sockhash(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  const std::string name = string_of(env, info[0], "attachSockhash: program");
  const std::string map_name = string_of(env, info[1], "attachSockhash: map");
  bpf_program *found = program(env, name);
  const bpf_attach_type type = bpf_program__type(found) == BPF_PROG_TYPE_SK_SKB ? BPF_SK_SKB_STREAM_VERDICT : BPF_SK_MSG_VERDICT;
  int failed = bpf_prog_attach(bpf_program__fd(found), bpf_map__fd(find_map(env, map_name)), type, 0);
  if (failed) throw syscall_error(env, "attaching " + name + " to map " + map_name, "bpf", errno);
}

// Runs an iterator program over a map's elements, once; what it prints is thrown away.
void BpfObjectHandle::run_iterator(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  LogCapture log;
  const std::string name = string_of(env, info[0], "runIterator: program");
  const std::string map_name = string_of(env, info[1], "runIterator: map");
  const std::string action = "running " + name + " over map " + map_name;
  bpf_iter_link_info target = {};
  target.map.map_fd = static_cast<uint32_t>(bpf_map__fd(find_map(env, map_name)));
  LIBBPF_OPTS(bpf_iter_attach_opts, options, .link_info = &target, .link_info_len = sizeof(target));
  bpf_link *link = bpf_program__attach_iter(program(env, name), &options);
  if (!link) throw syscall_error(env, action, "bpf", errno, log.tail(kVerifierLines));
  int fd = bpf_iter_create(bpf_link__fd(link));
  int error = errno;
  bpf_link__destroy(link);
  if (fd < 0) throw syscall_error(env, action, "bpf", error);
  char output[4096];
  ssize_t length;
  // A long walk is cut into several reads; the first empty one is the end.
  while ((length = read(fd, output, sizeof output)) > 0 || (length < 0 && (errno == EAGAIN || errno == EINTR))) continue;
  error = errno;
  ::close(fd);
  if (length < 0) throw syscall_error(env, action, "read", error);
}

Napi::Value BpfObjectHandle::ring_buffer(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  bpf_map *found = find_map(env, string_of(env, info[0], "ringBuffer: map"));
  if (bpf_map__type(found) != BPF_MAP_TYPE_RINGBUF) throw Napi::TypeError::New(env, "ringBuffer: the map is no ring buffer");
  if (!info[1].IsFunction()) throw Napi::TypeError::New(env, "ringBuffer: callback: expected a function");
  Napi::Object handle = classes(env)->ring_buffer.New({});
  RingBufferHandle::Unwrap(handle)->open(env, loaded_, bpf_map__fd(found), info[1].As<Napi::Function>());
  return handle;
}

static Napi::Object layout_of(Napi::Env env, const btf *types, int id) {
  Napi::Object fields = Napi::Object::New(env);
  flatten(env, types, btf__type_by_id(types, id), "", 0, fields);
  Napi::Object out = Napi::Object::New(env);
  out.Set("sizeBytes", static_cast<double>(btf__resolve_size(types, id)));
  out.Set("fields", fields);
  return out;
}

Napi::Value BpfObjectHandle::layout(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  const std::string name = string_of(env, info[0], "layout: structName");
  const btf *types = bpf_object__btf(object(env));
  int id = btf__find_by_name_kind(types, name.c_str(), BTF_KIND_STRUCT);
  if (id < 0) throw Napi::TypeError::New(env, "struct " + name + ": not in the BPF object");
  return layout_of(env, types, id);
}

// Keys and values of all maps that are pinned, by the maps' names; of those that are structs with their fields.
Napi::Value BpfObjectHandle::map_layouts(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  const btf *types = bpf_object__btf(object(env));
  Napi::Object out = Napi::Object::New(env);
  bpf_map *map;
  bpf_object__for_each_map(map, object(env)) {
    if (!is_pinned_kind(map)) continue;
    Napi::Array parts = Napi::Array::New(env);
    const uint32_t sizes[] = {bpf_map__key_size(map), bpf_map__value_size(map)}, ids[] = {bpf_map__btf_key_type_id(map), bpf_map__btf_value_type_id(map)};
    for (uint32_t part = 0; part < 2; part++) {
      int id = ids[part] ? btf__resolve_type(types, ids[part]) : -1;
      Napi::Object layout = Napi::Object::New(env);
      if (id >= 0 && btf_is_struct(btf__type_by_id(types, id))) layout = layout_of(env, types, id);
      layout.Set("sizeBytes", sizes[part]);
      parts.Set(part, layout);
    }
    out.Set(bpf_map__name(map), parts);
  }
  return out;
}

// A map of other programs, with the layout of its values as its own BTF has it, if they are structs.
static Napi::Value open_pinned_map(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  const std::string path = string_of(env, info[0], "openPinnedMap: path");
  int fd = bpf_obj_get(path.c_str());
  if (fd < 0) {
    if (errno == ENOENT) return env.Undefined();
    throw syscall_error(env, "opening pinned map " + path, "bpf", errno);
  }
  Napi::Object handle = classes(env)->map.New({});
  bpf_map_info found = {};
  BpfMapHandle::Unwrap(handle)->own(env, path, fd, &found);
  Napi::Object out = Napi::Object::New(env);
  out.Set("map", handle);
  btf *types = found.btf_id ? btf__load_from_kernel_by_id(found.btf_id) : nullptr;
  int id = types ? btf__resolve_type(types, found.btf_value_type_id) : -1;
  if (id >= 0 && btf_is_struct(btf__type_by_id(types, id))) out.Set("value", layout_of(env, types, id));
  btf__free(types);
  return out;
}

Napi::Value BpfObjectHandle::enum_values(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  const std::string name = string_of(env, info[0], "enumValues: enumName");
  const btf *types = bpf_object__btf(object(env));
  int id = btf__find_by_name_kind(types, name.c_str(), BTF_KIND_ENUM);
  if (id < 0) throw Napi::TypeError::New(env, "enum " + name + ": not in the BPF object");
  const btf_type *type = btf__type_by_id(types, id);
  const struct btf_enum *values = btf_enum(type);
  Napi::Object out = Napi::Object::New(env);
  for (int i = 0; i < btf_vlen(type); i++) out.Set(btf__name_by_offset(types, values[i].name_off), values[i].val);
  return out;
}

void BpfObjectHandle::close(const Napi::CallbackInfo &) {
  if (loaded_) loaded_->close();
}

static Napi::Value open_object(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  Napi::Object options = object_of(env, info[0], "open: options");
  Napi::Object handle = classes(env)->object.New({});
  BpfObjectHandle::Unwrap(handle)->load(env, options);
  return handle;
}

static Napi::Value link_info(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  const std::string path = string_of(env, info[0], "linkInfo: pinPath");
  int fd = bpf_obj_get(path.c_str());
  if (fd < 0) throw syscall_error(env, "opening pinned link " + path, "bpf", errno);
  bpf_link_info found = {};
  uint32_t length = sizeof(found);
  int failed = bpf_obj_get_info_by_fd(fd, &found, &length);
  int error = errno;
  ::close(fd);
  if (failed) throw syscall_error(env, "reading pinned link " + path, "bpf", error);
  const bool of_netns = found.type == BPF_LINK_TYPE_NETNS;
  if (!of_netns && found.type != BPF_LINK_TYPE_CGROUP) throw Napi::TypeError::New(env, "linkInfo: " + path + " is no link of a cgroup or a network namespace");
  Napi::Object out = Napi::Object::New(env);
  out.Set("targetId", Napi::BigInt::New(env, of_netns ? found.netns.netns_ino : static_cast<uint64_t>(found.cgroup.cgroup_id)));
  out.Set("programId", found.prog_id);
  out.Set("attachType", of_netns ? found.netns.attach_type : found.cgroup.attach_type);
  return out;
}

void init_object(Napi::Env env, Napi::Object exports) {
  libbpf_set_print(capture);
  auto *all = new Classes;
  all->map = Napi::Persistent(BpfMapHandle::define(env));
  all->link = Napi::Persistent(BpfLinkHandle::define(env));
  all->ring_buffer = Napi::Persistent(RingBufferHandle::define(env));
  all->object = Napi::Persistent(BpfObjectHandle::define(env));
  env.SetInstanceData(all);
  exports.Set("openObject", Napi::Function::New(env, open_object, "openObject"));
  exports.Set("openPinnedMap", Napi::Function::New(env, open_pinned_map, "openPinnedMap"));
  exports.Set("linkInfo", Napi::Function::New(env, link_info, "linkInfo"));
}

}  // namespace underpass
