/* A server that streams events at exact times and writes down when it really did.
 *
 * One thread, one epoll. Each write of a reply has an absolute due time, counted from the end of
 * its request, so lateness never adds up. A timerfd wakes the loop shortly before the next due
 * time, and the rest is spun on the clock. Each write is one send(), with CLOCK_MONOTONIC read right
 * before and right after it. The schedule knows nothing of the client: only a full socket holds a
 * reply up, and the writes held up are marked late.
 *
 * The end of a request is when the kernel took its last byte in, by SO_TIMESTAMPNS; where there is
 * no such stamp, over TLS and for a request that waited for its turn, it is when the server noticed.
 *
 * A streamed reply of T tokens has T + 2 writes: the head (with the role event) at once, token k
 * at ttft + k * gap, and the tail (finish reason, usage, [DONE]) at ttft + T * gap. Any other reply
 * is one write. The dump's layout is described at dump().
 *
 * With a tick the first token waits for the next whole tick of the clock, as a request waits for the
 * next step of continuous batching: streams whose gap is the tick are all written in one go, and those
 * that began in the same tick end in the same one. The shape says which fields of an event change
 * from one event to the next, as they do with servers that people use.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>
#ifdef WITH_TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
enum { TLS_BUILT = true };
#else
enum { TLS_BUILT = false };
#endif

enum {
    INPUT_BYTES = 16 << 10, /* the head of a request must fit; a body is thrown away as it comes */
    ID_CHARS = 128,
    MAX_TOKENS = 1000000,
    REPLY_COSTS = 8, /* what a reply itself counts as, in events, so that memory is bounded */
    BUCKETS = 1 << 16,
    TRIES = 8,       /* at reading two clocks at once */
    LAST_NS = 3000,  /* this close to a due time the sockets are not looked at */
    POLL_NS = 50000, /* but they are looked at this often, however much is due */
};
static const char MAGIC[8] = "SSETRUE2";
static const int64_t HOUR_US = 3600 * 1000000ll;

/* What an event has beside its token. A shape is any set of them. */
enum { FINGERPRINT = 1, OBFUSCATION = 2, CREATED = 4, USAGE = 8, TIMINGS = 16, EVERY_FIELD = 31 };
static const struct { const char *name; int64_t shape; } SHAPES[] = {
    {"plain", 0},        {"fingerprint", FINGERPRINT}, {"obfuscation", OBFUSCATION},
    {"created", CREATED}, {"usage", USAGE},            {"timings", TIMINGS},
    {"changing", EVERY_FIELD}};

enum ended { RUNNING, COMPLETE, CLIENT_LEFT };
enum state { HEAD, BODY, REPLY, CLOSING, DEAD };

/* What is remembered of one reply; the arrays lie behind it in the same block. */
struct reply {
    struct reply *next, *same_bucket;
    int64_t received_ns, first_ns, gap_ns; /* first_ns: ttft, or the delay of a whole reply */
    int64_t *before_ns, *after_ns;
    uint8_t *late;
    uint32_t writes, written;
    uint8_t streamed, ended, by_kernel; /* by_kernel: received_ns is the kernel's stamp */
    char id[];
};

struct ask {
    int64_t ttft_us, gap_us, tick_us, delay_us, tokens, usage, shape, body_bytes;
    bool close;
    char id[ID_CHARS + 1], method[16], target[ID_CHARS + 64];
};

struct conn {
    int fd;
    enum state state;
    bool blocked, by_kernel;
    size_t heap_at; /* 1-based; 0 is not in the heap */
    int64_t due_ns, received_ns, before_ns, blocked_until_ns;
    int64_t first_ns; /* from received_ns to the first token, any wait for a tick in it */
    int64_t stamp_ns; /* the kernel's of what was read last; 0: none */
    uint32_t step, steps;
    struct reply *truth; /* NULL when the reply is not recorded */
    char *out;           /* the write in hand: bytes sent_bytes to out_bytes are still to go */
    size_t out_bytes, out_room, sent_bytes;
    size_t in_bytes;
    struct conn *next_dead;
#ifdef WITH_TLS
    SSL *ssl;
#endif
    struct ask ask;
    char in[INPUT_BYTES + 1];
};

static struct {
    int64_t port, cpu, spin_us, max_events;
    const char *dump, *cert, *key;
    bool exit_with_parent, user_stamps, name_model;
    struct ask ask; /* what a request gets that says nothing else */
} options = {.cpu = -1,
             .spin_us = 60,
             .max_events = 20000000,
             .ask = {.ttft_us = 50000, .gap_us = 20000, .tokens = 100, .usage = 1}};

static int epoll_fd, listen_fd, timer_fd, signal_fd;
static size_t conns, max_conns;
static struct conn *dead;
static struct { int64_t due_ns; struct conn *conn; } *heap; /* [1] is due first */
static size_t heap_size;
static struct reply *first_reply, **last_reply = &first_reply, *buckets[BUCKETS];
static uint64_t replies, unrecorded, serial;
static int64_t events;
#ifdef WITH_TLS
static SSL_CTX *tls;
#endif

