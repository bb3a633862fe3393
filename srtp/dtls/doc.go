// Package dtls agrees on the keys of SRTP in the media's own path (DTLS-SRTP: RFC 5763, RFC 5764, RFC 8842), around
// the protocol of pion/dtls, which is DTLS 1.2. It is for the process that forwards media, on ordinary threads: the
// forwarding thread sorts packets by their first byte and hands over those that are DTLS; what comes back is keys.
//
// What it adds to the library is what a box needs whose ports anyone can reach: bounds on everything, and nothing
// that is not authenticated ends a handshake or an association.
//
//   - At most 30 handshakes a second begin and 128 run at once; each leg and each source has limits of its own, the
//     address that signalling named one apart from all others, so that a stranger's packets do not use up the peer's.
//   - A ClientHello makes state, because the library chooses the cookie of its HelloVerifyRequest at random and keeps
//     it with the handshake: a cookie that could be computed again would need another library. So handshakes whose
//     cookie has not come back are few: four a leg, 64 in all, and they make way for others.
//   - The peer's certificate counts only if its fingerprint was signalled. Where the peer's first message overtakes its
//     answer, the handshake goes on and its keys are held until the answer is there.
//
// Not here: DTLS 1.0 and 1.3, renegotiation, sessions that are resumed, connection identifiers, data channels.
package dtls
