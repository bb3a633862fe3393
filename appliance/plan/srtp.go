package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"ringway/appliance/config"
	"ringway/srtp/keys/channel"
	"ringway/srtp/offer"
)

// SRTPRemarks say where the box encrypts media, and by what other sites know it.
func SRTPRemarks(cfg *config.Config) (out []string) {
	say := func(format string, args ...any) { out = append(out, "# "+fmt.Sprintf(format, args...)) }
	if cfg.Terminates() {
		var where []string
		for _, l := range slices.Concat(cfg.Voice, cfg.Data) {
			if level := cfg.LANSRTP[l.Device()]; level != offer.Off {
				where = append(where, fmt.Sprintf("%s %s", l.Device(), config.LevelWord(level)))
			}
		}
		for _, s := range cfg.Sites {
			if s.SRTP != offer.Off {
				where = append(where, fmt.Sprintf("site %s %s", s.Name, config.LevelWord(s.SRTP)))
			}
		}
		m := cfg.SIP.Media
		say("srtp: calls with %s are terminated here, at UDP ports %d-%d, which are for %d calls; %s at least, "+
			"keys of phones by %s", someOf(where), m.Ports.Low, m.Ports.High, (int(m.Ports.High-m.Ports.Low)+1)/4,
			m.Minimum, methodWords(m.Methods))
	}
	if cfg.Requires() {
		but := ", unless it is an emergency call"
		if cfg.SIP.Media.RequireEmergency {
			but = ""
		}
		say("srtp: require: a call without SRTP is refused%s; while nothing reads signalling, it waits", but)
	}
	if cfg.Boxes() {
		var own []string
		for _, six := range []bool{false, true} {
			uses := func(s config.Site) bool { return s.Box.IsValid() && s.Box.Is6() == six }
			if a := cfg.VoiceAddress(six); a != (netip.Addr{}) && slices.ContainsFunc(cfg.Sites, uses) {
				own = append(own, a.String())
			}
		}
		identity := ""
		if cfg.Identity != (channel.PublicKey{}) {
			identity = fmt.Sprintf(", identity: %s", cfg.Identity)
		}
		say("srtp: the sites with an identity have of this one box: %s%s", strings.Join(own, " or "), identity)
	}
	return out
}

func methodWords(all []offer.Keying) string {
	var words []string
	for _, k := range all {
		words = append(words, map[offer.Keying]string{offer.SDES: "sdes", offer.DTLS: "dtls"}[k])
	}
	return strings.Join(words, " or ")
}
