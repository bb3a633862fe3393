package appliance

import (
	"errors"

	"ringway/appliance/problem"
)

// ownEndpoint is the component of endpoint names that do not resolve.
const ownEndpoint = "endpoint"

// ownProblems are the daemon's own problems, by what they are about. Each of its components has more (package
// component), by its name.
type ownProblems struct {
	commit, reconcile, interfaces, control, siteQueues, clock, endpoint *problem.Owner

	engine    *problem.Owner // that do not answer
	admission *problem.Owner // sites whose voice budget is used up
	counters  *problem.Owner // of the kernel, that cannot be read
	firewall  *problem.Owner // chains of other programs that may drop packets
	routes    *problem.Owner // of other programs, that take Ringway's packets
	mtu       *problem.Owner // WANs on which full packets leave in fragments
	clear     *problem.Owner // packets that were about to leave in clear

	applied map[string]*problem.Owner // appliedParts
}

// claimProblems makes the daemon the owner of its problems.
func claimProblems(s *problem.Set) (o ownProblems, err error) {
	claim := func(component string) *problem.Owner {
		owner, e := s.Own(component)
		err = errors.Join(err, e)
		return owner
	}
	o = ownProblems{
		commit: claim("commit"), reconcile: claim("reconcile"), interfaces: claim("interfaces"),
		control: claim("control"), siteQueues: claim("site-queues"), clock: claim("clock"), endpoint: claim(ownEndpoint),
		engine: claim("engine"), admission: claim("admission"), counters: claim("counters"),
		mtu: claim("mtu"), routes: claim("routes"), firewall: claim("firewall"),
		clear:   claim("clear-text"),
		applied: map[string]*problem.Owner{},
	}
	for part := range appliedParts {
		o.applied[part] = claim(part)
	}
	return o, err
}

// report reports err as the text of p, or resolves p if err is nil. It tells whether that is news.
func report(o *problem.Owner, p problem.Problem, err error) (news bool) {
	if err == nil {
		o.Resolve(p.Subject)
		return false
	}
	p.Text = err.Error()
	return o.Report(p)
}
