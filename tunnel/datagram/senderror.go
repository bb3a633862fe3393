package datagram

import "golang.org/x/sys/unix"

// SendError classifies an errno of sendmsg(2) and sendmmsg(2). Its String is the reason under which both
// engines count the packets that they drop for it.
type SendError uint8

// Why the kernel refused a packet.
const (
	SendFailed      SendError = iota // any other error
	SendRefused                      // a firewall rule refused it
	SendUnreachable                  // no route to the address, or no such source address
	SendNoBuffers                    // the socket's buffer stayed full, or the kernel is short of memory
	SendOversized                    // larger than a message may be, or than the path takes

	SendErrors = iota // how many there are
)

var sendErrorNames = [SendErrors]string{
	SendFailed:      "send_failed",
	SendRefused:     "send_refused",
	SendUnreachable: "send_unreachable",
	SendNoBuffers:   "send_no_buffers",
	SendOversized:   "oversized",
}

func (e SendError) String() string { return sendErrorNames[e] }

// ClassifySend says why the kernel refused a packet.
func ClassifySend(errno unix.Errno) SendError {
	switch errno {
	case unix.EPERM, unix.EACCES:
		return SendRefused
	case unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ENETDOWN, unix.EADDRNOTAVAIL, unix.EAFNOSUPPORT:
		return SendUnreachable
	case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
		return SendNoBuffers
	case unix.EMSGSIZE:
		return SendOversized
	}
	return SendFailed
}

// IsStaleSource reports whether an error may come from a source address that is no longer ours. It is then
// worth trying again without one.
func IsStaleSource(errno unix.Errno) bool {
	switch errno {
	case unix.EINVAL, unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EADDRNOTAVAIL, unix.ENODEV:
		return true
	}
	return false
}

// SegmentationFailure judges an error of a message of several datagrams. With retry, each datagram may pass
// on its own: the path's MTU fell below the segment size, for instance. With disable, no such message will
// ever pass: the network card computes no checksums (udp(7)), or something below the socket cannot segment.
func SegmentationFailure(errno unix.Errno) (retry, disable bool) {
	switch errno {
	case unix.EIO, unix.EOPNOTSUPP:
		return true, true
	case unix.EINVAL, unix.EMSGSIZE:
		return true, false
	}
	return false, false
}
