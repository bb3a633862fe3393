package control

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"ringway/sip/call"
	"ringway/sip/ladder"
	"ringway/sip/record"
	"ringway/sip/registrar"
	"ringway/sip/relay"
)

// handleCalls adds what is known of calls. It names the parties, so all of it is for root alone.
func (s *Server) handleCalls(root func(pattern string, h http.HandlerFunc)) {
	root("GET /v1/ladder", func(w http.ResponseWriter, r *http.Request) {
		v, err := s.Ladder(r.Context(), r.URL.Query().Get("call"))
		answer(w, v, err)
	})
	root("POST /v1/capture", func(w http.ResponseWriter, r *http.Request) {
		who, _ := r.Context().Value(callerKey{}).(caller)
		q := r.URL.Query()
		c, err := s.Capture(r.Context(), q.Get("call"), q.Has("sound"), who.login())
		answer(w, c, err)
	})
	root("GET /v1/bans", func(w http.ResponseWriter, r *http.Request) {
		list, err := s.Bans(r.Context())
		answer(w, list, err)
	})
	root("POST /v1/unban", func(w http.ResponseWriter, r *http.Request) {
		a, err := netip.ParseAddr(r.URL.Query().Get("address"))
		if err == nil {
			err = s.Unban(r.Context(), a)
		}
		answer(w, struct{}{}, err)
	})
	root("GET /v1/records", func(w http.ResponseWriter, r *http.Request) {
		q, err := parseRecordQuery(r.URL.Query())
		if err != nil {
			reply(w, http.StatusBadRequest, apiError{err.Error()})
			return
		}
		list, err := s.Records(q.From, q.To, q.Phone)
		answer(w, list, err)
	})
	root("POST /v1/forget", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		f, err := s.Forget(context.WithoutCancel(r.Context()), q.Get("number"), q.Has("masked"))
		answer(w, f, err)
	})
}

// RecordQuery asks for the records of calls that were under way at some time from From to To, both included.
type RecordQuery struct {
	From, To time.Time
	Phone    netip.Addr // that took part; invalid: any
}

func (q RecordQuery) values() url.Values {
	v := url.Values{"from": {q.From.Format(time.RFC3339)}, "to": {q.To.Format(time.RFC3339)}}
	if q.Phone.IsValid() {
		v.Set("phone", q.Phone.String())
	}
	return v
}

func parseRecordQuery(v url.Values) (q RecordQuery, err error) {
	if q.From, err = time.Parse(time.RFC3339, v.Get("from")); err != nil {
		return q, fmt.Errorf("from: %q is not a time (example: 2026-11-28T09:00:00Z)", v.Get("from"))
	}
	if q.To, err = time.Parse(time.RFC3339, v.Get("to")); err != nil {
		return q, fmt.Errorf("to: %q is not a time (example: 2026-11-28T09:00:00Z)", v.Get("to"))
	}
	if text := v.Get("phone"); text != "" {
		if q.Phone, err = netip.ParseAddr(text); err != nil {
			return q, fmt.Errorf("phone: %q is not an address", text)
		}
	}
	return q, nil
}

// Calls asks for the calls that are followed, and for those that ended lately.
func (c *Client) Calls(ctx context.Context) (list []call.Call, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/calls", nil, &list)
	return list, err
}

// Phones asks for the registrations that are known.
func (c *Client) Phones(ctx context.Context) (list []registrar.Binding, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/phones", nil, &list)
	return list, err
}

// Ladder asks for the messages of a call, by its id or Call-ID.
func (c *Client) Ladder(ctx context.Context, id string) (v ladder.View, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/ladder?call="+url.QueryEscape(id), nil, &v)
	return v, err
}

// Capture asks for leave to write the packets of a call to a file, which the daemon notes, and for the call. With sound
// also what is said in it.
func (c *Client) Capture(ctx context.Context, id string, sound bool) (x call.Call, err error) {
	v := url.Values{"call": {id}}
	if sound {
		v.Set("sound", "")
	}
	err = c.call(ctx, http.MethodPost, "/v1/capture?"+v.Encode(), nil, &x)
	return x, err
}

// Bans asks for the bans and throttles that are in force.
func (c *Client) Bans(ctx context.Context) (list []relay.Standing, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/bans", nil, &list)
	return list, err
}

// Unban lifts the bans of an address.
func (c *Client) Unban(ctx context.Context, a netip.Addr) error {
	return c.call(ctx, http.MethodPost, "/v1/unban?address="+url.QueryEscape(a.String()), nil, nil)
}

// Records asks for records of calls.
func (c *Client) Records(ctx context.Context, q RecordQuery) (list []record.Record, err error) {
	err = c.call(ctx, http.MethodGet, "/v1/records?"+q.values().Encode(), nil, &list)
	return list, err
}

// Forget removes what is kept of a number; masked: also what may be of it.
func (c *Client) Forget(ctx context.Context, number string, masked bool) (f record.Forgotten, err error) {
	v := url.Values{"number": {number}}
	if masked {
		v.Set("masked", "")
	}
	err = c.call(ctx, http.MethodPost, "/v1/forget?"+v.Encode(), nil, &f)
	return f, err
}
