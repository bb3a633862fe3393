package plan

import (
	"fmt"
	"reflect"
	"strings"
	"time"

	"ringway/appliance/config"
	"ringway/qos"
	"ringway/tunnel"
	"ringway/units"
)

// WANCalls is how many calls one WAN carries, and how long single packets keep it busy. Rates are in bits a
// second. Those of a WAN without a known uplink are 0, and so are its calls.
type WANCalls struct {
	WAN    string      `json:"wan"`
	Uplink qos.BitRate `json:"uplink_bps"`
	Margin int         `json:"margin_percent"`
	Shaped qos.BitRate `json:"shaped_bps"`
	Share  int         `json:"media_share_percent"`

	Media qos.BitRate `json:"media_bps"` // the voice budget of a site that its own line does not limit further
	RTP   qos.BitRate `json:"rtp_bps"`   // what RTCP's share leaves of it
	Local qos.BitRate `json:"local_bps"` // the voice budget of traffic that goes to no site
	All   qos.BitRate `json:"all_bps"`   // the budgets of all sites together
	// Reserved: each site has its budget whatever goes to the others. Otherwise calls with all sites share the
	// WAN, with priority over everything else.
	Reserved bool   `json:"reserved"`
	budgets  string // describes Local, All and Reserved

	Bound   float64      `json:"serialization_bound_ms"`
	Longest []LongPacket `json:"longest_packets"`
	Sites   []SiteCalls  `json:"sites"`
	// AsData lists sites whose only tunnel is for data: their calls travel as data, without any promise.
	AsData []string `json:"calls_as_data,omitempty"`
}

// LongPacket is the longest packet of its kind, and how long it occupies the WAN.
type LongPacket struct {
	// What is data, voice (a large packet of signalling), internet tcp (where TCP is limited further) or internet.
	What string        `json:"what"`
	IP   int           `json:"bytes"`
	Wire qos.ByteCount `json:"wire_bytes"`
	Time float64       `json:"ms"`
}

// SiteCalls is what a WAN carries to each of some sites that are alike.
type SiteCalls struct {
	Sites  []string     `json:"sites"`
	Inner  string       `json:"inner"` // family of the calls' own packets
	Outer  string       `json:"outer"` // and of the tunnel's
	Media  qos.BitRate  `json:"media_bps"`
	SRTP   *SiteSRTP    `json:"srtp,omitempty"` // nil: the box encrypts nothing
	Codecs []CodecCalls `json:"codecs"`
}

// SiteSRTP is what SRTP to a site costs where the box encrypts it.
type SiteSRTP struct {
	Level string        `json:"level"` // prefer or require
	Boxes bool          `json:"boxes"` // between boxes, with keys that change; else phones choose the suite
	Bytes qos.ByteCount `json:"bytes"` // of each packet, at most
	Rate  qos.BitRate   `json:"bps"`   // of a call of G.711, on the provider's meter
	Fewer int           `json:"fewer"` // calls of G.711 than without
}

// CodecCalls is the arithmetic of one codec.
type CodecCalls struct {
	Codec     string        `json:"codec"`
	SRTP      bool          `json:"srtp"`
	Steps     []qos.Step    `json:"steps"`
	Packet    qos.ByteCount `json:"packet_bytes"`
	PerSecond float64       `json:"packets_per_second"`
	Call      qos.BitRate   `json:"call_bps"`
	Calls     int           `json:"calls"`
	Unpadded  *CodecCalls   `json:"without_pad_to,omitempty"`
}

// Calls computes the voice budget of every WAN, site by site.
func Calls(cfg *config.Config) (out []WANCalls) {
	for _, w := range cfg.WANs {
		c := wanCalls(cfg, w)
		for _, s := range cfg.Sites {
			if s.Via(tunnel.Voice) != tunnel.Voice {
				c.AsData = append(c.AsData, s.Name)
			}
			for _, six := range cfg.CallFamilies(s) {
				if b, ok := cfg.SiteBudget(w, s, six); ok {
					c.add(s, b)
				}
			}
		}
		out = append(out, c)
	}
	return out
}

