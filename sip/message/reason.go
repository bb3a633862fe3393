package message

// Verdict is what happens to a message.
type Verdict uint8

const (
	// Read: it is understood, and followed.
	Read Verdict = iota
	// Unread: it goes on as it came, and nothing is concluded from it.
	Unread
	// Refused: where it ends, or which dialog it belongs to, depends on who reads it. It does not go on. A
	// stream that brought it is closed in both directions, since what follows has no certain start.
	Refused
)

// Reason says why a message is not read. The zero value: it is read.
type Reason uint8

// Reasons to refuse a message.
const (
	None Reason = iota

	BadStartLine
	TooLong
	TooManyHeaders
	BareLineEnd
	BadContentLength
	RepeatedContentLength
	RepeatedCallID
	RepeatedCSeq
	RepeatedFrom
	RepeatedTo
	MissingContentLength

	// firstUnread and those that follow pass unread.
	firstUnread
)

// Reasons to let a message pass unread.
const (
	KeepAlive Reason = iota + firstUnread
	HeadersUnended
	OtherVersion
	LooseStartLine
	NoColon
	MissingHeader
	BadVia
	BadCSeq
	BadAddress
	BodyCut

	reasons // how many there are
)

var names = [reasons]string{
	None:                  "",
	BadStartLine:          "bad_start_line",
	TooLong:               "too_long",
	TooManyHeaders:        "too_many_headers",
	BareLineEnd:           "bare_line_end",
	HeadersUnended:        "headers_unended",
	BadContentLength:      "bad_content_length",
	RepeatedContentLength: "repeated_content_length",
	RepeatedCallID:        "repeated_call_id",
	RepeatedCSeq:          "repeated_cseq",
	RepeatedFrom:          "repeated_from",
	RepeatedTo:            "repeated_to",
	MissingContentLength:  "missing_content_length",
	KeepAlive:             "keep_alive",
	OtherVersion:          "other_version",
	LooseStartLine:        "loose_start_line",
	NoColon:               "no_colon",
	MissingHeader:         "missing_header",
	BadVia:                "bad_via",
	BadCSeq:               "bad_cseq",
	BadAddress:            "bad_address",
	BodyCut:               "body_cut",
}

// Name is r as counters and logs show it; empty for None.
func (r Reason) Name() string { return names[r] }

func (r Reason) String() string { return r.Name() }

// Verdict is what r does to a message.
func (r Reason) Verdict() Verdict {
	switch {
	case r == None:
		return Read
	case r < firstUnread:
		return Refused
	default:
		return Unread
	}
}

// Reasons are all but None.
func Reasons() (all []Reason) {
	for r := BadStartLine; r < reasons; r++ {
		if names[r] != "" {
			all = append(all, r)
		}
	}
	return all
}
