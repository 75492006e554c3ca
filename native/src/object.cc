// The face of the loaded BPF object: its programs, maps and layouts, and what attaches and pins them.
#include "object.h"

#include <fcntl.h>
#include <linux/types.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <vector>

#include "worker.h"

namespace underpass {
namespace {

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

std::string folder_of(const std::string &path) { return path.substr(0, path.rfind('/')); }

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

static Napi::Value open_object_later(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  Napi::Object options = object_of(env, info[0], "open: options");
  return BpfObjectHandle::load_later(env, options, classes(env)->object.New({}));
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

static Napi::Value attached_programs(const Napi::CallbackInfo &info) {
  Napi::Env env = info.Env();
  const std::string path = string_of(env, info[0], "attachedPrograms: path");
  if (!info[1].IsArray()) throw Napi::TypeError::New(env, "attachedPrograms: attachTypes: expected an array");
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) throw syscall_error(env, "asking for the programs on " + path, "open", errno);
  Napi::Array types = info[1].As<Napi::Array>();
  Napi::Array out = Napi::Array::New(env);
  for (uint32_t i = 0; i < types.Length(); i++) {
    const auto type = static_cast<bpf_attach_type>(integer_of(env, types.Get(i), "attachedPrograms: attachTypes", 0, UINT16_MAX));
    // The kernel allows 64 on one cgroup.
    uint32_t ids[64] = {}, flags = 0, count = 64;
    if (bpf_prog_query(fd.get(), type, 0, &flags, ids, &count)) {
      if (errno == EINVAL || errno == ENOENT) continue;
      throw syscall_error(env, "asking for the programs on " + path, "bpf", errno);
    }
    for (uint32_t at = 0; at < count && at < 64; at++) {
      bpf_prog_info found = {};
      uint32_t length = sizeof(found);
      Fd program(bpf_prog_get_fd_by_id(ids[at]));
      if (program.get() < 0 || bpf_obj_get_info_by_fd(program.get(), &found, &length)) continue;
      Napi::Object row = Napi::Object::New(env);
      row.Set("id", ids[at]);
      row.Set("name", found.name);
      row.Set("attachType", static_cast<uint32_t>(type));
      out.Set(out.Length(), row);
    }
  }
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
  exports.Set("openObjectLater", Napi::Function::New(env, open_object_later, "openObjectLater"));
  exports.Set("openPinnedMap", Napi::Function::New(env, open_pinned_map, "openPinnedMap"));
  exports.Set("attachedPrograms", Napi::Function::New(env, attached_programs, "attachedPrograms"));
  exports.Set("linkInfo", Napi::Function::New(env, link_info, "linkInfo"));
}

}  // namespace underpass
