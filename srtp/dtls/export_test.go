package dtls

// Held returns the keys that the leg holds for an answer.
func (e *Endpoint) Held(id Leg) *Keys {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, h := range e.legs[id].handshakes {
		if h.keys != nil {
			return h.keys
		}
	}
	return nil
}
