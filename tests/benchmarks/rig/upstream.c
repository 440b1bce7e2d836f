/* A chat upstream that keeps time: speaks the streams of OpenAI, FastGPT, Dify and Coze.
 *
 * usage: upstream PORT
 *
 * How long a stream is stands in the question, so that one upstream serves every measurement:
 * `events=100 pause_ms=20` are 100 events, one each 20 ms; these are also the numbers used when
 * the question says nothing. The first event is sent at once, and without a pause all of them.
 * The pause after the first is longer by a part of one, another part for each stream: so streams
 * that began together, or at a regular pace, are spread evenly over the time, as strangers' are.
 *
 * Every event's text is "w<number> @<16 digits>@ ": its number in the stream, from 0, and the
 * monotonic microseconds at which it was sent. A client on the same machine reads from them the
 * delay that whatever stands between has added, and whether anything was lost or reordered.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_CONNECTIONS = 65536,
    MAX_REQUEST = 32 * 1024,
    MAX_EVENT = 2048,
    TICK_US = 250, /* finer than a millisecond, or streams would come in larger batches */
    SLOTS = 1 << 19, /* ticks that the wheel has room for: twice the longest pause, and more */
    MAX_PAUSE_MS = 60000,
};

enum platform { OPENAI, FASTGPT, DIFY, COZE };

struct connection {
    char request[MAX_REQUEST];
    int request_size;
    enum platform platform;
    int events;      /* of the whole stream */
    int sent;        /* of them until now */
    int pause_ticks; /* between two of them */
    int slot;        /* of the wheel in which it waits, or -1 */
    int next, previous;
};

/* What is to go out in one piece. */
struct output {
    char bytes[65536];
    int size;
};

static struct connection *connections[MAX_CONNECTIONS]; /* by file descriptor */
static int wheel[SLOTS]; /* the first connection that is due at a tick, or -1 */
static long ticks;

static long now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000L + now.tv_nsec / 1000;
}

/* Sending ---------------------------------------------------------------------------------- */

static void flush(int fd, struct output *out)
{
    int gone = 0;
    while (gone < out->size) {
        ssize_t count = send(fd, out->bytes + gone, out->size - gone, MSG_NOSIGNAL);
        if (count < 0 && errno == EAGAIN) {
            /* The reader is far behind; a measurement in which this happens is void anyway. */
            struct pollfd writable = {.fd = fd, .events = POLLOUT};
            poll(&writable, 1, 1000);
            continue;
        }
        if (count < 0)
            break; /* it has left: its reading side tells */
        gone += count;
    }
    out->size = 0;
}

static void add(struct output *out, const char *bytes, int size)
{
    memcpy(out->bytes + out->size, bytes, size);
    out->size += size;
}

static void add_chunk(struct output *out, const char *bytes, int size)
{
    out->size += sprintf(out->bytes + out->size, "%x\r\n", size);
    add(out, bytes, size);
    add(out, "\r\n", 2);
}

/* What the platforms say ------------------------------------------------------------------- */

#define DIFY_IDS                                                  \
    "\"conversation_id\": \"45701982-8118-4bc5-8e9b-64562b4555f2\", " \
    "\"message_id\": \"5ad4cb98-f0c7-4085-b384-88c403be6290\", "      \
    "\"created_at\": 1700000000, "                                    \
    "\"task_id\": \"900bbd43-dc0b-4383-a372-aa6e6c414227\", "         \
    "\"id\": \"5ad4cb98-f0c7-4085-b384-88c403be6290\""
#define COZE_IDS                                \
    "\"conversation_id\":\"7380000000000000002\"," \
    "\"bot_id\":\"7380000000000000003\""
#define OPENAI_HEAD "\"id\":\"chatcmpl-abc123\",\"created\":1700000000,\"model\":\"bench\""

/* Dify escapes what is not ASCII, so each of its events has something that must be unescaped. */
static const char *const EVENT[] = {
    [OPENAI] = "data: {" OPENAI_HEAD ",\"object\":\"chat.completion.chunk\","
               "\"system_fingerprint\":\"fp_1\",\"choices\":[{\"index\":0,\"delta\":"
               "{\"content\":\"w%d @%016ld@ \"},\"logprobs\":null,\"finish_reason\":null}]}\n\n",
    [FASTGPT] = "data: {\"id\":\"\",\"object\":\"\",\"created\":0,\"model\":\"\",\"choices\":"
                "[{\"delta\":{\"role\":\"assistant\",\"content\":\"w%d @%016ld@ \"},"
                "\"index\":0,\"finish_reason\":null}]}\n\n",
    [DIFY] = "data: {\"event\": \"message\", " DIFY_IDS ", "
             "\"answer\": \"\\u4f60w%d @%016ld@ \", \"from_variable_selector\": null}\n\n",
    [COZE] = "event:conversation.message.delta\ndata:{\"id\":\"7380000000000000001\"," COZE_IDS
             ",\"role\":\"assistant\",\"type\":\"answer\",\"content\":\"w%d @%016ld@ \","
             "\"content_type\":\"text\",\"chat_id\":\"7380000000000000004\","
             "\"section_id\":\"7380000000000000002\",\"created_at\":1700000000}\n\n",
};

