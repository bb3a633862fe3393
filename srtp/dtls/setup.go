package dtls

import (
	"errors"
	"fmt"
	"strings"
)

// Setup is the value of a=setup (RFC 4145 section 4, RFC 8842 section 5).
type Setup uint8

// Values. There is no default: RFC 5763 section 5 wants the attribute in every description.
const (
	Actpass Setup = iota + 1
	Active
	Passive
	Holdconn
)

// String is the attribute's value.
func (s Setup) String() string {
	if s < Actpass || s > Holdconn {
		return "no setup"
	}
	return [...]string{"actpass", "active", "passive", "holdconn"}[s-1]
}

// ParseSetup reads the value of a=setup. Case does not matter.
func ParseSetup(value string) (Setup, error) {
	for s := Actpass; s <= Holdconn; s++ {
		if strings.EqualFold(s.String(), strings.TrimSpace(value)) {
			return s, nil
		}
	}
	return 0, fmt.Errorf("setup %.20q is not actpass, active, passive or holdconn", value)
}

// Role is an end's part in the handshake. The zero value is none: no association was negotiated yet.
type Role uint8

// Roles. The client sends the first message.
const (
	Client Role = iota + 1
	Server
)

// String is the role's name.
func (r Role) String() string {
	switch r {
	case Client:
		return "client"
	case Server:
		return "server"
	}
	return "no role"
}

// ErrHoldconn says that the peer wants no connection for now (RFC 4145 section 4). DTLS-SRTP has no use for it
// (RFC 5763 section 5).
var ErrHoldconn = errors.New("setup holdconn is not supported")

// Answer returns what we answer to an offer. To actpass an existing association keeps its role, since a change of
// roles is a new association (RFC 8842 section 5.3); else we are active, which saves the peer's wait for our answer
// (RFC 5763 section 5).
func Answer(offered Setup, current Role) (Setup, error) {
	switch offered {
	case Active:
		return Passive, nil
	case Passive:
		return Active, nil
	case Actpass:
		if current == Server {
			return Passive, nil
		}
		return Active, nil
	case Holdconn:
		return 0, ErrHoldconn
	}
	return 0, errors.New("offer has no setup")
}

// Agree returns our role after an offer and its answer. weOffered says whose the offer was.
func Agree(offer, answer Setup, weOffered bool) (Role, error) {
	if offer == Holdconn || answer == Holdconn {
		return 0, ErrHoldconn
	}
	answererIsClient := answer == Active
	if answer != Active && answer != Passive || offer == answer || offer < Actpass {
		return 0, fmt.Errorf("setup %s does not answer %s", answer, offer)
	}
	if answererIsClient == weOffered {
		return Server, nil
	}
	return Client, nil
}
