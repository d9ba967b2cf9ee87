/* A file system that cannot do everything: loaded before the C library, it fails the calls named in REFUSE.
 *
 *     REFUSE=link,symlink,exchange,fsync LD_PRELOAD=./refusing.so COMMAND
 *
 * As SMB, Azure Files, 9p, vboxsf and some FUSE mounts do. fsync fails for folders only. `rename` fails for folders only.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static int refused(const char *call) {
    const char *all = getenv("REFUSE");
    return all && strstr(all, call);
}

static int fails_with(int error) {
    errno = error;
    return -1;
}

static int is_folder(const char *path) {
    struct stat status;
    return stat(path, &status) == 0 && S_ISDIR(status.st_mode);
}

#define NEXT(type, name) ((type)dlsym(RTLD_NEXT, name))

int link(const char *a, const char *b) {
    return refused("hardlink") ? fails_with(EPERM) : NEXT(int (*)(const char *, const char *), "link")(a, b);
}

int linkat(int x, const char *a, int y, const char *b, int flags) {
    return refused("hardlink") ? fails_with(EPERM)
                               : NEXT(int (*)(int, const char *, int, const char *, int), "linkat")(x, a, y, b, flags);
}

int symlink(const char *a, const char *b) {
    return refused("symlink") ? fails_with(EOPNOTSUPP) : NEXT(int (*)(const char *, const char *), "symlink")(a, b);
}

int symlinkat(const char *a, int x, const char *b) {
    return refused("symlink") ? fails_with(EOPNOTSUPP) : NEXT(int (*)(const char *, int, const char *), "symlinkat")(a, x, b);
}

int renameat2(int x, const char *a, int y, const char *b, unsigned int flags) {
    return refused("exchange") ? fails_with(EINVAL)
                               : NEXT(int (*)(int, const char *, int, const char *, unsigned int), "renameat2")(x, a, y, b, flags);
}

int rename(const char *a, const char *b) {
    return refused("folders") && is_folder(a) ? fails_with(EXDEV)
                                              : NEXT(int (*)(const char *, const char *), "rename")(a, b);
}

int fsync(int descriptor) {
    struct stat status;
    if (refused("fsync") && fstat(descriptor, &status) == 0 && S_ISDIR(status.st_mode))
        return fails_with(EINVAL);
    return NEXT(int (*)(int), "fsync")(descriptor);
}
