package registrar

import (
	"bytes"
	"cmp"
	"container/list"
	"net/netip"
	"slices"
	"strings"
	"time"

	"ringway/sip/message"
)

// request is a REGISTER that waits for its final response.
type request struct {
	key
	aor       string
	phone     netip.AddrPort
	pbx       netip.AddrPort
	transport Transport
	contacts  []contact
	all       bool // Contact: *
	until     time.Time
}

// key is a transaction (RFC 3261, section 17.1.3) between two hops.
type key struct {
	callID, branch string
	cseq           uint32
	phone, pbx     netip.Addr
}

func keyOf(m *message.Message, phone, pbx netip.Addr) key {
	via, _ := message.ParseVia(m.Header(message.Via))
	return key{string(m.CallID()), string(via.Branch()), m.CSeq, phone, pbx}
}

// contact is one value of a Contact.
type contact struct {
	uri    string
	expiry time.Duration // -1: it does not say
}

// read reads a REGISTER; nil if it is not followed.
func read(now time.Time, p Packet, m *message.Message) *request {
	to, ok := message.ParseAddress(m.Header(message.To))
	r := &request{phone: p.From, pbx: p.To, transport: p.Transport, until: now.Add(timerF)}
	r.key = keyOf(m, p.From.Addr(), p.To.Addr())
	r.aor = aorOf(to.URI)
	if !ok || r.aor == "" || len(r.callID)+len(r.branch) > maxCallID {
		return nil
	}
	r.contacts = contactsOf(m)
	general := expires(m)
	for i := range r.contacts {
		c := &r.contacts[i]
		if c.expiry < 0 {
			c.expiry = general
		}
		if c.expiry < 0 {
			c.expiry = defaultExpiry
		}
		r.all = r.all || c.uri == "*" && c.expiry == 0
	}
	r.contacts = slices.DeleteFunc(r.contacts, func(c contact) bool { return c.uri == "*" })
	return r
}

// granted is for how long a contact is bound after a 2xx: what the PBX says of it, be it shorter or longer
// than what was asked for (section 10.2.4). Where the PBX does not list the contact as it was written, since it
// writes addresses behind a NAT another way or lists nothing, it is what was asked for, unless the PBX
// grants nobody so much.
func (c contact) granted(listed []contact, m *message.Message) time.Duration {
	most := time.Duration(-1)
	for _, l := range listed {
		expiry := l.expiry
		if expiry < 0 {
			expiry = expires(m)
		}
		if expiry < 0 {
			expiry = c.expiry
		}
		if sameURI(l.uri, c.uri) {
			return expiry
		}
		most = max(most, expiry)
	}
	if c.expiry == 0 { // it is gone from the list, as it should be
		return 0
	}
	if most < 0 {
		most = expires(m)
	}
	if most < 0 {
		return c.expiry
	}
	return min(most, c.expiry)
}

// expires is the value of Expires; -1 without one. Section 20.19: what cannot be read is an hour.
func expires(m *message.Message) time.Duration {
	if !m.Has(message.Expires) {
		return -1
	}
	return seconds(m.Header(message.Expires))
}

func seconds(value []byte) time.Duration {
	n, ok := message.Seconds(value)
	if !ok {
		return defaultExpiry
	}
	return min(time.Duration(n)*time.Second, maxExpiry)
}

// contactsOf are the contacts of a message, up to the bound.
func contactsOf(m *message.Message) (all []contact) {
	for _, h := range m.Headers() {
		if h.Kind != message.Contact {
			continue
		}
		for rest := m.Bytes(h.Value); len(rest) > 0 && len(all) < maxContacts; {
			a, more, ok := message.NextAddress(rest)
			if !ok {
				break
			}
			rest = more
			c := contact{uri: string(a.URI), expiry: -1}
			if value, has := message.Param(a.Params, "expires"); has {
				c.expiry = seconds(value)
			}
			if len(a.URI) <= maxURI {
				all = append(all, c)
			}
		}
	}
	return all
}

// aorOf is the address of record in a URI: its scheme, user and host without port and parameters (section 10.3,
// step 5). SIPS is the same as SIP here. It is empty if the URI cannot be read.
func aorOf(uri []byte) string {
	u, ok := message.ParseURI(uri)
	if !ok || len(u.Host) == 0 || len(uri) > maxURI {
		return ""
	}
	host := string(bytes.ToLower(u.Host))
	if len(u.User) == 0 {
		return host
	}
	return string(u.User) + "@" + host
}

// sameURI compares two contacts (section 19.1.4), with one difference: a parameter that only one of them has
// makes no other contact of it, since PBXs leave out and add some.
func sameURI(a, b string) bool {
	if a == b {
		return true
	}
	x, okX := message.ParseURI([]byte(a))
	y, okY := message.ParseURI([]byte(b))
	if !okX || !okY || !bytes.EqualFold(x.Scheme, y.Scheme) || !bytes.Equal(x.User, y.User) ||
		!bytes.EqualFold(x.Host, y.Host) || x.Port != y.Port {
		return false
	}
	for params := x.Params; len(params) > 0; {
		one, rest, _ := bytes.Cut(params[1:], []byte(";"))
		if params = nil; len(rest) > 0 {
			params = append([]byte{';'}, rest...)
		}
		name, _, _ := bytes.Cut(one, []byte("="))
		mine, _ := message.Param(append([]byte{';'}, one...), string(name))
		theirs, has := message.Param(y.Params, string(name))
		if has && !strings.EqualFold(string(mine), string(theirs)) {
			return false
		}
	}
	return true
}

// pending are requests without a final response, the oldest first.
type pending struct {
	order *list.List // of *request
	byKey map[key]*list.Element
}

func newPending() pending { return pending{list.New(), map[key]*list.Element{}} }

// add adds a request. One that comes again changes nothing: its time runs from the first one.
func (p *pending) add(r *request, limit int) {
	if _, again := p.byKey[r.key]; again {
		return
	}
	for p.order.Len() >= max(limit, 1) {
		p.remove(p.order.Front())
	}
	p.byKey[r.key] = p.order.PushBack(r)
}

// take removes a request that was answered in time; nil if there is none.
func (p *pending) take(now time.Time, k key) *request {
	e := p.byKey[k]
	if e == nil {
		return nil
	}
	p.remove(e)
	if r := e.Value.(*request); r.until.After(now) {
		return r
	}
	return nil
}

func (p *pending) remove(e *list.Element) {
	delete(p.byKey, e.Value.(*request).key)
	p.order.Remove(e)
}

func (p *pending) oldest() *request {
	if e := p.order.Front(); e != nil {
		return e.Value.(*request)
	}
	return nil
}

func (p *pending) expire(now time.Time) {
	for r := p.oldest(); r != nil && !r.until.After(now); r = p.oldest() {
		p.remove(p.order.Front())
	}
}

func compare(a, b Binding) int {
	return cmp.Or(comparePaths(a.Phone, a.PBX, b.Phone, b.PBX), cmp.Compare(a.AOR, b.AOR),
		cmp.Compare(a.Contact, b.Contact))
}

func comparePaths(phoneA, pbxA, phoneB, pbxB netip.AddrPort) int {
	return cmp.Or(phoneA.Compare(phoneB), pbxA.Compare(pbxB))
}
