package compare

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"time"

	"ringway/appliance/config"
	"ringway/appliance/control"
	"ringway/appliance/dial"
	"ringway/appliance/endpoint"
	"ringway/appliance/engine"
	"ringway/appliance/journal"
	"ringway/appliance/lease"
	"ringway/appliance/plan"
	"ringway/appliance/status"
	"ringway/appliance/wanted"
	"ringway/firewall/nft"
	"ringway/qos"
	"ringway/qos/tc"
	"ringway/routing"
	"ringway/tunnel"
	"ringway/tunnel/kernel"
)

// planPatience is how long a plan waits for the daemon's answer.
const planPatience = 2 * time.Second

// Files are those of a daemon that a plan asks or, without one, reads.
type Files struct {
	Socket    string
	Journal   string
	Endpoints string
	Leases    string // a directory
}

// Request asks what a config would change.
type Request struct {
	Path    string // where the config will stand: key files are looked for beside it
	Name    string // what problems call it; empty: Path
	Text    []byte
	Options plan.Options
	Files   Files
	Build   string // of this program
}

// Plan asks the running daemon what the config would change: it knows leases, endpoints and everything else
// that is learned at run time. Without a daemon, or with one that cannot answer, the same comparison is made
// from what the kernel and the state on disk show to this user, and the plan's Basis says so. It changes
// nothing and opens no key file.
func Plan(ctx context.Context, r Request) (plan.Plan, error) {
	if err := r.Options.Check(); err != nil {
		return plan.Plan{}, err
	}
	cfg, err := config.Parse(r.Path, r.Text, config.Named(r.Name), config.WithoutKeyFiles())
	if err != nil {
		return plan.Plan{}, err
	}

	client := control.NewClient(r.Files.Socket)
	defer client.Close()
	asking, cancel := context.WithTimeout(ctx, planPatience)
	defer cancel()
	p, err := client.Plan(asking, r.Text, r.Name, r.Options)
	if err == nil {
		if p.Build != r.Build {
			p.Basis = fmt.Sprintf(
				"computed by the running daemon, which is build %s (this is %s): what its reload would change",
				p.Build,
				r.Build,
			)
		}
		return p, nil
	}

	basis, running, err := withoutAnswer(asking, client, r, err)
	if err != nil {
		return plan.Plan{}, err
	}
	p, err = unaided{cfg: cfg, files: r.Files, running: running}.plan(ctx, r.Options)
	p.Build, p.Basis = r.Build, basis
	return p, err
}

// withoutAnswer says why the daemon's answer is missing and what the plan is based on instead. An answer that
// refuses the config is an error.
func withoutAnswer(
	ctx context.Context,
	client *control.Client,
	r Request,
	err error,
) (string, *status.Status, error) {
	const based = "based on what the kernel and the files of the state directory show to this user, not on " +
		"what the daemon knows"
	var refused *control.Error
	switch {
	case errors.Is(err, control.ErrNotRunning):
		return "", nil, nil
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Sprintf("the daemon did not answer within %s: %s", planPatience, based), nil, nil
	case errors.As(err, &refused) && refused.Code == http.StatusNotFound:
		st, err := client.Status(ctx)
		if err != nil {
			return "the daemon is of another build and cannot plan: " + based, nil, nil
		}
		return fmt.Sprintf(
			"the daemon is build %s, which cannot plan (this is %s): based on its status, and on what the kernel "+
				"and the files of the state directory show to this user",
			st.Build,
			r.Build,
		), &st, nil
	case errors.As(err, &refused) && refused.Code == http.StatusForbidden:
		return "this user may not ask the daemon (run as root, or as a member of control.group): " + based, nil, nil
	case errors.As(err, &refused):
		return "", nil, fmt.Errorf("the daemon cannot plan this: %w", err)
	}
	return fmt.Sprintf("the daemon gave no answer (%v): %s", err, based), nil, nil
}

// unaided plans without a daemon, from what a daemon would start with.
type unaided struct {
	cfg     *config.Config
	files   Files
	running *status.Status // of a daemon that cannot plan; nil: none is known
}

