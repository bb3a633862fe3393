package media

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"time"

	"ringway/srtp/stream"
	"ringway/srtp/suite"
)

// A packet is 20 ms of G.711.
const (
	rtpHeader   = 12
	payload     = 160
	maxTrailer  = 16
	payloadType = 0 // PCMU
)

// flow is one direction of a call, as the ends see it.
type flow struct {
	to   uint16 // the box's port that it is sent to
	ssrc uint32
	next uint16 // sequence number
	// in seals what the end sends, out opens what the other end gets; nil: that leg is RTP.
	in  *stream.Sender
	out *stream.Receiver
}

// secret is a master key with its salt.
type secret struct {
	suite  suite.Suite
	master []byte
	salt   []byte
}

func newSecret(s suite.Suite) secret {
	b := make([]byte, s.KeyLen()+s.SaltLen())
	_, _ = rand.Read(b) // it never fails
	return secret{s, b[:s.KeyLen()], b[s.KeyLen():]}
}

func (x secret) key() (*stream.Key, error) { return stream.NewKey(x.suite, x.master, x.salt, nil, 0) }

// keys has the flow sealed by its sender under one key, and opened at its destination under another. A secret of no
// suite is none.
func (f *flow) keys(sends, gets secret) error {
	if sends.suite.Valid() {
		k, err := sends.key()
		if err != nil {
			return err
		}
		f.in = stream.NewSender(k)
	}
	if gets.suite.Valid() {
		k, err := gets.key()
		if err != nil {
			return err
		}
		f.out = stream.NewReceiver(k)
	}
	return nil
}

// write writes the next packet, in clear, and returns it.
func (f *flow) write(b []byte) []byte {
	b = append(b[:0], 0x80, payloadType)
	b = binary.BigEndian.AppendUint16(b, f.next)
	b = binary.BigEndian.AppendUint32(b, uint32(f.next)*payload)
	b = binary.BigEndian.AppendUint32(b, f.ssrc)
	for i := range payload {
		b = append(b, byte(int(f.next)+i*7))
	}
	f.next++
	return b
}

// packet makes the next packet ready to be sent, in memory of b's.
func (f *flow) packet(b []byte) ([]byte, error) {
	b = f.write(b)
	if f.in == nil {
		return b, nil
	}
	return f.in.Seal(b, b, int64(time.Millisecond)*int64(f.next))
}

// same says whether what arrived is the flow's packet with that number, opened.
func (f *flow) same(arrived []byte, number uint16) error {
	got := arrived
	if f.out != nil {
		var err error
		if got, err = f.out.Open(make([]byte, 0, len(arrived)), arrived, int64(time.Millisecond)*int64(number)); err != nil {
			return fmt.Errorf("it cannot be opened under the key of its leg: %w", err)
		}
	}
	sent := flow{ssrc: f.ssrc, next: number}
	if want := sent.write(nil); !bytes.Equal(got, want) {
		return fmt.Errorf("%d bytes arrived that differ from the %d that were sent", len(got), len(want))
	}
	return nil
}

// batch is the packets of a trial, in the order in which they are sent: of each flow in turn.
type batch struct {
	flows  []*flow
	memory []byte
	size   []uint16
	first  []uint16 // number of the first packet, by flow
}

// slot is the memory of a packet.
const slot = rtpHeader + payload + maxTrailer

// newBatch makes so many packets of each flow.
func newBatch(flows []*flow, each int) (*batch, error) {
	n := each * len(flows)
	p := &batch{flows: flows, memory: make([]byte, n*slot), size: make([]uint16, n), first: make([]uint16, len(flows))}
	for i, f := range flows {
		if int(f.next)+each > maxNumber {
			return nil, fmt.Errorf("more than %d packets of a stream: give less time, fewer rounds or more calls", maxNumber)
		}
		p.first[i] = f.next
	}
	for i := range n {
		b, err := flows[i%len(flows)].packet(p.memory[i*slot : i*slot : (i+1)*slot])
		if err != nil {
			return nil, fmt.Errorf("make a packet: %w", err)
		}
		p.size[i] = uint16(len(b))
	}
	return p, nil
}

func (p *batch) len() int { return len(p.size) }

func (p *batch) at(i int) []byte { return p.memory[i*slot:][:p.size[i]] }

// place is where in the batch a packet with that header is; -1: nowhere.
func (p *batch) place(header []byte) int {
	if len(header) < rtpHeader {
		return -1
	}
	i := int(binary.BigEndian.Uint32(header[8:]) - firstSSRC)
	if i < 0 || i >= len(p.flows) {
		return -1
	}
	n := int(binary.BigEndian.Uint16(header[2:]) - p.first[i])
	if n < 0 || n*len(p.flows)+i >= p.len() {
		return -1
	}
	return n*len(p.flows) + i
}

// firstSSRC is that of the first flow; the others follow.
const firstSSRC = 0x52000000
