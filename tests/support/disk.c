/* Records what a process does to the files below a folder, and makes it fail at will; for LD_PRELOAD. See disk.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NEVER, ONCE, FULL, SHORT, SYNC, READ_ONLY };

static char root[PATH_MAX];
static size_t root_length;
static int log_fd = -1;
static long written, synced, fail_at;
static int how;
static char *names[1024];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name)
{
    return dlsym(RTLD_NEXT, name);
}

/* ---- what the tests call ---- */

/* Watch the files below `folder`; write what happens to the file `log` (or not, if NULL); let something fail. */
void disk_watch(const char *folder, const char *log, int how_, long fail_at_)
{
    strncpy(root, folder, sizeof root - 1);
    root_length = strlen(root);
    how = how_, fail_at = fail_at_;
    written = synced = 0;
    if (log)
        log_fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
}

long disk_writes(void) { return written; }
long disk_syncs(void) { return synced; }

struct head { int64_t kind, fd, offset, length, flags, name_length, data_length; };

static void note(int kind, int fd, int64_t offset, int64_t length, int flags, const char *name, const void *data,
                 size_t data_length)
{
    if (log_fd < 0)
        return;
    struct head head = {kind, fd, offset, length, flags, (int64_t)strlen(name), (int64_t)data_length};
    struct iovec parts[3] = {{&head, sizeof head}, {(void *)name, strlen(name)}, {(void *)data, data_length}};
    pthread_mutex_lock(&lock);
    syscall(SYS_writev, log_fd, parts, 3);
    pthread_mutex_unlock(&lock);
}

/* Something has been completed: what it is, is said in `text`. */
void disk_mark(const char *text) { note('M', -1, 0, 0, 0, text, NULL, 0); }

/* ---- which files are watched ---- */

static const char *absolute(int folder, const char *path, char *buffer)
{
    if (path[0] == '/')
        return path;
    char link[64];
    snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
    ssize_t length = readlink(link, buffer, PATH_MAX / 2);
    if (length < 0)
        return path;
    snprintf(buffer + length, PATH_MAX / 2, "/%s", path);
    return buffer;
}