static int64_t in_ns(struct timespec t) { return t.tv_sec * 1000000000ll + t.tv_nsec; }

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return in_ns(t);
}

/* How far the wall clock, by which the kernel stamps, is ahead of ours; from the closest of a few
 * readings of both, as it may be interrupted between the two. */
static int64_t wall_ahead_ns(void) {
    int64_t ahead_ns = 0, least_ns = INT64_MAX;
    for (int i = 0; i < TRIES && least_ns > 500; i++) {
        struct timespec wall;
        int64_t before_ns = now_ns();
        clock_gettime(CLOCK_REALTIME, &wall);
        int64_t took_ns = now_ns() - before_ns;
        if (took_ns >= least_ns) continue;
        least_ns = took_ns;
        ahead_ns = in_ns(wall) - before_ns - took_ns / 2;
    }
    return ahead_ns;
}

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *format, ...) {
    va_list rest;
    va_start(rest, format);
    fputs("truth: ", stderr);
    vfprintf(stderr, format, rest);
    fputc('\n', stderr);
    exit(2);
}

static void *need(void *memory) {
    if (memory == NULL) die("out of memory");
    return memory;
}

/* ---- the heap of due writes ---- */

static void heap_put(size_t at, int64_t due_ns, struct conn *conn) {
    heap[at].due_ns = due_ns;
    heap[at].conn = conn;
    conn->heap_at = at;
}

/* Put conn where it belongs, beginning at a free place that breaks no order but its own. */
static void heap_settle(size_t at, int64_t due_ns, struct conn *conn) {
    for (; at > 1 && heap[at / 2].due_ns > due_ns; at /= 2)
        heap_put(at, heap[at / 2].due_ns, heap[at / 2].conn);
    for (size_t child; (child = 2 * at) <= heap_size; at = child) {
        if (child < heap_size && heap[child + 1].due_ns < heap[child].due_ns) child++;
        if (heap[child].due_ns >= due_ns) break;
        heap_put(at, heap[child].due_ns, heap[child].conn);
    }
    heap_put(at, due_ns, conn);
}

static void heap_add(struct conn *conn) { heap_settle(++heap_size, conn->due_ns, conn); }

static void heap_remove(struct conn *conn) {
    size_t at = conn->heap_at;
    if (at == 0) return;
    conn->heap_at = 0;
    size_t last = heap_size--;
    if (at != last) heap_settle(at, heap[last].due_ns, heap[last].conn);
}

/* ---- the truth ---- */

static uint32_t bucket_of(const char *id) {
    uint32_t hash = 2166136261u;
    for (; *id; id++) hash = (hash ^ (uint8_t)*id) * 16777619u;
    return hash % BUCKETS;
}

/* Begin a record, its pages touched so that no write faults; NULL once the cap is reached. */
static struct reply *remember(const struct conn *conn, bool streamed) {
    uint32_t writes = conn->steps, id_bytes = (uint32_t)strlen(conn->ask.id) + 1;
    if (events + writes + REPLY_COSTS > options.max_events) {
        if (unrecorded++ == 0)
            fprintf(stderr, "truth: %lld events are recorded, replies from now on are not\n",
                    (long long)events);
        return NULL;
    }
    events += writes + REPLY_COSTS;
    size_t head = (sizeof(struct reply) + id_bytes + 7) & ~(size_t)7;
    struct reply *reply = need(malloc(head + writes * 17ul));
    memset(reply, 0, head + writes * 17ul);
    reply->received_ns = conn->received_ns;
    reply->first_ns = conn->first_ns;
    reply->gap_ns = streamed ? conn->ask.gap_us * 1000 : 0;
    reply->streamed = streamed;
    reply->by_kernel = conn->by_kernel;
    reply->writes = writes;
    reply->before_ns = (int64_t *)((char *)reply + head);
    reply->after_ns = reply->before_ns + writes;
    reply->late = (uint8_t *)(reply->after_ns + writes);
    memcpy(reply->id, conn->ask.id, id_bytes);
    *last_reply = reply;
    last_reply = &reply->next;
    struct reply **bucket = &buckets[bucket_of(reply->id)];
    reply->same_bucket = *bucket;
    *bucket = reply;
    replies++;
    return reply;
}

static const struct reply *recall(const char *id) {
    const struct reply *reply = buckets[bucket_of(id)];
    while (reply != NULL && strcmp(reply->id, id) != 0) reply = reply->same_bucket;
    return reply;
}

/* Little endian. The file: magic, u64 replies, u64 replies not recorded; then for each reply
 * u16 bytes of id, u8 streamed, u8 ended (enum), u8 received by the kernel's stamp,
 * u32 writes planned, u32 writes made (n), i64 received, i64 ttft or delay, i64 gap; the id, i64 before[n], i64 after[n], u8 late[n].
 */
