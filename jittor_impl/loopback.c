/* Preloaded into mpirun and what it starts: a socket for all interfaces becomes one for loopback.

   Open MPI's daemon listens on all of them, whatever networks its parameters name. */

#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

int bind(int socket, const struct sockaddr *address, socklen_t length)
{
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } copy;

    if (address != NULL && length >= sizeof copy.v4 && length <= sizeof copy) {
        memcpy(&copy, address, length);
        if (copy.any.sa_family == AF_INET && copy.v4.sin_addr.s_addr == htonl(INADDR_ANY))
            copy.v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        if (copy.any.sa_family == AF_INET6 && length == sizeof copy.v6 && IN6_IS_ADDR_UNSPECIFIED(&copy.v6.sin6_addr))
            copy.v6.sin6_addr = in6addr_loopback;
        address = &copy.any;
    }
    return syscall(SYS_bind, socket, address, length);
}
