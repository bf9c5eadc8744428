// SPDX-License-Identifier: Apache-2.0
#include "interposer.hpp"

#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include <dirent.h>
#include <dlfcn.h>
#include <execinfo.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__GLIBC__)

extern "C" {
void* __libc_malloc(std::size_t size) noexcept;
void* __libc_calloc(std::size_t count, std::size_t size) noexcept;
void* __libc_realloc(void* memory, std::size_t size) noexcept;
void* __libc_memalign(std::size_t alignment, std::size_t size) noexcept;
void __libc_free(void* memory) noexcept;
}

namespace {

enum class State : unsigned char { off, waiting, counting };

std::atomic<State> state = State::off;
std::atomic<bool> reached = false, json = false;
std::atomic<std::size_t> calls = 0;
std::atomic<long> allocations = 0, descriptors = 0, mappings = 0;
faults::Fault fault;
const char* start_folder = nullptr;

// Says on the way to the debugger's user where the fault struck.
void trace() {
  static const bool wanted = std::getenv("CBQ_FAULT_TRACE") != nullptr;
  if (!wanted) return;
  const State before = state.exchange(State::off);
  void* frames[64];
  ::backtrace_symbols_fd(frames, ::backtrace(frames, 64), 2);
  state = before;
}

bool strikes(faults::Call call) {
  if (state != State::counting || call != fault.call) return false;
  const std::size_t n = calls++;
  if (n != fault.n && !(fault.effect == faults::Effect::from_there && n > fault.n)) return false;
  if (!reached.exchange(true)) {
    const State before = state.exchange(State::off);
    json = faults::in_json();
    state = before;
    trace();
  }
  return true;
}

// The same for functions that set errno.
bool fails(faults::Call call) {
  if (fault.effect == faults::Effect::partial || !strikes(call)) return false;
  errno = fault.reason;
  return true;
}

// Bytes that a transfer may move.
std::size_t allowed(faults::Call call, std::size_t size) {
  if (fault.effect != faults::Effect::partial || size < 2 || !strikes(call)) return size;
  return size / 2;
}

void look_at(const char* path) {
  if (state == State::waiting && std::strncmp(path, start_folder, std::strlen(start_folder)) == 0) {
    state = State::counting;
  }
}

template <class Function>
Function* next(Function*& found, const char* name) {
  if (found == nullptr) found = reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
  return found;
}

void* counted(void* memory) {
  if (memory != nullptr) ++allocations;
  return memory;
}

int counted(int descriptor) {
  if (descriptor >= 0) ++descriptors;
  return descriptor;
}

template <class Make>
void* allocate(std::size_t size, const Make& make) {
  if (size >= fault.least && fails(faults::Call::allocation)) return nullptr;
  return counted(make());
}

int open_next(const char* path, int flags, mode_t mode) {
  static int (*found)(const char*, int, ...) = nullptr;
  look_at(path);
  if (fails(faults::Call::open)) return -1;
  return counted(next(found, "open")(path, flags, mode));
}

using Stat = int(const char*, struct stat*);
int stat_next(Stat*& found, const char* name, const char* path, struct stat* status) {
  look_at(path);
  if (fails(faults::Call::status)) return -1;
  return next(found, name)(path, status);
}

// Nothing has to reach a disk here.
int sync_next() {
  return fails(faults::Call::sync) ? -1 : 0;
}

}  // namespace

namespace faults {

bool available() {
  // A sanitizer's own allocator may come first.
  const long before = allocations;
  void* volatile memory = std::malloc(1);
  const bool seen = allocations == before + 1;
  std::free(memory);
  return seen;
}

void arm(const Fault& wanted, const char* folder) {
  fault = wanted;
  start_folder = folder;
  calls = 0;
  reached = false;
  json = false;
  state = *folder == '\0' ? State::counting : State::waiting;
}

bool disarm() {
  state = State::off;
  return reached;
}

Held held() {
  return {allocations, descriptors, mappings};
}

bool struck_json() {
  return json;
}

bool in_json() {
  void* frames[64];
  const int count = ::backtrace(frames, 64);
  for (int i = 0; i < count; ++i) {
    Dl_info info = {};
    if (::dladdr(frames[i], &info) == 0 || info.dli_sname == nullptr) continue;
    const std::string_view name = info.dli_sname;
    // What lies beyond is the caller's.
    if (name.starts_with("_ZN3cbq") || name.starts_with("_ZN9cbq_llama")) return false;
    if (name.find("8nlohmann") != std::string_view::npos) return true;  // the standard library's, made for it, too
  }
  return false;
}

}  // namespace faults