static void dump(FILE *to) {
    fwrite(MAGIC, 1, sizeof MAGIC, to);
    fwrite(&replies, sizeof replies, 1, to);
    fwrite(&unrecorded, sizeof unrecorded, 1, to);
    for (const struct reply *reply = first_reply; reply != NULL; reply = reply->next) {
        uint16_t id_bytes = (uint16_t)strlen(reply->id);
        uint8_t flags[3] = {reply->streamed, reply->ended, reply->by_kernel};
        uint32_t counts[2] = {reply->writes, reply->written};
        int64_t times[3] = {reply->received_ns, reply->first_ns, reply->gap_ns};
        fwrite(&id_bytes, sizeof id_bytes, 1, to);
        fwrite(flags, sizeof flags, 1, to);
        fwrite(counts, sizeof counts, 1, to);
        fwrite(times, sizeof times, 1, to);
        fwrite(reply->id, 1, id_bytes, to);
        fwrite(reply->before_ns, sizeof(int64_t), reply->written, to);
        fwrite(reply->after_ns, sizeof(int64_t), reply->written, to);
        fwrite(reply->late, 1, reply->written, to);
    }
}

/* Write the dump beside its place and move it there, so that nobody reads half a file. */
static bool dump_file(void) {
    char part[4096];
    if ((size_t)snprintf(part, sizeof part, "%s.part", options.dump) >= sizeof part) return false;
    FILE *file = fopen(part, "wb");
    if (file == NULL) return false;
    dump(file);
    bool whole = !ferror(file);
    whole = fclose(file) == 0 && whole;
    return whole && rename(part, options.dump) == 0;
}

static void tell_times(FILE *to, const char *name, const int64_t *times_ns, uint32_t n) {
    fprintf(to, ",\"%s\":[", name);
    for (uint32_t i = 0; i < n; i++) fprintf(to, "%s%lld", i ? "," : "", (long long)times_ns[i]);
    fputc(']', to);
}

static void tell(FILE *to, const struct reply *reply) {
    static const char *const ended[] = {"null", "\"complete\"", "\"client left\""};
    fprintf(to, "{\"id\":\"%s\",\"stream\":%s,\"ended\":%s,\"writes\":%u,\"received_ns\":%lld,",
            reply->id, reply->streamed ? "true" : "false", ended[reply->ended], reply->writes,
            (long long)reply->received_ns);
    fprintf(to, "\"by_kernel\":%s,\"first_ns\":%lld,\"gap_ns\":%lld",
            reply->by_kernel ? "true" : "false", (long long)reply->first_ns, (long long)reply->gap_ns);
    tell_times(to, "before_ns", reply->before_ns, reply->written);
    tell_times(to, "after_ns", reply->after_ns, reply->written);
    fputs(",\"late\":[", to);
    for (uint32_t i = 0, n = 0; i < reply->written; i++)
        if (reply->late[i]) fprintf(to, "%s%u", n++ ? "," : "", i);
    fputs("]}", to);
}

/* ---- sockets ---- */

static bool is_tls(const struct conn *conn) {
#ifdef WITH_TLS
    return conn->ssl != NULL;
#else
    return (void)conn, false;
#endif
}

#ifdef WITH_TLS
/* SSL_read's and SSL_write's result as recv's and send's. */
static ssize_t plain_result(struct conn *conn, int done) {
    if (done > 0) return done;
    int error = SSL_get_error(conn->ssl, done);
    if (error == SSL_ERROR_ZERO_RETURN) return 0;
    errno = error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE ? EAGAIN : EPROTO;
    ERR_clear_error();
    return -1;
}
#endif

/* When the last byte read came in, on our clock; 0 when the kernel does not say. */
static int64_t kernel_stamp_ns(struct msghdr *message) {
    for (struct cmsghdr *one = CMSG_FIRSTHDR(message); one != NULL; one = CMSG_NXTHDR(message, one)) {
        struct timespec stamp;
        if (one->cmsg_level != SOL_SOCKET || one->cmsg_type != SCM_TIMESTAMPNS) continue;
        memcpy(&stamp, CMSG_DATA(one), sizeof stamp);
        return in_ns(stamp) - wall_ahead_ns();
    }
    return 0;
}

static ssize_t get(struct conn *conn, void *to, size_t room) {
#ifdef WITH_TLS
    if (conn->ssl != NULL) return plain_result(conn, SSL_read(conn->ssl, to, (int)room));
#endif
    union { struct cmsghdr align; char bytes[CMSG_SPACE(sizeof(struct timespec))]; } extra;
    struct iovec data = {.iov_base = to, .iov_len = room};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &extra,
                             .msg_controllen = sizeof extra};
    ssize_t n = recvmsg(conn->fd, &message, 0);
    if (n > 0) conn->stamp_ns = kernel_stamp_ns(&message);
    return n;
}

static ssize_t put(struct conn *conn, const void *from, size_t bytes) {
#ifdef WITH_TLS
    if (conn->ssl != NULL)
        return plain_result(conn, SSL_write(conn->ssl, from, bytes > 1 << 30 ? 1 << 30 : (int)bytes));
#endif
    return send(conn->fd, from, bytes, MSG_NOSIGNAL);
}

static void watch(int how, int fd, uint32_t for_what, void *who) {
    struct epoll_event event = {.events = for_what, .data.ptr = who};
    if (epoll_ctl(epoll_fd, how, fd, &event) != 0) die("epoll_ctl of %d: %s", fd, strerror(errno));
}

