/* A file system that lacks a call: preloaded, it refuses one kind of call below one folder, always.

   REFUSE_CALL names the kind (see `is_refused` below), REFUSE_ERRNO the number of the error, and
   REFUSE_BELOW the folder, as a real path. A program may also set them by `refuse_set`, and ask how
   often a call was refused by `refuse_count`. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/vfs.h>
#include <unistd.h>

#define FICLONERANGE_NUMBER 0x4020940DUL

static char kind[32], below[PATH_MAX];
static int number;
static atomic_long count;

void refuse_set(const char *call, int error, const char *folder) {
    kind[0] = 0; /* other threads refuse nothing while this changes */
    number = error;
    snprintf(below, sizeof below, "%s", folder);
    count = 0;
    snprintf(kind, sizeof kind, "%s", call);
}

long refuse_count(void) { return count; }

__attribute__((constructor)) static void from_environment(void) {
    const char *call = getenv("REFUSE_CALL"), *error = getenv("REFUSE_ERRNO");
    const char *folder = getenv("REFUSE_BELOW");
    if (call && error && folder) refuse_set(call, atoi(error), folder);
}

static int is_below(const char *path) {
    size_t length = strlen(below);
    return !strncmp(path, below, length) && (path[length] == 0 || path[length] == '/');
}

