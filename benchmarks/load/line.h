/* What the origin and the client share: connections watched by one epoll set, and the messages on them.
 *
 * The set is edge-triggered and each socket is added to it once, so that the load costs little beside the proxy.
 */
#ifndef LINE_H
#define LINE_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stddef.h>
#include <sys/types.h>
#ifdef WITH_TLS
#include <openssl/ssl.h>
#else
typedef void SSL;
#endif

enum { PIECE = 256 * 1024, HEAD = 8192, EVENTS = 256, BACKLOG = 4096 };
enum { AGAIN = -1, BROKEN = -2 }; /* why nothing moved; the end of a connection is 0, as in read(2) */

extern int set; /* of epoll */

void check(int good, const char *what); /* or exit */
void start_set(void);                   /* and raise the limit on open files */
void watch(int descriptor, void *whose);
int new_socket(int family); /* does not block, and sends at once */

/* A connection, in the clear or inside TLS. */
struct line {
    int socket;
    SSL *tls;
};

ssize_t tls_outcome(SSL *tls, int moved);
ssize_t line_read(struct line *line, void *into, size_t size);
void line_close(struct line *line);

/* One message to send and one to receive, each a head and a body. */
struct message {
    char out[2048], in[HEAD + 1];
    size_t out_size, out_done, in_size;
    long out_body, in_body; /* bytes to send behind `out`, and to receive behind the head in `in` */
};

void message_say(struct message *message, const void *what, size_t size);
__attribute__((format(printf, 2, 3))) void message_print(struct message *message, const char *format, ...);
void message_forget(struct message *message, size_t size); /* what was read behind these bytes stays */

/* These are positive when they are done, else they tell why not yet. */
ssize_t message_send(struct message *message, struct line *line);
ssize_t message_head(struct message *message, struct line *line); /* its length; it is in `in`, ended by a NUL */
ssize_t message_bytes(struct message *message, struct line *line, size_t size);
ssize_t message_skip(struct message *message, struct line *line); /* the rest of the body */

/* Of the head that is in `head`; the name is written "\r\nname:". */
const char *field(const char *head, const char *name);
long body_length(const char *head); /* -1 if it does not say */
int says_close(const char *head);
#endif