// wanCalls is the part that is the same for all sites.
func wanCalls(cfg *config.Config, w config.WAN) WANCalls {
	rate, media := w.Shaped(), cfg.Budget(w)
	c := WANCalls{
		WAN: w.Interface, Uplink: w.Uplink, Margin: w.Margin, Shaped: rate,
		Share: cfg.Class(qos.Media).Share, Media: media.Rate, RTP: media.RTP(),
		Bound: milliseconds(w.Serialization),
		Sites: []SiteCalls{},
	}
	if rate > 0 {
		b := qos.VoiceBudgets(w.Line, cfg.QueueSites(), cfg.Classes)
		c.Local, c.All, c.Reserved = b.Local, b.Together(), b.Reserved
		if len(b.Sites) > 0 {
			c.budgets = budgetWords(w.Interface, b)
		}
	}

	long := func(what string, ip int, wire qos.ByteCount) {
		c.Longest = append(c.Longest, LongPacket{what, ip, wire, milliseconds(rate.Serialization(wire))})
	}
	long("data", int(cfg.Tunnels[tunnel.Data].MTU), cfg.FullPacket(w, tunnel.Data))
	long("voice", int(cfg.Tunnels[tunnel.Voice].MTU), cfg.FullPacket(w, tunnel.Voice))
	if sent, _ := w.InternetMTUs(); sent > 0 {
		long("internet tcp", sent, w.Metered(qos.ByteCount(sent)))
	}
	long("internet", qos.InternetMTU, w.Metered(qos.InternetMTU))
	return c
}

func budgetWords(wan string, b qos.Budgets) string {
	how := "each is reserved"
	if !b.Reserved {
		how = "more than can be reserved, so calls with all sites share the line, before all else"
	}
	return fmt.Sprintf("%s: voice budgets %s of the sites together, %s of what goes to no site: %s",
		wan, b.Together(), b.Local, how)
}

// add adds a site, grouped with sites that have the same figures.
func (c *WANCalls) add(site config.Site, b qos.Budget) {
	n := SiteCalls{Inner: familyName(b.CallIPv6), Outer: familyName(b.IPv6), Media: b.Rate, SRTP: siteSRTP(site, b)}
	tags := []qos.ByteCount{0, qos.SRTPTag}
	if n.SRTP != nil {
		tags[1] = n.SRTP.Bytes
	}
	for _, codec := range qos.Codecs {
		for _, tag := range tags {
			b.SRTP = tag
			one := codecCalls(b, codec)
			if b.PadTo > 0 {
				bare := b
				bare.PadTo = 0
				plain := codecCalls(bare, codec)
				one.Unpadded = &plain
			}
			n.Codecs = append(n.Codecs, one)
		}
	}
	for i := range c.Sites {
		n.Sites = c.Sites[i].Sites
		if reflect.DeepEqual(n, c.Sites[i]) {
			c.Sites[i].Sites = append(c.Sites[i].Sites, site.Name)
			return
		}
	}
	n.Sites = []string{site.Name}
	c.Sites = append(c.Sites, n)
}

func siteSRTP(s config.Site, b qos.Budget) *SiteSRTP {
	bytes := s.SRTPOverhead()
	if bytes == 0 {
		return nil
	}
	with, without := b, b
	with.SRTP, without.SRTP = bytes, 0
	return &SiteSRTP{
		Level: config.LevelWord(s.SRTP), Boxes: s.Box.IsValid(), Bytes: bytes,
		Rate:  with.Call(qos.G711) - without.Call(qos.G711),
		Fewer: without.Calls(qos.G711) - with.Calls(qos.G711),
	}
}

func codecCalls(b qos.Budget, c qos.Codec) CodecCalls {
	return CodecCalls{Codec: c.Name, SRTP: b.SRTP > 0, Steps: b.Steps(c), Packet: b.Packet(c),
		PerSecond: float64(time.Second) / float64(c.Interval), Call: b.Call(c), Calls: b.Calls(c)}
}

func milliseconds(d time.Duration) float64 {
	return float64(d.Round(time.Microsecond)) / float64(time.Millisecond)
}

func familyName(six bool) string {
	if six {
		return "IPv6"
	}
	return "IPv4"
}

