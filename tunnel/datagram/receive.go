package datagram

import (
	"golang.org/x/sys/unix"
)

// Batch is the memory that recvmmsg(2) fills. Nothing in it may be used after the next Reset.
type Batch struct {
	Messages []Message

	iovs    []unix.Iovec
	from    []Sockaddr
	control [][ControlSize]byte
	memory  []byte
	size    int // of a message
}

// NewBatch allocates a batch of n messages of up to size bytes.
func NewBatch(n, size int) *Batch {
	b := &Batch{
		Messages: make([]Message, n),
		iovs:     make([]unix.Iovec, n),
		from:     make([]Sockaddr, n),
		control:  make([][ControlSize]byte, n),
		memory:   make([]byte, n*size),
		size:     size,
	}

	for i := range b.Messages {
		b.iovs[i].Base = &b.memory[i*size]
		b.iovs[i].SetLen(size)

		h := &b.Messages[i].Header
		h.Name, h.Iov, h.Control = &b.from[i].B[0], &b.iovs[i], &b.control[i][0]
		h.SetIovlen(1)
	}
	return b
}

// Reset prepares the batch for the next recvmmsg, which overwrites these lengths.
func (b *Batch) Reset() {
	for i := range b.Messages {
		b.Messages[i].Header.Namelen = uint32(len(b.from[i].B))
		b.Messages[i].Header.SetControllen(ControlSize)
	}
}

// Received is one message of a batch: datagrams of one sender, which the kernel may have joined (UDP GRO).
type Received struct {
	From *Sockaddr
	Arrival
	Rest []byte // datagrams that Next has not returned yet
}

// Received returns message i. ok is false if it has no sender's address of IPv4 or IPv6.
func (b *Batch) Received(i int) (r Received, ok bool) {
	m, from := &b.Messages[i], &b.from[i]
	from.N = m.Header.Namelen
	if from.N != unix.SizeofSockaddrInet4 && from.N != unix.SizeofSockaddrInet6 {
		return r, false
	}
	clear(from.B[from.N:]) // left over from a longer address: addresses are compared as a whole

	r.From = from
	r.Arrival = ReadControl(b.control[i][:min(int(m.Header.Controllen), ControlSize)])
	r.Rest = b.memory[i*b.size:][:min(int(m.N), b.size)]
	if r.Segment <= 0 {
		r.Segment = len(r.Rest)
	}
	return r, true
}

// Next returns the next datagram. The caller checks that Rest is not empty.
func (r *Received) Next() []byte {
	p := r.Rest[:min(r.Segment, len(r.Rest))]
	r.Rest = r.Rest[len(p):]
	return p
}