/* Give everything up save the memory, which the events in hand may still point to. */
static void drop(struct conn *conn) {
    if (conn->state == DEAD) return;
    conn->state = DEAD;
    heap_remove(conn);
    if (conn->truth != NULL) conn->truth->ended = CLIENT_LEFT;
#ifdef WITH_TLS
    SSL_free(conn->ssl);
#endif
    close(conn->fd);
    if (conns-- == max_conns) watch(EPOLL_CTL_MOD, listen_fd, EPOLLIN, &listen_fd);
    conn->next_dead = dead;
    dead = conn;
}

static void bury(void) {
    for (struct conn *conn; (conn = dead) != NULL; free(conn->out), free(conn)) dead = conn->next_dead;
}

static void welcome(void) {
    int fd;
    while (conns < max_conns && (fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct conn *conn = need(calloc(1, sizeof *conn));
        conn->fd = fd;
#ifdef WITH_TLS
        if (tls != NULL) {
            conn->ssl = need(SSL_new(tls));
            SSL_set_fd(conn->ssl, fd);
            SSL_set_accept_state(conn->ssl);
        }
#endif
        watch(EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLRDHUP, conn);
        conns++;
    }
    if (conns == max_conns) watch(EPOLL_CTL_MOD, listen_fd, 0, &listen_fd); /* until one leaves */
}

/* ---- replies ---- */

static char *reserve(struct conn *conn, size_t bytes) {
    if (conn->out_room < bytes) conn->out = need(realloc(conn->out, conn->out_room = bytes + 512));
    return conn->out;
}

/* Put a chunk behind what is in hand. */
static void add_chunk(struct conn *conn, const char *text) {
    char *to = reserve(conn, conn->out_bytes + strlen(text) + 32) + conn->out_bytes;
    conn->out_bytes += (size_t)sprintf(to, "%zx\r\n%s\r\n", strlen(text), text);
}

/* Write those fields of an event that change with it; each of them, or none, ends in a comma. */
static void write_changing(const struct conn *conn, bool usage, char *to, size_t room) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    const struct ask *ask = &conn->ask;
    uint32_t step = conn->step < conn->steps - 1 ? conn->step : conn->steps - 2; /* tokens so far */
    uint32_t drawn = (conn->step + 1) * 2654435761u ^ bucket_of(ask->id) * 2246822519u;
    size_t at = 0;
    drawn = (drawn ^ drawn >> 15) * 2246822519u;
    drawn ^= drawn >> 13;
#define ADD(...) at += (size_t)snprintf(to + at, room - at, __VA_ARGS__)
    to[0] = '\0';
    if (ask->shape & FINGERPRINT) ADD("\"system_fingerprint\":\"fp_%x\",", drawn >> drawn % 17);
    if (ask->shape & OBFUSCATION) {
        char noise[17];
        size_t chars = drawn % 16 + 1;
        for (size_t i = 0; i < chars; i++) noise[i] = letters[(drawn >> i ^ i * 11) % 64];
        ADD("\"obfuscation\":\"%.*s\",", (int)chars, noise);
    }
    if (usage && ask->shape & USAGE)
        ADD("\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":%u,\"total_tokens\":%u},", step, step + 1);
    if (ask->shape & TIMINGS)
        ADD("\"timings\":{\"prompt_n\":1,\"prompt_ms\":%.3f,\"predicted_n\":%u,\"predicted_ms\":%.3f,"
            "\"predicted_per_second\":%.6f},", drawn % 100000 / 1e3, step, step * 20 + drawn % 1000 / 1e3,
            50 - drawn % 1000 / 1e4);
#undef ADD
}

/* The same with an event of OpenAI's chat; the arguments fill what the format has to say. */
__attribute__((format(printf, 2, 3))) static void add_event(struct conn *conn, const char *format, ...) {
    char fields[160], changing[512], event[256 + 2 * ID_CHARS + sizeof fields + sizeof changing];
    long long created = 1700000000ll + (conn->ask.shape & CREATED ? conn->step : 0);
    va_list rest;
    va_start(rest, format);
    vsnprintf(fields, sizeof fields, format, rest);
    va_end(rest);
    write_changing(conn, strstr(fields, "\"usage\"") == NULL, changing, sizeof changing);
    snprintf(event, sizeof event,
             "data: {\"id\":\"chatcmpl-%s\",\"object\":\"chat.completion.chunk\",\"created\":%lld,"
             "\"model\":\"%s\",%s%s}\n\n", conn->ask.id, created, options.name_model ? conn->ask.id : "truth",
             changing, fields);
    add_chunk(conn, event);
}

