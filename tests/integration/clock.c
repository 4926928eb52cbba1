/* A wall clock that can be set for one service: LD_PRELOAD this, write seconds into PST_CLOCK_FILE. Monotonic clocks stay true.
   No headers and no libraries, so that any small compiler on any host can make it. x86-64 and arm64 Linux. */
struct timespec { long seconds, nanoseconds; };
struct timeval { long seconds, microseconds; };
extern long syscall(long number, ...);
extern char *getenv(const char *name);
#ifdef __aarch64__
enum { OPENAT = 56, CLOSE = 57, READ = 63, CLOCK_GETTIME = 113 };
#else
enum { OPENAT = 257, CLOSE = 3, READ = 0, CLOCK_GETTIME = 228 };
#endif
static long offset(void) {
    char text[16], *at = text;
    const char *path = getenv("PST_CLOCK_FILE");
    long value = 0, file = path ? syscall(OPENAT, -100L, path, 0L) : -1, length;
    if (file < 0) return 0;
    length = syscall(READ, file, text, 15L);
    syscall(CLOSE, file);
    if (length <= 0) return 0;
    text[length] = 0;
    if (*at == '-' || *at == '+') at++;
    while (*at >= '0' && *at <= '9') value = value * 10 + *at++ - '0';
    return *text == '-' ? -value : value;
}
int clock_gettime(int clock, struct timespec *now) {
    long error = syscall(CLOCK_GETTIME, (long)clock, now);
    if (!error && (clock == 0 || clock == 5)) now->seconds += offset(); /* CLOCK_REALTIME, CLOCK_REALTIME_COARSE */
    return (int)error;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec t;
    int error = clock_gettime(0, &t);
    now->seconds = t.seconds, now->microseconds = t.nanoseconds / 1000;
    return error;
}
long time(long *now) {
    struct timespec t;
    clock_gettime(5, &t);
    if (now) *now = t.seconds;
    return t.seconds;
}
