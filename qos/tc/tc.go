// Package tc applies the plan of the queues to the kernel, reads it back and reads its counters, over
// rtnetlink, in the calling thread's network namespace. The HTB message of vishvananda/netlink has no
// overhead and no mpu, so messages are built here with its nl package.
package tc

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"ringway/qos"
)

// Observe reads the egress queues of the interfaces. Ingress hooks (clsact) are ignored, kernel defaults
// (handle 0:) read as an empty link, and an interface that does not exist is left out.
func Observe(interfaces []string) (qos.State, error) {
	var s qos.State
	for _, name := range interfaces {
		if _, ok := s.Link(name); ok {
			continue
		}
		index, err := linkIndex(name)
		if err != nil {
			if errors.As(err, &netlink.LinkNotFoundError{}) {
				continue
			}
			return qos.State{}, err
		}
		l, err := observeLink(name, index)
		if err != nil {
			return qos.State{}, fmt.Errorf("observe queues of %s: %w", name, err)
		}
		s.Links = append(s.Links, l)
	}
	return s.Canonical(), nil
}

func observeLink(name string, index int) (qos.Link, error) {
	l := qos.Link{Interface: name}
	msgs, err := dump(unix.RTM_GETQDISC, unix.RTM_NEWQDISC, index)
	if err != nil {
		return l, err
	}
	htb := false
	for _, m := range msgs {
		if m.handle == 0 || m.parent == netlink.HANDLE_INGRESS {
			continue
		}
		q, err := readQdisc(m)
		if err != nil {
			return l, err
		}
		htb = htb || q.HTB != nil
		l.Qdiscs = append(l.Qdiscs, q)
	}
	if !htb {
		return l, nil
	}
	if msgs, err = dump(unix.RTM_GETTCLASS, unix.RTM_NEWTCLASS, index); err != nil {
		return l, err
	}
	for _, m := range msgs {
		if m.kind != "htb" {
			continue // a leaf's own pseudo classes
		}
		c, err := readClass(m)
		if err != nil {
			return l, err
		}
		l.Classes = append(l.Classes, c)
	}
	return l, nil
}

// Apply makes the changes one by one, in order. After a failure it skips the rest of that interface's
// changes, which depend on the failed one, and continues with the others. The errors are joined.
func Apply(changes []qos.Change) error {
	if len(changes) == 0 {
		return nil
	}
	k, err := openKernel()
	if err != nil {
		return err
	}
	defer k.close()
	var errs []error
	index, failed := map[string]int{}, map[string]bool{}
	for _, c := range changes {
		if failed[c.Interface] {
			continue
		}
		i, known := index[c.Interface]
		var err error
		if !known {
			i, err = linkIndex(c.Interface)
			index[c.Interface] = i
		}
		if err == nil {
			err = k.apply(c, i)
		}
		if err != nil {
			failed[c.Interface] = true
			errs = append(errs, fmt.Errorf("%s: %w", describe(c), err))
		}
	}
	return errors.Join(errs...)
}

func describe(c qos.Change) string {
	if c.Class != nil {
		return fmt.Sprintf("%s HTB class %s on %s", c.Op, c.Class.Handle, c.Interface)
	}
	return fmt.Sprintf("%s %s qdisc %s on %s", c.Op, c.Qdisc.Kind, c.Qdisc.Handle, c.Interface)
}

// kernel is the socket of an Apply. Opening one for each change would take longer than the change.
type kernel struct {
	sock *nl.NetlinkSocket
	use  map[int]*nl.SocketHandle
}

func openKernel() (*kernel, error) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE) // no group: just a socket in the thread's namespace
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink socket: %w", err)
	}
	return &kernel{s, map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}}, nil
}

func (k *kernel) close() { k.sock.Close() }

func (k *kernel) apply(c qos.Change, ifindex int) error {
	var flags int
	switch c.Op {
	case qos.Add:
		flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	case qos.ReplaceOp:
		flags = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	}
	msg := &nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(ifindex)}
	var typ int
	var kind string
	var options *nl.RtAttr
	switch {
	case c.Class != nil:
		typ, kind = unix.RTM_NEWTCLASS, "htb"
		msg.Handle, msg.Parent = uint32(c.Class.Handle), uint32(c.Class.Parent)
		options = classOptions(*c.Class)
	case c.Qdisc != nil:
		typ, kind = unix.RTM_NEWQDISC, c.Qdisc.Kind
		msg.Handle, msg.Parent = uint32(c.Qdisc.Handle), uint32(c.Qdisc.Parent)
		options = qdiscOptions(*c.Qdisc)
	default:
		return errors.New("change without class or qdisc")
	}
	if c.Op == qos.DeleteOp {
		typ++ // RTM_DELQDISC, RTM_DELTCLASS
	}
	req := nl.NewNetlinkRequest(typ, flags|unix.NLM_F_ACK)
	req.AddData(msg)
	req.Sockets = k.use
	if c.Op != qos.DeleteOp {
		req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated(kind)))
		if c.Qdisc != nil && c.Qdisc.HTB != nil && c.Qdisc.HTB.Overhead != 0 {
			req.AddData(sizeTable(c.Qdisc.HTB.Overhead))
		}
		if options != nil {
			req.AddData(options)
		}
	}
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

func linkIndex(name string) (int, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return 0, fmt.Errorf("find interface %s: %w", name, err)
	}
	return l.Attrs().Index, nil
}