/* Have the next write of a stream ready long before it is due. */
static void prepare(struct conn *conn) {
    const struct ask *ask = &conn->ask;
    conn->out_bytes = conn->sent_bytes = 0;
    conn->due_ns = conn->received_ns + conn->first_ns + ((int64_t)conn->step - 1) * ask->gap_us * 1000;
    if (conn->step == 0) {
        conn->due_ns = conn->received_ns;
        conn->out_bytes = (size_t)sprintf(
            reserve(conn, 512), "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            "cache-control: no-cache\r\nx-request-id: %s\r\n%stransfer-encoding: chunked\r\n\r\n",
            ask->id, ask->close ? "connection: close\r\n" : "");
        add_event(conn, "\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
                        "\"finish_reason\":null}]");
    } else if (conn->step < conn->steps - 1) {
        add_event(conn, "\"choices\":[{\"index\":0,\"delta\":{\"content\":\" w%u\"},\"finish_reason\":null}]",
                  conn->step - 1);
    } else {
        add_event(conn, "\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]");
        if (ask->usage)
            add_event(conn, "\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":%lld,"
                            "\"total_tokens\":%lld}", (long long)ask->tokens, (long long)ask->tokens + 1);
        add_chunk(conn, "data: [DONE]\n\n");
        add_chunk(conn, ""); /* the last chunk */
    }
}

static void finish(struct conn *conn) {
    if (conn->truth != NULL) conn->truth->ended = COMPLETE;
    conn->truth = NULL;
    conn->state = HEAD;
    if (!conn->ask.close) return;
    conn->state = CLOSING; /* read on to its end: closing with bytes unread would reset */
#ifdef WITH_TLS
    if (conn->ssl != NULL) SSL_shutdown(conn->ssl);
#endif
    shutdown(conn->fd, SHUT_WR);
}

/* Send the write in hand. What a full socket does not take waits for EPOLLOUT, and with it all that
 * follows in this reply: there is never more than one write in hand. */
static void push(struct conn *conn) {
    int64_t before_ns = now_ns();
    ssize_t sent = put(conn, conn->out + conn->sent_bytes, conn->out_bytes - conn->sent_bytes);
    int64_t after_ns = now_ns();
    if (sent < 0 && errno != EAGAIN && errno != EINTR) {
        drop(conn);
        return;
    }
    if (conn->sent_bytes == 0 && !conn->blocked) conn->before_ns = before_ns;
    conn->sent_bytes += sent > 0 ? (size_t)sent : 0;
    if (conn->sent_bytes < conn->out_bytes) {
        if (!conn->blocked) watch(EPOLL_CTL_MOD, conn->fd, EPOLLIN | EPOLLRDHUP | EPOLLOUT, conn);
        conn->blocked = true;
        return;
    }
    if (conn->blocked) {
        watch(EPOLL_CTL_MOD, conn->fd, EPOLLIN | EPOLLRDHUP, conn);
        conn->blocked_until_ns = after_ns;
        conn->blocked = false;
    }
    struct reply *truth = conn->truth;
    if (truth != NULL) {
        truth->before_ns[truth->written] = conn->before_ns;
        truth->after_ns[truth->written] = after_ns;
        truth->late[truth->written++] = conn->due_ns < conn->blocked_until_ns;
    }
    if (++conn->step == conn->steps) {
        finish(conn);
    } else {
        prepare(conn);
        heap_add(conn);
    }
}

static void answer_json(struct conn *conn, const char *status, const char *body) {
    const struct ask *ask = &conn->ask;
    conn->sent_bytes = conn->step = 0;
    conn->steps = 1;
    conn->state = REPLY;
    conn->out_bytes = (size_t)sprintf(
        reserve(conn, strlen(body) + 512),
        "HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n"
        "x-request-id: %s\r\n%s\r\n%s",
        status, strlen(body), ask->id, ask->close ? "connection: close\r\n" : "", body);
}

