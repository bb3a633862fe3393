package host

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Ready is what a holder prints once others may enter its namespaces; keepWord is what the lab's process 1
// may be told on its standard input.
const (
	Ready    = "ready"
	keepWord = "keep"
)

// Dir is the directory of the lab's files on a host: a tmpfs of the host's own, so that it disappears with
// the host.
const Dir = "/run/lab"

// Hold is the main function of a process that `ringway lab holder …` started: it runs in namespaces of its
// own and keeps them alive. `init` is process 1 of the lab's PID namespace: it exits when its standard input
// closes, that is when the lab ends in any way, and the kernel kills everything in the namespace with it.
// `host NAME` holds the network and the mounts of one host and never exits by itself.
func Hold(args []string, stdin io.Reader, stdout io.Writer) error {
	switch {
	case len(args) == 1 && args[0] == "init" && os.Getpid() == 1:
		return holdLab(stdin, stdout)
	case len(args) == 2 && args[0] == "host" && os.Getppid() == 0:
		return holdHost(args[1], stdout)
	}
	return errors.New("only `ringway lab` starts the holder, in namespaces of its own")
}

func holdLab(stdin io.Reader, stdout io.Writer) error {
	// Ctrl-C reaches none of these processes (each has its own process group or session), but a careless
	// `kill` might.
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGPIPE)
	if err := privateMounts(); err != nil {
		return err
	}
	go reap()
	if _, err := fmt.Fprintln(stdout, Ready); err != nil {
		return err
	}
	said, err := io.ReadAll(stdin)
	if err == nil && strings.TrimSpace(string(said)) == keepWord {
		pause()
	}
	return nil // process 1 ends, and the kernel ends the namespace
}

// reap collects orphans: daemons that were killed leave children, which process 1 of their PID namespace
// inherits.
func reap() {
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	for range children {
		for {
			var ws unix.WaitStatus
			pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
			if pid <= 0 && !errors.Is(err, unix.EINTR) {
				break
			}
		}
	}
}

func holdHost(name string, stdout io.Writer) error {
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGPIPE)
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("set the host name %s: %w", name, err)
	}
	if err := privateMounts(); err != nil {
		return err
	}
	if err := mountSys(); err != nil {
		return err
	}
	if err := mountOwnDirs(); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(stdout, Ready); err != nil {
		return err
	}
	pause()
	return nil
}

func pause() {
	for {
		_ = unix.Pause()
	}
}

// privateMounts separates the mount namespace from the machine's and mounts the /proc of this PID namespace.
func privateMounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

// mountSys mounts a /sys that shows the devices of this network namespace, and keeps the cgroups, which every
// distribution mounts below /sys.
func mountSys() error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	cgroups, err := unix.Open("/sys/fs/cgroup", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(cgroups)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", flags, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	if cgroups >= 0 && err == nil {
		// Not every machine has cgroups, and the lab does not need them.
		_ = unix.Mount(fmt.Sprintf("/proc/self/fd/%d", cgroups), "/sys/fs/cgroup", "", unix.MS_BIND|unix.MS_REC, "")
	}
	return nil
}

// mountOwnDirs gives the host its own /run (and /var/run, where WireGuard sockets are named after interfaces,
// so that two hosts would collide), /etc/ringway and /var/lib/ringway. The machine's own are neither visible
// nor created: where such a directory does not exist, its parent is replaced by a copy made of links.
func mountOwnDirs() error {
	// Opened before /run is covered: the links of the copies point there.
	parents := map[string]int{}
	for _, dir := range []string{"/etc", "/var/lib"} {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", dir, err)
		}
		defer unix.Close(fd)
		parents[dir] = fd
	}
	if err := mountTmpfs("/run"); err != nil {
		return err
	}
	for _, dir := range []string{Dir, "/run/lock", "/run/wireguard"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if target, err := filepath.EvalSymlinks("/var/run"); err == nil && target != "/run" {
		if err := unix.Mount("/run", "/var/run", "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("show /run as /var/run: %w", err)
		}
	}
	for _, own := range []string{"/etc/ringway", "/var/lib/ringway"} {
		if st, err := os.Lstat(own); err == nil && st.IsDir() {
			if err := mountTmpfs(own); err != nil {
				return err
			}
			continue
		}
		if err := linkedCopy(filepath.Dir(own), parents[filepath.Dir(own)]); err != nil {
			return err
		}
		if err := os.Mkdir(own, 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod("/var/lib/ringway", 0o700); err != nil {
		return err
	}
	return hideNameServers()
}

// hideNameServers gives the host an empty /etc/resolv.conf. The machine's name servers cannot be reached from a host,
// and a program that asks them waits for as long as it likes.
func hideNameServers() error {
	const file = "/etc/resolv.conf"
	if _, err := os.Stat(file); err != nil {
		return nil // there is none
	}
	empty := filepath.Join(Dir, "resolv.conf")
	if err := os.WriteFile(empty, nil, 0o644); err != nil {
		return err
	}
	target, err := filepath.EvalSymlinks(file)
	if err != nil {
		return err
	}
	if err := unix.Mount(empty, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("hide the name servers: %w", err)
	}
	return nil
}

// linkedCopy covers dir with a tmpfs of links to its previous contents.
func linkedCopy(dir string, fd int) error {
	was := filepath.Join(Dir, "machine", dir)
	if err := os.MkdirAll(was, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), was, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("keep %s reachable: %w", dir, err)
	}
	if err := mountTmpfs(dir); err != nil {
		return err
	}
	entries, err := os.ReadDir(was)
	if err != nil {
		return fmt.Errorf("read %s: %w", dir, err)
	}
	for _, e := range entries {
		target := filepath.Join(was, e.Name())
		if e.Type()&os.ModeSymlink != 0 { // a relative link must keep its starting point
			if target, err = os.Readlink(target); err != nil {
				return err
			}
		}
		if err := os.Symlink(target, filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func mountTmpfs(dir string) error {
	if err := unix.Mount("ringway-lab", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=512m"); err != nil {
		return fmt.Errorf("mount a tmpfs on %s: %w", dir, err)
	}
	return nil
}
