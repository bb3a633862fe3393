// Package control is the API of a running daemon: HTTP over a Unix socket, so that curl can use it as well as `ringway
// status` does.
//
//	GET  /v1/status    for root and members of control.group
//	GET  /v1/queues    likewise
//	GET  /v1/metrics   likewise
//	POST /v1/plan?only=ip&name=new.yaml        likewise; the request body is a config, of which nothing is applied
//	GET  /v1/calls     for root only: they name the parties
//	GET  /v1/phones    likewise
//	GET  /v1/ladder?call=ID        likewise; the messages of a call
//	GET  /v1/records?from=T&to=T&phone=ADDRESS    likewise; times as in RFC 3339
//	GET  /v1/bans      likewise
//	POST /v1/unban?address=ADDRESS
//	POST /v1/forget?number=NUMBER
//	POST /v1/reload    for root only, as everything that changes something
//	POST /v1/apply?confirm=2m&name=new.yaml   the request body is the config
//	POST /v1/confirm
//	POST /v1/undo
//	POST /v1/stop
//	POST /v1/upgrade?class=voice
//
// Who the caller is comes from the kernel (SO_PEERCRED), never from the request.
package control

// maxConfig bounds the body of a config. The config's own bound is lower and has a better error text.
const maxConfig = 2 << 20

// ReloadResult lists what a reload or an apply changed, in ip, nft, tc and wg commands.
type ReloadResult struct {
	Changes []string `json:"changes"`
}

// Error is an answer of the daemon that is not a success.
type Error struct {
	Code int // of HTTP
	Text string
}

func (e *Error) Error() string { return e.Text }

// apiError is the body of every answer that is not a success.
type apiError struct {
	Error string `json:"error"`
}