/* Say what is wrong with the request and close after it. */
static void refuse(struct conn *conn, const char *status, const char *why, const char *which) {
    char body[256];
    if (which[strspn(which, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-")] != '\0') which = "";
    snprintf(body, sizeof body, "{\"error\":{\"message\":\"%s%.64s\"}}", why, which);
    conn->ask.close = true;
    answer_json(conn, status, body);
    push(conn);
}

/* Answer what is asked about the truth; none of it is recorded. False for any other target. */
static bool answer_truth(struct conn *conn) {
    static const char by_id[] = "/truth?id=";
    const char *target = conn->ask.target;
    bool gets = strcmp(conn->ask.method, "GET") == 0;
    const struct reply *reply = NULL;
    if (!gets && strcmp(target, "/dump") == 0) {
        bool dumped = options.dump != NULL && dump_file();
        if (dumped) answer_json(conn, "200 OK", "{\"dumped\":true}");
        else answer_json(conn, "500 Internal Server Error", "{\"error\":{\"message\":\"no --dump to write\"}}");
        return true;
    }
    if (!gets || strncmp(target, "/truth", 6) != 0) return false;
    if (strncmp(target, by_id, strlen(by_id)) == 0 && (reply = recall(target + strlen(by_id))) == NULL) {
        answer_json(conn, "404 Not Found", "{\"error\":{\"message\":\"no such id\"}}");
        return true;
    }
    char *text = NULL;
    size_t bytes = 0;
    FILE *to = need(open_memstream(&text, &bytes));
    if (reply != NULL) tell(to, reply);
    else fprintf(to, "{\"replies\":%llu,\"unrecorded\":%llu,\"events\":%lld,\"max_events\":%lld}",
                 (unsigned long long)replies, (unsigned long long)unrecorded, (long long)events,
                 (long long)options.max_events);
    if (fclose(to) != 0) die("out of memory");
    answer_json(conn, "200 OK", text);
    free(text);
    return true;
}

/* From the end of a request to its first token, which waits for a whole tick. */
static int64_t first_token_ns(const struct conn *conn) {
    int64_t tick_ns = conn->ask.tick_us * 1000, first_ns = conn->ask.ttft_us * 1000;
    int64_t beyond_ns = tick_ns ? (conn->received_ns + first_ns) % tick_ns : 0;
    return beyond_ns ? first_ns + tick_ns - beyond_ns : first_ns;
}

/* The whole request is in: begin its reply. */
static void begin(struct conn *conn) {
    static const char short_reply[] = "{\"object\":\"list\",\"data\":[{\"object\":\"embedding\",\"index\":0,"
                                      "\"embedding\":[0.5]}],\"predictions\":[0.5],\"model\":\"truth\"}";
    struct ask *ask = &conn->ask;
    conn->by_kernel = conn->stamp_ns > conn->before_ns; /* not sent ahead of the last reply's end */
    conn->received_ns = conn->due_ns = conn->by_kernel ? conn->stamp_ns : now_ns();
    if (ask->id[0] == '\0') sprintf(ask->id, "t-%08llu", (unsigned long long)++serial);
    if (answer_truth(conn)) {
        push(conn);
    } else if (strcmp(ask->target, "/v1/chat/completions") == 0 && strcmp(ask->method, "POST") == 0) {
        conn->state = REPLY;
        conn->step = 0;
        conn->steps = (uint32_t)ask->tokens + 2;
        conn->first_ns = first_token_ns(conn);
        conn->truth = remember(conn, true);
        prepare(conn);
        push(conn);
    } else {
        answer_json(conn, "200 OK", short_reply);
        conn->first_ns = ask->delay_us * 1000;
        conn->due_ns += conn->first_ns;
        conn->truth = remember(conn, false);
        if (ask->delay_us > 0) heap_add(conn);
        else push(conn);
    }
}

/* ---- requests ---- */

static bool read_number(const char *text, int64_t most, int64_t *to) {
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (!isdigit((unsigned char)text[0]) || *end != '\0' || errno != 0 || value > most) return false;
    *to = value;
    return true;
}

static bool read_shape(const char *text, int64_t *to) {
    for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES; i++)
        if (strcmp(text, SHAPES[i].name) == 0) return *to = SHAPES[i].shape, true;
    return false;
}

/* The characters of an id need no escape, neither in JSON nor in a URL. */
static bool read_id(const char *text, char *to) {
    static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~";
    size_t chars = strspn(text, allowed);
    if (chars == 0 || chars > ID_CHARS || text[chars] != '\0') return false;
    memcpy(to, text, chars + 1);
    return true;
}

/* Take one header; false when its value will not do. */
static bool read_header(struct ask *ask, const char *name, const char *value) {
    struct { const char *name; int64_t most, *to; } numbers[] = {
        {"content-length", 1 << 30, &ask->body_bytes}, {"x-ttft-us", HOUR_US, &ask->ttft_us},
        {"x-gap-us", HOUR_US, &ask->gap_us},           {"x-tokens", MAX_TOKENS, &ask->tokens},
        {"x-delay-us", HOUR_US, &ask->delay_us},       {"x-usage", 1, &ask->usage},
        {"x-tick-us", HOUR_US, &ask->tick_us}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (strcasecmp(name, numbers[i].name) == 0) return read_number(value, numbers[i].most, numbers[i].to);
    if (strcasecmp(name, "x-shape") == 0) return read_shape(value, &ask->shape);
    if (strcasecmp(name, "x-request-id") == 0) return read_id(value, ask->id);
    if (strcasecmp(name, "connection") == 0 && strcasecmp(value, "close") == 0) ask->close = true;
    return strcasecmp(name, "transfer-encoding") != 0; /* a body without a length is not read */
}

/* Read a head, ended by NUL. False when it was refused. */
static bool read_head(struct conn *conn, char *head) {
    struct ask *ask = &conn->ask;
    char *line = head, *next, version[16];
    *ask = options.ask;
    for (bool first = true; line != NULL; line = next, first = false) {
        if ((next = strstr(line, "\r\n")) != NULL) *next = '\0', next += 2;
        if (first) {
            int read = sscanf(line, "%15s %191s HTTP/%15s", ask->method, ask->target, version);
            if (read != 3) return refuse(conn, "400 Bad Request", "not a request of HTTP/1", ""), false;
            ask->close = strcmp(version, "1.1") != 0;
            continue;
        }
        char *value = strchr(line, ':');
        if (value == NULL) return refuse(conn, "400 Bad Request", "a header without a colon", ""), false;
        *value++ = '\0';
        value += strspn(value, " \t");
        for (size_t n = strlen(value); n > 0 && strchr(" \t", value[n - 1]) != NULL;) value[--n] = '\0';
        if (!read_header(ask, line, value))
            return refuse(conn, "400 Bad Request", "cannot use the value of the header ", line), false;
    }
    return true;
}

static void consume(struct conn *conn, size_t bytes) {
    memmove(conn->in, conn->in + bytes, conn->in_bytes -= bytes);
}

/* Go through what was read, as far as it can be served now. */
static void take_input(struct conn *conn) {
    for (;;) {
        if (conn->state == HEAD) {
            char *end = memmem(conn->in, conn->in_bytes, "\r\n\r\n", 4);
            if (end == NULL && conn->in_bytes == INPUT_BYTES) {
                conn->ask = options.ask;
                refuse(conn, "431 Request Header Fields Too Large", "a head longer than 16384 bytes", "");
                continue;
            }
            if (end == NULL) return;
            *end = '\0';
            conn->state = BODY;
            if (read_head(conn, conn->in)) consume(conn, (size_t)(end + 4 - conn->in));
        } else if (conn->state == BODY) {
            size_t have = conn->in_bytes, want = (size_t)conn->ask.body_bytes;
            size_t taken = have < want ? have : want;
            consume(conn, taken);
            conn->ask.body_bytes -= (int64_t)taken;
            if (taken < want) return;
            begin(conn);
        } else {
            if (conn->state == CLOSING) conn->in_bytes = 0;
            return;
        }
    }
}

static void readable(struct conn *conn) {
    while (conn->state != DEAD) {
        size_t room = INPUT_BYTES - conn->in_bytes; /* none: more than that was sent ahead of its turn */
        ssize_t n = room == 0 ? 0 : get(conn, conn->in + conn->in_bytes, room);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (n <= 0) {
            drop(conn);
            return;
        }
        conn->in_bytes += (size_t)n;
        take_input(conn);
        if ((size_t)n < room && !is_tls(conn)) return;
    }
}

/* ---- the loop ---- */

static bool parent_left(void) {
    char bytes[256];
    return read(STDIN_FILENO, bytes, sizeof bytes) <= 0;
}

/* Serve what the sockets have, waiting for it until spin_us before due_ns; 0 waits for ever.
 * True when the server shall end. */
static bool poll_sockets(int64_t due_ns, bool wait) {
    struct epoll_event ready[256];
    if (wait) {
        int64_t wake_ns = due_ns ? due_ns - options.spin_us * 1000 : 0;
        struct itimerspec at = {.it_value = {wake_ns / 1000000000, wake_ns % 1000000000}};
        timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &at, NULL); /* arming anew is as good as a read */
    }
    int n = epoll_wait(epoll_fd, ready, 256, wait ? -1 : 0);
    bool ending = false;
    for (int i = 0; i < n; i++) {
        struct conn *conn = ready[i].data.ptr;
        void *who = conn;
        if (who == &timer_fd) continue;
        if (who == &signal_fd) ending = true;
        else if (who == &options.exit_with_parent) ending |= parent_left();
        else if (who == &listen_fd) welcome();
        else {
            if ((ready[i].events & EPOLLOUT) && conn->state == REPLY) {
                push(conn);
                take_input(conn);
            }
            if (ready[i].events & ~(uint32_t)EPOLLOUT) readable(conn);
        }
    }
    bury();
    return ending;
}

static void serve(void) {
    int64_t spin_ns = options.spin_us * 1000, last_ns = spin_ns < LAST_NS ? spin_ns : LAST_NS;
    int64_t polled_ns = 0;
    for (;;) {
        int64_t due_ns = heap_size ? heap[1].due_ns : 0, now = now_ns();
        if (due_ns != 0 && now - polled_ns < POLL_NS) {
            if (due_ns <= now) {
                struct conn *conn = heap[1].conn;
                heap_remove(conn);
                push(conn);
                take_input(conn);
                continue;
            }
            if (due_ns - now < last_ns) continue;
        }
        if (poll_sockets(due_ns, due_ns == 0 || due_ns - now > spin_ns)) return;
        polled_ns = now_ns();
    }
}

static void set_up(void) {
    struct rlimit files;
    if (options.cpu >= 0) {
        cpu_set_t cpus;
        CPU_ZERO(&cpus);
        CPU_SET((unsigned)options.cpu, &cpus);
        if (sched_setaffinity(0, sizeof cpus, &cpus) != 0)
            die("--cpu %d: %s", (int)options.cpu, strerror(errno));
    }
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    max_conns = files.rlim_cur > 20064 ? 20000 : files.rlim_cur - 64;
    heap = need(calloc(max_conns + 2, sizeof *heap));

    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)options.port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int on = 1;
    sigset_t ends;
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigaddset(&ends, SIGINT);
    sigprocmask(SIG_BLOCK, &ends, NULL);
    signal(SIGPIPE, SIG_IGN);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    signal_fd = signalfd(-1, &ends, SFD_NONBLOCK | SFD_CLOEXEC);
    listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listen_fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(listen_fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on); /* accepted sockets inherit it */
    if (!options.user_stamps) setsockopt(listen_fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
    if (bind(listen_fd, (struct sockaddr *)&address, size) != 0 || listen(listen_fd, 4096) != 0)
        die("cannot listen on 127.0.0.1:%d: %s", (int)options.port, strerror(errno));
    getsockname(listen_fd, (struct sockaddr *)&address, &size);
    watch(EPOLL_CTL_ADD, listen_fd, EPOLLIN, &listen_fd);
    watch(EPOLL_CTL_ADD, timer_fd, EPOLLIN, &timer_fd);
    watch(EPOLL_CTL_ADD, signal_fd, EPOLLIN, &signal_fd);
    if (options.exit_with_parent) {
        fcntl(STDIN_FILENO, F_SETFD, FD_CLOEXEC);
        watch(EPOLL_CTL_ADD, STDIN_FILENO, EPOLLIN, &options.exit_with_parent);
    }
#ifdef WITH_TLS
    if (options.cert != NULL) {
        tls = need(SSL_CTX_new(TLS_server_method()));
        SSL_CTX_set_mode(tls, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
        if (SSL_CTX_use_certificate_chain_file(tls, options.cert) != 1 ||
            SSL_CTX_use_PrivateKey_file(tls, options.key, SSL_FILETYPE_PEM) != 1)
            die("--tls: cannot use %s with %s", options.cert, options.key);
    }
#endif
    printf("{\"url\": \"http%s://127.0.0.1:%d\"}\n", options.cert ? "s" : "", ntohs(address.sin_port));
    fflush(stdout);
}

static const char HELP[] =
    "usage: truth [options]   (streams events at exact times, keeps when each was written)\n"
    "  --port N              0 takes a free one (default)\n"
    "  --ttft-us N --gap-us N --tick-us N --tokens N --delay-us N --shape NAME\n"
    "                        where the request has no x- header so named; a first token waits for the\n"
    "                        next whole tick; shapes are plain (default), fingerprint, obfuscation,\n"
    "                        created, usage, timings, and changing, which is all of them\n"
    "  --name-model          the model of each event is the reply's id\n"
    "  --spin-us N           spin so long before a due time (default 60); --no-spin: never\n"
    "  --events N            events recorded at most (default 20000000); a reply itself counts as 8\n"
    "  --dump FILE           write the truth there at the end and at POST /dump\n"
    "  --cpu N               run on this core alone\n"
    "  --tls CERT KEY        serve https; PEM files\n"
    "  --user-stamps         tell the end of a request by the server's own clock, not the kernel's\n"
    "  --exit-with-parent    end when stdin closes\n";

static void read_options(int count, char **words) {
    static const struct option known[] = {
        {"port", 1, 0, 0},    {"ttft-us", 1, 0, 1},  {"gap-us", 1, 0, 2}, {"tokens", 1, 0, 3},
        {"delay-us", 1, 0, 4}, {"spin-us", 1, 0, 5}, {"events", 1, 0, 6}, {"cpu", 1, 0, 7},
        {"tick-us", 1, 0, 8}, {"shape", 1, 0, 's'}, {"name-model", 0, 0, 'm'}, {"no-spin", 0, 0, 'n'}, {"exit-with-parent", 0, 0, 'x'}, {"dump", 1, 0, 'd'},
        {"tls", 1, 0, 't'},   {"user-stamps", 0, 0, 'u'}, {"help", 0, 0, 'h'}, {0}};
    struct { int64_t most, *to; } numbers[] = {
        {65535, &options.port}, {HOUR_US, &options.ask.ttft_us}, {HOUR_US, &options.ask.gap_us},
        {MAX_TOKENS, &options.ask.tokens}, {HOUR_US, &options.ask.delay_us}, {HOUR_US, &options.spin_us},
        {1ll << 40, &options.max_events}, {CPU_SETSIZE - 1, &options.cpu}, {HOUR_US, &options.ask.tick_us}};
    for (int which, at; (which = getopt_long(count, words, "", known, &at)) != -1;) {
        if (which < 9 && !read_number(optarg, numbers[which].most, numbers[which].to))
            die("--%s %s: must be a whole number of at most %lld", known[at].name, optarg,
                (long long)numbers[which].most);
        if (which == 'n') options.spin_us = 0;
        if (which == 'x') options.exit_with_parent = true;
        if (which == 'm') options.name_model = true;
        if (which == 's' && !read_shape(optarg, &options.ask.shape)) die("--shape %s: is not known", optarg);
        if (which == 'u') options.user_stamps = true;
        if (which == 'd') options.dump = optarg;
        if (which == 't') {
            if (!TLS_BUILT) die("--tls: built without OpenSSL");
            if (optind >= count) die("--tls needs CERT and KEY");
            options.cert = optarg;
            options.key = words[optind++];
        }
        if (which == 'h' || which == '?') {
            fputs(HELP, which == 'h' ? stdout : stderr);
            exit(which == 'h' ? 0 : 2);
        }
    }
    if (optind < count) die("do not know what to do with %s", words[optind]);
}

int main(int count, char **words) {
    read_options(count, words);
    set_up();
    serve();
    if (options.dump != NULL && !dump_file()) die("--dump %s: %s", options.dump, strerror(errno));
    return 0;
}
