package media

import (
	"fmt"

	"ringway/srtp/stream"
)

// AddKey has a leg be opened with another key, too. From its return on the other end may use the key. On an error the
// key is the caller's.
func (r *Relay) AddKey(leg uint64, k *stream.Key) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	in, _, err := r.flowLocked(leg)
	if err != nil {
		return err
	}
	if in.state.receiver == nil {
		return fmt.Errorf("leg %d has no keys yet", leg)
	}
	var failed error
	if err := r.askLocked(in.from.Side, func() { failed = in.state.receiver.Add(k) }); err != nil {
		return err
	}
	return failed
}

// DropKey has a leg no longer be opened with the key of that MKI, and wipes it. The last key stays.
func (r *Relay) DropKey(leg uint64, mki []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	in, _, err := r.flowLocked(leg)
	if err != nil {
		return err
	}
	if in.state.receiver == nil {
		return fmt.Errorf("leg %d has no keys yet", leg)
	}
	return r.askLocked(in.from.Side, func() { in.state.receiver.Drop(mki) })
}

// UseKey has what a leg is sent be protected with another key from now on, and wipes the one before. Indices go on.
// The caller has seen to it that the next process knows the key.
func (r *Relay) UseKey(leg uint64, k *stream.Key) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, towards, err := r.flowLocked(leg)
	if err != nil {
		return err
	}
	if towards.state.sender == nil {
		return fmt.Errorf("leg %d has no keys yet", leg)
	}
	if towards.state.sender.Key() == k { // a thread changes it at our request alone
		return fmt.Errorf("leg %d: the key is in use", leg)
	}
	var before *stream.Key
	if err := r.askLocked(towards.from.Side, func() {
		before = towards.state.sender.Use(k)
		towards.to.sealed.Store(0)
	}); err != nil {
		return err
	}
	before.Wipe() // no thread has it: it was replaced between two packets
	towards.to.rotations.Add(1)
	return nil
}
