package control

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// caller is the process at the other end of a control connection. The zero caller may do nothing.
type caller struct {
	known  bool
	uid    uint32
	pid    int32
	groups []int
}

// peer reads the caller's credentials from the kernel.
func peer(conn net.Conn) (caller, error) {
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return caller{}, errors.New("not a Unix socket")
	}
	raw, err := unixConn.SyscallConn()
	if err != nil {
		return caller{}, err
	}

	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, credErr); err != nil {
		return caller{}, fmt.Errorf("read peer credentials: %w", err)
	}

	groups := append([]int{int(cred.Gid)}, supplementaryGroups(cred.Uid)...)
	return caller{known: true, uid: cred.Uid, pid: cred.Pid, groups: groups}, nil
}

// supplementaryGroups looks them up in the group database: SO_PEERCRED has only the primary group.
func supplementaryGroups(uid uint32) (groups []int) {
	u, err := user.LookupId(strconv.Itoa(int(uid)))
	if err != nil {
		return nil
	}
	ids, err := u.GroupIds()
	if err != nil {
		return nil
	}

	for _, id := range ids {
		if n, err := strconv.Atoi(id); err == nil {
			groups = append(groups, n)
		}
	}
	return groups
}

// mayRead and mayChange are the whole access policy of the socket. group is the id of control.group, 0 for none.
func (c caller) mayRead(group int) bool {
	return c.mayChange() || c.known && group > 0 && slices.Contains(c.groups, group)
}

func (c caller) mayChange() bool { return c.known && c.uid == 0 }

// name is the caller's user id for the log.
func (c caller) name() string {
	if !c.known {
		return "unknown"
	}
	return strconv.FormatUint(uint64(c.uid), 10)
}

// login is the caller's user id for the log, with the user that logged in, where the kernel knows (audit): root may be
// any of several people.
func (c caller) login() string {
	name := "uid " + c.name()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/loginuid", c.pid))
	id := strings.TrimSpace(string(text))
	const unset = "4294967295"
	if err != nil || id == "" || id == unset {
		return name
	}
	if u, err := user.LookupId(id); err == nil {
		return fmt.Sprintf("%s, logged in as %s", name, u.Username)
	}
	return fmt.Sprintf("%s, logged in as uid %s", name, id)
}
