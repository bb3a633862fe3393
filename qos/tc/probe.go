package tc

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"ringway/qos"
)

// Probe finds out what the running kernel supports by trying it: on the loopback of a temporary network
// namespace, so that nothing of the machine's is touched. Where no namespace can be created (systemd's
// RestrictNamespaces=, no CAP_SYS_ADMIN), it uses a temporary TUN device that is never up. Needs root.
func Probe() (qos.Features, error) {
	type result struct {
		f   qos.Features
		err error
	}
	done := make(chan result)
	go func() {
		// Never unlocked: the thread ends with the goroutine and takes the namespace along.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		switch {
		case errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOSPC):
			f, err := probeOnTUN()
			done <- result{f, err}
		case err != nil:
			done <- result{err: fmt.Errorf("probe queueing features: make a network namespace: %w", err)}
		default:
			f, err := probe(loopback)
			done <- result{f, err}
		}
	}()
	r := <-done
	return r.f, r.err
}

// loopback is the first interface of every namespace.
const loopback = 1

func probeOnTUN() (qos.Features, error) {
	tun := &netlink.Tuntap{
		LinkAttrs: netlink.LinkAttrs{Name: probeName("t")}, Mode: netlink.TUNTAP_MODE_TUN,
		Flags: netlink.TUNTAP_NO_PI, NonPersist: true, Queues: 1,
	}
	if err := netlink.LinkAdd(tun); err != nil {
		return qos.Features{}, fmt.Errorf("probe queueing features: make a TUN device: %w", err)
	}
	defer func() {
		for _, f := range tun.Fds {
			f.Close() // and the device is gone
		}
	}()
	link, err := netlink.LinkByName(tun.Name)
	if err != nil {
		return qos.Features{}, fmt.Errorf("probe queueing features: find the TUN device: %w", err)
	}
	return probe(link.Attrs().Index)
}

// probeName differs between processes that probe at the same time.
func probeName(kind string) string { return fmt.Sprintf("rwprobe%s%d", kind, os.Getpid()%100000) }

// probe tries everything on the interface dev.
func probe(dev int) (qos.Features, error) {
	k, err := openKernel()
	if err != nil {
		return qos.Features{}, err
	}
	defer k.close()
	frame := qos.WireFrame(1 << 16) // loopback's, or the kernel's log complains
	root := func(q qos.Qdisc) bool {
		q.Handle, q.Parent = 0x10000, qos.RootHandle
		if k.apply(qos.Change{Op: qos.ReplaceOp, Qdisc: &q}, dev) != nil {
			return false
		}
		return k.apply(qos.Change{Op: qos.DeleteOp, Qdisc: &q}, dev) == nil
	}
	prio := nl.TcPrioMap{
		Bands: 3, Priomap: [nl.TC_PRIO_MAX + 1]uint8{1, 2, 2, 2, 1, 2, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1},
	}
	clsact := qos.Qdisc{Handle: 0xffff0000, Parent: netlink.HANDLE_INGRESS, Kind: "clsact"}
	ifb := &netlink.Ifb{LinkAttrs: netlink.LinkAttrs{Name: probeName("i")}}
	haveIFB := netlink.LinkAdd(ifb) == nil
	if haveIFB {
		_ = netlink.LinkDel(ifb) // the namespace may be the machine's own
	}
	return qos.Features{
		HTB: root(qos.Qdisc{Kind: "htb", HTB: &qos.HTB{}}),
		TBF: root(qos.Qdisc{
			Kind: "tbf", TBF: &qos.TBF{Rate: qos.SegmentRate(frame), Burst: frame, Limit: frame},
		}),
		BFIFO:   root(qos.Qdisc{Kind: "bfifo", FIFO: &qos.FIFO{Limit: 4000}}),
		FQCoDel: root(qos.Qdisc{Kind: "fq_codel"}),
		Cake:    root(qos.Qdisc{Kind: "cake"}),
		FQ:      root(qos.Qdisc{Kind: "fq"}),
		Prio:    root(qos.Qdisc{Kind: "prio", Options: prio.Serialize()}),
		IFB:     haveIFB,
		Ingress: k.apply(qos.Change{Op: qos.Add, Qdisc: &clsact}, dev) == nil,
	}, nil
}