static int fd_is_below(int fd) {
    char name[64], path[PATH_MAX];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(name, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return is_below(path);
}

static int at_is_below(int fd, const char *path) {
    if (path[0] == '/') return is_below(path);
    if (fd != AT_FDCWD) return fd_is_below(fd);
    char here[PATH_MAX];
    return getcwd(here, sizeof here) && is_below(here);
}

static int is_folder(int fd) {
    struct stat found;
    return !fstat(fd, &found) && S_ISDIR(found.st_mode);
}

static int at_is_folder(int fd, const char *path) {
    struct stat found;
    return !fstatat(fd, path, &found, 0) && S_ISDIR(found.st_mode);
}

static int at_exists(int fd, const char *path) {
    struct stat found;
    return !fstatat(fd, path, &found, AT_SYMLINK_NOFOLLOW);
}

/* Refuse: 1 with errno set. The name is compared first, for that is cheap. */
static int is(const char *name) { return !strcmp(kind, name); }

static int refuse(void) {
    count++;
    errno = number;
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int open_refused(int fd, const char *path, int flags, mode_t mode) {
    if (!kind[0]) return 0;
    if (is("create") && flags & O_CREAT && at_is_below(fd, path)) return refuse();
    if (is("create read-only") && flags & O_CREAT && !(mode & 0200) && at_is_below(fd, path))
        return refuse();
    if (is("open folder") && !(flags & O_PATH) && at_is_below(fd, path) && at_is_folder(fd, path)) return refuse();
    return 0;
}

#define WITH_MODE(flags)                                                                           \
    mode_t mode = 0;                                                                               \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                                                         \
        va_list more;                                                                              \
        va_start(more, flags);                                                                     \
        mode = va_arg(more, mode_t);                                                               \
        va_end(more);                                                                              \
    }

#define OPEN(name)                                                                                 \
    int name(const char *path, int flags, ...) {                                                   \
        WITH_MODE(flags)                                                                           \
        return open_refused(AT_FDCWD, path, flags, mode) ? -1 : REAL(name)(path, flags, mode);     \
    }
#define OPENAT(name)                                                                               \
    int name(int fd, const char *path, int flags, ...) {                                           \
        WITH_MODE(flags)                                                                           \
        return open_refused(fd, path, flags, mode) ? -1 : REAL(name)(fd, path, flags, mode);       \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

int fsync(int fd) {
    if (is("flush file") && fd_is_below(fd) && !is_folder(fd) && refuse()) return -1;
    if (is("flush folder") && fd_is_below(fd) && is_folder(fd) && refuse()) return -1;
    return REAL(fsync)(fd);
}

int fchmod(int fd, mode_t mode) {
    return is("chmod") && fd_is_below(fd) && refuse() ? -1 : REAL(fchmod)(fd, mode);
}

int chmod(const char *path, mode_t mode) {
    return is("chmod") && at_is_below(AT_FDCWD, path) && refuse() ? -1 : REAL(chmod)(path, mode);
}

int fchmodat(int fd, const char *path, mode_t mode, int flags) {
    if (is("chmod") && at_is_below(fd, path) && refuse()) return -1;
    return REAL(fchmodat)(fd, path, mode, flags);
}

int link(const char *old, const char *new) {
    return is("link") && at_is_below(AT_FDCWD, new) && refuse() ? -1 : REAL(link)(old, new);
}

int linkat(int from, const char *old, int to, const char *new, int flags) {
    if (is("link") && at_is_below(to, new) && refuse()) return -1;
    return REAL(linkat)(from, old, to, new, flags);
}

static int rename_refused(int fd, const char *new) {
    if (is("rename") && at_is_below(fd, new)) return refuse();
    return is("rename over") && at_is_below(fd, new) && at_exists(fd, new) && refuse();
}

int rename(const char *old, const char *new) {
    return rename_refused(AT_FDCWD, new) ? -1 : REAL(rename)(old, new);
}

int renameat(int from, const char *old, int to, const char *new) {
    return rename_refused(to, new) ? -1 : REAL(renameat)(from, old, to, new);
}

int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
    if (is("rename with flags") && flags && at_is_below(to, new) && refuse()) return -1;
    return !flags && rename_refused(to, new) ? -1 : REAL(renameat2)(from, old, to, new, flags);
}

int flock(int fd, int operation) {
    return is("flock") && fd_is_below(fd) && refuse() ? -1 : REAL(flock)(fd, operation);
}

int utimensat(int fd, const char *path, const struct timespec times[2], int flags) {
    if (is("utime") && at_is_below(fd, path) && refuse()) return -1;
    return REAL(utimensat)(fd, path, times, flags);
}

int futimens(int fd, const struct timespec times[2]) {
    return is("utime") && fd_is_below(fd) && refuse() ? -1 : REAL(futimens)(fd, times);
}

int fstatfs(int fd, struct statfs *found) {
    return is("fstatfs") && fd_is_below(fd) && refuse() ? -1 : REAL(fstatfs)(fd, found);
}

int ftruncate(int fd, off_t size) {
    return is("ftruncate") && fd_is_below(fd) && refuse() ? -1 : REAL(ftruncate)(fd, size);
}

int ftruncate64(int fd, off64_t size) {
    return is("ftruncate") && fd_is_below(fd) && refuse() ? -1 : REAL(ftruncate64)(fd, size);
}

void *mmap(void *at, size_t size, int rights, int flags, int fd, off_t start) {
    if (is("mmap") && fd >= 0 && fd_is_below(fd) && refuse()) return MAP_FAILED;
    return REAL(mmap)(at, size, rights, flags, fd, start);
}

void *mmap64(void *at, size_t size, int rights, int flags, int fd, off64_t start) {
    if (is("mmap") && fd >= 0 && fd_is_below(fd) && refuse()) return MAP_FAILED;
    return REAL(mmap64)(at, size, rights, flags, fd, start);
}

int ioctl(int fd, unsigned long request, ...) {
    va_list more;
    va_start(more, request);
    void *argument = va_arg(more, void *);
    va_end(more);
    if (request == FICLONERANGE_NUMBER && is("clone") && fd_is_below(fd) && refuse()) return -1;
    return REAL(ioctl)(fd, request, argument);
}

int posix_fadvise64(int fd, off64_t start, off64_t size, int advice) {
    if (is("fadvise") && fd_is_below(fd) && refuse()) return number;
    return REAL(posix_fadvise64)(fd, start, size, advice);
}

int mkdir(const char *path, mode_t mode) {
    return is("mkdir") && at_is_below(AT_FDCWD, path) && refuse() ? -1 : REAL(mkdir)(path, mode);
}

int unlink(const char *path) {
    return is("unlink") && at_is_below(AT_FDCWD, path) && refuse() ? -1 : REAL(unlink)(path);
}

int unlinkat(int fd, const char *path, int flags) {
    if (is("unlink") && at_is_below(fd, path) && refuse()) return -1;
    return REAL(unlinkat)(fd, path, flags);
}