/* The end of a stream; the numbers are the tokens of the answer, and of all. */
static const char *const END[] = {
    [OPENAI] = "data: {" OPENAI_HEAD ",\"object\":\"chat.completion.chunk\",\"choices\":"
               "[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n"
               "data: {" OPENAI_HEAD ",\"object\":\"chat.completion.chunk\",\"choices\":[],"
               "\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":%d,\"total_tokens\":%d}}\n\n"
               "data: [DONE]\n\n",
    [FASTGPT] = "data: {\"id\":\"\",\"object\":\"\",\"created\":0,\"model\":\"\",\"choices\":"
                "[{\"delta\":{},\"index\":0,\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n",
    [DIFY] = "data: {\"event\": \"message_end\", " DIFY_IDS ", \"metadata\": {\"usage\": "
             "{\"prompt_tokens\": 10, \"completion_tokens\": %d, \"total_tokens\": %d}}, "
             "\"files\": []}\n\n",
    [COZE] = "event:conversation.message.completed\ndata:{\"id\":\"7380000000000000001\"," COZE_IDS
             ",\"role\":\"assistant\",\"type\":\"answer\",\"content\":\"whole\","
             "\"content_type\":\"text\",\"chat_id\":\"7380000000000000004\"}\n\n"
             "event:conversation.chat.completed\ndata:{\"id\":\"7380000000000000004\"," COZE_IDS
             ",\"created_at\":1700000000,\"completed_at\":1700000001,\"last_error\":"
             "{\"code\":0,\"msg\":\"\"},\"status\":\"completed\",\"usage\":"
             "{\"output_count\":%d,\"token_count\":%d,\"input_count\":10}}\n\n"
             "event:done\ndata:\"[DONE]\"\n\n",
};

static const char WHOLE_DIFY[] =
    "{\"event\": \"message\", " DIFY_IDS ", \"mode\": \"chat\", "
    "\"answer\": \"hello w0 @%016ld@\", \"metadata\": {\"usage\": "
    "{\"prompt_tokens\": 10, \"completion_tokens\": 20, \"total_tokens\": 30}}}";
static const char WHOLE_OPENAI[] =
    "{" OPENAI_HEAD ",\"object\":\"chat.completion\",\"choices\":[{\"index\":0,\"message\":"
    "{\"role\":\"assistant\",\"content\":\"hello w0 @%016ld@\"},\"logprobs\":null,"
    "\"finish_reason\":\"stop\"}],\"usage\":"
    "{\"prompt_tokens\":10,\"completion_tokens\":20,\"total_tokens\":30}}";

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral" /* the formats are those above */

static void add_event(struct output *out, struct connection *c)
{
    char text[MAX_EVENT];
    add_chunk(out, text, sprintf(text, EVENT[c->platform], c->sent, now_us()));
    c->sent++;
}

static void add_end(struct output *out, struct connection *c)
{
    char text[MAX_EVENT];
    add_chunk(out, text, sprintf(text, END[c->platform], c->events, c->events + 10));
    add(out, "0\r\n\r\n", 5);
}

static void answer_whole(int fd, struct connection *c)
{
    struct output out = {.size = 0};
    char body[MAX_EVENT];
    int size = sprintf(body, c->platform == DIFY ? WHOLE_DIFY : WHOLE_OPENAI, now_us());
    out.size = sprintf(out.bytes,
                       "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                       "Content-Length: %d\r\n\r\n",
                       size);
    add(&out, body, size);
    flush(fd, &out);
}

#pragma GCC diagnostic pop

/* The wheel: who is due when --------------------------------------------------------------- */

static void wait_for_turn(int fd, struct connection *c, int pause)
{
    c->slot = (ticks + pause) % SLOTS;
    c->previous = -1;
    c->next = wheel[c->slot];
    if (c->next >= 0)
        connections[c->next]->previous = fd;
    wheel[c->slot] = fd;
}

static void leave_wheel(struct connection *c)
{
    if (c->slot < 0)
        return;
    if (c->previous >= 0)
        connections[c->previous]->next = c->next;
    else
        wheel[c->slot] = c->next;
    if (c->next >= 0)
        connections[c->next]->previous = c->previous;
    c->slot = -1;
}

/* From one to two pauses: of any number of streams in a row they are spread evenly. */
static int first_pause(const struct connection *c)
{
    static unsigned int streams;
    unsigned int turn = ++streams * 2654435769u; /* 2^32 by the golden ratio */
    return c->pause_ticks + (unsigned long)c->pause_ticks * turn / 4294967296ul;
}

/* Send the next event of a stream, or its end. */
static void go_on(int fd, struct connection *c)
{
    struct output out = {.size = 0};
    if (c->sent < c->events) {
        add_event(&out, c);
        wait_for_turn(fd, c, c->sent > 1 ? c->pause_ticks : first_pause(c));
    } else {
        add_end(&out, c);
    }
    flush(fd, &out);
}