static int is_watched(const char *path)
{
    return root_length && !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

static const char *name_of(int fd)
{
    return fd >= 0 && fd < 1024 && names[fd] ? names[fd] : NULL;
}

/* ---- whether the next change fails: bytes that may be written, or -1 ---- */

static long allowed(long length)
{
    long n = __atomic_add_fetch(&written, 1, __ATOMIC_SEQ_CST);
    int fails = (how == ONCE && n == fail_at) || (how == FULL && n >= fail_at) || (how == SHORT && n > fail_at);
    if (how == SHORT && n == fail_at)
        return length / 2;
    return fails ? -1 : length;
}

static int no_space(void)
{
    errno = ENOSPC;
    return -1;
}

static int do_open(int folder, const char *path, int flags, mode_t mode)
{
    char buffer[PATH_MAX];
    const char *name = absolute(folder, path, buffer);
    if (is_watched(name)) {
        int is_new = (flags & O_CREAT) && syscall(SYS_faccessat, AT_FDCWD, name, F_OK) != 0;
        if (how == READ_ONLY && ((flags & O_ACCMODE) != O_RDONLY || is_new)) {
            errno = EROFS;
            return -1;
        }
        if (is_new && allowed(1) < 1)
            return no_space();
    }
    int fd = syscall(SYS_openat, folder, path, flags, mode);
    if (fd >= 0 && fd < 1024 && is_watched(name)) {
        free(names[fd]);
        names[fd] = strdup(name);
        note('O', fd, 0, 0, flags, name, NULL, 0);
    }
    return fd;
}

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { va_list list; va_start(list, flags); mode = va_arg(list, int); va_end(list); }

int open(const char *path, int flags, ...) { MODE(flags) return do_open(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return do_open(AT_FDCWD, path, flags, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE(flags) return do_open(folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE(flags) return do_open(folder, path, flags, mode); }
int __open_2(const char *path, int flags) { return do_open(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return do_open(AT_FDCWD, path, flags, 0); }

int close(int fd)
{
    const char *name = name_of(fd);
    if (name) {
        note('C', fd, 0, 0, 0, name, NULL, 0);
        free(names[fd]);
        names[fd] = NULL;
    }
    return REAL(close)(fd);
}

static ssize_t do_write(int fd, const void *data, size_t length, off_t offset, int moves)
{
    const char *name = name_of(fd);
    if (name) {
        long may = allowed(length);
        if (may < 0)
            return no_space();
        length = may;
    }
    off_t place = moves ? lseek(fd, 0, SEEK_CUR) : offset;
    ssize_t done = moves ? syscall(SYS_write, fd, data, length) : syscall(SYS_pwrite64, fd, data, length, offset);
    if (name && done > 0)
        note('W', fd, place, done, 0, name, data, done);
    return done;
}

ssize_t write(int fd, const void *data, size_t length) { return do_write(fd, data, length, 0, 1); }
ssize_t pwrite(int fd, const void *data, size_t length, off_t place) { return do_write(fd, data, length, place, 0); }
ssize_t pwrite64(int fd, const void *data, size_t length, off64_t place) { return do_write(fd, data, length, place, 0); }

static int do_truncate(int fd, off_t length)
{
    const char *name = name_of(fd);
    struct stat status;
    if (name && fstat(fd, &status) == 0 && status.st_size < length && allowed(1) < 1)
        return no_space();
    int result = syscall(SYS_ftruncate, fd, length);
    if (name && result == 0)
        note('T', fd, 0, length, 0, name, NULL, 0);
    return result;
}

int ftruncate(int fd, off_t length) { return do_truncate(fd, length); }
int ftruncate64(int fd, off64_t length) { return do_truncate(fd, length); }

static int do_sync(int fd, int number)
{
    const char *name = name_of(fd);
    if (name && __atomic_add_fetch(&synced, 1, __ATOMIC_SEQ_CST) == fail_at && how == SYNC) {
        errno = EIO;
        return -1;
    }
    int result = syscall(number, fd);
    if (name && result == 0)
        note('S', fd, 0, 0, 0, name, NULL, 0);
    return result;
}

int fsync(int fd) { return do_sync(fd, SYS_fsync); }
int fdatasync(int fd) { return do_sync(fd, SYS_fdatasync); }

static int do_rename(int from_folder, const char *from, int to_folder, const char *to)
{
    char one[PATH_MAX], two[PATH_MAX];
    const char *old = absolute(from_folder, from, one), *new = absolute(to_folder, to, two);
    int result = syscall(SYS_renameat, from_folder, from, to_folder, to);
    if (result == 0 && is_watched(new))
        note('R', -1, 0, 0, 0, old, new, strlen(new));
    return result;
}

int rename(const char *from, const char *to) { return do_rename(AT_FDCWD, from, AT_FDCWD, to); }
int renameat(int a, const char *from, int b, const char *to) { return do_rename(a, from, b, to); }

static int do_unlink(int folder, const char *path, int flags)
{
    char buffer[PATH_MAX];
    const char *name = absolute(folder, path, buffer);
    int result = syscall(SYS_unlinkat, folder, path, flags);
    if (result == 0 && is_watched(name))
        note('U', -1, 0, 0, flags, name, NULL, 0);
    return result;
}

int unlink(const char *path) { return do_unlink(AT_FDCWD, path, 0); }
int unlinkat(int folder, const char *path, int flags) { return do_unlink(folder, path, flags); }
int rmdir(const char *path) { return do_unlink(AT_FDCWD, path, AT_REMOVEDIR); }

static int do_mkdir(int folder, const char *path, mode_t mode)
{
    char buffer[PATH_MAX];
    const char *name = absolute(folder, path, buffer);
    if (is_watched(name) && allowed(1) < 1)
        return no_space();
    int result = syscall(SYS_mkdirat, folder, path, mode);
    if (result == 0 && is_watched(name))
        note('D', -1, 0, 0, 0, name, NULL, 0);
    return result;
}

int mkdir(const char *path, mode_t mode) { return do_mkdir(AT_FDCWD, path, mode); }
int mkdirat(int folder, const char *path, mode_t mode) { return do_mkdir(folder, path, mode); }
