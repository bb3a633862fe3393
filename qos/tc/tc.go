// Package tc carries the plan of the WAN's queues into the kernel: it observes, applies and
// counts, over rtnetlink, in the calling thread's network namespace. It is the one importer of
// vishvananda/netlink in the domain of queues; the library's own HTB message has no overhead and
// no mpu, so the messages are built here on its nl package. The composition imports it.
package tc

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"ringway/qos"
)

// Observe reads the egress queues of the interfaces. Ingress hooks (clsact) are not looked at,
// kernel defaults (handle 0:) stand for an empty link, an interface that is not there is left out.
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

// Apply writes the changes one by one, in their order. After one that fails it leaves that interface,
// whose further changes build on it, and goes on with the others. All errors come back joined.
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

// kernel is one socket for all changes of an Apply: to open one for each would take longer than the change.
type kernel struct {
	sock *nl.NetlinkSocket
	use  map[int]*nl.SocketHandle
}

func openKernel() (*kernel, error) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE) // no group: a socket of the thread's namespace, and no more
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
		return errors.New("a change of nothing")
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
