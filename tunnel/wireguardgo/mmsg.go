package wireguardgo

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"ringway/tunnel/datagram"
)

func sendmmsg(fd uintptr, msgs []datagram.Message) (int, unix.Errno) {
	n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)),
		unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	return int(n), errno
}

func recvmmsg(fd uintptr, msgs []datagram.Message) (int, unix.Errno) {
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)),
		unix.MSG_DONTWAIT, 0, 0)
	return int(n), errno
}

// recvErrors takes messages from a socket's error queue.
func recvErrors(fd uintptr, msgs []datagram.Message) (int, unix.Errno) {
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)),
		unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT, 0, 0)
	return int(n), errno
}
