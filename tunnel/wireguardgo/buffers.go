package wireguardgo

import (
	"fmt"
	"reflect"
	"unsafe"

	"golang.zx2c4.com/wireguard/device"
)

// maxBuffers is how many message buffers of 64 KiB a device may have out at once, whatever arrives: 64 MiB. Who asks for
// one more waits until one comes back. It is above what can lie still: 256 are the readers' own, 256 (waitersAll) may
// wait for a session, and three bursts of handshake messages may wait for the workers, who need buffers themselves.
const maxBuffers = 1024

// boundBuffers bounds the device's pool of message buffers, which is without bound on Linux. The bound is the device
// package's own, for phones; on Linux its setting is a constant 0, and no call changes it. Nothing may have been taken from
// the pool before: what was taken uncounted must not be counted in.
func boundBuffers(d *device.Device, most uint32) error {
	pool := reflect.ValueOf(d).Elem().FieldByName("pool")
	if pool.Kind() != reflect.Struct {
		return fmt.Errorf("bound the engine's memory: this wireguard-go has no buffer pools")
	}
	buffers := pool.FieldByName("messageBuffers")
	if !buffers.IsValid() || buffers.Type() != reflect.TypeFor[*device.WaitPool]() {
		return fmt.Errorf("bound the engine's memory: this wireguard-go has another buffer pool")
	}
	bound := buffers.Elem().FieldByName("max")
	if bound.Kind() != reflect.Uint32 {
		return fmt.Errorf("bound the engine's memory: this wireguard-go's buffer pool has no bound")
	}
	*(*uint32)(unsafe.Pointer(bound.UnsafeAddr())) = most
	return nil
}