// CallLines are the calls as comment lines for people.
func CallLines(wans []WANCalls) []string {
	var t comments
	t.say("packets of 20 ms; Opus at 32 kbit/s, constant; SRTP with tags of %d bytes; each direction by itself",
		qos.SRTPTag)
	for _, w := range wans {
		if w.Uplink == 0 {
			t.say("%s: its uplink is not known, so nothing is promised", w.WAN)
		} else {
			t.sayRates(w)
		}
		for _, s := range w.Sites {
			t.saySites(w, s)
		}
		if len(w.AsData) > 0 {
			t.say("%s to %s: the one tunnel is for data, so calls are data there, and nothing is promised",
				w.WAN, someOf(w.AsData))
		}
	}
	return t
}

// comments are lines that no tool reads.
type comments []string

func (t *comments) say(format string, args ...any) {
	*t = append(*t, "# "+fmt.Sprintf(format, args...))
}

var packetKinds = map[string]string{
	"data": "of data", "voice": "of signalling", "internet tcp": "to the internet by TCP", "internet": "to the internet",
}

func (t *comments) sayRates(w WANCalls) {
	t.say("%s: %s less %d %% = %s; media has %d %% of it, %s: %s for RTP, and %d %% more for its RTCP "+
		"(RFC 3550, section 6.2); signalling is a class of its own",
		w.WAN, w.Uplink, w.Margin, w.Shaped, w.Share, w.Media, w.RTP/qos.Kbit*qos.Kbit, units.RTCPShare)
	if w.budgets != "" {
		t.say("%s", w.budgets)
	}

	var parts []string
	for _, p := range w.Longest {
		parts = append(parts, fmt.Sprintf("%s %d bytes, %d on the wire, %.2f ms", packetKinds[p.What], p.IP, p.Wire, p.Time))
	}
	bound := "no bound"
	if w.Bound > 0 {
		bound = fmt.Sprintf("bound %g ms", w.Bound)
	}
	t.say("%s: a call's packet waits behind one packet at most (%s): %s", w.WAN, bound, strings.Join(parts, "; "))
}

func (t *comments) saySites(w WANCalls, s SiteCalls) {
	line := fmt.Sprintf("%s to %s, %s in %s", w.WAN, someOf(s.Sites), s.Inner, s.Outer)
	if s.Media != w.Media {
		line += fmt.Sprintf(", by its downlink %s", s.Media)
	}
	t.say("%s:", line)
	if s.SRTP != nil {
		t.say("  %s", s.SRTP.words())
	}

	for _, c := range s.Codecs {
		line := "  " + c.name() + ": " + sum(c.Steps) + " bytes; " + c.words()
		if c.Unpadded != nil {
			line += fmt.Sprintf("; without pad_to %d bytes, %s", c.Unpadded.Packet, c.Unpadded.words())
		}
		t.say("%s", line)
	}
}

func (s *SiteSRTP) words() string {
	who := "with phones there, at most"
	if s.Boxes {
		who = "between the boxes"
	}
	return fmt.Sprintf("srtp: %s, %s: %d bytes a packet, %.1f kbit/s a call of G.711, calls: %d fewer",
		s.Level, who, s.Bytes, float64(s.Rate)/1e3, s.Fewer)
}

func (c CodecCalls) name() string {
	if c.SRTP {
		return c.Codec + " with SRTP"
	}
	return c.Codec
}

func (c CodecCalls) words() string {
	return fmt.Sprintf("%g a second, %.1f kbit/s a call, calls: %d", c.PerSecond, float64(c.Call)/1e3, c.Calls)
}

// sum is the addition in one line: 160 + 12 RTP + … = 282.
func sum(steps []qos.Step) string {
	var b strings.Builder
	for i, s := range steps {
		switch {
		case i == 0:
			fmt.Fprintf(&b, "%d", s.Bytes)
		case s.Name == "padding":
			fmt.Fprintf(&b, " = %d, padded to %d,", int(s.Total)-s.Bytes, s.Total)
		case s.Bytes < 0:
			fmt.Fprintf(&b, " - %d %s", -s.Bytes, s.Name)
		default:
			fmt.Fprintf(&b, " + %d %s", s.Bytes, s.Name)
		}
	}
	return fmt.Sprintf("%s = %d", b.String(), steps[len(steps)-1].Total)
}

// someOf names a few of many.
func someOf(names []string) string {
	const few = 5
	if len(names) <= few {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:few], ", "), len(names)-few)
}
