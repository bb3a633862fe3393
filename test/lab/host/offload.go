package host

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ethtool's commands with one value, as in linux/ethtool.h.
type ethtoolValue struct{ cmd, data uint32 }

// ifreqPointer is struct ifreq where it carries a pointer.
type ifreqPointer struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [16]byte
}

// SinglePackets has a device of the calling thread's network send every packet by itself, as ethtool -K
// DEVICE tx off does. Without checksum offload the kernel disables all segmentation offload, UDP's included.
// (gso_max_segs 1 is not enough: a super-packet from a TUN device has no segment count.)
func SinglePackets(device string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("turn offloads of %s off: %w", device, err)
	}
	defer unix.Close(fd)
	value := ethtoolValue{cmd: unix.ETHTOOL_STXCSUM}
	request := ifreqPointer{data: unsafe.Pointer(&value)}
	copy(request.name[:unix.IFNAMSIZ-1], device)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL,
		uintptr(unsafe.Pointer(&request))); errno != 0 {
		return fmt.Errorf("turn offloads of %s off: %w", device, errno)
	}
	return nil
}
