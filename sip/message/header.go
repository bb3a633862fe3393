package message

// Kind tells header fields apart that Ringway reads; all others are OtherHeader.
type Kind uint8

// Header fields, with the RFC where it is not 3261.
const (
	OtherHeader Kind = iota
	AlertInfo
	AssertedIdentity // RFC 3325
	Authorization
	CallID
	Contact
	ContentEncoding
	ContentLength
	ContentType
	CSeq
	Expires
	From
	Identity // RFC 8224
	MaxForwards
	MinSE // RFC 4028
	Priority
	ProxyAuthorization
	RAck // RFC 3262
	RecordRoute
	ReferTo  // RFC 3515
	Replaces // RFC 3891
	Require
	RetryAfter
	Route
	RSeq           // RFC 3262
	SessionExpires // RFC 4028
	Supported
	To
	UserAgent
	Via
	Warning

	kinds // how many there are
)

// kindNames are the names in lower case, with the compact form if there is one (RFC 3261, section 7.3.3,
// and the RFC of the field).
var kindNames = [kinds]struct {
	name    string
	compact byte
}{
	AlertInfo:          {name: "alert-info"},
	AssertedIdentity:   {name: "p-asserted-identity"},
	Authorization:      {name: "authorization"},
	CallID:             {"call-id", 'i'},
	Contact:            {"contact", 'm'},
	ContentEncoding:    {"content-encoding", 'e'},
	ContentLength:      {"content-length", 'l'},
	ContentType:        {"content-type", 'c'},
	CSeq:               {name: "cseq"},
	Expires:            {name: "expires"},
	From:               {"from", 'f'},
	Identity:           {"identity", 'y'},
	MaxForwards:        {name: "max-forwards"},
	MinSE:              {name: "min-se"},
	Priority:           {name: "priority"},
	ProxyAuthorization: {name: "proxy-authorization"},
	RAck:               {name: "rack"},
	RecordRoute:        {name: "record-route"},
	ReferTo:            {"refer-to", 'r'},
	Replaces:           {name: "replaces"},
	Require:            {name: "require"},
	RetryAfter:         {name: "retry-after"},
	Route:              {name: "route"},
	RSeq:               {name: "rseq"},
	SessionExpires:     {"session-expires", 'x'},
	Supported:          {"supported", 'k'},
	To:                 {"to", 't'},
	UserAgent:          {name: "user-agent"},
	Via:                {"via", 'v'},
	Warning:            {name: "warning"},
}

// byLength are the kinds whose names have a length; byCompact those of a single letter.
var (
	byLength  [32][]Kind
	byCompact [256]Kind
)

func init() {
	for k := OtherHeader + 1; k < kinds; k++ {
		n := kindNames[k]
		byLength[len(n.name)] = append(byLength[len(n.name)], k)
		if n.compact != 0 {
			byCompact[n.compact], byCompact[n.compact-'a'+'A'] = k, k
		}
	}
}

func kindOf(name []byte) Kind {
	if len(name) == 1 {
		return byCompact[name[0]]
	}
	if len(name) < len(byLength) {
		for _, k := range byLength[len(name)] {
			if equalFold(name, kindNames[k].name) {
				return k
			}
		}
	}
	return OtherHeader
}

// Method tells methods apart. They are case-sensitive (RFC 3261, section 7.1).
type Method uint8

// Methods that make, change and end dialogs and registrations.
const (
	Other Method = iota
	ACK
	BYE
	CANCEL
	INFO
	INVITE
	MESSAGE
	NOTIFY
	OPTIONS
	PRACK
	PUBLISH
	REFER
	REGISTER
	SUBSCRIBE
	UPDATE

	methods
)

var methodNames = [methods]string{"other", "ACK", "BYE", "CANCEL", "INFO", "INVITE", "MESSAGE", "NOTIFY", "OPTIONS",
	"PRACK", "PUBLISH", "REFER", "REGISTER", "SUBSCRIBE", "UPDATE"}

func (m Method) String() string { return methodNames[m] }

func methodOf(name []byte) Method {
	for m := ACK; m < methods; m++ {
		if string(name) == methodNames[m] {
			return m
		}
	}
	return Other
}
