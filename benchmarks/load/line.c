#include "line.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>
#ifdef WITH_TLS
#include <openssl/err.h>
#endif

int set;
static char piece[PIECE]; /* what bodies consist of, and where they end */

void check(int good, const char *what)
{
    if (!good) {
        perror(what);
        exit(1);
    }
}

void start_set(void)
{
    struct rlimit files;
    check(!getrlimit(RLIMIT_NOFILE, &files), "getrlimit");
    files.rlim_cur = files.rlim_max;
    check(!setrlimit(RLIMIT_NOFILE, &files), "setrlimit");
    set = epoll_create1(EPOLL_CLOEXEC);
    check(set >= 0, "epoll_create1");
}

void watch(int descriptor, void *whose)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = whose};
    check(!epoll_ctl(set, EPOLL_CTL_ADD, descriptor, &event), "epoll_ctl");
}

int new_socket(int family)
{
    int on = 1, made = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (made >= 0)
        setsockopt(made, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return made;
}

static ssize_t outcome(ssize_t moved)
{
    if (moved >= 0)
        return moved;
    return errno == EAGAIN || errno == EWOULDBLOCK ? AGAIN : BROKEN;
}

#ifdef WITH_TLS
ssize_t tls_outcome(SSL *tls, int moved)
{
    int error = moved > 0 ? SSL_ERROR_NONE : SSL_get_error(tls, moved);
    switch (error) {
    case SSL_ERROR_NONE:
        return moved;
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
        return AGAIN;
    case SSL_ERROR_ZERO_RETURN:
        return 0;
    default:
        return BROKEN;
    }
}
#endif

ssize_t line_read(struct line *line, void *into, size_t size)
{
#ifdef WITH_TLS
    if (line->tls) {
        ERR_clear_error();
        return tls_outcome(line->tls, SSL_read(line->tls, into, (int)size));
    }
#endif
    return outcome(recv(line->socket, into, size, 0));
}

/* Bodies are counted, not looked at: with MSG_TRUNC the kernel drops them (tcp(7)). */
static ssize_t line_skip(struct line *line, long size)
{
    size_t most = size < PIECE ? (size_t)size : PIECE;
    if (line->tls)
        return line_read(line, piece, most);
    return outcome(recv(line->socket, NULL, most, MSG_TRUNC));
}

static ssize_t line_write(struct line *line, const void *from, size_t size, int more)
{
#ifdef WITH_TLS
    if (line->tls) {
        ERR_clear_error();
        return tls_outcome(line->tls, SSL_write(line->tls, from, (int)size));
    }
#endif
    return outcome(send(line->socket, from, size, MSG_NOSIGNAL | (more ? MSG_MORE : 0)));
}

void line_close(struct line *line)
{
#ifdef WITH_TLS
    if (line->tls) {
        SSL_shutdown(line->tls); /* without it OpenSSL would not resume this session */
        SSL_free(line->tls);
    }
#endif
    close(line->socket);
}

void message_say(struct message *message, const void *what, size_t size)
{
    memcpy(message->out, what, size);
    message->out_size = size;
    message->out_done = 0;
}

void message_print(struct message *message, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    int size = vsnprintf(message->out, sizeof message->out, format, values);
    va_end(values);
    check(size >= 0 && size < (int)sizeof message->out, "a head that is too long");
    message->out_size = (size_t)size;
    message->out_done = 0;
}

void message_forget(struct message *message, size_t size)
{
    message->in_size -= size;
    memmove(message->in, message->in + size, message->in_size);
}

ssize_t message_send(struct message *message, struct line *line)
{
    while (message->out_done < message->out_size) {
        ssize_t sent = line_write(line, message->out + message->out_done, message->out_size - message->out_done,
                                  message->out_body > 0);
        if (sent <= 0)
            return sent ? sent : BROKEN;
        message->out_done += (size_t)sent;
    }
    while (message->out_body) {
        ssize_t sent = line_write(line, piece, message->out_body < PIECE ? (size_t)message->out_body : PIECE, 0);
        if (sent <= 0)
            return sent ? sent : BROKEN;
        message->out_body -= sent;
    }
    return 1;
}

ssize_t message_head(struct message *message, struct line *line)
{
    for (;;) {
        message->in[message->in_size] = 0;
        char *end = strstr(message->in, "\r\n\r\n");
        if (end)
            return end + 4 - message->in;
        if (message->in_size == HEAD)
            return errno = EMSGSIZE, BROKEN;
        ssize_t got = line_read(line, message->in + message->in_size, HEAD - message->in_size);
        if (got <= 0)
            return got;
        message->in_size += (size_t)got;
    }
}

ssize_t message_bytes(struct message *message, struct line *line, size_t size)
{
    while (message->in_size < size) {
        ssize_t got = line_read(line, message->in + message->in_size, size - message->in_size);
        if (got <= 0)
            return got;
        message->in_size += (size_t)got;
    }
    return 1;
}

ssize_t message_skip(struct message *message, struct line *line)
{
    while (message->in_body) {
        ssize_t got = line_skip(line, message->in_body);
        if (got <= 0)
            return got;
        message->in_body -= got;
    }
    return 1;
}

const char *field(const char *head, const char *name)
{
    const char *end = strstr(head, "\r\n\r\n"), *found = strcasestr(head, name);
    return found && found < end ? found + strlen(name) : NULL;
}

long body_length(const char *head)
{
    const char *value = field(head, "\r\ncontent-length:");
    return value ? atol(value) : -1;
}

int says_close(const char *head)
{
    const char *value = field(head, "\r\nconnection:");
    return value && !strncasecmp(value + strspn(value, " "), "close", 5);
}
