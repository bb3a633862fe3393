package plane

import (
	"ringway/srtp/media"
	"ringway/srtp/stream"
)

// apply has the relay forward a pair as the book has it.
func (s *server) apply(p *pair) error {
	var both [2]media.Leg
	var made []*direction
	fail := func(err error) error {
		for _, d := range made {
			d.close()
		}
		return err
	}
	for i, l := range p.legs {
		both[i] = l.forMedia()
		for _, d := range []*direction{l.out, l.in} {
			if d == nil || d.sender != nil || d.receiver != nil {
				continue
			}
			made = append(made, d)
			if err := d.open(d == l.out, l.ClearSRTCP, 1); err != nil {
				return fail(err)
			}
		}
		if l.out != nil {
			both[i].Sender = l.out.sender
		}
		if l.in != nil {
			both[i].Receiver = l.in.receiver
		}
	}
	if err := s.relay.Set(both[0], both[1]); err != nil {
		return fail(err)
	}
	return nil
}

// open makes the stream of a direction, which goes on where another one was.
func (d *direction) open(out, clearSRTCP bool, now int64) error {
	var all []*stream.Key
	for i := range d.Keys {
		k, err := d.Keys[i].live()
		if err != nil {
			for _, k := range all {
				k.Wipe()
			}
			return err
		}
		all = append(all, k)
	}
	if out {
		d.sender = stream.NewSender(all[0])
		if d.resumed {
			d.sender.Restore(d.Sent)
			d.Sent, d.resumed = d.Sent.Advanced(), false
		}
		return nil
	}
	d.receiver = stream.NewReceiver(all[0])
	d.receiver.AllowUnencryptedRTCP = clearSRTCP
	d.receiver.Restore(d.Heard, now)
	for i, k := range all[1:] {
		if err := d.receiver.Add(k); err != nil {
			for _, k := range all[i+1:] {
				k.Wipe()
			}
			d.close()
			return err
		}
	}
	return nil
}

// settle notes how far the streams have come that are out of use. The relay has given them up.
func (c *change) settle() {
	for _, d := range c.out {
		if d.sender != nil {
			d.Sent = d.sender.Account()
		}
	}
	for _, d := range c.in {
		if d.receiver != nil {
			d.Heard = d.receiver.Heard()
		}
	}
}

// close gives the stream of a direction up.
func (d *direction) close() {
	if d.sender != nil {
		d.sender.Wipe()
	}
	if d.receiver != nil {
		d.receiver.Wipe()
	}
	d.sender, d.receiver = nil, nil
}
