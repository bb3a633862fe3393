package stream

// Advanced is the account that a sender has which has restored a. Whoever hands a to a process keeps this instead: the
// process may seal packets and end before it can say so, and the next one must not begin where it began.
func (a Account) Advanced() Account {
	s := NewSender(nil) // no packet is sealed
	s.Restore(a)
	return s.Account()
}

// EachKey calls f with every key, the newest first.
func (r *Receiver) EachKey(f func(*Key)) {
	for _, k := range r.keys {
		f(k)
	}
}