func (u unaided) plan(ctx context.Context, o plan.Options) (plan.Plan, error) {
	var j *journal.Journal
	f := wanted.Facts{Queues: qos.AssumedFeatures(), Leases: map[string]routing.Lease{}, WANMTU: WANMTU(u.cfg)}
	f.WireMTU = WireMTU(f.WANMTU)
	endpoints := endpoint.Load(os.DevNull, slog.New(slog.DiscardHandler))
	if !o.All {
		j, _ = journal.Load(u.files.Journal) // an empty one without a daemon, or where it cannot be read
		if os.Geteuid() == 0 {
			u.probe(&f)
		}
		// A start goes on with what a daemon of this boot left on disk.
		held := lease.Remembered(u.files.Leases, u.cfg)
		dial.Remembered(held, u.files.Leases, u.cfg)
		f.Leases, f.Advertised, f.Delegated = held.Leases, held.Advertised, held.Delegated
		endpoints = endpoint.Load(u.files.Endpoints, slog.New(slog.DiscardHandler))
	}
	endpoints.SetLiterals(u.cfg.TunnelSites())
	f.Remotes = endpoints.Remotes
	f.Endpoint, f.Heard, f.Through = endpoints.Tell, endpoints.Where, ThroughWAN(endpoints.Where)
	if u.running != nil {
		u.fromStatus(&f)
	}
	if o.All {
		return plan.Whole(u.cfg, f, wanted.From(u.cfg, f), o), nil
	}

	c := Config(ctx, u.cfg, f, j, u.tunnels)
	u.assumeInterfaces(&c)
	return c.Describe(o)
}

// probe finds out what this kernel can do, as a start does.
func (u unaided) probe(f *wanted.Facts) {
	if probed, err := tc.Probe(); err == nil {
		f.Queues = probed
	}
	if missing, err := nft.Probe(); err == nil {
		f.FirewallMissing = missing
	}
	if supported, err := kernel.Supported(); err == nil {
		f.KernelWireGuard = supported
	}
	f.OtherChains, _ = nft.Others()
}

// fromStatus takes what a daemon of an older build says of itself.
func (u unaided) fromStatus(f *wanted.Facts) {
	if u.running.QueueFeatures.HTB {
		f.Queues = u.running.QueueFeatures
	}
	at := map[tunnel.Class]map[tunnel.PublicKey]netip.AddrPort{}
	for _, t := range u.running.Tunnels {
		f.KernelWireGuard = f.KernelWireGuard || t.Class == tunnel.Data && t.Engine == tunnel.EngineKernel
		at[t.Class] = map[tunnel.PublicKey]netip.AddrPort{}
		for _, p := range t.Peers {
			at[t.Class][p.PublicKey] = p.Endpoint
		}
	}
	f.Heard = func(c tunnel.Class, s tunnel.Site) (netip.AddrPort, uint64) { return at[c][s.PublicKey], 0 }
	f.Endpoint = nil // what runs may have heard a site elsewhere, and the daemon keeps to that
}

// tunnels compares devices with the status of a daemon, which holds no keys; without one they are taken as
// absent.
func (u unaided) tunnels(_ context.Context, devices []tunnel.Device) (out []plan.Tunnel) {
	for _, d := range devices {
		if u.running == nil {
			out = append(out, plan.Tunnel{Lines: plan.Device(d)})
			continue
		}
		t := plan.Tunnel{Lines: plan.Device(d), Note: "keys are not compared"}
		for _, have := range u.running.Tunnels {
			if have.Class == d.Class {
				t.Lines = tunnel.Diff(d, engine.WithKeysOf(d, have), nil, time.Now()).Words()
			}
		}
		out = append(out, t)
	}
	return out
}

// assumeInterfaces shows the queues of interfaces that this machine does not have: without a daemon a plan is
// also read on other machines than the one it is for.
func (u unaided) assumeInterfaces(c *Comparison) {
	for _, name := range c.Wanted.Queues.Interfaces() {
		if _, ok := c.Observed.Queues.State.Link(name); !ok {
			c.Observed.Queues.State.Links = append(c.Observed.Queues.State.Links, qos.Link{Interface: name})
		}
	}
	if c.Observed.Queues.Err == nil {
		c.Queues = qos.Diff(c.Wanted.Queues, c.Observed.Queues.State)
	}
}
