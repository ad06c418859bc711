/* An origin for measuring: serves HTTP on 127.0.0.1 and [::1], on one free port, which is printed first.
 *
 * GET /N and POST /N are answered with N bytes, "Expect: 100-continue" with 100. It ends with its standard input, that
 * is, with the program that started it at the latest.
 */
#include "line.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

struct visitor {
    struct line line;
    struct message message;
    long answer; /* bytes to answer with once the request's body is here */
    int asked, closing;
};

static void answer(struct visitor *visitor)
{
    message_print(&visitor->message,
                  "HTTP/1.1 200 OK\r\nServer: origin\r\nContent-Type: application/octet-stream\r\n"
                  "Content-Length: %ld\r\nx-log-requestid: 62591BC7C08B7BD4AA99FCD4\r\n\r\n",
                  visitor->answer);
    visitor->message.out_body = visitor->answer;
    visitor->asked = 0;
}

static int read_request(struct visitor *visitor, size_t size)
{
    struct message *message = &visitor->message;
    char *path = strchr(message->in, ' ');
    if (!path || *++path != '/')
        return 0;
    long length = body_length(message->in);
    visitor->answer = atol(path + 1);
    visitor->closing = says_close(message->in);
    visitor->asked = 1;
    if (field(message->in, "\r\nexpect:") && message->in_size == size)
        message_print(message, "HTTP/1.1 100 Continue\r\n\r\n");
    message_forget(message, size);
    if (length > 0) {
        long here = length < (long)message->in_size ? length : (long)message->in_size;
        message_forget(message, (size_t)here);
        message->in_body = length - here;
    }
    return 1;
}

/* One visitor's turn; false when it is over. */
static int serve(struct visitor *visitor)
{
    struct message *message = &visitor->message;
    for (;;) {
        ssize_t done = message_send(message, &visitor->line);
        if (done != 1)
            return done == AGAIN;
        if (visitor->closing && !visitor->asked)
            return 0;
        done = visitor->asked ? message_skip(message, &visitor->line) : message_head(message, &visitor->line);
        if (done <= 0)
            return done == AGAIN;
        if (visitor->asked)
            answer(visitor);
        else if (!read_request(visitor, (size_t)done))
            return 0;
    }
}

static void welcome(int listener)
{
    int arrived, on = 1;
    while ((arrived = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct visitor *visitor = calloc(1, sizeof *visitor);
        check(visitor != NULL, "calloc");
        visitor->line.socket = arrived;
        setsockopt(arrived, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        watch(arrived, visitor);
    }
}

static int listen_on(int family, in_port_t port)
{
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = port, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = port, .sin6_addr = in6addr_loopback};
    const void *address = family == AF_INET ? (void *)&four : (void *)&six;
    socklen_t size = family == AF_INET ? sizeof four : sizeof six;
    int listener = new_socket(family);
    if (listener >= 0 && (bind(listener, address, size) || listen(listener, BACKLOG))) {
        close(listener);
        listener = -1;
    }
    return listener;
}

static void serve_all(int *four, int *six)
{
    struct epoll_event events[EVENTS];
    for (;;) {
        int count = epoll_wait(set, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            void *whose = events[i].data.ptr;
            if (!whose)
                return;
            if (whose == four || whose == six) {
                welcome(*(int *)whose);
            } else if (!serve(whose)) {
                line_close(&((struct visitor *)whose)->line);
                free(whose);
            }
        }
    }
}

int main(void)
{
    struct sockaddr_in address;
    socklen_t size = sizeof address;
    signal(SIGPIPE, SIG_IGN);
    start_set();
    int four = listen_on(AF_INET, 0);
    check(four >= 0 && !getsockname(four, (struct sockaddr *)&address, &size), "listen");
    int six = listen_on(AF_INET6, address.sin_port); /* on machines that have IPv6 */
    watch(four, &four);
    if (six >= 0)
        watch(six, &six);
    watch(STDIN_FILENO, NULL);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    serve_all(&four, &six);
    return 0;
}