static void tick(void)
{
    ticks++;
    while (wheel[ticks % SLOTS] >= 0) {
        int fd = wheel[ticks % SLOTS];
        leave_wheel(connections[fd]);
        go_on(fd, connections[fd]);
    }
}

/* Requests --------------------------------------------------------------------------------- */

static void start_stream(int fd, struct connection *c)
{
    static const char head[] = "HTTP/1.1 200 OK\r\n"
                               "Content-Type: text/event-stream; charset=utf-8\r\n"
                               "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n";
    struct output out = {.size = 0};
    c->sent = 0;
    add(&out, head, sizeof head - 1);
    flush(fd, &out); /* before the first event, as real servers do */
    if (c->pause_ticks > 0) {
        go_on(fd, c);
        return;
    }
    while (c->sent < c->events) {
        add_event(&out, c);
        if (out.size > (int)sizeof out.bytes - 2 * MAX_EVENT)
            flush(fd, &out);
    }
    add_end(&out, c);
    flush(fd, &out);
}

static int number_after(const char *text, const char *name, int otherwise)
{
    const char *found = strstr(text, name);
    return found ? atoi(found + strlen(name)) : otherwise;
}

/* The size of a body that begins at `body`, or -1 as long as some of it is missing. */
static int body_size(const char *head, const char *body, int available)
{
    const char *length = strcasestr(head, "\ncontent-length:");
    int size = length ? atoi(length + strlen("\ncontent-length:")) : 0;
    if (strcasestr(head, "transfer-encoding: chunked")) {
        const char *end = memmem(body, available, "0\r\n\r\n", 5);
        size = end ? end + 5 - body : available + 1;
    }
    return size <= available ? size : -1;
}

static void answer(int fd, struct connection *c, const char *path, const char *body)
{
    int streams = strstr(body, "\"stream\":true") || strstr(body, "\"stream\": true") ||
                  strstr(body, "\"streaming\"");
    int pause_ms = number_after(body, "pause_ms=", 20);
    c->platform = strstr(path, "chat-messages") ? DIFY
                  : strstr(path, "/v3/chat")    ? COZE
                  : strstr(path, "/api/v1/")    ? FASTGPT
                                                : OPENAI;
    c->events = number_after(body, "events=", 100);
    c->pause_ticks = (pause_ms < MAX_PAUSE_MS ? pause_ms : MAX_PAUSE_MS) * (1000 / TICK_US);
    if (streams)
        start_stream(fd, c);
    else
        answer_whole(fd, c);
}

/* Answer the request in the buffer, if it is there whole. */
static void read_request(int fd, struct connection *c)
{
    char path[256] = "";
    c->request[c->request_size] = 0;
    char *head_end = strstr(c->request, "\r\n\r\n");
    if (!head_end)
        return;
    char *body = head_end + 4;
    int head_size = body - c->request;
    *head_end = 0;
    int size = body_size(c->request, body, c->request_size - head_size);
    sscanf(c->request, "%*s %255s", path);
    *head_end = '\r';
    if (size < 0)
        return;
    leave_wheel(c); /* of a stream that was still under way: no client here asks so early */
    c->request_size = 0;
    answer(fd, c, path, body);
}

static void receive(int fd, struct connection *c)
{
    int room = MAX_REQUEST - 1 - c->request_size;
    ssize_t count = recv(fd, c->request + c->request_size, room, 0);
    if (count > 0) {
        c->request_size += count;
        read_request(fd, c);
    } else if (count == 0 || errno != EAGAIN) {
        leave_wheel(c);
        close(fd);
        free(c);
        connections[fd] = NULL;
    }
}

static void accept_all(int listener, int poller)
{
    int on = 1, fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= MAX_CONNECTIONS) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        connections[fd] = calloc(1, sizeof(struct connection));
        connections[fd]->slot = -1;
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    }
}

/* Set-up ----------------------------------------------------------------------------------- */

static int listen_on(int port)
{
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (void *)&address, sizeof address) || listen(fd, 4096)) {
        perror("listen");
        exit(1);
    }
    return fd;
}

static int start_clock(void)
{
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct timespec period = {.tv_nsec = TICK_US * 1000};
    struct itimerspec timer = {.it_interval = period, .it_value = period};
    timerfd_settime(fd, 0, &timer, NULL);
    return fd;
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: upstream PORT\n");
        return 2;
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    for (int i = 0; i < SLOTS; i++)
        wheel[i] = -1;

    int poller = epoll_create1(0), listener = listen_on(atoi(argv[1])), timer = start_clock();
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[512];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    event.data.fd = timer;
    epoll_ctl(poller, EPOLL_CTL_ADD, timer, &event);
    for (;;) {
        int count = epoll_wait(poller, events, 512, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            unsigned long long elapsed;
            if (fd == listener) {
                accept_all(listener, poller);
            } else if (fd == timer) {
                if (read(timer, &elapsed, sizeof elapsed) == sizeof elapsed)
                    while (elapsed-- > 0)
                        tick();
            } else if (connections[fd]) {
                receive(fd, connections[fd]);
            }
        }
    }
}
