package datagram

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Mark returns a socket's mark (SO_MARK).
func Mark(fd int) (mark uint32, err error) {
	m, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK)
	return uint32(m), err
}

// Overflow is how many packets the kernel dropped because the socket's receive buffer was full.
func Overflow(fd int) uint64 {
	const drops = 8 // SK_MEMINFO_DROPS, include/uapi/linux/sock_diag.h
	var m [drops + 1]uint32
	size := uint32(unsafe.Sizeof(m))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&m[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0
	}
	return uint64(m[drops])
}