extern "C" {

void* malloc(std::size_t size) noexcept {
  return allocate(size, [=] { return __libc_malloc(size); });
}
void* calloc(std::size_t count, std::size_t size) noexcept {
  return allocate(count * size, [=] { return __libc_calloc(count, size); });
}
void* memalign(std::size_t alignment, std::size_t size) noexcept {
  return allocate(size, [=] { return __libc_memalign(alignment, size); });
}
void* aligned_alloc(std::size_t alignment, std::size_t size) noexcept {
  return allocate(size, [=] { return __libc_memalign(alignment, size); });
}
int posix_memalign(void** memory, std::size_t alignment, std::size_t size) noexcept {
  void* made = allocate(size, [=] { return __libc_memalign(alignment, size); });
  if (made == nullptr) return ENOMEM;
  *memory = made;
  return 0;
}
void* realloc(void* memory, std::size_t size) noexcept {
  if (memory == nullptr) return malloc(size);
  if (size != 0 && size >= fault.least && fails(faults::Call::allocation)) return nullptr;
  void* moved = __libc_realloc(memory, size);
  if (moved == nullptr && size == 0) --allocations;
  return moved;
}
void free(void* memory) noexcept {
  if (memory == nullptr) return;
  --allocations;
  __libc_free(memory);
}

int open(const char* path, int flags, ...) {
  va_list more;
  va_start(more, flags);
  const mode_t mode = (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(more, mode_t) : 0;
  va_end(more);
  return open_next(path, flags, mode);
}
int open64(const char* path, int flags, ...) {
  va_list more;
  va_start(more, flags);
  const mode_t mode = (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(more, mode_t) : 0;
  va_end(more);
  return open_next(path, flags, mode);
}
int close(int file) {
  static int (*found)(int) = nullptr;
  const int closed = next(found, "close")(file);
  if (closed == 0) --descriptors;
  return fails(faults::Call::close) ? -1 : closed;  // what fails to close is closed all the same
}

ssize_t read(int file, void* bytes, std::size_t size) {
  static ssize_t (*found)(int, void*, std::size_t) = nullptr;
  if (fails(faults::Call::read)) return -1;
  return next(found, "read")(file, bytes, allowed(faults::Call::read, size));
}
ssize_t pread(int file, void* bytes, std::size_t size, off_t offset) {
  static ssize_t (*found)(int, void*, std::size_t, off_t) = nullptr;
  if (fails(faults::Call::read)) return -1;
  return next(found, "pread")(file, bytes, allowed(faults::Call::read, size), offset);
}
ssize_t write(int file, const void* bytes, std::size_t size) {
  static ssize_t (*found)(int, const void*, std::size_t) = nullptr;
  if (fails(faults::Call::write)) return -1;
  return next(found, "write")(file, bytes, allowed(faults::Call::write, size));
}
ssize_t pwrite(int file, const void* bytes, std::size_t size, off_t offset) {
  static ssize_t (*found)(int, const void*, std::size_t, off_t) = nullptr;
  if (fails(faults::Call::write)) return -1;
  return next(found, "pwrite")(file, bytes, allowed(faults::Call::write, size), offset);
}
int posix_fallocate(int file, off_t offset, off_t size) {
  static int (*found)(int, off_t, off_t) = nullptr;
  if (fails(faults::Call::write)) return fault.reason;
  return next(found, "posix_fallocate")(file, offset, size);
}
int fsync(int) {
  return sync_next();
}
int fdatasync(int) {
  return sync_next();
}

void* mmap(void* address, std::size_t size, int protection, int flags, int file, off_t offset) noexcept {
  static void* (*found)(void*, std::size_t, int, int, int, off_t) = nullptr;
  if (fails(faults::Call::map)) return MAP_FAILED;
  void* mapped = next(found, "mmap")(address, size, protection, flags, file, offset);
  if (mapped != MAP_FAILED) ++mappings;
  return mapped;
}
int munmap(void* address, std::size_t size) noexcept {
  static int (*found)(void*, std::size_t) = nullptr;
  const int done = next(found, "munmap")(address, size);
  if (done == 0) --mappings;
  return done;
}

int rename(const char* from, const char* to) noexcept {
  static int (*found)(const char*, const char*) = nullptr;
  if (fails(faults::Call::rename)) return -1;
  return next(found, "rename")(from, to);
}
long syscall(long number, ...) noexcept {
  static long (*found)(long, ...) = nullptr;
  va_list more;
  va_start(more, number);
  long arguments[6];
  for (long& argument : arguments) argument = va_arg(more, long);
  va_end(more);
  if (number == SYS_renameat2 && fails(faults::Call::rename)) return -1;
  return next(found, "syscall")(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4],
                                arguments[5]);
}

int stat(const char* path, struct stat* status) noexcept {
  static Stat* found = nullptr;
  return stat_next(found, "stat", path, status);
}
int lstat(const char* path, struct stat* status) noexcept {
  static Stat* found = nullptr;
  return stat_next(found, "lstat", path, status);
}
int fstat(int file, struct stat* status) noexcept {
  static int (*found)(int, struct stat*) = nullptr;
  if (fails(faults::Call::status)) return -1;
  return next(found, "fstat")(file, status);
}
int access(const char* path, int mode) noexcept {
  static int (*found)(const char*, int) = nullptr;
  look_at(path);
  if (fails(faults::Call::status)) return -1;
  return next(found, "access")(path, mode);
}

int mkdir(const char* path, mode_t mode) noexcept {
  static int (*found)(const char*, mode_t) = nullptr;
  look_at(path);
  if (fails(faults::Call::folder)) return -1;
  return next(found, "mkdir")(path, mode);
}
DIR* opendir(const char* path) {
  static DIR* (*found)(const char*) = nullptr;
  look_at(path);
  if (fails(faults::Call::folder)) return nullptr;
  return next(found, "opendir")(path);
}

}  // extern "C"

#else

namespace faults {

bool available() {
  return false;
}
void arm(const Fault&, const char*) {}
bool disarm() {
  return false;
}
Held held() {
  return {};
}
bool struck_json() {
  return false;
}
bool in_json() {
  return false;
}

}  // namespace faults

#endif
