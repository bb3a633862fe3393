package relay

import (
	"time"

	"ringway/sip/message"
	"ringway/sip/transparent"
)

// Refused requests are remembered as long as they may come again (timer B, RFC 3261, section 17.1.1.2): what was
// refused once is refused again, also if there is room by then.
const (
	refusedFor = 32 * time.Second
	maxRefused = 2048
)

// refusals are the answers to requests that were refused, by transaction.
type refusals struct {
	byTransaction map[transactionKey]refusedRequest
}

type transactionKey struct {
	callID, branch string
	cseq           uint32
}

type refusedRequest struct {
	reply []byte
	until time.Time
}

func keyOf(m *message.Message) transactionKey {
	via, _ := message.ParseVia(m.Header(message.Via))
	return transactionKey{string(m.CallID()), string(via.Branch()), m.CSeq}
}

// again is the answer to a request that was refused before; nil: it was not.
func (r *refusals) again(now time.Time, m *transparent.Message) []byte {
	if len(r.byTransaction) == 0 || !m.SIP.Request || m.SIP.Method == message.ACK || m.SIP.Method == message.CANCEL {
		return nil
	}
	x, there := r.byTransaction[keyOf(m.SIP)]
	if !there || !x.until.After(now) {
		return nil
	}
	return x.reply
}

// remember keeps an answer. If there are too many, what has expired makes room, or else nothing is kept.
func (r *refusals) remember(now time.Time, m *transparent.Message, reply []byte) {
	if r.byTransaction == nil {
		r.byTransaction = map[transactionKey]refusedRequest{}
	}
	if len(r.byTransaction) >= maxRefused {
		r.expire(now)
	}
	if len(r.byTransaction) < maxRefused {
		r.byTransaction[keyOf(m.SIP)] = refusedRequest{reply, now.Add(refusedFor)}
	}
}

func (r *refusals) expire(now time.Time) {
	for k, x := range r.byTransaction {
		if !x.until.After(now) {
			delete(r.byTransaction, k)
		}
	}
}
