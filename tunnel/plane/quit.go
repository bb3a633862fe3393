package plane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"ringway/process"
	"ringway/tunnel"
)

// Quit ends the plane of class c and removes its files, without a daemon. That none runs is not an error. A
// plane that died or hangs does not say what its interface was: its UAPI socket is left to RemoveUAPI.
func Quit(ctx context.Context, runDir, uapiDir string, c tunnel.Class) error {
	return quit(ctx, runDir, uapiDir, c, process.Timing{})
}

func quit(ctx context.Context, runDir, uapiDir string, c tunnel.Class, t process.Timing) error {
	hello, err := process.Quit(ctx, kindOf(c, nil, nil), runDir, t)
	if err != nil || hello == nil {
		return err
	}
	var a about
	if err := json.Unmarshal(hello, &a); err != nil || a.Interface == "" {
		return err
	}
	return RemoveUAPI(uapiDir, a.Interface)
}

// RemoveUAPI removes the socket of interface iface where wg(8) looks, if no program listens there any more.
// It leaves a socket with a listener, which is another program's, and a file that is not a socket.
func RemoveUAPI(uapiDir, iface string) error {
	if iface == "" || iface != filepath.Base(iface) {
		return fmt.Errorf("remove UAPI socket: %q is not an interface name", iface)
	}
	path := uapiPath(uapiDir, iface)
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("remove UAPI socket: %w", err)
	case st.Mode().Type() != fs.ModeSocket:
		return nil
	}
	if err := process.ProbeUnix(path, unix.SOCK_STREAM); !errors.Is(err, unix.ECONNREFUSED) {
		return nil // it has a listener, or that is not known
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove UAPI socket: %w", err)
	}
	return nil
}

// Handshake has the plane that serves in runDir make new sessions with peers now, with all where none is
// named: a re-key on demand, for measurements. The protocol allows one in five seconds with a peer; the plane
// leaves out what comes earlier. It needs no supervisor, and changes none.
func Handshake(ctx context.Context, runDir string, class tunnel.Class, keys ...tunnel.PublicKey) error {
	c, err := process.Dial(kindOf(class, nil, nil), runDir)
	if err != nil {
		return fmt.Errorf("request a handshake from plane %s: %w", class, err)
	}
	defer c.Close()
	m, err := c.Call(ctx, process.Request{Type: typeHandshake, Body: handshakeRequest{keys}})
	if err != nil {
		return fmt.Errorf("request a handshake from plane %s: %w", class, err)
	}
	m.Close()
	return nil
}
