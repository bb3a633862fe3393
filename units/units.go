// Package units holds the quantities and protocol constants that several domains share: bit rates, byte
// counts, the STAMP port, RTCP's share of a call. It imports nothing of Ringway.
package units

// ByteCount counts bytes.
type ByteCount uint64

// STAMPPort is the UDP port of a STAMP reflector (RFC 8762, section 9.1).
const STAMPPort = 862

// RTCPShare is RTCP's bandwidth on top of RTP, in percent. RFC 3550, section 6.2, recommends that the
// fraction be fixed at 5 %; what a call really sends stays below it. RTCP is marked, and queued, as the RTP
// that it belongs to.
const RTCPShare = 5
